"""Layouts: the order in which the axes of a value are stored, and how reshapes and transposes change it.

The IR counts axes as ONNX and torch do, channels second; LiteRT's convolutions need channels last. A layout maps each
stored axis to a logical axis (an axis of the IR), so that a transpose in the graph moves no data, and a reshape keeps the stored
order where it can. A TRANSPOSE is written only where an op needs another order than its input has.

The elements along one axis may also be stored in another order: the features of a flattened image are stored as
(height, width, channel), while the model counts them as (channel, height, width). A dense layer that reads them reorders
its weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.types import Dim, Shape


@dataclass(frozen=True)
class InnerOrder:
    """The stored order of the elements along one logical axis, which a reshape joined from several.

    Attributes:
        axis: The logical axis.
        sizes: The sizes of the axes that were joined, in the model's order.
        order: The stored order of these axes: place ``i`` has axis ``order[i]`` of ``sizes``.
    """

    axis: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Stored axis ``i`` holds logical axis ``perm[i]``.

    Attributes:
        perm: A permutation of the logical axes.
        inner: At most one axis whose elements are reordered.
    """

    perm: tuple[int, ...]
    inner: InnerOrder | None = None

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.perm)

    @property
    def is_model_order(self) -> bool:
        """Whether the value is stored in the model's order."""
        return self.inner is None and self.perm == tuple(range(self.rank))

    def place(self, axis: int) -> int:
        """The stored axis that holds a logical axis."""
        return self.perm.index(axis % self.rank)

    def stored_shape(self, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """Return the stored shape for a logical shape."""
        return tuple(shape[axis] for axis in self.perm)

    def transposed(self, perm: Sequence[int]) -> Layout:
        """Return the layout after a transpose that moves no data: new axis ``i`` is the old ``perm[i]``."""
        where = {old: new for new, old in enumerate(perm)}
        inner = self.inner and InnerOrder(
            where[self.inner.axis], self.inner.sizes, self.inner.order
        )
        return Layout(tuple(where[axis] for axis in self.perm), inner)

    def without(self, axes: Sequence[int]) -> Layout:
        """Return the layout after some axes are removed."""
        removed = {axis % self.rank for axis in axes}
        kept = [axis for axis in range(self.rank) if axis not in removed]
        new = {axis: i for i, axis in enumerate(kept)}
        inner = self.inner
        if inner is not None:
            inner = (
                None
                if inner.axis in removed
                else InnerOrder(new[inner.axis], inner.sizes, inner.order)
            )
        return Layout(tuple(new[axis] for axis in self.perm if axis not in removed), inner)

    def leading(self, count: int) -> Layout:
        """Return the layout after ``count`` axes of size 1 are added in front."""
        inner = self.inner and InnerOrder(
            self.inner.axis + count, self.inner.sizes, self.inner.order
        )
        return Layout((*range(count), *(axis + count for axis in self.perm)), inner)


def model_order(rank: int) -> Layout:
    """The layout that stores axes in the model's order."""
    return Layout(tuple(range(rank)))


def channels_last(rank: int) -> Layout:
    """The layout that stores (N, C, ...) as (N, ..., C); the model's order below rank 3."""
    return Layout((0, *range(2, rank), 1)) if rank > 2 else model_order(rank)


ReshapePart = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes before a reshape, and the axes after it that hold the same elements."""


def reshape_parts(before: Shape, after: Shape) -> list[ReshapePart]:
    """Return the smallest parts of a reshape that are reshapes of their own; axes of size 1 are in no part.

    A symbolic size is equal only to itself, an unknown one (``None``) to nothing. From the first sizes that cannot be compared on,
    everything is one part.
    """
    ins = [i for i, d in enumerate(before) if d != 1]
    outs = [i for i, d in enumerate(after) if d != 1]
    found: list[ReshapePart] = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        left, right = i + 1, j + 1
        a, b = [before[ins[i]]], [after[outs[j]]]
        while not _equal(a, b):
            small = _less(a, b)
            if small is None or (small and left == len(ins)) or (not small and right == len(outs)):
                return [*found, (tuple(ins[i:]), tuple(outs[j:]))]
            if small:
                a.append(before[ins[left]])
                left += 1
            else:
                b.append(after[outs[right]])
                right += 1
        found.append((tuple(ins[i:left]), tuple(outs[j:right])))
        i, j = left, right
    if i < len(ins) or j < len(outs):
        rest = (tuple(ins[i:]), tuple(outs[j:]))
        if found:
            (first_in, first_out), found = found[-1], found[:-1]
            rest = (first_in + rest[0], first_out + rest[1])
        found.append(rest)
    return found


def _equal(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    symbols = sorted(str(d) for d in a if isinstance(d, str))
    known = None not in a and None not in b
    return (
        known
        and symbols == sorted(str(d) for d in b if isinstance(d, str))
        and (_known_product(a) == _known_product(b))
    )


def _less(a: Sequence[Dim], b: Sequence[Dim]) -> bool | None:
    """Whether ``a`` has fewer elements than ``b``; ``None`` if a size is not known."""
    if not all(isinstance(d, int) for d in (*a, *b)):
        return None
    return _known_product(a) < _known_product(b)


def _known_product(dims: Sequence[Dim]) -> int:
    return math.prod(d for d in dims if isinstance(d, int))


def joined_in_place(perm: Sequence[int], parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return ``perm`` with the axes of each part moved next to the first of them, in order."""
    part_of = {axis: part for part in parts for axis in part}
    done: set[int] = set()
    out: list[int] = []
    for axis in perm:
        if axis in done:
            continue
        part = part_of.get(axis, (axis,))
        out += part
        done.update(part)
    return tuple(out)


def is_contiguous(perm: Sequence[int], part: tuple[int, ...], shape: Shape) -> bool:
    """Whether only axes of size 1 are stored between the axes of a part, which may be in any order."""
    places = sorted(i for i, axis in enumerate(perm) if axis in part)
    between = [perm[i] for i in range(places[0], places[-1] + 1)]
    return all(axis in part or shape[axis] == 1 for axis in between)


def is_in_order(perm: Sequence[int], part: tuple[int, ...]) -> bool:
    """Whether the axes of a part are stored in ascending order."""
    return tuple(axis for axis in perm if axis in part) == part


def place_size_one_axes(
    order: Sequence[int], shape: Shape, preferred: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """Return a permutation of all axes that keeps ``order`` and adds the axes of size 1.

    They go where the first suitable preferred order has them, or else behind their neighbour.
    """
    rank = len(shape)
    for wanted in (*preferred, tuple(range(rank)), channels_last(rank).perm):
        if len(wanted) == rank and [a for a in wanted if shape[a] != 1] == list(order):
            return tuple(wanted)
    perm = list(order)
    for axis in range(rank):
        if shape[axis] == 1:
            perm.insert(perm.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(perm)


def order_after_reshape(
    perm: Sequence[int],
    parts: Sequence[ReshapePart],
    shape: Shape,
    preferred: Sequence[tuple[int, ...]],
) -> tuple[int, ...] | None:
    """Return the stored order of axes after a reshape that moves no data; ``None`` if data has to move.

    Args:
        perm: The order before the reshape.
        parts: The result of :func:`reshape_parts`.
        shape: The logical shape after the reshape.
        preferred: Orders to place axes of size 1 by, the best first.
    """
    target = dict(parts)
    if () in target:
        return None
    order: list[int] = []
    axes = [axis for axis in perm if any(axis in part for part in target)]
    while axes:
        part = next(part for part in target if axes[0] in part)
        if tuple(axes[: len(part)]) != part:
            return None
        order += target[part]
        axes = axes[len(part) :]
    return place_size_one_axes(order, shape, preferred)


__all__ = [
    "InnerOrder",
    "Layout",
    "ReshapePart",
    "channels_last",
    "is_contiguous",
    "is_in_order",
    "joined_in_place",
    "model_order",
    "order_after_reshape",
    "place_size_one_axes",
    "reshape_parts",
]
