"""How much a network's outputs differ from those of the original, on samples that no fit has seen.

For an output that is a softmax, a log-softmax or logits, the difference is the Kullback-Leibler divergence from the original's
distribution, in nats, averaged over distributions. For any other output it is the squared error divided by the variance of the original's
output, which is 1 - R2. By choice it is the plain squared error (``mse``), or 1 minus the cosine of the vectors along the last axis (``cosine``). The loss of a network is the mean over its outputs, or what the user's own function ``score(outputs, reference)`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..ir import Graph, Identity, Linear, LogSoftmax, ModelError, Node, Softmax, UsageError, Value
from ..ir.errors import one_line
from ..passes.infra.tolerance import squared_error
from ..running.sessions import session
from .samples import Batch

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
Outputs = list[Array]

Score = Callable[..., float]
"""``score(outputs, reference)``: the outputs of a network and of the original on all scoring samples; at least 0, and less is better."""

MEASURES = ("auto", "kl", "error", "mse", "cosine")
"""How outputs are compared: ``auto`` chooses ``kl`` or ``error`` for each output."""

DISTRIBUTIONS = ("log", "softmax", "logits")
"""The kinds of outputs that are distributions over classes."""


class Scorer:
    """Scores variants of a graph by their outputs.

    Args:
        graph: The original graph, from ONNX.
        batches: The scoring samples.
        measure: One of :data:`MEASURES`, or a function.

    Attributes:
        kinds: How each output is compared: one of :data:`DISTRIBUTIONS`, ``error``, ``mse`` or ``cosine``.
        axes: The axis of each output along which its distributions or vectors are, counted from the last.
        reference: The outputs of the original graph; such an axis is their last one.
    """

    def __init__(
        self, graph: Graph, batches: Sequence[Batch], measure: str | Score = "auto"
    ) -> None:
        self.graph, self.batches = graph, batches
        self.own = measure if callable(measure) else None
        if isinstance(measure, str) and measure not in MEASURES:
            raise UsageError(f"outputs are compared by {', '.join(MEASURES)}, not {measure!r}")
        found = [run_part(graph, graph.inputs, graph.outputs, b) for b in batches]
        ranks = _ranks(graph, found)
        self.kinds = [
            _kind(value, measure if isinstance(measure, str) else "auto", len(graph.outputs), rank)
            for value, rank in zip(graph.outputs, ranks, strict=True)
        ]
        self.axes = [
            _axis(value, rank) if kind in ("log", "softmax") else -1
            for value, rank, kind in zip(graph.outputs, ranks, self.kinds, strict=True)
        ]
        self.reference = self.joined(found)

    def joined(self, found: list[Outputs]) -> Outputs:
        """The outputs of all batches as one, in the form of the reference."""
        return joined(found) if self.own else joined(found, self.kinds, self.axes)

    def loss(self, graph: Graph) -> float:
        """The loss of a whole network."""
        run = part_runner(graph, graph.inputs, graph.outputs)
        return self.of([run(batch) for batch in self.batches])

    def prefix(self, node: Node) -> Prefix:
        """What is computed in front of a node of the original graph, to score variants that differ behind it."""
        return Prefix(self, node)

    def of(self, found: list[Outputs]) -> float:
        """The loss of a network with these outputs, one list for each batch."""
        outputs = self.joined(found)
        if self.own is None:
            return loss_of(self.kinds, outputs, self.reference)
        name = getattr(self.own, "__name__", "the score")
        made: Any = self.own(outputs, self.reference)
        try:
            loss = float(made)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} must return a number, not a {type(made).__name__}") from error
        if loss < 0:
            raise UsageError(
                f"{name} returned {loss:g}: less is better, and it must be at least 0, such as 1 - accuracy"
            )
        return loss if np.isfinite(loss) else float("inf")


def loss_of(kinds: Sequence[str], outputs: Outputs, reference: Outputs) -> float:
    """The mean over outputs of their differences from the original's; infinite if it is not a number."""
    parts = [
        divergence(kind, made, wanted)
        for kind, made, wanted in zip(kinds, outputs, reference, strict=True)
    ]
    loss = float(np.mean(parts))
    return loss if np.isfinite(loss) else float("inf")


