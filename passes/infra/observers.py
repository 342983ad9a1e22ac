"""Observers of a pipeline run: verification, host support, timing, dumps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...ir import (
    Graph,
    Node,
    Refusal,
    TensorType,
    VerificationError,
    verify,
)
from ...ir.files import check_overwrites, write_text
from .contract import FunctionPass, Pass, PassError
from .pipeline import PassRecord


@dataclass
class Verify:
    """Verifies structure, types and an unchanged signature after every pass; always on."""

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
    """Verifies that the host can write every node that a pass made; on if ``Context.unwritable`` is given.

    A pass of this package that made an unwritable node is undone, and the record has the reason. For any other pass
    this is an error that names the pass.

    Args:
        unwritable: Returns the reason why the host cannot write a node, or ``None``.
        leave_to_check: Do not raise for passes that are not undone here, because a :class:`.Check` handles them.
    """

    unwritable: Callable[[Node], str | None]
    leave_to_check: bool = False
    _known: dict[Node, tuple[Any, ...]] = field(default_factory=dict, repr=False)
    _backup: Graph | None = field(default=None, repr=False)

    def before(self, step: Pass, graph: Graph) -> None:
        """Remember the nodes that have no host node, and a copy of the graph if the pass may have to be undone."""
        self._known = dict(_nodes_without_origin(graph))
        self._backup = graph.clone() if _is_ours(step) and not step.asks_first else None

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Ask the host about each new or changed node.

        Raises:
            PassError: If one cannot be written and the pass cannot be undone.
        """
        backup, self._backup = self._backup, None
        if not record.rewrites:
            return
        for node, meaning in _nodes_without_origin(graph):
            if self._known.get(node) == meaning:
                continue
            reason = self.unwritable(node)
            if reason is None:
                continue
            if backup is None and self.leave_to_check:
                return
            if backup is None:
                raise PassError(
                    f"pass {step} made {node.name}, which the host cannot write: {reason}"
                )
            graph.adopt(backup)
            text = f"{step} was undone: {reason}"
            record.refusals.append(Refusal(node.name, text, node.op.name))
            record.rewrites, record.problem = [], text
            return


def _nodes_without_origin(graph: Graph) -> Iterator[tuple[Node, tuple[Any, ...]]]:
    """The nodes that cannot be copied from a host node, each with its op and the identities of its inputs."""
    for node in graph.nodes:
        if node.origin is None:
            yield node, (node.op, *map(id, node.inputs))


_PASSES = __name__.rsplit(".", 2)[0]
"""The package of the built-in passes."""


def _is_ours(step: Pass) -> bool:
    return type(step).__module__.startswith(f"{_PASSES}.") and not isinstance(step, FunctionPass)


@dataclass
class Timing:
    """Measures the seconds of each pass."""

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
        folder: The folder; it is created if it does not exist.
        inputs: Files that must not be overwritten, each with a description.
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
        check_overwrites([path], self.inputs)
        write_text(path, graph.text(), errors="surrogateescape")
        self._count += 1
