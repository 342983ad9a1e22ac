"""One order of channels that the blocks of several layers share.

A group of channels moves as one, but every layer that reads or makes it wants its own blocks in one piece. Channels
are sorted by the first layer's blocks. Another layer whose blocks are the same needs nothing more. One whose blocks cut
across the first ones evenly (each block of the one has equally many channels of each block of the other: a
*uniform contingency* table) is sorted within: its channel then stands at (first block, own block, rest), and a
Reshape-Transpose-Reshape brings its own block to the front, as the channel shuffle between group convolutions does
(Zhang et al., *ShuffleNet*, 2018). Further layers go on in the same way. For any other blocks only a Gather is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .blocks import Ids, in_order
from .search import Side


@dataclass(frozen=True, eq=False)
class Access:
    """How the channels of one axis get from their place in the graph to blocks in one piece.

    Attributes:
        channels: The channels in blocks, as numbers along the original axis.
        shape: The axis taken apart, where a transpose brings ``front`` to its front; else empty.
        front: Which part of ``shape`` counts the blocks.
        gather: The places to take the channels from, where nothing else helps.
    """

    channels: Ids
    shape: tuple[int, ...] = ()
    front: int = 0
    gather: Ids | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the blocks lie in one piece as they are."""
        return not self.shape and self.gather is None


@dataclass(eq=False)
class ChannelOrder:
    """The order of the units of one channel group, as far as layers have fixed it.

    Attributes:
        size: The number of units.
        fixed: Why they cannot be moved at all; empty when they can.
        parts: The labels that units are sorted by, the first ones first.
        owner: The name of the layer that the first ones belong to.
    """

    size: int
    fixed: str = ""
    parts: list[Ids] = field(default_factory=list)
    owner: str = ""

    @property
    def is_free(self) -> bool:
        """Whether any order will do."""
        return not self.fixed and not self.parts

    def cells(self) -> Ids:
        """The cell of each unit: those with the same labels in all parts."""
        found = np.zeros(self.size, np.int64)
        for part in self.parts:
            found = found * (int(part.max()) + 1) + part
        return found

    def place(self, labels: Ids) -> int | None:
        """Which part has these labels, or would have them if they were added; ``None`` if none can."""
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
        """Sort by these labels too, which :meth:`place` has a place for."""
        if self.place(labels) == len(self.parts) and not self.fixed:
            self.parts.append(labels)
            self.owner = self.owner or owner

    def renamed(self, labels: Ids) -> Ids | None:
        """For each label the one that a part has for the same units, if they are the same but for their names."""
        count = int(labels.max()) + 1
        for part in self.parts or ([in_order(np.bincount(labels))] if self.fixed else []):
            pairs = np.unique(labels * self.size + part)
            if pairs.size == count == int(part.max()) + 1:
                return np.asarray(pairs % self.size, np.int64)
        return None

    def sides(self, sizes: Ids, gather: bool) -> Iterator[Side]:
        """What a layer with blocks of these sizes may choose from."""
        if self.fixed:
            yield Side(sizes, fixed=in_order(sizes))
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
        """The units in their new order."""
        if self.fixed or not self.parts:
            return np.arange(self.size, dtype=np.int64)
        return np.lexsort(self.parts[::-1]).astype(np.int64)

    def access(self, labels: Ids, positions: Ids) -> Access:
        """How a layer with these labels gets at its blocks.

        Args:
            labels: The block of each unit.
            positions: The channels of each unit along the layer's axis, of shape (units, channels a unit).
        """
        order = self.order()
        number = self.place(labels)
        if number == 0:
            return Access(positions[order].reshape(-1))
        if number is None:
            taken = np.argsort(labels[order], kind="stable")
            places = positions[taken].reshape(-1)
            return Access(positions[order[taken]].reshape(-1), gather=places)
        counts = [int(p.max()) + 1 for p in self.parts]
        rest = self.size // math.prod(counts)
        moved = np.moveaxis(order.reshape(*counts, rest), number, 0).reshape(-1)
        shape = (*counts, rest * positions.shape[1])
        return Access(positions[moved].reshape(-1), shape, number)


__all__ = ["Access", "ChannelOrder"]
