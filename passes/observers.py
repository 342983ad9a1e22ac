"""Observers: what watches a pipeline run."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..ir import (
    DType,
    Exactness,
    Graph,
    GraphshrinkError,
    Node,
    Refusal,
    TensorType,
    VerificationError,
    verify,
)
from ..ir.files import keep_inputs, write_text
from .base import FunctionPass, Pass, PassError
from .pipeline import PassRecord

log = logging.getLogger(__name__)

Outputs = Sequence[npt.NDArray[Any]]
Nudged = Callable[[], Sequence[Callable[[Graph], Outputs]]]


class CheckFailed(PassError):
    """A pass changed the numbers more than its exactness class allows."""


@dataclass
class Verify:
    """Structure, types, and an unchanged signature after every pass; always on."""

    _signature: tuple[Any, ...] = ()

    def before(self, step: Pass, graph: Graph) -> None:
        """Remember the signature."""
        self._signature = _signature(graph)

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Verify.

        Raises:
            PassError: If the graph is broken or its signature changed.
        """
        try:
            verify(graph)
        except VerificationError as error:
            raise PassError(f"pass {step} left a broken graph: {error}") from error
        inputs, names, types = _signature(graph)
        if (inputs, names) != self._signature[:2]:
            raise PassError(f"pass {step} changed the inputs or the names of the outputs")
        for name, was, now in zip(names, self._signature[2], types, strict=True):
            if not was.accepts(now):
                raise PassError(f"pass {step} changed output {name} from {was} to {now}")


def _signature(
    graph: Graph,
) -> tuple[tuple[tuple[str, TensorType], ...], tuple[str, ...], tuple[TensorType, ...]]:
    return (
        tuple((v.name, v.type) for v in graph.inputs),
        tuple(graph.output_names),
        tuple(v.type for v in graph.outputs),
    )


@dataclass
class Writable:
    """Every node that a pass makes can be written by the host; on where the context has the host's answer.

    A pass of this package that makes one which cannot be is undone, and the report has the reason. For a pass of somebody
    else it is an error that names the pass.

    Args:
        unwritable: Why a node cannot be written, or ``None``.
        leave_to_check: A :class:`Check` deals with passes that are not undone here.
    """

    unwritable: Callable[[Node], str | None]
    leave_to_check: bool = False
    _known: dict[Node, tuple[Any, ...]] = field(default_factory=dict, repr=False)
    _backup: Graph | None = field(default=None, repr=False)

    def before(self, step: Pass, graph: Graph) -> None:
        """Remember the nodes that the host did not say word for word, and the graph if it may be needed again."""
        self._known = dict(_spelled(graph))
        self._backup = graph.clone() if _is_ours(step) and not step.asks_first else None

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Ask about the nodes that are new or were changed.

        Raises:
            PassError: If one cannot be written and the pass cannot be undone.
        """
        backup, self._backup = self._backup, None
        if not record.rewrites:
            return
        for node, meaning in _spelled(graph):
            if self._known.get(node) == meaning:
                continue
            reason = self.unwritable(node)
            if reason is None:
                continue
            if backup is None and self.leave_to_check:
                return
            if backup is None:
                raise PassError(
                    f"pass {step} made {node.name}, which cannot be written again: {reason}"
                )
            graph.adopt(backup)
            text = f"{step} was undone: {reason}"
            record.refusals.append(Refusal(node.name, text, node.op.name))
            record.rewrites = []
            return


def _spelled(graph: Graph) -> Iterator[tuple[Node, tuple[Any, ...]]]:
    """The nodes that have no host node to be copied from, each with what it computes."""
    for node in graph.nodes:
        if node.origin is None:
            yield node, (node.op, *map(id, node.inputs))


def _is_ours(step: Pass) -> bool:
    return type(step).__module__.rpartition(".")[0] == __package__ and not isinstance(
        step, FunctionPass
    )


@dataclass
class Timing:
    """Seconds for each pass."""

    _start: float = 0.0

    def before(self, step: Pass, graph: Graph) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Write the seconds into the record."""
        record.seconds = time.perf_counter() - self._start


