"""Weights as 8-bit integers with one scale for each output channel, symmetric around 0; biases as 32-bit integers.

A channel's scale is its largest magnitude divided by 127, or, by ``clip``, the fraction of it with the least squared error of
rounding and clipping.

``pair_limit`` is for processors without VNNI (:mod:`graphshrink.ir.analysis.integer_pairs`): a channel's scale grows until its two largest
weights fit. onnxruntime's ``reduce_range`` halves all weights for this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir.analysis.integer_pairs import UNROUNDED, pair_sums
from ..merge.algebra.tensors import Array64

Scales = npt.NDArray[np.float32]

LARGEST = 127
BIAS_LARGEST = 2**31 - 1
_FRACTIONS = np.linspace(1, 0.5, 51)
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers.

    Attributes:
        numbers: int8, in the shape of the weight.
        scales: ``(channels,)``: one scale for each index of ``axis``.
        axis: The axis of the output channels.
        empty: The channels whose weights are all 0.
    """

    numbers: npt.NDArray[np.int8]
    scales: Scales
    axis: int
    empty: tuple[int, ...]

    def floats(self) -> Array64:
        """The numbers that the integers represent."""
        return self.numbers * self.along(self.scales)

    def along(self, vector: npt.NDArray[np.float32]) -> Array64:
        """A vector of the channels, to broadcast against the weight."""
        shape = [1] * self.numbers.ndim
        shape[self.axis] = -1
        return vector.astype(np.float64).reshape(shape)


def quantized_weight(
    weight: Array64, axis: int, *, clip: bool = False, pair_limit: bool = False,
    least: Array64 | None = None,
) -> QuantizedWeight:  # fmt: skip
    """Quantise a weight.

    Args:
        weight: The weight.
        axis: The axis of its output channels.
        clip: Choose the scales with the least squared error, instead of those of the largest numbers.
        pair_limit: Keep the sum of any two magnitudes of a channel at most 128.
        least: ``(channels,)``: lower bounds of the scales, so that biases fit into 32 bits.

    Raises:
        ValueError: If a number is not finite.
    """
    if not np.isfinite(weight).all():
        raise ValueError("its weight is not finite everywhere")
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    sizes = np.abs(rows)
    top = sizes.max(1, initial=0)
    empty = top == 0
    scales = top / LARGEST
    if clip:
        scales = _least_error(rows, scales)
    if pair_limit:
        scales = np.maximum(scales, pair_sums(rows, 0) / UNROUNDED)
    if least is not None:
        scales = np.maximum(scales, least)
    # Empty channels have any scale: that of the others keeps their biases precise.
    usual = float(np.median(scales[~empty])) if not empty.all() else 1.0
    scales = np.where(empty, np.maximum(scales, usual), scales)
    stored = np.maximum(scales, TINY).astype(np.float32)
    wide = stored.astype(np.float64)
    numbers = np.clip(np.rint(rows / wide[:, None]), -LARGEST, LARGEST).astype(np.int8)
    shape = np.moveaxis(weight, axis, 0).shape
    return QuantizedWeight(
        np.ascontiguousarray(np.moveaxis(numbers.reshape(shape), 0, axis)),
        stored,
        axis,
        tuple(map(int, np.flatnonzero(empty))),
    )


def _least_error(rows: Array64, scales: Array64) -> Array64:
    """The fraction of each row's scale with the least squared error."""
    best, least = scales.copy(), np.full(len(rows), np.inf)
    for fraction in _FRACTIONS:
        trial = np.where(scales > 0, scales * fraction, 1.0)[:, None]
        rounded = np.clip(np.rint(rows / trial), -LARGEST, LARGEST) * trial
        error = np.square(rounded - rows).sum(1)
        better = error < least
        best[better] = (scales * fraction)[better]
        least[better] = error[better]
    return best


def least_scales(bias: Array64, input_scale: float) -> Array64:
    """The smallest scales of a weight with which a bias fits into 32 bits.

    Args:
        bias: ``(channels,)``.
        input_scale: The scale of the layer's input.
    """
    return np.abs(bias) / (input_scale * (BIAS_LARGEST // 2))


def quantized_bias(bias: Array64, scales: Array64) -> npt.NDArray[np.int32]:
    """A bias in 32 bits, whose scale is the product of those of input and weight."""
    return np.clip(np.rint(bias / scales), -BIAS_LARGEST, BIAS_LARGEST).astype(np.int32)
