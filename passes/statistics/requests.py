"""The contract between passes and calibration data: requests for statistics, collected by streaming.

A pass makes requests for values of the present graph, and collects their results in one run over the data::

    gram = GramMatrix(node)
    found = ctx.calibration.collect(graph, [gram])[gram]

:mod:`.moments` and :mod:`.gram` define requests.
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
"""The largest size of all statistics of one run, in bytes; if they need more, several runs are made."""

_KEEP_BYTES = 1 << 28
"""The size of the cache of statistics of an unchanged graph, in bytes."""


class Accumulator(ABC, Generic[R]):
    """Computes a statistic from one batch after another."""

    @abstractmethod
    def add(self, *arrays: Array) -> None:
        """Add the next batch of each requested value."""

    @abstractmethod
    def result(self) -> R:
        """The statistic."""


class Request(ABC, Generic[R]):
    """A request for a statistic of some values. Subclasses are frozen dataclasses, so that equal requests compare equal."""

    @abstractmethod
    def values(self) -> tuple[Value, ...]:
        """The values that the statistic is computed from."""

    @abstractmethod
    def accumulator(self) -> Accumulator[R]:
        """A new accumulator."""

    def nbytes(self) -> int:
        """The approximate size of the result in bytes; 0 if it is small."""
        return 0


class Results:
    """The collected statistics; index with a request to get its result."""

    def __init__(self, found: dict[Any, Any]) -> None:
        self._found = found

    def __getitem__(self, request: Request[R]) -> R:
        found: R = self._found[request]
        return found


class Calibration(ABC):
    """Calibration data for one model; the driver implements :meth:`stream`.

    Attributes:
        progress: Called with (done, total, description) after every batch; the total is 0 if it is not known.
        used: Whether a statistic was asked for.
    """

    progress: Callable[[int, int, str], None] = staticmethod(lambda done, total, what: None)
    used: bool = False
    _state: tuple[Any, ...] = ()
    _kept: dict[Any, Any] | None = None

    @abstractmethod
    def stream(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Array, ...]]:
        """Run ``graph`` and yield the arrays of ``values``, one tuple for each batch.

        Raises:
            UsageError: If the data does not fit the model, or there is none.
            ModelError: If the graph does not run.
        """

    @property
    def batch_count(self) -> int:
        """The number of batches; 0 if it is not known."""
        return 0

    @property
    def samples(self) -> list[int]:
        """The number of samples of each batch along the first axes of its arrays, 0 for a batch that cannot be divided; empty if not known."""
        return []

    def split(self, every: int) -> tuple[Calibration, Calibration]:
        """Two parts: what is fitted to, and every ``every``-th sample (or batch, where batches cannot be divided) to judge with.

        Raises:
            UsageError: If the data cannot be divided, or there are too few.
        """
        raise UsageError("these calibration data cannot be divided")

    def collect(self, graph: Graph, requests: Iterable[Request[Any]]) -> Results:
        """Compute statistics of the present ``graph``, in one run over the data if memory allows.

        Results are cached for as long as the graph does not change.

        Raises:
            UsageError: If the data does not fit the model, there is none, a value is not finite on it, or a Gram
                matrix would be too large.
            ModelError: If the graph does not run.
        """
        self.used = True
        state = _state_of(graph)
        if self._kept is None or state != self._state:
            self._kept, self._state = {}, state
        wanted = dict.fromkeys(requests)
        found = {r: self._kept[r] for r in wanted if r in self._kept}
        for run in groups_within_memory(
            [r for r in wanted if r not in found], lambda r: r.nbytes()
        ):
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
    """A key that changes with the graph.

    It holds references to the parts of the graph, so that a new object cannot get the id of an old one.
    """

    def numbers(values: Iterable[Value | None]) -> tuple[Tensor | None, ...]:
        return tuple(None if v is None else v.data for v in values)

    return tuple((n, n.op, n.inputs, numbers(n.inputs)) for n in graph.nodes)


def groups_within_memory(items: Iterable[T], nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in order, grouped so that the results of each group take at most :data:`RUN_BYTES`."""
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
    # NumPy cannot test bfloat16 and other extension types.
    wide = array.astype(np.float32) if array.dtype.kind == "V" else array
    if wide.dtype.kind in "fc" and not np.isfinite(wide).all():
        made = "an input" if value.producer is None else f"the result of {value.producer.name}"
        raise UsageError(
            f"%{value.name}, {made}, is not finite everywhere on the calibration data (batch {batch}): "
            "leave out samples with NaN or infinity, or mend the weights before it"
        )
