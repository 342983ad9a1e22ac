"""Requests for moments of channels and activations.

Everything is accumulated in float64, as distances from the first number of each channel; batches are combined by the
update of Chan, Golub and LeVeque (1979). So second moments are sums of squares and never negative, they are accurate
even if the mean is large compared to the spread, and a constant channel has a variance of exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import (
    Activation,
    Add,
    AveragePool,
    Cast,
    Conv,
    ConvTranspose,
    Gate,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    MaxPool,
    Mul,
    Node,
    PRelu,
    Scale,
    Sub,
    UsageError,
    Value,
)
from ..depth.affine_fit import ActivationStats
from ..merge.algebra.tensors import Array64
from .finite import check_finite
from .im2col import Array
from .requests import Accumulator, Request

# Channel moments.


@dataclass(frozen=True)
class ChannelStats:
    """Statistics of each channel (float64 vectors of one size).

    Attributes:
        count: The number of values of each channel.
        mean: The means.
        var: The variances (of the population: divided by ``count``).
        min: The smallest values.
        max: The largest values.
    """

    count: int
    mean: Array64
    var: Array64
    min: Array64
    max: Array64

    @property
    def second(self) -> Array64:
        """The means of the squares."""
        return self.var + self.mean**2


@dataclass(frozen=True)
class ChannelMoments(Request[ChannelStats]):
    """Requests the moments of each channel of a value, over all other axes.

    Attributes:
        value: The value.
        axis: The axis of the channels; a negative one counts from the end.
    """

    value: Value
    axis: int = 1

    def values(self) -> tuple[Value, ...]:
        return (self.value,)

    def accumulator(self) -> Accumulator[ChannelStats]:
        return _ChannelAccumulator(f"%{self.value.name}", self.axis)


class _RunningCovariance:
    """The running means and covariances of several variables, for each channel."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self.origins: list[Any] = [0.0] * rows
        self.means: list[Any] = [0.0] * rows
        """As distances from the origins."""
        self.products: dict[tuple[int, int], Any] = {
            (i, j): 0.0 for i in range(rows) for j in range(i, rows)
        }

    def add(self, *rows: Array64) -> None:
        """Add ``n`` samples: for each variable an array ``(channels, n)``."""
        n = rows[0].shape[1]
        if not n:
            return
        if not self.count:
            self.origins = [r[:, 0].copy() for r in rows]
        total = self.count + n
        with np.errstate(all="ignore"):  # Results are checked by :func:`check_finite`.
            rows = tuple(r - o[:, None] for r, o in zip(rows, self.origins, strict=True))
            means = [r.mean(1) for r in rows]
            centred = [r - m[:, None] for r, m in zip(rows, means, strict=True)]
            shifts = [m - old for m, old in zip(means, self.means, strict=True)]
            for i, j in self.products:
                inner = np.einsum("cn,cn->c", centred[i], centred[j])
                self.products[i, j] += inner + shifts[i] * shifts[j] * (self.count * n / total)
            self.means = [old + s * (n / total) for old, s in zip(self.means, shifts, strict=True)]
        self.count = total

    def mean(self, i: int) -> Array64:
        """The mean of variable ``i``."""
        found: Array64 = self.origins[i] + self.means[i]
        return found

    def moment(self, i: int, j: int) -> Array64:
        """The covariance of variables ``i`` and ``j``."""
        found: Array64 = self.products[i, j] / max(1, self.count)
        return found


def _by_channel(array: Array, axis: int) -> Array64:
    """The array as ``(channels, n)`` in float64."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


class _ChannelAccumulator(Accumulator[ChannelStats]):
    def __init__(self, name: str, axis: int) -> None:
        self.name, self.axis, self.spread = name, axis, _RunningCovariance(1)
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def add(self, *arrays: Array) -> None:
        rows = _by_channel(arrays[0], self.axis)
        self.spread.add(rows)
        self.low = np.minimum(self.low, rows.min(1, initial=np.inf))
        self.high = np.maximum(self.high, rows.max(1, initial=-np.inf))

    def result(self) -> ChannelStats:
        s = self.spread
        found = ChannelStats(s.count, s.mean(0), s.moment(0, 0), self.low, self.high)
        check_finite(self.name, found.mean, found.var)
        return found


# Activations.


def channel_axis(node: Node) -> int:
    """The channel axis of an activation: that of the layers around it, else 1."""
    own = isinstance(node.op, Gate) and (node.op.kind == "prelu" or node.input(3) is not None)
    if isinstance(node.op, PRelu) or (own and isinstance(node.op, Gate)):
        rank = node.required(0).type.rank
        # One slope for all channels goes with any axis.
        return node.op.axis if rank is None or node.op.axis < rank else -1
    value = node.required(0)
    axis = _axis_of_source(value)
    if axis is None:
        axis = next((a for a in map(_layer_axis, node.output.users) if a is not None), 1)
    return axis % value.type.rank if value.type.rank else axis


def _axis_of_source(value: Value) -> int | None:
    """The channel axis of the layer that a value comes from; ``None`` if none is found."""
    for _ in range(32):  # Follow elementwise ops.
        node = value.producer
        if node is None:
            return None
        axis = _layer_axis(node)
        if axis is not None:
            return axis
        if not isinstance(node.op, Activation | Gate | Add | Sub | Mul | Identity | Cast):
            return None
        reading = next((v for v in node.inputs if v is not None and v.data is None), None)
        if reading is None:
            return None
        value = reading
    return None


def _layer_axis(node: Node) -> int | None:
    match node.op:
        case Conv() | ConvTranspose() | AveragePool() | MaxPool() | GroupNorm():
            return 1
        case Linear() | LayerNorm():
            return -1
        case Scale() | PRelu():
            return node.op.axis
    return None


@dataclass(frozen=True)
class ActivationMoments(Request[ActivationStats]):
    """Requests the moments of the input and output of an activation, for each channel.

    For a gate, these are the moments of the activation inside it.

    Attributes:
        node: An activation, or a gate whose number is a constant and not 0.
    """

    node: Node

    def values(self) -> tuple[Value, ...]:
        return self.node.required(0), self.node.output

    def accumulator(self) -> Accumulator[ActivationStats]:
        gate = 1.0
        line: tuple[Any, ...] = (1.0, 0.0)
        if isinstance(self.node.op, Gate):
            number = self.node.inputs[1]
            gate = 0.0 if number is None or number.data is None else number.data.float64().item()
            given = [v.data for v in self.node.inputs[3:] if v is not None and v.data is not None]
            if given and gate != 1:
                line = tuple(data.float64().reshape(-1, 1) for data in given)
            if not gate:
                raise UsageError(
                    f"gate {self.node.name} is 0 or not a constant: its output does not show the activation"
                )
        return _ActivationAccumulator(self.node.name, channel_axis(self.node), gate, line)


class _ActivationAccumulator(Accumulator[ActivationStats]):
    def __init__(self, name: str, axis: int, gate: float, line: tuple[Any, ...]) -> None:
        self.name, self.axis, self.gate, self.line = name, axis, gate, line
        self.spread = _RunningCovariance(2)

    def add(self, *arrays: Array) -> None:
        x, y = (_by_channel(a, self.axis) for a in arrays)
        rest = self.line[0] * x + self.line[1]
        self.spread.add(x, rest + (y - rest) / self.gate)

    def result(self) -> ActivationStats:
        s = self.spread
        found = ActivationStats(self.axis, s.mean(0), s.mean(1), s.moment(0, 0), s.moment(0, 1))
        check_finite(self.name, found.mean_x, found.mean_y, found.var_x, found.cov_xy)
        return found
