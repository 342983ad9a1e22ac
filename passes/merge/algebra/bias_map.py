"""Constants of composed and added maps: vectors, and bias maps over the spatial axes.

The constant of a composition is the result of the second map for the constant of the first. If the second map reads no
padding, this is a vector: ``sum over taps of K2 @ b1 + b2``. If it reads padding (zeros), the result differs along the
border: ``conv(b1 at every position, K2, pads) + b2``. This is a bias map: a constant ``(1, O, *spatial)`` of static
size, which one addition applies exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ....ir import Tensor
from .kernels import convolve
from .tensors import (
    MAX_DEPTH,
    Array64,
    Derived,
    is_ones,
    materialized_if_deep,
    materialized_if_small,
)

if TYPE_CHECKING:
    from .affine import Affine


def vector_after(mine: Tensor, other: Affine) -> Tensor:
    """The constant vector that results from applying ``other``, which reads no padding, to the vector ``mine``."""
    weight, theirs, groups = materialized_if_deep(other.weight), other.const, other.groups
    outputs = other.outputs

    def compute() -> Array64:
        found = mine.float64()
        if not is_ones(weight):
            kernel = weight.float64()
            summed = kernel.sum(axis=tuple(range(2, kernel.ndim)))
            found = (
                summed.reshape(groups, outputs // groups, -1) @ found.reshape(groups, -1, 1)
            ).reshape(outputs)
        return found if theirs is None else found + theirs.float64()

    made = Derived((outputs,), other.dtype, compute, (mine, weight, theirs))
    # A diagonal map costs nothing, so the vector is computed now; a large kernel is read later.
    return materialized_if_small(made) if other.is_diagonal or made.depth >= MAX_DEPTH else made


def bias_map_after(mine: Tensor, other: Affine, sizes: tuple[int, ...]) -> Tensor:
    """The bias map that results from applying ``other`` to the constant ``mine``.

    Args:
        mine: A vector or a bias map.
        other: The map.
        sizes: The spatial size of the input of ``other``.
    """
    weight, theirs, channels = materialized_if_deep(other.weight), other.const, other.inputs
    strides, pads, dilations, groups = other.strides, other.pads, other.dilations, other.groups
    shape = (1, other.outputs, *_known(replace(other, size=sizes).output_size))

    def spread(array: Array64) -> Array64:
        places = array.shape[2:] or (1,) * len(sizes)
        return np.broadcast_to(array.reshape(channels, *places), (channels, *sizes))

    def compute() -> Array64:
        start = spread(mine.float64())
        found = convolve(start, weight.float64(), strides, pads, dilations, groups)[None]
        if theirs is not None:
            found = found + _as_map(theirs.float64(), len(sizes))
        return found

    return Derived(shape, other.dtype, compute, (mine, weight, theirs))


def sum_of_constants(first: Affine, second: Affine) -> Tensor | None:
    """The constant of the sum of two maps; a bias map if one of them has a bias map."""
    one, two = first.const, second.const
    if one is None or two is None:
        return two if one is None else one
    rank = first.rank
    if not first.has_bias_map and not second.has_bias_map:
        return materialized_if_small(
            Derived(one.shape, first.dtype, lambda: one.float64() + two.float64(), (one, two))
        )
    shape = one.shape if first.has_bias_map else two.shape

    def compute() -> Array64:
        return _as_map(one.float64(), rank) + _as_map(two.float64(), rank)

    return Derived(shape, first.dtype, compute, (one, two))


def _as_map(array: Array64, rank: int) -> Array64:
    return array if array.ndim > 1 else array.reshape(1, -1, *(1,) * rank)


def _known(sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(s for s in sizes if s is not None)
