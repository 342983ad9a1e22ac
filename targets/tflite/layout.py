"""Layouts: in which order the axes of a value are stored, and what reshapes and transposes do to that order.

The IR speaks of axes as ONNX and torch do, channels second; LiteRT's convolutions want channels last. A layout
says which logical axis each stored axis holds, so that a transpose in the graph moves nothing and a reshape keeps whatever
order its parts allow. Only where an op needs another order than its input has does a TRANSPOSE appear.

One axis may also be stored with its elements in another order: the features of a flattened image, which lie as
(height, width, channel) in memory and as (channel, height, width) in the model. A dense layer behind it reorders its
weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.types import Dim, Shape


@dataclass(frozen=True)
class Inner:
    """The order of the elements along one logical axis.

    Attributes:
        axis: The logical axis.
        sizes: The sizes whose product is the axis, major first, as the model counts them.
        order: Their order in memory: place ``i`` holds number ``order[i]`` of ``sizes``.
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
    inner: Inner | None = None

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.perm)

    @property
    def is_plain(self) -> bool:
        """True when the value is stored as the model counts."""
        return self.inner is None and self.perm == tuple(range(self.rank))

    def place(self, axis: int) -> int:
        """Where a logical axis is stored."""
        return self.perm.index(axis % self.rank)

    def stored(self, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """A logical shape as it is stored."""
        return tuple(shape[axis] for axis in self.perm)

    def transposed(self, perm: Sequence[int]) -> Layout:
        """The layout of the value with its axes permuted (axis ``i`` is the old ``perm[i]``), nothing moved."""
        where = {old: new for new, old in enumerate(perm)}
        inner = self.inner and Inner(where[self.inner.axis], self.inner.sizes, self.inner.order)
        return Layout(tuple(where[axis] for axis in self.perm), inner)

    def without(self, axes: Sequence[int]) -> Layout:
        """The layout when axes go away."""
        gone = {axis % self.rank for axis in axes}
        kept = [axis for axis in range(self.rank) if axis not in gone]
        new = {axis: i for i, axis in enumerate(kept)}
        inner = self.inner
        if inner is not None:
            inner = None if inner.axis in gone else Inner(new[inner.axis], inner.sizes, inner.order)
        return Layout(tuple(new[axis] for axis in self.perm if axis not in gone), inner)

    def leading(self, count: int) -> Layout:
        """The layout when ``count`` axes of size 1 are put in front."""
        inner = self.inner and Inner(self.inner.axis + count, self.inner.sizes, self.inner.order)
        return Layout((*range(count), *(axis + count for axis in self.perm)), inner)


def plain(rank: int) -> Layout:
    """As the model counts."""
    return Layout(tuple(range(rank)))


def channels_last(rank: int) -> Layout:
    """(N, C, ...) stored as (N, ..., C)."""
    return Layout((0, *range(2, rank), 1)) if rank > 2 else plain(rank)


Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes before and axes after a reshape that hold the same elements."""


def groups(before: Shape, after: Shape) -> list[Group]:
    """Cut a reshape into parts that do not mix; axes of size 1 are in none.

    Sizes that are not known are equal only to themselves; where they differ, everything that is left is one part.
    """
    ins = [i for i, d in enumerate(before) if d != 1]
    outs = [i for i, d in enumerate(after) if d != 1]
    found: list[Group] = []
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
        and (_numbers(a) == _numbers(b))
    )


def _less(a: Sequence[Dim], b: Sequence[Dim]) -> bool | None:
    """Whether ``a`` must grow, ``None`` when that cannot be told."""
    odd = [d for d in (*a, *b) if not isinstance(d, int)]
    if odd:
        return None
    return _numbers(a) < _numbers(b)


def _numbers(dims: Sequence[Dim]) -> int:
    return math.prod(d for d in dims if isinstance(d, int))


def gathered(perm: Sequence[int], parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """``perm`` with the axes of every part together and in order, where the first of them stands."""
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


def contiguous(perm: Sequence[int], part: tuple[int, ...], shape: Shape) -> bool:
    """Whether the axes of a part are neighbours in storage, in any order (size 1 does not count)."""
    places = sorted(i for i, axis in enumerate(perm) if axis in part)
    between = [perm[i] for i in range(places[0], places[-1] + 1)]
    return all(axis in part or shape[axis] == 1 for axis in between)


def in_order(perm: Sequence[int], part: tuple[int, ...]) -> bool:
    """Whether the axes of a part come in order in storage."""
    return tuple(axis for axis in perm if axis in part) == part


def fill_ones(
    order: Sequence[int], shape: Shape, wishes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """A whole permutation for axes in a given order: axes of size 1 go where a wish has them, or behind their neighbour."""
    rank = len(shape)
    for wish in (*wishes, tuple(range(rank)), channels_last(rank).perm):
        if len(wish) == rank and [a for a in wish if shape[a] != 1] == list(order):
            return tuple(wish)
    perm = list(order)
    for axis in range(rank):
        if shape[axis] == 1:
            perm.insert(perm.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(perm)


def carried(
    perm: Sequence[int], parts: Sequence[Group], shape: Shape, wishes: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The order of the axes behind a reshape, for an order in front of it that every part allows; else ``None``.

    Args:
        perm: The order in front.
        parts: What :func:`groups` gives.
        shape: The logical shape behind.
        wishes: Where axes of size 1 had best go.
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
    return fill_ones(order, shape, wishes)


__all__ = [
    "Group",
    "Inner",
    "Layout",
    "carried",
    "channels_last",
    "contiguous",
    "fill_ones",
    "gathered",
    "groups",
    "in_order",
    "plain",
]
