"""Search for an order of rows and columns that keeps as much saliency as possible in k equal blocks.

The saliency of each entry of a weight is given. The search looks for balanced labels of rows and columns that maximise
the saliency of the entries whose row and column have the same label. This is a balanced k-way cut of a dense bipartite
graph, which is NP-hard. The search has three steps:

1. *Seeds*: entries join clusters, the most salient first, as long as the clusters fit a block (Kruskal's algorithm with
   capacities); clusters are then packed into blocks by the saliency between them. Another seed is co-clustering by
   singular vectors (Dhillon, 2001).
2. *Alternation*: for fixed columns, finding the best rows is a transportation problem, which :mod:`.assign` solves
   exactly; then the same for fixed rows, until a fixed point. There no swap of two rows or of two columns is better.
3. *Polish*: fading noise is added to the benefits, so that many rows and columns change blocks at once (simulated
   annealing with an exact step); the better of both fixed points is kept.

A side may be constrained: its labels are given, or must cut given cells evenly, because a neighbour has already ordered
the same channels (:mod:`.order`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .assign import assign
from .blocks import Array64, Blocks, Ids, contiguous_labels

_HEAVY = 8
"""The average number of entries of each row that the clustering seed uses, the most salient ones."""

_HEAT = 0.7
"""The initial standard deviation of the noise, relative to the mean saliency of a row in a block."""


@dataclass(frozen=True, eq=False)
class Side:
    """The constraints on the labels of the rows, or of the columns, of a weight.

    Attributes:
        sizes: The number of channels of each block.
        fixed: The labels, if they are given.
        cells: The cell of each channel, if each block must take equally many channels of every cell.
    """

    sizes: Ids
    fixed: Ids | None = None
    cells: Ids | None = None

    @property
    def size(self) -> int:
        """The number of channels."""
        return int(self.sizes.sum())

    def best(self, benefit: Array64, prices: Array64 | None = None) -> Ids:
        """The labels with the largest benefit that the constraints allow.

        Args:
            benefit: The benefit of each channel in each block, of shape (channels, blocks).
            prices: See :func:`.assign`.
        """
        if self.fixed is not None:
            return self.fixed
        return assign(benefit, self.sizes, self.cells, prices)


def kept_mass(saliency: Array64, blocks: Blocks) -> float:
    """The fraction of the saliency that is inside the blocks."""
    total = float(saliency.sum())
    return float(saliency[blocks.mask()].sum()) / total if total else 1.0


def search_blocks(
    saliency: Array64,
    rows: Side,
    columns: Side,
    *,
    seed: int = 0,
    steps: int = 250,
) -> Blocks:
    """The best blocks that the search finds.

    Args:
        saliency: The non-negative saliency of each entry, of shape (rows, columns).
        rows: The constraints on the rows.
        columns: The constraints on the columns.
        seed: The seed of the noise.
        steps: The number of rounds with noise.
    """
    count = len(rows.sizes)
    # Only ratios matter: with a largest entry near 1 the sums stay in the range of float32.
    saliency = np.ldexp(saliency, -math.frexp(saliency.max(initial=0.0))[1])
    if not saliency.any():
        steps = 0  # All orders are equal.
    if rows.fixed is not None or columns.fixed is not None:
        # One alternation finds the optimum, because one side is fixed.
        given = columns.fixed if columns.fixed is not None else contiguous_labels(columns.sizes)
        return _alternate(saliency, given, rows, columns)[0]
    starts = [
        _balanced_columns(saliency, s, rows, columns) for s in _seeds(saliency, rows, columns, seed)
    ]
    best, mass = max((_alternate(saliency, s, rows, columns) for s in starts), key=lambda f: f[1])
    rng = np.random.default_rng(seed)
    typical = float(saliency.sum()) / len(saliency) / count
    labels = best.columns
    # The noise is coarser than the rounding of float32, which halves the time.
    coarse = saliency.astype(np.float32)
    row_prices, column_prices = np.zeros(count), np.zeros(count)
    for step in range(steps):
        heat = _HEAT * typical * (1 - step / steps)
        noise = rng.standard_normal((len(saliency), count)) * heat
        across = rows.best(_benefit(coarse, labels, count) + noise, row_prices)
        noise = rng.standard_normal((saliency.shape[1], count)) * heat
        labels = columns.best(_benefit(coarse.T, across, count) + noise, column_prices)
    if steps:
        polished, polished_mass = _alternate(saliency, labels, rows, columns)
        if polished_mass > mass:
            best = polished
    return best


def _benefit(saliency: npt.NDArray[Any], labels: Ids, count: int) -> Array64:
    """The saliency of each row in each block, of shape (rows, blocks)."""
    members = np.zeros((labels.size, count), saliency.dtype)
    members[np.arange(labels.size), labels] = 1.0
    return np.asarray(saliency @ members, np.float64)


def _alternate(saliency: Array64, labels: Ids, rows: Side, columns: Side) -> tuple[Blocks, float]:
    """Improve rows and columns in turn until nothing changes; returns the blocks and their kept mass."""
    count, total = len(rows.sizes), float(saliency.sum()) or 1.0
    found, last = None, -1.0
    row_prices, column_prices = np.zeros(count), np.zeros(count)
    while True:
        across = rows.best(_benefit(saliency, labels, count), row_prices)
        benefit = _benefit(saliency.T, across, count)
        labels = columns.best(benefit, column_prices)
        mass = float(benefit[np.arange(labels.size), labels].sum()) / total
        if found is not None and mass <= last * (1 + 1e-9):
            return found, last
        found, last = Blocks(across, labels, count), mass


def _balanced_columns(saliency: Array64, labels: Ids, rows: Side, columns: Side) -> Ids:
    """Balanced labels of the columns, close to ``labels``, which may be -1 for columns without a label."""
    count = len(rows.sizes)
    known = labels >= 0
    across = rows.best(_benefit(saliency[:, known], labels[known], count))
    return columns.best(_benefit(saliency.T, across, count))


# Seeds.


def _seeds(saliency: Array64, rows: Side, columns: Side, seed: int) -> Iterator[Ids]:
    """Labels of the columns to start from; -1 for a column without a label."""
    yield contiguous_labels(columns.sizes)
    if saliency.any():
        yield cluster_labels(saliency, rows.sizes, columns.sizes)
        yield spectral_labels(saliency, rows, columns, seed)


def _heaviest(saliency: Array64) -> tuple[Ids, Ids]:
    """The rows and columns of the most salient entries, the most salient first."""
    flat = saliency.reshape(-1)
    most = min(_HEAVY * max(saliency.shape), flat.size)
    found = np.argpartition(flat, flat.size - most)[flat.size - most :]
    found = found[flat[found] > 0]
    found = found[np.argsort(-flat[found], kind="stable")]
    i, j = np.unravel_index(found, saliency.shape)
    return np.asarray(i, np.int64), np.asarray(j, np.int64)


def cluster_labels(saliency: Array64, row_sizes: Ids, column_sizes: Ids) -> Ids:
    """Labels of the columns from clusters that grow along the most salient entries; -1 if a cluster fits no block."""
    n, m = saliency.shape
    tall, wide = int(row_sizes.min()), int(column_sizes.min())
    parent = list(range(n + m))
    height, width = [1] * n + [0] * m, [0] * n + [1] * m

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    i, j = _heaviest(saliency)
    for a, b in zip(i.tolist(), (j + n).tolist(), strict=True):
        a, b = root(a), root(b)
        if a != b and height[a] + height[b] <= tall and width[a] + width[b] <= wide:
            parent[b] = a
            height[a] += height[b]
            width[a] += width[b]
    roots = np.array([root(at) for at in range(n + m)])
    _, cluster = np.unique(roots, return_inverse=True)
    return _packed_by_affinity(saliency, cluster[:n], cluster[n:], row_sizes, column_sizes)


def _packed_by_affinity(
    saliency: Array64, rows: Ids, columns: Ids, row_sizes: Ids, column_sizes: Ids
) -> Ids:
    """Pack clusters into blocks, largest first, each into the block with the largest saliency between them.

    Returns:
        The label of each column; -1 for clusters that fit no block.
    """
    from scipy.sparse import csr_array

    count = int(max(rows.max(), columns.max())) + 1
    ones = np.ones(rows.size), np.ones(columns.size)
    by_row = csr_array((ones[0], (rows, np.arange(rows.size))), shape=(count, rows.size))
    by_column = csr_array((ones[1], (np.arange(columns.size), columns)), (columns.size, count))
    shared = (by_row @ saliency) @ by_column
    shared = shared + shared.T
    size = np.stack([np.bincount(rows, minlength=count), np.bincount(columns, minlength=count)])
    left = np.stack([row_sizes, column_sizes]).astype(np.int64)
    affinity = np.zeros((count, row_sizes.size))
    place = np.full(count, -1, np.int64)
    for one in np.argsort(-size.sum(0), kind="stable"):
        fits = (left >= size[:, one, None]).all(0)
        if fits.any():
            # Of equal scores, take the emptiest block, so that large clusters get separate blocks.
            score = np.where(fits, affinity[one], -1.0)
            ties = np.flatnonzero(score == score.max())
            block = int(ties[left[:, ties].sum(0).argmax()])
            place[one] = block
            left[:, block] -= size[:, one]
            affinity[:, block] += shared[:, one]
    return place[columns]


def spectral_labels(saliency: Array64, rows: Side, columns: Side, seed: int) -> Ids:
    """Labels of the columns from balanced k-means on the first singular vectors (Dhillon, 2001).

    Returns the labels of the present order if the singular vectors cannot be computed.
    """
    from scipy.sparse.linalg import ArpackError, svds

    count = len(rows.sizes)
    rank = min(count, min(saliency.shape) - 1)
    if rank < 1:
        return contiguous_labels(columns.sizes)
    # The square root dampens single large entries, which would otherwise dominate a singular vector.
    damped = np.sqrt(saliency)
    left = 1 / np.sqrt(np.maximum(damped.sum(1), 1e-30))
    right = 1 / np.sqrt(np.maximum(damped.sum(0), 1e-30))
    start = np.random.default_rng(seed).standard_normal(min(saliency.shape))
    try:
        u, _, v = svds(left[:, None] * damped * right, k=rank, v0=start, tol=1e-3)
    except ArpackError:
        return contiguous_labels(columns.sizes)
    points = np.concatenate([u * left[:, None], v.T * right[:, None]])
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-30)
    n = len(saliency)
    # The initial centres are far from one another.
    chosen = [0]
    for _ in range(count - 1):
        chosen.append(int((points @ points[chosen].T).max(1).argmin()))
    centres = points[chosen]
    labels = contiguous_labels(columns.sizes)
    row_prices, column_prices = np.zeros(count), np.zeros(count)
    for _ in range(8):
        across = assign(points[:n] @ centres.T, rows.sizes, prices=row_prices)
        labels = assign(points[n:] @ centres.T, columns.sizes, prices=column_prices)
        both = np.concatenate([across, labels])
        centres = np.stack([points[both == b].mean(0) for b in range(count)])
    return labels


__all__ = ["Side", "cluster_labels", "kept_mass", "search_blocks", "spectral_labels"]
