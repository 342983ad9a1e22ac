"""The limit of pairs of 8-bit weights: the two largest magnitudes of an output channel add up to at most 128.

Processors with AVX2 or AVX-512 but without VNNI multiply unsigned activations with signed weights in pairs, and add the two products in 16
bits, with saturation: ``255 * (|a| + |b|)`` stays below 2^15 if ``|a| + |b| <= 128``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIMIT = 128
"""The largest sum of two magnitudes."""

UNROUNDED = LIMIT - 1
"""The largest sum of two magnitudes before each is rounded to a whole number."""


def pair_sums(weight: Array, axis: int) -> Array:
    """``(channels,)``: the sum of the two largest magnitudes of each output channel, or the only magnitude.

    Args:
        weight: Integers, or floats.
        axis: The axis of the output channels.
    """
    rows = _rows(weight, axis)
    if not rows.size:
        return np.zeros(len(rows))
    return np.asarray(np.partition(rows, max(0, rows.shape[1] - 2), axis=1)[:, -2:].sum(1))


def within_limit(integers: Array, axis: int) -> bool:
    """Whether integers keep to the limit; only int8 does."""
    return integers.dtype == np.int8 and bool((pair_sums(integers, axis) <= LIMIT).all())


def largest_within_limit(integers: Array, axis: int) -> Array | None:
    """For each of some integers, the magnitude up to which it may change while all others change too; ``None`` without a limit.

    A channel with one integer above 64 keeps that one as its largest.

    Args:
        integers: Integers that keep to the limit.
        axis: The axis of the output channels.
    """
    rows = _rows(integers, axis)
    if rows.shape[1] < 2 or not within_limit(integers, axis):
        return None
    top = rows.max(1)
    most = np.full(rows.shape, LIMIT / 2)
    above = top > LIMIT / 2
    most[above] = (LIMIT - top[above])[:, None]
    most[above, rows[above].argmax(1)] = top[above]
    shape = (integers.shape[axis], *np.delete(integers.shape, axis))
    return np.moveaxis(most.reshape(shape), 0, axis)


def _rows(weight: Array, axis: int) -> Array:
    """The magnitudes of each output channel; those of integers in a type that holds the magnitude of -128."""
    moved = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    return np.asarray(np.abs(moved.astype(np.int64) if weight.dtype.kind == "i" else moved))


__all__ = ["LIMIT", "UNROUNDED", "largest_within_limit", "pair_sums", "within_limit"]