class Prefix:
    """The values that are alive in front of a node, for every scoring sample; only what follows is run again.

    Args:
        scorer: The scorer.
        node: A node of the original graph.

    Attributes:
        alive: The values of the original graph that are alive.
    """

    def __init__(self, scorer: Scorer, node: Node) -> None:
        graph = scorer.graph
        done: set[Value] = set(graph.inputs)
        for earlier in graph.nodes:
            if earlier is node:
                break
            done.update(v for v in earlier.outputs if v.data is None)
        later = {v for n in graph.nodes for v in n.inputs if v in done and n.output not in done} | {
            v for v in graph.outputs if v in done
        }
        self.scorer = scorer
        self.alive = [v for v in graph.values() if v in later]

    @cached_property
    def kept(self) -> list[Batch]:
        """The alive values for each batch of scoring samples."""
        graph, alive = self.scorer.graph, self.alive
        made = [v for v in alive if v.producer is not None]
        given = {v: i for i, v in enumerate(graph.inputs)}
        run = part_runner(graph, graph.inputs, made) if made else lambda batch: []
        kept: list[Batch] = []
        for batch in self.scorer.batches:
            found = dict(zip(made, run(batch), strict=True))
            kept.append(tuple(batch[given[v]] if v in given else found[v] for v in alive))
        return kept

    def loss(self, graph: Graph) -> float:
        """The loss of a variant of the original graph that computes the same up to the node."""
        values = {v.name: v for v in graph.values()}
        feeds = [values[v.name] for v in self.alive]
        fresh = [v for v in graph.outputs if v not in feeds]
        run = part_runner(graph, feeds, fresh) if fresh else lambda batch: []
        found = []
        for batch in self.kept:
            made = dict(zip(fresh, run(batch), strict=True))
            made.update(zip(feeds, batch, strict=True))
            found.append([made[v] for v in graph.outputs])
        return self.scorer.of(found)


def run_part(
    graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value], batch: Batch
) -> Outputs:
    """Run the part of a graph between some values once."""
    return part_runner(graph, inputs, outputs)(batch)


def part_runner(
    graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value]
) -> Callable[[Batch], Outputs]:
    """A function that computes some values of a graph from others in onnxruntime.

    Raises:
        ModelError: If the graph cannot be emitted or loaded; the function raises it if the model does not run.
    """
    from ..targets.onnx.emitter import part_model

    model, feeds, names = part_model(graph, inputs, outputs)
    base = getattr(graph.host, "base_dir", None)
    return model_runner(model, feeds, names, base)


def model_runner(
    model: ModelProto,
    feeds: Sequence[str],
    names: Sequence[str],
    folder: Path | None,
    threads: int = 0,
) -> Callable[[Batch], Outputs]:
    """A function that runs a model in onnxruntime.

    Args:
        model: The model.
        feeds: The names of its inputs, in the order of the arrays of a batch.
        names: The names of the wanted results.
        folder: The folder of its external data.
        threads: The number of threads; 0 uses all cores.

    Raises:
        ModelError: If the model cannot be loaded; the function raises it if the model does not run.
    """
    loaded = session(model, threads, name="the model", base_dir=folder)
    taken = {info.name for info in loaded.get_inputs()}

    def run(batch: Batch) -> Outputs:
        given = {n: a for n, a in zip(feeds, batch, strict=True) if n in taken}
        try:
            found: Any = loaded.run(list(names), given)
        except Exception as error:
            raise ModelError(
                f"onnxruntime cannot run the model on calibration data: {one_line(error)}"
            ) from error
        return list(found)

    return run


