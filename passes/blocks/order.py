"""The order of a channel group, shared by the blocks of several layers.

A channel group has one order, but every layer that reads or writes it needs its own blocks to be contiguous. Channels
are sorted by the blocks of the first layer. A layer with the same blocks needs nothing more. If the blocks of another
layer cut the first ones evenly (each block of one has equally many channels of each block of the other: a
*uniform contingency* table), channels are sorted by its blocks second: a channel is then at (first block, own block,
rest), and a Reshape-Transpose-Reshape brings the own block to the front, like the channel shuffle between group
convolutions (Zhang et al., *ShuffleNet*, 2018). Further layers are added in the same way. Any other blocks need a Gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .blocks import Ids, contiguous_labels
from .search import Side


@dataclass(frozen=True, eq=False)
class BlockAccess:
    """How a layer gets the channels of one axis into contiguous blocks.

    Attributes:
        channels: The channels in the order of the blocks, as indices into the original axis.
        shape: The shape to reshape the axis to, if a transpose must bring ``front`` to its front; else empty.
        front: The index in ``shape`` of the axis that counts the blocks.
        gather: The indices of a Gather, if nothing else is possible.
    """

    channels: Ids
    shape: tuple[int, ...] = ()
    front: int = 0
    gather: Ids | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the blocks are contiguous in the graph, so that nothing needs to move."""
        return not self.shape and self.gather is None


@dataclass(eq=False)
class ChannelOrder:
    """The order of the units of one channel group, as far as layers have determined it.

    Attributes:
        size: The number of units.
        fixed: The reason why the units cannot move; empty if they can.
        parts: The sort keys: the labels of all units for one layer each, the most significant first.
        owner: The name of the layer that the first part belongs to.
    """

    size: int
    fixed: str = ""
    parts: list[Ids] = field(default_factory=list)
    owner: str = ""

    @property
    def is_free(self) -> bool:
        """Whether any order is still possible."""
        return not self.fixed and not self.parts

    def cells(self) -> Ids:
        """The cell of each unit; units in the same cell have the same labels in all parts."""
        found = np.zeros(self.size, np.int64)
        for part in self.parts:
            found = found * (int(part.max()) + 1) + part
        return found

    def place(self, labels: Ids) -> int | None:
        """The index of the part with these labels, or the index they would get; ``None`` if they cannot be added."""
        for number, part in enumerate(self.parts):
            if bool((part == labels).all()):
                return number
        if self.fixed:
            return 0 if bool((np.diff(labels) >= 0).all()) else None
        if not self.parts:
            return 0
        cells = self.cells() * (int(labels.max()) + 1) + labels
        count = (int(labels.max()) + 1) * math.prod(int(p.max()) + 1 for p in self.parts)
        even = bool((np.bincount(cells, minlength=count) * count == self.size).all())
        return len(self.parts) if even else None

    def add(self, labels: Ids, owner: str) -> None:
        """Add labels that :meth:`place` has an index for as a sort key, if they are new."""
        if self.place(labels) == len(self.parts) and not self.fixed:
            self.parts.append(labels)
            self.owner = self.owner or owner

    def numbers_in(self, labels: Ids) -> Ids | None:
        """For each block of ``labels``, its number in the part with the same blocks; ``None`` if no part has them."""
        count = int(labels.max()) + 1
        for part in self.parts or ([contiguous_labels(np.bincount(labels))] if self.fixed else []):
            pairs = np.unique(labels * self.size + part)
            if pairs.size == count == int(part.max()) + 1:
                return np.asarray(pairs % self.size, np.int64)
        return None

    def sides(self, sizes: Ids, gather: bool) -> Iterator[Side]:
        """The choices of labels for a layer with blocks of these sizes, as constraints for the search.

        Args:
            sizes: The number of units of each block.
            gather: Whether blocks that need a Gather are allowed.
        """
        if self.fixed:
            yield Side(sizes, fixed=contiguous_labels(sizes))
        if self.is_free or (self.fixed and gather):
            yield Side(sizes)
        for part in self.parts:
            if bool((np.bincount(part, minlength=sizes.size)[: sizes.size] == sizes).all()):
                yield Side(sizes, fixed=part)
        if self.parts:
            count = sizes.size * (int(self.cells().max()) + 1)
            if self.size % count == 0 and bool((sizes == sizes[0]).all()):
                yield Side(sizes, cells=self.cells())
            elif gather:
                yield Side(sizes)

    def order(self) -> Ids:
        """The units in the new order."""
        if self.fixed or not self.parts:
            return np.arange(self.size, dtype=np.int64)
        return np.lexsort(self.parts[::-1]).astype(np.int64)

    def access(self, labels: Ids, positions: Ids) -> BlockAccess:
        """How a layer with these labels accesses its blocks.

        Args:
            labels: The block of each unit.
            positions: The channels of each unit along the axis of the layer, of shape (units, channels of a unit).
        """
        order = self.order()
        number = self.place(labels)
        if number == 0:
            return BlockAccess(positions[order].reshape(-1))
        if number is None:
            taken = np.argsort(labels[order], kind="stable")
            places = positions[taken].reshape(-1)
            return BlockAccess(positions[order[taken]].reshape(-1), gather=places)
        counts = [int(p.max()) + 1 for p in self.parts]
        rest = self.size // math.prod(counts)
        moved = np.moveaxis(order.reshape(*counts, rest), number, 0).reshape(-1)
        shape = (*counts, rest * positions.shape[1])
        return BlockAccess(positions[moved].reshape(-1), shape, number)


__all__ = ["BlockAccess", "ChannelOrder"]
