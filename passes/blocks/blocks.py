"""Blocks of a weight: which rows and columns belong together, and the blocks that its zeros already form.

A weight is *pivoted* when its rows and columns can be put in an order in which all that is kept lies in k blocks on the
diagonal. The blocks are the labels of rows and columns; the order follows from them.

Zeros that are already there (of a network that was trained under a mask) give the blocks exactly: rows and
columns are the two sides of a bipartite graph with an edge for every nonzero, blocks are unions of its connected
components. Finding these takes time linear in the nonzeros. Components that are smaller than a block are
packed: largest first, each where it fits most tightly (best fit decreasing, in two dimensions), rows and columns of
zeros last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Equal blocks of a weight.

    Attributes:
        rows: The block of each row.
        columns: The block of each column.
        count: The number of blocks.
    """

    rows: Ids
    columns: Ids
    count: int

    def mask(self) -> npt.NDArray[np.bool_]:
        """What is kept, of shape (rows, columns)."""
        return np.asarray(self.rows[:, None] == self.columns[None, :])

    def __iter__(self) -> Iterator[tuple[Ids, Ids]]:
        """The rows and the columns of each block, ascending."""
        for block in range(self.count):
            yield np.flatnonzero(self.rows == block), np.flatnonzero(self.columns == block)


def capacities(size: int, count: int) -> Ids:
    """The sizes of ``count`` blocks of ``size`` channels: all alike but the last, which may be smaller.

    So what is padded stands at the end of the axis, and nowhere else. The last size is 0 or less where there are too
    few channels.
    """
    full = -(-size // count)
    sizes = np.full(count, full, np.int64)
    sizes[-1] = size - full * (count - 1)
    return sizes


def in_order(sizes: Ids) -> Ids:
    """The labels of channels that lie in blocks of these sizes as they are."""
    return np.repeat(np.arange(sizes.size, dtype=np.int64), sizes)


def component_labels(weight: Any) -> tuple[Ids, Ids]:
    """The connected component of each row and of each column, joined by what is not zero.

    Args:
        weight: A matrix, dense or of :mod:`scipy.sparse`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    found = coo_array(weight)
    rows, columns = found.shape
    kept = found.data != 0
    edges = (found.coords[0][kept], found.coords[1][kept] + rows)
    ones = np.ones(edges[0].size, np.int8)
    graph = coo_array((ones, edges), shape=(rows + columns, rows + columns))
    _, labels = connected_components(graph, directed=False)
    labels = labels.astype(np.int64)
    return labels[:rows], labels[rows:]


def find_blocks(weight: Any, row_sizes: Ids, column_sizes: Ids) -> Blocks | None:
    """The blocks that the zeros of a weight form, exactly; ``None`` where its components do not pack so.

    Args:
        weight: A matrix, dense or of :mod:`scipy.sparse`.
        row_sizes: The number of rows of each block.
        column_sizes: The number of columns of each block.
    """
    rows, columns = component_labels(weight)
    count = int(max(rows.max(initial=-1), columns.max(initial=-1))) + 1
    height, width = np.bincount(rows, minlength=count), np.bincount(columns, minlength=count)
    solid = np.flatnonzero((height > 0) & (width > 0))
    for order in _orders(height[solid], width[solid]):
        place = _packed(height[solid[order]], width[solid[order]], row_sizes, column_sizes)
        if place is not None:
            block = np.full(count, -1, np.int64)
            block[solid[order]] = place
            found = (_filled(block[rows], row_sizes), _filled(block[columns], column_sizes))
            return Blocks(*found, len(row_sizes))
    return None


def _orders(height: Ids, width: Ids) -> Iterator[Ids]:
    """Orders to pack in; the first one is as good as any where all components are alike."""
    yield np.argsort(-(height + width), kind="stable")
    yield np.lexsort((-width, -height))
    yield np.lexsort((-height, -width))


def _packed(height: Ids, width: Ids, row_sizes: Ids, column_sizes: Ids) -> Ids | None:
    """A block for each component, in the order given."""
    if (height.size and row_sizes.max() < height.max()) or (
        width.size and column_sizes.max() < width.max()
    ):
        return None
    left = np.stack([row_sizes, column_sizes]).astype(np.int64)
    place = np.empty(height.size, np.int64)
    for number, size in enumerate(np.stack([height, width], 1)):
        rest = left - size[:, None]
        fits = (rest >= 0).all(0)
        if not fits.any():
            return None
        # Both sides count: what is left of each would have to be filled by another component.
        slack = np.where(fits, rest.sum(0), np.iinfo(np.int64).max)
        place[number] = slack.argmin()
        left[:, place[number]] = rest[:, place[number]]
    return place


def _filled(labels: Ids, sizes: Ids) -> Ids:
    """Labels with -1 replaced by blocks that are not full, in order."""
    used = np.bincount(labels[labels >= 0], minlength=sizes.size)
    filled = labels.copy()
    filled[labels < 0] = in_order(sizes - used)
    return filled


__all__ = ["Blocks", "capacities", "component_labels", "find_blocks", "in_order"]
