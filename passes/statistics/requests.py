"""The contract between passes and calibration data: requests for statistics of values, collected by streaming.

A pass makes requests for values of the graph as it is now, and collects them in one run over the data::

    gram = GramMatrix(node)
    found = ctx.calibration.collect(graph, [gram])[gram]

:mod:`.moments` has the requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ...ir import Graph, Tensor, UsageError, Value
from .im2col import Array

R = TypeVar("R")
T = TypeVar("T")

RUN_BYTES = 1 << 30
"""What the statistics of one run may take together; beyond that, several runs are made."""

_KEEP_BYTES = 1 << 28
"""What is kept of the statistics of a graph that has not changed since."""


class Accumulator(ABC, Generic[R]):
    """Takes the arrays of one batch after another."""

    @abstractmethod
    def add(self, *arrays: Array) -> None:
        """Take the next batch of each requested value."""

    @abstractmethod
    def result(self) -> R:
        """What was asked for."""


class Request(ABC, Generic[R]):
    """A statistic of some values. Subclasses are frozen dataclasses, so that requests compare by what they ask."""

    @abstractmethod
    def values(self) -> tuple[Value, ...]:
        """The values that it is computed from."""

    @abstractmethod
    def accumulator(self) -> Accumulator[R]:
        """A fresh accumulator."""

    def nbytes(self) -> int:
        """About what its result takes in memory, where that matters."""
        return 0


class Results:
    """Statistics by request."""

    def __init__(self, found: dict[Any, Any]) -> None:
        self._found = found

    def __getitem__(self, request: Request[R]) -> R:
        found: R = self._found[request]
        return found


class Calibration(ABC):
    """Calibration data for one model, as passes see it.

    Attributes:
        progress: Called with (done, total, what) after every batch; the total is 0 when it is not known.
    """

    progress: Callable[[int, int, str], None] = staticmethod(lambda done, total, what: None)
    _state: tuple[Any, ...] = ()
    _kept: dict[Any, Any] | None = None

    @abstractmethod
    def stream(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Array, ...]]:
        """Run ``graph`` as it is now and give the chosen values, one tuple of arrays a batch, in order.

        Raises:
            UsageError: If the data do not fit, or there are none.
            ModelError: If the graph does not run.
        """

    @property
    def batch_count(self) -> int:
        """The number of batches; 0 when it is not known."""
        return 0

    def collect(self, graph: Graph, requests: Iterable[Request[Any]]) -> Results:
        """Compute statistics of ``graph`` as it is now, in one run over the data where memory allows.

        What was asked before of the same graph, and not changed since, is not computed again.

        Raises:
            UsageError: If the data do not fit, there are none, a value is not finite on them, or a Gram matrix
                would be too large.
            ModelError: If the graph does not run.
        """
        state = _state_of(graph)
        if self._kept is None or state != self._state:
            self._kept, self._state = {}, state
        wanted = dict.fromkeys(requests)
        found = {r: self._kept[r] for r in wanted if r in self._kept}
        for run in within([r for r in wanted if r not in found], lambda r: r.nbytes()):
            found.update(self._run(graph, run))
        kept = 0
        for request, result in found.items():
            kept += request.nbytes()
            if kept <= _KEEP_BYTES:
                self._kept[request] = result
        return Results(found)

    def _run(self, graph: Graph, requests: Sequence[Request[Any]]) -> dict[Request[Any], Any]:
        values = list(dict.fromkeys(v for r in requests for v in r.values()))
        place = {v: i for i, v in enumerate(values)}
        taking = [(r.accumulator(), [place[v] for v in r.values()]) for r in requests]
        total = self.batch_count
        for done, arrays in enumerate(self.stream(graph, values)):
            for value, array in zip(values, arrays, strict=True):
                _check_finite(value, array, done)
            for accumulator, places in taking:
                accumulator.add(*(arrays[i] for i in places))
            self.progress(done + 1, total, "calibration batches")
        return {r: a.result() for r, (a, _) in zip(requests, taking, strict=True)}


def _state_of(graph: Graph) -> tuple[Any, ...]:
    """What the numbers of a graph depend on; holds its parts, so that none is mistaken for a later one."""

    def numbers(values: Iterable[Value | None]) -> tuple[Tensor | None, ...]:
        return tuple(None if v is None else v.data for v in values)

    return tuple((n, n.op, n.inputs, numbers(n.inputs)) for n in graph.nodes)


def within(items: Iterable[T], nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in order, in runs whose results take at most :data:`RUN_BYTES` together."""
    run: list[T] = []
    size = 0
    for item in items:
        if run and size + nbytes(item) > RUN_BYTES:
            yield run
            run, size = [], 0
        run.append(item)
        size += nbytes(item)
    if run:
        yield run


def _check_finite(value: Value, array: Array, batch: int) -> None:
    # NumPy knows its own types only.
    wide = array.astype(np.float32) if array.dtype.kind == "V" else array
    if wide.dtype.kind in "fc" and not np.isfinite(wide).all():
        made = "an input" if value.producer is None else f"the result of {value.producer.name}"
        raise UsageError(
            f"%{value.name}, {made}, is not finite everywhere on the calibration data (batch {batch}): "
            "leave out samples with NaN or infinity, or mend the weights in front of it"
        )
