"""Block numbers that layers with shared channels agree on.

A layer pairs block i of its rows with block i of its columns. Blocks may be numbered arbitrarily, but a channel order
has only one numbering, shared by all its layers. Layers along a cycle of the graph (a residual branch, a squeeze and
excitation) may have been numbered from different neighbours. So this union-find groups the parts of orders that layers
tie together: all parts of a class are renumbered together, unless one of them belongs to channels that cannot move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .blocks import Blocks, Ids
from .layer_blocks import PivotSite, WeightAxis
from .order import ChannelOrder

Key = tuple[int, int]
"""A part of an order: the id of the order, and the index of the part; -1 for channels that cannot move."""


@dataclass(eq=False)
class PlacedLayer:
    """A layer whose blocks are part of the channel orders; their numbers may still change."""

    site: PivotSite
    blocks: Blocks


@dataclass(eq=False)
class BlockNumbering:
    """The union-find of the parts of channel orders.

    Attributes:
        parent: The parent of each part; a root is its own parent.
        orders: The channel orders by id.
        placed: The layers that tie parts, each with one of its parts.
    """

    parent: dict[Key, Key] = field(default_factory=dict)
    orders: dict[int, ChannelOrder] = field(default_factory=dict)
    placed: list[tuple[Key, PlacedLayer]] = field(default_factory=list)

    def agreed(self, site: PivotSite, blocks: Blocks) -> Blocks:
        """The same blocks, numbered as in the orders of both sides, as far as that is possible."""
        columns, rows = (self._key(a, labels) for a, labels in _sides(site, blocks))
        for key, axis, labels in (
            (columns, site.columns, blocks.columns),
            (rows, site.rows, blocks.rows),
        ):
            numbers = axis.order.numbers_in(labels)
            if key is not None and numbers is not None and _keeps_sizes(site, numbers):
                blocks = _renumbered(blocks, numbers)
                break
        numbers = site.rows.order.numbers_in(blocks.rows)
        if columns is None or rows is None or numbers is None or not _has_equal_blocks(site):
            return blocks
        if (numbers == np.arange(numbers.size)).all() or self._root(rows) == self._root(columns):
            return blocks
        if not self._is_rigid(rows):
            self._renumber(rows, np.argsort(numbers))
        elif not self._is_rigid(columns):
            self._renumber(columns, numbers)
            blocks = _renumbered(blocks, numbers)
        return blocks

    def tie(self, layer: PlacedLayer) -> None:
        """Tie the numbers of both sides of a layer whose labels are part of their orders."""
        keys = [self._key(a, labels) for a, labels in _sides(layer.site, layer.blocks)]
        known = [key for key in keys if key is not None]
        for first, second in pairwise(known):
            self.parent[self._root(first)] = self._root(second)
        if known:
            self.placed.append((known[0], layer))

    def _key(self, axis: WeightAxis, labels: Ids) -> Key | None:
        """The part of an order that has these blocks, with any numbers; ``None`` if there is none."""
        order = axis.order
        self.orders[id(order)] = order
        if order.fixed:
            return (id(order), -1) if order.numbers_in(labels) is not None else None
        for number, part in enumerate(order.parts):
            if ChannelOrder(order.size, parts=[part]).numbers_in(labels) is not None:
                return (id(order), number)
        return None

    def _root(self, key: Key) -> Key:
        while self.parent.setdefault(key, key) != key:
            key = self.parent[key]
        return key

    def _is_rigid(self, key: Key) -> bool:
        """Whether the class of a part has channels that cannot move."""
        root = self._root(key)
        return any(self._root(k) == root and k[1] < 0 for k in list(self.parent))

    def _renumber(self, key: Key, numbers: Ids) -> None:
        """Renumber all parts and layers of a class: block i becomes block ``numbers[i]``."""
        root = self._root(key)
        for order, number in list(self.parent):
            if self._root((order, number)) == root:
                parts = self.orders[order].parts
                parts[number] = numbers[parts[number]]
        for own, layer in self.placed:
            if self._root(own) == root:
                layer.blocks = _renumbered(layer.blocks, numbers)


def _sides(
    site: PivotSite, blocks: Blocks
) -> tuple[tuple[WeightAxis, Ids], tuple[WeightAxis, Ids]]:
    return (site.columns, blocks.columns), (site.rows, blocks.rows)


def _keeps_sizes(site: PivotSite, numbers: Ids) -> bool:
    """Whether blocks keep their sizes if they are renumbered."""
    return all(bool((a.sizes[numbers] == a.sizes).all()) for a in (site.rows, site.columns))


def _has_equal_blocks(site: PivotSite) -> bool:
    """Whether all blocks have the same size, so that any numbering is possible."""
    return all(bool((a.sizes == a.sizes[0]).all()) for a in (site.rows, site.columns))


def _renumbered(blocks: Blocks, numbers: Ids) -> Blocks:
    return Blocks(numbers[blocks.rows], numbers[blocks.columns], blocks.count)


__all__ = ["BlockNumbering", "PlacedLayer"]