@dataclass
class Dump:
    """Writes the text of the graph after every pass into a folder.

    Attributes:
        folder: The folder; it is made if it is not there.
        inputs: Files that must not be overwritten, each with what it is.
    """

    folder: Path
    inputs: Sequence[tuple[str, Path]] = ()
    _count: int = 0

    def before(self, step: Pass, graph: Graph) -> None:
        """Write the graph that the pipeline starts from."""
        if self._count == 0:
            self._write("input", graph)

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Write the graph."""
        self._write(step.name, graph)

    def _write(self, name: str, graph: Graph) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
        path = self.folder / f"{self._count:02d}-{word}.txt"
        keep_inputs([path], self.inputs)
        write_text(path, graph.text(), errors="surrogateescape")
        self._count += 1


TOLERANCE: dict[DType | None, float] = {
    DType.F64: 1e-10, DType.F32: 1e-4, DType.F16: 2e-2, DType.BF16: 1e-1, None: 1e-4,
}  # fmt: skip
"""How far an exact pass may move an output, relative to its largest value, by element type."""


def relative_error(reference: Outputs, outputs: Outputs) -> float:
    """The largest error over all outputs, each relative to the largest magnitude of its reference.

    NaN and infinity must stand at the same places; anything else than numbers must be equal. A
    difference of that kind, or of shape, counts as infinite.
    """
    if len(reference) != len(outputs):
        return float("inf")
    worst = 0.0
    for want, got in zip(reference, outputs, strict=True):
        worst = max(worst, _array_error(np.asarray(want), np.asarray(got)))
    return worst


def _array_error(want: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.dtype.kind not in "fcV" or (want.dtype.kind == "V" and not want.dtype.isnative):
        return 0.0 if bool(np.all(want == got)) else float("inf")
    if want.dtype.kind != "c":
        want, got = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(want[finite]).max())
    gap = float(np.abs(want[finite] - got[finite]).max())
    if not np.isfinite(gap):
        return float("inf")
    # Below the smallest normal float32 the quotient would be noise.
    return gap / max(scale, 1e-30) if gap else 0.0


def tolerance_of(graph: Graph) -> float:
    """How far an exact pass may move the outputs of ``graph``, relative to their largest value.

    The coarsest floating-point type anywhere decides: a half-precision body with float32 outputs rounds
    like half precision.
    """
    found = {v.type.dtype for v in graph.values()}
    return max(TOLERANCE[d] for d in (*(d for d in found if d in TOLERANCE), DType.F64))


NOISE_FACTOR = 4.0
"""An exact pass may move an output this many times as far as rounding the inputs otherwise does."""

MOST_NOISE = 0.05
"""Beyond this error no sensitivity to rounding excuses an exact pass."""


def noise_limit(tolerance: float, reference: Outputs, nudged: Iterable[Outputs]) -> float:
    """The error to allow where a model amplifies rounding so much that ``tolerance`` is out of reach.

    A network whose outputs are the small tail of a sigmoid moves by percents of them when its inputs move by one
    rounding unit. No rewrite can be held to more than that: an error within what such a change of the inputs causes
    is what numerical analysis calls backward stable.

    Args:
        tolerance: The error allowed in any case.
        reference: The outputs of the unchanged model.
        nudged: Its outputs for inputs that were moved by one rounding unit, at random, several times.
    """
    noise = max((relative_error(reference, outputs) for outputs in nudged), default=0.0)
    return max(tolerance, min(NOISE_FACTOR * noise, MOST_NOISE))


def allowed(
    tolerance: float, error: float, reference: Outputs, graph: Graph, nudged: Nudged
) -> float:
    """``tolerance``, or more where ``graph`` is so sensitive to rounding that ``error`` may come of that.

    ``nudged`` is only called where it decides; see :func:`noise_limit`.
    """
    if not tolerance < error < MOST_NOISE:
        return tolerance
    return noise_limit(tolerance, reference, (run(graph) for run in nudged()))


@dataclass
class Check:
    """Differential numerics: run the graph before and after every pass and compare the outputs.

    Args:
        evaluate: Runs a graph on the check inputs and gives its outputs.
        on_failure: ``"raise"``, or ``"rollback"`` to undo the pass and go on.
        tolerance: The relative error that an exact pass may cause; by element type when not given.
        nudged: Makes functions like ``evaluate``, each on inputs that differ by one rounding unit. It is called when an
            exact pass moves the outputs too far, to see whether the model itself is that sensitive; see
            :func:`noise_limit`.
        reference: The outputs of the graph that comes first, if they are known; later those of the last pass that stayed.
    """

    evaluate: Callable[[Graph], Outputs]
    on_failure: Literal["raise", "rollback"] = "raise"
    tolerance: float | None = None
    nudged: Nudged | None = None
    reference: Outputs | None = None
    _backup: Graph | None = field(default=None, repr=False)

    def before(self, step: Pass, graph: Graph) -> None:
        """Run the graph, unless the last pass's outputs are still at hand."""
        if self.reference is None:
            self.reference = self.evaluate(graph)
        if self.on_failure == "rollback" or self.nudged is not None:
            self._backup = graph.clone()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Run and compare.

        Raises:
            CheckFailed: If the outputs moved too far and ``on_failure`` is ``"raise"``.
        """
        if not record.rewrites:
            record.error = 0.0
            return
        assert self.reference is not None
        try:
            outputs = self.evaluate(graph)
        except GraphshrinkError as error:
            record.error, problem = float("inf"), f"left a model that does not run ({error})"
        else:
            record.error = relative_error(self.reference, outputs)
            limit = tolerance_of(graph) if self.tolerance is None else self.tolerance
            exact = record.exactness is Exactness.EXACT
            if self.nudged is not None and self.tolerance is None and exact:
                before = graph if self._backup is None else self._backup
                tight, limit = (
                    limit,
                    allowed(limit, record.error, self.reference, before, self.nudged),
                )
                if tight < record.error <= limit:
                    graph.notes.append(
                        f"{step} moved the outputs by {record.error:.1e} of their largest value, no further than "
                        "inputs that are rounded otherwise move them"
                    )
            if record.exactness is not Exactness.EXACT or record.error <= limit:
                self.reference = outputs
                return
            problem = (
                f"claims to be exact, but the outputs moved by {record.error:.2e} "
                f"(allowed {limit:.1g})"
            )
        nodes = [name for r in record.rewrites for name in r.nodes]
        shown = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
        message = f"pass {step} {problem}; it rewrote {shown}"
        if self.on_failure == "raise":
            raise CheckFailed(message)
        assert self._backup is not None
        log.warning("%s; rolled back", message)
        graph.adopt(self._backup)
        record.rolled_back, record.problem = True, message
