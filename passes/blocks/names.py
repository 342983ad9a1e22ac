"""The names of blocks, which layers that share channels must agree on.

A layer pairs the blocks of its rows with those of its columns by their names. Which block of a channel order comes first is
free, but once: layers along a cycle of the graph (a residual branch, a squeeze and excitation) may each be named by
another neighbour before they meet. Parts of orders whose names are tied by a layer form a class, and all names of a class
can be exchanged at once, unless one of its sides keeps its channels in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .blocks import Blocks, Ids
from .choose import Axis, Site
from .order import ChannelOrder

Key = tuple[int, int]
"""A part of an order: the order's id and the number of the part; -1 for channels that keep their places."""


@dataclass(eq=False)
class Settled:
    """A layer whose blocks are settled; their names may still change."""

    site: Site
    blocks: Blocks


@dataclass(eq=False)
class Names:
    """The names that layers have agreed on so far."""

    parent: dict[Key, Key] = field(default_factory=dict)
    orders: dict[int, ChannelOrder] = field(default_factory=dict)
    settled: list[tuple[Key, Settled]] = field(default_factory=list)

    def agreed(self, site: Site, blocks: Blocks) -> Blocks:
        """The same blocks under names that both neighbours have, as far as that is possible."""
        columns, rows = (self._key(a, labels) for a, labels in _sides(site, blocks))
        for key, axis, labels in (
            (columns, site.columns, blocks.columns),
            (rows, site.rows, blocks.rows),
        ):
            names = axis.order.renamed(labels)
            if key is not None and names is not None and _may(site, names):
                blocks = _renamed(blocks, names)
                break
        names = site.rows.order.renamed(blocks.rows)
        if columns is None or rows is None or names is None or not _even(site):
            return blocks
        if (names == np.arange(names.size)).all() or self._root(rows) == self._root(columns):
            return blocks
        if not self._is_rigid(rows):
            self._rename(rows, np.argsort(names))
        elif not self._is_rigid(columns):
            self._rename(columns, names)
            blocks = _renamed(blocks, names)
        return blocks

    def settle(self, layer: Settled) -> None:
        """Tie the names of both sides of a layer, whose labels are in their orders now."""
        keys = [self._key(a, labels) for a, labels in _sides(layer.site, layer.blocks)]
        known = [key for key in keys if key is not None]
        for first, second in pairwise(known):
            self.parent[self._root(first)] = self._root(second)
        if known:
            self.settled.append((known[0], layer))

    def _key(self, axis: Axis, labels: Ids) -> Key | None:
        """The part of an order that has these blocks, under any names."""
        order = axis.order
        self.orders[id(order)] = order
        if order.fixed:
            return (id(order), -1) if order.renamed(labels) is not None else None
        for number, part in enumerate(order.parts):
            if ChannelOrder(order.size, parts=[part]).renamed(labels) is not None:
                return (id(order), number)
        return None

    def _root(self, key: Key) -> Key:
        while self.parent.setdefault(key, key) != key:
            key = self.parent[key]
        return key

    def _is_rigid(self, key: Key) -> bool:
        root = self._root(key)
        return any(self._root(k) == root and k[1] < 0 for k in list(self.parent))

    def _rename(self, key: Key, names: Ids) -> None:
        root = self._root(key)
        for order, number in list(self.parent):
            if self._root((order, number)) == root:
                parts = self.orders[order].parts
                parts[number] = names[parts[number]]
        for own, layer in self.settled:
            if self._root(own) == root:
                layer.blocks = _renamed(layer.blocks, names)


def _sides(site: Site, blocks: Blocks) -> tuple[tuple[Axis, Ids], tuple[Axis, Ids]]:
    return (site.columns, blocks.columns), (site.rows, blocks.rows)


def _may(site: Site, names: Ids) -> bool:
    """Whether blocks keep their sizes under other names."""
    return all(bool((a.sizes[names] == a.sizes).all()) for a in (site.rows, site.columns))


def _even(site: Site) -> bool:
    """Whether all blocks have one size, so that any may have any name."""
    return all(bool((a.sizes == a.sizes[0]).all()) for a in (site.rows, site.columns))


def _renamed(blocks: Blocks, names: Ids) -> Blocks:
    return Blocks(names[blocks.rows], names[blocks.columns], blocks.count)


__all__ = ["Names", "Settled"]
