"""What a budget is about: milliseconds on a device, multiply-accumulate operations, or bytes."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import Graph, ModelError, UsageError

if TYPE_CHECKING:
    from .latency import LatencyTable

Progress = Callable[[int, int, str], None]

ROUNDS, MOST_ROUNDS = 15, 101
"""The numbers of rounds in which whole networks are timed in turn: quick networks have more."""
SECONDS = 8.0
"""There are no more rounds than the least when this time is over."""


def cost_text(value: float, unit: str) -> str:
    """A cost with its unit, for messages: operations and bytes are whole numbers."""
    return f"{value:,.0f} {unit}" if unit in ("MACs", "bytes") else f"{value:.4g} {unit}".rstrip()


class Cost(ABC):
    """A cost of graphs.

    Attributes:
        unit: Its unit, for people.
        measured: Whether it is measured, so that sums over regions are only approximately the cost of a network.
    """

    unit: str
    measured: bool

    def check(self, graphs: Sequence[Graph]) -> None:
        """Check that the costs of whole networks can be known, before the work.

        Raises:
            ModelError: If a network cannot be measured.
        """
        return

    @abstractmethod
    def regions(self, graphs: Sequence[Graph], progress: Progress) -> list[float | ModelError]:
        """The costs of graphs of single regions; an error in place of one that cannot be measured."""

    def regions_again(
        self, graphs: Sequence[Graph], progress: Progress
    ) -> list[float | ModelError]:
        """The costs of graphs of single regions that seem impossible: measured ones are measured once more."""
        return self.regions(graphs, progress)

    @abstractmethod
    def networks(self, graphs: Sequence[Graph]) -> list[float]:
        """The costs of whole networks; measured ones are measured in turn, so that they can be compared."""

    def describe(self) -> dict[str, Any]:
        """What the plan says about it."""
        return {"unit": self.unit}


class Macs(Cost):
    """Multiply-accumulate operations; for one sample if the batch is open."""

    unit = "MACs"
    measured = False

    def regions(self, graphs: Sequence[Graph], progress: Progress) -> list[float | ModelError]:
        """Counted from shapes."""
        return [*self.networks(graphs)]

    def networks(self, graphs: Sequence[Graph]) -> list[float]:
        """Counted from shapes."""
        return [self._count(graph) for graph in graphs]

    def _count(self, graph: Graph) -> float:
        total = 0
        for node in graph.nodes:
            if node.is_constant:
                continue
            work = node.macs
            if work is None:
                raise UsageError(
                    f"the MACs of {node.name} are not known: sizes are open (--fix-shape fixes them)"
                )
            total += work
        return float(total)


class FileSize(Cost):
    """Bytes: those of the constants of a region, and those of the ONNX files of a whole network."""

    unit = "bytes"
    measured = False

    def regions(self, graphs: Sequence[Graph], progress: Progress) -> list[float | ModelError]:
        """The bytes of all constants that are read."""
        return [
            float(sum(v.data.nbytes for v in g.constants if v.data is not None and v.use_count))
            for g in graphs
        ]

    def networks(self, graphs: Sequence[Graph]) -> list[float]:
        """The size of the files, written to a temporary folder."""
        return [float(sum(path.stat().st_size for _, path in _files(g))) for g in graphs]


def _files(graph: Graph) -> Iterator[tuple[str, Path]]:
    """The ONNX files of a network in a temporary folder, one after the other by name."""
    from ..targets.onnx.emitter import save_onnx

    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        save_onnx(graph, Path(folder) / "network.onnx")
        for path in sorted(Path(folder).iterdir()):
            yield path.name, path


class Latency(Cost):
    """Milliseconds on a device.

    Args:
        table: The table of latencies of the device.
    """

    unit = "ms"
    measured = True

    def __init__(self, table: LatencyTable) -> None:
        self.table = table

    def check(self, graphs: Sequence[Graph]) -> None:
        """Load them on the device."""
        device = self.table.device
        with device.set_up():
            for graph in graphs:
                try:
                    device.load(graph)
                except ModelError as error:
                    raise ModelError(
                        f"the network does not run on the device {device.name}, so that no latency can be measured: {error}"
                    ) from error

    def regions(self, graphs: Sequence[Graph], progress: Progress) -> list[float | ModelError]:
        """From the table; what it lacks is measured and stored, so that an interrupted run loses nothing."""
        return self._measured(graphs, progress, "latencies", again=False)

    def regions_again(
        self, graphs: Sequence[Graph], progress: Progress
    ) -> list[float | ModelError]:
        """The smaller ones of the latencies in the table and those that are measured now."""
        return self._measured(graphs, progress, "doubtful latencies", again=True)

    def _measured(
        self, graphs: Sequence[Graph], progress: Progress, what: str, again: bool
    ) -> list[float | ModelError]:
        found = self.table.attempt(
            graphs, again=again, progress=lambda done, total: progress(done, total, what)
        )
        return [entry if isinstance(entry, ModelError) else entry.milliseconds for entry in found]

    def networks(self, graphs: Sequence[Graph]) -> list[float]:
        """That of the first is the median over rounds; the ratio of another to it is the median of the ratios in the rounds.

        They are kept as well, so that an interrupted run ends with the same plan.
        """
        from .latency import paired

        key = self._key(graphs)
        kept = self.table.store.networks(key)
        if kept is not None and len(kept) == len(graphs):
            return kept
        device = self.table.device
        found = paired(device, list(graphs), ROUNDS, MOST_ROUNDS, SECONDS)
        times = np.array(found, np.float64)
        base = float(np.median(times[0]))
        costs = [base * float(np.median(row / times[0])) for row in times]
        self.table.store.add_networks(key, device.name, costs)
        return costs

    def _key(self, graphs: Sequence[Graph]) -> str:
        """A hash of networks that are timed in turn, with their weights, and of the device."""
        digest = hashlib.sha256(
            f"{self.table.device.identity} {ROUNDS} to {MOST_ROUNDS} rounds".encode()
        )
        for graph in graphs:
            for name, path in _files(graph):
                digest.update(name.encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The unit and the device."""
        return {"unit": self.unit, "device": self.table.device.identity}
