"""Requests for sums of products between what a layer would read and what a region computes, on a sample of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir import Value
from ..passes import Accumulator, Request
from ..passes.statistics.im2col import pad_spatial, windows_of
from .closed_forms import Sums

POSITIONS = 100
"""The largest number of positions that are drawn from each sample."""

SUMS_BYTES = 1 << 27
"""The largest Gram matrix, in bytes: 4095 columns."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Which inputs an output position reads.

    Attributes:
        axis: The axis of the channels: 1 for convolutions, -1 for dense layers, which have no window.
        kernel: The sizes of the kernel, one for each spatial axis.
        strides: Its strides.
        pads: All begins, then all ends; negative ones crop.
        dilations: Its dilations.
    """

    axis: int = -1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()


@dataclass(frozen=True)
class ColumnSums(Request[Sums]):
    """Requests the sums for a layer that reads ``entry`` and predicts ``exit``, or ``exit - entry``.

    Columns are ordered by channel, then by tap, and end with a 1.

    Attributes:
        entry: The value that the layer reads.
        exit: The value to predict; ``None`` for the Gram matrix alone.
        window: What each output position reads.
        beside_skip: Predict ``exit - entry``.
    """

    entry: Value
    exit: Value | None
    window: Window
    beside_skip: bool = False

    @property
    def size(self) -> int:
        """The number of columns, with the constant one."""
        channels = self.entry.type.dim(self.window.axis) or 0
        return channels * int(np.prod(self.window.kernel, dtype=int)) + 1

    def values(self) -> tuple[Value, ...]:
        """The entry, and the exit if it is predicted."""
        return (self.entry,) if self.exit is None else (self.entry, self.exit)

    def nbytes(self) -> int:
        """The size of the Gram matrix."""
        return 8 * self.size**2

    def accumulator(self) -> Accumulator[Sums]:
        """Sums that start at 0, and draw the same positions each time."""
        return _Accumulator(self)


class _Accumulator(Accumulator[Sums]):
    def __init__(self, request: ColumnSums) -> None:
        self.request, size = request, request.size
        outputs = 0
        if request.exit is not None:
            outputs = request.exit.type.dim(request.window.axis) or 0
        self.gram = np.zeros((size, size))
        self.cross = np.zeros((outputs, size))
        self.squares = np.zeros(outputs)
        self.rng = np.random.default_rng(0)

    def add(self, *arrays: Array) -> None:
        window, entry = self.request.window, arrays[0]
        if self.request.exit is None:
            columns, _ = sampled(window, entry, None, self.rng)
        else:
            target = arrays[1] - entry if self.request.beside_skip else arrays[1]
            columns, rows = sampled(window, entry, target, self.rng)
            self.cross += rows.T @ columns
            self.squares += (rows.astype(np.float64) ** 2).sum(0)
        self.gram += columns.T @ columns

    def result(self) -> Sums:
        return Sums(self.gram, self.cross, self.squares)


def sampled(
    window: Window, entry: Array, target: Array | None, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Columns ``(n, K + 1)`` of a batch at random positions, and the targets ``(n, O)`` there, in float32."""
    if window.axis == -1:
        rows = entry.reshape(-1, entry.shape[-1])
        limit = POSITIONS * len(entry)
        chosen = _drawn(len(rows), limit, rng)
        columns = rows[chosen]
        found = None if target is None else target.reshape(-1, target.shape[-1])[chosen]
    else:
        padded = pad_spatial(entry, window.pads)
        view = windows_of(padded, window.kernel, window.strides, window.dilations)
        n = len(window.kernel)
        outputs = view.shape[2 : 2 + n]
        total = len(view) * int(np.prod(outputs, dtype=int))
        chosen = _drawn(total, POSITIONS * len(view), rng)
        spots = np.unravel_index(chosen, (len(view), *outputs))
        moved = np.moveaxis(view, 1, 1 + n)
        columns = moved[spots].reshape(len(chosen), -1)
        found = None if target is None else np.moveaxis(target, 1, -1)[spots]
    ones = np.ones((len(columns), 1), np.float32)
    made = np.concatenate([columns.astype(np.float32), ones], 1)
    return made, np.zeros((0, 0), np.float32) if found is None else found.astype(np.float32)


def _drawn(total: int, limit: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    if total <= limit:
        return np.arange(total)
    return np.sort(rng.choice(total, limit, replace=False))
