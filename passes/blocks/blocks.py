"""Blocks of a weight, as labels of its rows and columns, and the blocks that its zeros already form.

To *pivot* a weight is to order its rows and columns so that all nonzeros are in k blocks on the diagonal. The blocks are
given by a label for each row and each column; the order follows from the labels.

The zeros of a network that was trained under a mask determine the blocks exactly: rows and columns are the two sides of
a bipartite graph with an edge for every nonzero, and blocks are unions of its connected components. Finding the
components takes time linear in the number of nonzeros. Components smaller than a block are packed: largest first, each
into the block where it fits most tightly (best fit decreasing, in two dimensions), rows and columns of zeros last.
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
    """Blocks of a weight.

    Attributes:
        rows: The label (block) of each row.
        columns: The label of each column.
        count: The number of blocks.
    """

    rows: Ids
    columns: Ids
    count: int

    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask of the entries inside the blocks, of shape (rows, columns)."""
        return np.asarray(self.rows[:, None] == self.columns[None, :])

    def __iter__(self) -> Iterator[tuple[Ids, Ids]]:
        """The rows and the columns of each block, ascending."""
        for block in range(self.count):
            yield np.flatnonzero(self.rows == block), np.flatnonzero(self.columns == block)


def capacities(size: int, count: int) -> Ids:
    """The sizes of ``count`` blocks of ``size`` channels: all equal, except that the last one may be smaller.

    So padding is only at the end of the axis. The last size is 0 or negative if there are too few channels.
    """
    full = -(-size // count)
    sizes = np.full(count, full, np.int64)
    sizes[-1] = size - full * (count - 1)
    return sizes


def contiguous_labels(sizes: Ids) -> Ids:
    """The labels for blocks of these sizes in the present order of channels."""
    return np.repeat(np.arange(sizes.size, dtype=np.int64), sizes)


def component_labels(weight: Any) -> tuple[Ids, Ids]:
    """The connected component of each row and of each column; a nonzero joins its row and its column.

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
    """The blocks that the zeros of a weight form exactly; ``None`` if its components cannot be packed into them.

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
        extents = np.stack([height[solid[order]], width[solid[order]]], 1)
        place = pack(extents, np.stack([row_sizes, column_sizes]))
        if place is not None:
            block = np.full(count, -1, np.int64)
            block[solid[order]] = place
            found = (_filled(block[rows], row_sizes), _filled(block[columns], column_sizes))
            return Blocks(*found, len(row_sizes))
    return None


def _orders(height: Ids, width: Ids) -> Iterator[Ids]:
    """Orders of the components to try for packing: by both sides, by height, by width."""
    yield np.argsort(-(height + width), kind="stable")
    yield np.lexsort((-width, -height))
    yield np.lexsort((-height, -width))


def pack(extents: Ids, sizes: Ids) -> Ids | None:
    """The block of each component, packed in the given order; ``None`` if one does not fit.

    Args:
        extents: The extent of each component in each dimension, of shape (components, dimensions).
        sizes: The size of each block in each dimension, of shape (dimensions, blocks).
    """
    if extents.size and (sizes.max(1) < extents.max(0)).any():
        return None
    left = sizes.astype(np.int64)
    place = np.empty(len(extents), np.int64)
    for number, size in enumerate(extents):
        rest = left - size[:, None]
        fits = (rest >= 0).all(0)
        if not fits.any():
            return None
        # The tightest fit in all dimensions: other components must fill the rest of each.
        slack = np.where(fits, rest.sum(0), np.iinfo(np.int64).max)
        place[number] = slack.argmin()
        left[:, place[number]] = rest[:, place[number]]
    return place


def _filled(labels: Ids, sizes: Ids) -> Ids:
    """The labels, with each -1 replaced by a block that is not full, in order."""
    used = np.bincount(labels[labels >= 0], minlength=sizes.size)
    filled = labels.copy()
    filled[labels < 0] = contiguous_labels(sizes - used)
    return filled


__all__ = ["Blocks", "capacities", "component_labels", "contiguous_labels", "find_blocks", "pack"]