def joined(found: list[Outputs], kinds: Sequence[str] = (), axes: Sequence[int] = ()) -> Outputs:
    """The outputs of all batches, one behind the other.

    Outputs of different shapes, such as those of texts of different lengths, become rows of the last axis. If this axis differs too, rows are filled up with
    numbers that their measure ignores, if it compares rows, and all others become flat.

    Args:
        found: The outputs of each batch.
        kinds: How each output is compared; see :class:`Scorer`.
        axes: The axis of each output that becomes its last one.
    """
    count = len(found[0]) if found else 0
    kinds, axes = kinds or [""] * count, axes or [-1] * count
    return [_joined([outputs[i] for outputs in found], kinds[i], axes[i]) for i in range(count)]


def _joined(parts: list[Array], kind: str, axis: int) -> Array:
    if not all(a.ndim for a in parts):
        return np.stack(parts)
    by_samples = axis > -parts[0].ndim or parts[0].ndim == 1
    parts = [np.moveaxis(a, axis, -1) for a in parts]
    if len({a.shape[1:] for a in parts}) == 1 and by_samples:
        return np.concatenate(parts)
    widths = {a.shape[-1] for a in parts}
    if len(widths) > 1 and kind not in (*DISTRIBUTIONS, "cosine"):
        return np.concatenate([a.reshape(-1) for a in parts])
    rows = [a.reshape(-1, a.shape[-1]) for a in parts]
    fill = -1e4 if kind in ("log", "logits") else 0
    missing = ([(0, 0), (0, max(widths) - a.shape[-1])] for a in rows)
    return np.concatenate(
        [np.pad(a, width, constant_values=fill) for a, width in zip(rows, missing, strict=True)]
    )


def _ranks(graph: Graph, found: list[Outputs]) -> list[int]:
    """The number of axes of each output, which a run shows where the model leaves it open."""
    known = [value.type.rank for value in graph.outputs]
    if None not in known or not found:
        return [rank or 0 for rank in known]
    return [a.ndim for a in found[0]]


def _maker(value: Value) -> Node | None:
    """The node that computes a value, behind which others only hand it on."""
    node = value.producer
    while node is not None and isinstance(node.op, Identity):
        node = node.required(0).producer
    return node


def _axis(value: Value, rank: int) -> int:
    """The axis of a softmax, counted from the last one."""
    node = _maker(value)
    axis = node.op.axis if node is not None and isinstance(node.op, Softmax | LogSoftmax) else -1
    return axis if axis < 0 else axis - rank


def _kind(value: Value, measure: str, count: int, rank: int) -> str:
    """How an output is compared."""
    node = _maker(value)
    if measure == "mse":
        return "mse"
    if measure == "error" or rank < 2:
        return "error"
    if measure == "cosine":
        return "cosine"
    if node is not None and isinstance(node.op, LogSoftmax):
        return "log"
    if node is not None and isinstance(node.op, Softmax):
        return "softmax"
    if measure == "kl":
        return "logits"
    # One matrix that a dense layer computes, with a score for each of several classes.
    wide = (value.type.dim(-1) or 0) > 2
    dense = node is not None and isinstance(node.op, Linear)
    return "logits" if dense and wide and count == 1 and rank == 2 else "error"


def directions(rows: Array) -> Array:
    """Vectors along the last axis, divided by their lengths; zeros stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def divergence(kind: str, made: Array, wanted: Array) -> float:
    """The difference of one output from the original's; see the module."""
    if kind == "error":
        return squared_error(made, wanted)
    made, wanted = made.astype(np.float64), wanted.astype(np.float64)
    if kind == "mse":
        return float(((made - wanted) ** 2).mean())
    if kind == "cosine":
        # Half the squared distance of vectors of length 1, without the rounding of 1 - cos.
        return float(((directions(made) - directions(wanted)) ** 2).sum(-1).mean() / 2)
    if kind == "softmax":
        made, wanted = (np.log(np.maximum(a, 1e-30)) for a in (made, wanted))
    if kind == "logits":
        from scipy.special import log_softmax

        made, wanted = log_softmax(made, -1), log_softmax(wanted, -1)
    return float((np.exp(wanted) * (wanted - made)).sum(-1).mean())
