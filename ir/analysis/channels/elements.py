"""Elements: the single channels that permutations move, and what binds them to one another.

An element stands for one index along one or several axes of a value. Every constant that is read along an
axis gives that axis elements of its own (its *origin*); the analysis follows them through the graph and
records here how they are bound:

- *joined*: both must move together (the two sides of a residual add, a weight's input axis and what it reads);
- *projected*: many children have one parent, and children of one parent stay siblings (the dimensions of one
  head and the head, the channels of one group of a convolution and the group);
- *marked*: an element may only take the place of one with the same mark (the pieces of a split);
- *fixed*, with a reason.

:mod:`.groups` finds the permutations that respect all of this.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ...graph import Value

Ids = npt.NDArray[np.int64]


class Binding(IntEnum):
    """How two elements are bound.

    ``ROW`` and ``COLUMN`` are projections. With a grid of heads and dimensions in mind, a row is a head, and a
    column is one dimension that all heads share. They mean the same; which of them move together is
    what tells permutations within a head from permutations of whole heads.
    """

    JOIN = 0
    ROW = 1
    COLUMN = 2


@dataclass(frozen=True)
class Origin:
    """Where elements come from: an axis of a constant.

    Attributes:
        value: The constant; ``None`` for elements that only bind others.
        axis: The axis.
        blocks: More than 1 where the axis means other channels in every block of rows (axis 0), as in the
            weight of a grouped convolution: its elements are counted through (blocks, size of the axis).
    """

    value: Value | None = None
    axis: int = 0
    blocks: int = 1


@dataclass(frozen=True)
class Copies:
    """Elements that repeat others along axes that keep their order (a channel flattened with its pixels).

    Attributes:
        base: What each one repeats.
        inner: Its place among the repetitions of the same base.
        count: The number of repetitions.
    """

    base: Ids
    inner: Ids
    count: int


class Elements:
    """All elements of a graph and their bindings."""

    def __init__(self) -> None:
        self.size = 0
        self.origins: list[tuple[int, Origin]] = []
        self.bindings: list[tuple[Ids, Ids, Binding]] = []
        self.fixed: list[tuple[Ids, str]] = []
        self.marks: list[Ids] = []
        self._copies: dict[int, Copies] = {}

    def new(self, shape: Sequence[int], origin: Origin | None = None) -> Ids:
        """Fresh elements, numbered in row-major order."""
        count = int(np.prod(shape, dtype=np.int64))
        ids = np.arange(self.size, self.size + count, dtype=np.int64).reshape(shape)
        self.origins.append((self.size, origin or Origin()))
        self.size += count
        return ids

    def fix(self, ids: Ids, reason: str) -> None:
        """These elements stay where they are."""
        self.fixed.append((ids.reshape(-1), reason))

    def new_fixed(self, shape: Sequence[int], reason: str) -> Ids:
        """Fresh elements that stay where they are."""
        ids = self.new(shape)
        self.fix(ids, reason)
        return ids

    def join(self, a: Ids, b: Ids) -> None:
        """Elements at the same place of two arrays of one shape move together."""
        if a is not b:
            self.bindings.append((a.reshape(-1), b.reshape(-1), Binding.JOIN))

    def project(self, children: Ids, parents: Ids, binding: Binding) -> None:
        """``parents``, broadcast to the shape of ``children``, holds the parent of each child."""
        wide = np.broadcast_to(parents, children.shape)
        self.bindings.append((children.reshape(-1), wide.reshape(-1), binding))

    def mark(self, ids: Ids) -> None:
        """These elements may only change places with each other."""
        self.marks.append(ids.reshape(-1))

    def copies(self, ids: Ids, tracked: Sequence[int], shape: Sequence[int]) -> Ids:
        """Elements over a larger grid, each bound to the one that it repeats.

        Args:
            ids: The elements that are repeated.
            tracked: Where the axes of ``ids`` are among those of the grid, ascending.
            shape: The shape of the grid.
        """
        expanded = ids.reshape([n if a in tracked else 1 for a, n in enumerate(shape)])
        base = np.broadcast_to(expanded, shape)
        others = [n if a not in tracked else 1 for a, n in enumerate(shape)]
        count = int(np.prod(others, dtype=np.int64))
        inner = np.broadcast_to(np.arange(count, dtype=np.int64).reshape(others), shape)
        made = self.new(shape)
        self._copies[int(made.flat[0])] = Copies(base.reshape(-1), inner.reshape(-1), count)
        self.join(base, made)
        return made

    def collapsed(self, ids: Ids) -> tuple[Ids, list[int]] | None:
        """The inverse of :meth:`copies`: what a whole grid of copies repeats, and the axes it lies along."""
        last = bisect_right(self.origins, int(ids.min()), key=lambda origin: origin[0])
        start = self.origins[last - 1][0]
        found = self._copies.get(start)
        if found is None or int(ids.max()) >= start + found.base.size:
            return None
        base, inner = found.base[ids - start], found.inner[ids - start]
        repeated = [a for a in range(ids.ndim) if bool((base == base.take([0], a)).all())]
        kept = [a for a in range(ids.ndim) if a not in repeated]
        order = inner.transpose(kept + repeated).reshape(-1, found.count if repeated else 1)
        if not kept or not repeated or order.size != ids.size:
            return None
        if not bool((order == np.arange(found.count)).all()):
            return None
        first = tuple(0 if a in repeated else slice(None) for a in range(ids.ndim))
        return base[first], kept


def projection(grid: Ids, kept: Sequence[int]) -> Binding:
    """The kind of a projection of a grid to some of its axes.

    Columns, when these tell the innermost positions apart, else rows; innermost is the axis along which the
    numbers of the elements change least.
    """
    strides = {
        k: abs(int(grid.take([1], k).flat[0]) - int(grid.flat[0]))
        for k in range(grid.ndim)
        if grid.shape[k] > 1
    }
    if not strides:
        return Binding.ROW
    innermost = min(strides, key=strides.__getitem__)
    return Binding.COLUMN if innermost in kept else Binding.ROW


@dataclass(frozen=True, eq=False)
class Factor:
    """Elements along some axes of one value.

    Attributes:
        axes: The axes, ascending. With several, the elements form a grid: an axis of channels that was
            reshaped into heads and dimensions.
        ids: The elements, of the shape of these axes; no element occurs twice.
    """

    axes: tuple[int, ...]
    ids: Ids


Entry = Factor | str | None
"""What is known of one axis of a value: its elements, why it keeps its order, or ``None`` for size 1."""
