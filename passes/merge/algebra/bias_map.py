"""Constants of composed and added maps: vectors, and bias maps over the spatial axes.

The constant of a composition is the response of the second map to the constant of the first. Where the second
map reads no padding that is a vector, ``sum over taps of K2 @ b1 + b2``. Where it pads with zeros, the response
is smaller along the border: ``conv(b1 everywhere, K2, pads)``, a constant ``(1, O, *spatial)`` of a static
size, which one addition applies exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ....ir import Tensor
from .kernels import convolve
from .tensors import MAX_DEPTH, Array64, Derived, is_ones, settled, settled_deep

if TYPE_CHECKING:
    from .affine import Affine


def vector_after(mine: Tensor, other: Affine) -> Tensor:
    """The constant of ``other`` after a constant vector, where no padding is read."""
    weight, theirs, groups = settled_deep(other.weight), other.const, other.groups
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
    # A vector through a diagonal map costs nothing; through a large kernel it waits.
    return settled(made) if other.is_diagonal or made.depth >= MAX_DEPTH else made


def map_after(mine: Tensor, other: Affine, sizes: tuple[int, ...]) -> Tensor:
    """The constant of ``other`` after a constant, as a map; ``sizes`` are those in between."""
    weight, theirs, channels = settled_deep(other.weight), other.const, other.inputs
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
    """The constant of the sum of two maps: a map over the spatial axes as soon as one of them has one."""
    one, two = first.const, second.const
    if one is None or two is None:
        return two if one is None else one
    rank = first.rank
    if not first.has_map and not second.has_map:
        return settled(
            Derived(one.shape, first.dtype, lambda: one.float64() + two.float64(), (one, two))
        )
    shape = one.shape if first.has_map else two.shape

    def compute() -> Array64:
        return _as_map(one.float64(), rank) + _as_map(two.float64(), rank)

    return Derived(shape, first.dtype, compute, (one, two))


def _as_map(array: Array64, rank: int) -> Array64:
    return array if array.ndim > 1 else array.reshape(1, -1, *(1,) * rank)


def _known(sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(s for s in sizes if s is not None)
