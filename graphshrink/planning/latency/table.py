"""Latency tables: look up stored latencies, and measure missing ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...ir import Graph, ModelError, UsageError
from .devices import Call, Device
from .signature import canonical_text, signature
from .standalone import reference, standalone
from .store import Row, Store
from .timing import in_turn, ratio, repeats, timed

_CALIBRATION_ROUNDS = 301


@dataclass(frozen=True)
class Latency:
    """The latency of a graph.

    Attributes:
        milliseconds: The median over rounds of the ratio to the reference graph, multiplied by the reference's own milliseconds.
        spread: The interquartile range of the rounds, in milliseconds.
        rounds: The number of rounds.
    """

    milliseconds: float
    spread: float
    rounds: int


def default_path() -> Path:
    """The file of the tables: ``GRAPHSHRINK_LATENCY_DB``, or ``graphshrink/latency.sqlite`` in the user's cache folder.

    Raises:
        UsageError: If there is no home folder.
    """
    given = os.environ.get("GRAPHSHRINK_LATENCY_DB")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification says that relative paths are ignored.
        folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    except RuntimeError as error:
        raise UsageError(
            "there is no home folder for the latency table: give a file by GRAPHSHRINK_LATENCY_DB"
        ) from error
    return folder / "graphshrink" / "latency.sqlite"


class LatencyTable:
    """The latencies of graphs on one device.

    Args:
        device: The device.
        path: The file; :func:`default_path` if not given.
        seconds: The upper limit of the measuring time for one graph.
    """

    def __init__(self, device: Device, path: Path | None = None, *, seconds: float = 2.0) -> None:
        self.device = device
        self.store = Store(default_path() if path is None else path)
        self.seconds = seconds

    def lookup(self, graph: Graph) -> Latency | None:
        """The stored latency of a graph, or ``None``.

        Raises:
            ModelError: If the graph cannot be timed.
            UsageError: If the file cannot be used.
        """
        name = signature(graph, self.device)
        row = self.store.find([name]).get(name)
        return None if row is None else _latency(row)

    def measure(
        self,
        graphs: Sequence[Graph],
        *,
        again: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Latency]:
        """The latencies of graphs, in the same order; missing ones are measured and stored one by one.

        Args:
            graphs: The graphs.
            again: Measure stored ones again, and keep the smaller latency: other work on the machine only adds to one.
            progress: Called at the start and after each measurement, with the number of finished signatures and of all.

        Raises:
            ModelError: If a graph cannot be timed.
            UsageError: If the file cannot be used, or another process times on the hardware for too long.
        """
        found = self._measure(graphs, again, progress, go_on=False)
        return [entry for entry in found if isinstance(entry, Latency)]

    def attempt(
        self,
        graphs: Sequence[Graph],
        *,
        again: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Latency | ModelError]:
        """The latencies of graphs as :meth:`measure` returns them, with an error in place of a graph that cannot be timed.

        Raises:
            UsageError: If the file cannot be used, or another process times on the hardware for too long.
        """
        return self._measure(graphs, again, progress, go_on=True)

    def _measure(
        self,
        graphs: Sequence[Graph],
        again: bool,
        progress: Callable[[int, int], None] | None,
        go_on: bool,
    ) -> list[Latency | ModelError]:
        """See :meth:`attempt`; the first error is raised unless ``go_on``."""
        names: list[str | ModelError] = []
        for graph in graphs:
            try:
                names.append(signature(graph, self.device))
            except ModelError as error:
                if not go_on:
                    raise
                names.append(error)
        by_name = {n: g for n, g in zip(names, graphs, strict=True) if isinstance(n, str)}
        found = {} if again else self.store.find([*by_name])
        show = progress or (lambda done, total: None)
        show(len(found), len(by_name))
        errors: dict[str, ModelError] = {}
        if len(found) < len(by_name):
            with self.store.exclusive(self.device.hardware), self.device.set_up():
                # Another process may have measured some of them while this one waited.
                stored = self.store.find([*by_name])
                found |= {} if again else stored
                errors = self._time_missing(by_name, found, stored, show, go_on)
        known: dict[str, Latency | ModelError] = {n: _latency(row) for n, row in found.items()}
        known |= errors
        return [name if isinstance(name, ModelError) else known[name] for name in names]

    def _time_missing(
        self,
        by_name: dict[str, Graph],
        found: dict[str, Row],
        stored: dict[str, Row],
        show: Callable[[int, int], None],
        go_on: bool,
    ) -> dict[str, ModelError]:
        """Time the graphs that are not in ``found``, and add them; the errors of those that cannot be timed are returned or raised."""
        yardstick = self.device.load(reference())
        unit = self._unit(yardstick)
        errors: dict[str, ModelError] = {}
        for name in [n for n in by_name if n not in found]:
            try:
                made = self._timed(name, by_name[name], yardstick, unit)
            except ModelError as error:
                if not go_on:
                    raise
                errors[name] = error
            else:
                found[name] = min(made, stored.get(name, made), key=lambda row: row.milliseconds)
                self.store.add(found[name])
            show(len(found) + len(errors), len(by_name))
        return errors

    def _unit(self, yardstick: Call) -> float:
        """The milliseconds of the reference graph: the stored ones, or they are measured and stored."""
        unit = self.store.calibration(self.device.identity)
        if unit is None:
            count = repeats(yardstick)
            times = [timed(yardstick, count) for _ in range(_CALIBRATION_ROUNDS)]
            unit = float(np.median(times)) * 1e3
            self.store.calibrate(self.device.identity, self.device.name, unit)
        return unit

    def _timed(self, name: str, graph: Graph, yardstick: Call, unit: float) -> Row:
        """Measure a graph."""
        got = ratio(
            self.device.load(standalone(graph)), yardstick, self.seconds, self.device.own_clock
        )
        text = canonical_text(graph, self.device)
        return Row(name, self.device.name, text, got.median * unit, got.spread * unit, got.rounds)


def _latency(row: Row) -> Latency:
    return Latency(row.milliseconds, row.spread, row.rounds)


def paired(
    device: Device, graphs: Sequence[Graph], rounds: int, most: int = 0, seconds: float = 0.0
) -> list[list[float]]:
    """Time whole networks in turn, with their own weights; nothing is stored.

    Args:
        device: The device.
        graphs: The networks; the device's target writes them in the same way as for the user.
        rounds: The number of rounds.
        most: The largest number of rounds, if quick networks are to have more of them.
        seconds: There are more rounds than ``rounds`` only while this time is not over.

    Returns:
        For each network the milliseconds in each round.

    Raises:
        ModelError: If a network does not run on the device.
        UsageError: If the shape of an input is not known, or another process times on the hardware for too long.
    """
    with Store(default_path()).exclusive(device.hardware), device.set_up():
        calls = [device.load(graph) for graph in graphs]
        return in_turn(calls, rounds, most, seconds, device.own_clock)
