"""Search an order of rows and columns that keeps as much of a weight as possible in k equal blocks.

A saliency (what each entry of the weight is worth) is given; wanted are balanced labels of rows and columns that
maximise the saliency of the entries whose row and column have the same label. That is a balanced k-way cut of a dense
bipartite graph, which is NP-hard; here:

1. *Seeds*: the heaviest entries join clusters one by one, as far as the clusters fit a block (Kruskal's algorithm with
   capacities), which are then packed by what they share; or co-clustering by singular vectors (Dhillon, 2001).
2. *Alternation*: with the columns fixed, the best rows are a transportation problem, which :mod:`.assign`
   solves exactly; then the same with the rows fixed, to a fixpoint. No swap of two rows or of two columns improves it.
3. *Polish*: noise that fades is added to the benefits, so that many rows and columns change places at once and settle again
   (simulated annealing with an exact step); the best fixpoint is kept.

A side may be bound: its labels are given, or must cut across given cells evenly, because a neighbour has ordered the
same channels already (:mod:`.order`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .assign import assign
from .blocks import Array64, Blocks, Ids, in_order

_HEAVY = 8
"""How many of the heaviest entries a row, on average, the seeds look at."""

_HEAT = 0.7
"""The first deviation of the noise, relative to what a row has in a block on average."""


@dataclass(frozen=True, eq=False)
class Side:
    """The rows, or the columns, of a weight.

    Attributes:
        sizes: How many channels each block takes.
        fixed: The labels, where they are given.
        cells: The cell of each channel, where each block must take equally many of every cell.
    """

    sizes: Ids
    fixed: Ids | None = None
    cells: Ids | None = None

    @property
    def size(self) -> int:
        """The number of channels."""
        return int(self.sizes.sum())

    def best(self, benefit: Array64, prices: Array64 | None = None) -> Ids:
        """The labels of the largest benefit, of shape (channels, blocks); prices are those of :func:`.assign`."""
        if self.fixed is not None:
            return self.fixed
        return assign(benefit, self.sizes, self.cells, prices)


def kept_mass(saliency: Array64, blocks: Blocks) -> float:
    """The part of the saliency that lies in the blocks."""
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
    """The best blocks that are found.

    Args:
        saliency: Nonnegative, of shape (rows, columns).
        rows: What is known of the rows.
        columns: What is known of the columns.
        seed: The seed of the noise.
        steps: How many rounds of noise there are; 0 for none.
    """
    count = len(rows.sizes)
    # Only ratios count: with a largest entry near 1 nothing leaves the range of single precision.
    saliency = np.ldexp(saliency, -math.frexp(saliency.max(initial=0.0))[1])
    if not saliency.any():
        steps = 0  # Nothing is kept or lost, whatever the order.
    if rows.fixed is not None or columns.fixed is not None:
        # One alternation settles it: nothing comes back to the fixed side.
        given = columns.fixed if columns.fixed is not None else in_order(columns.sizes)
        return _alternate(saliency, given, rows, columns)[0]
    starts = [_settled(saliency, s, rows, columns) for s in _seeds(saliency, rows, columns, seed)]
    best, mass = max((_alternate(saliency, s, rows, columns) for s in starts), key=lambda f: f[1])
    rng = np.random.default_rng(seed)
    typical = float(saliency.sum()) / len(saliency) / count
    labels = best.columns
    # The noise is coarser than single precision, which halves the time.
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
    """What each row has in each block."""
    members = np.zeros((labels.size, count), saliency.dtype)
    members[np.arange(labels.size), labels] = 1.0
    return np.asarray(saliency @ members, np.float64)


def _alternate(saliency: Array64, labels: Ids, rows: Side, columns: Side) -> tuple[Blocks, float]:
    """Rows, then columns, until nothing improves; with the kept mass."""
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


def _settled(saliency: Array64, labels: Ids, rows: Side, columns: Side) -> Ids:
    """Balanced labels of the columns, near labels where -1 stands for none."""
    count = len(rows.sizes)
    known = labels >= 0
    across = rows.best(_benefit(saliency[:, known], labels[known], count))
    return columns.best(_benefit(saliency.T, across, count))


# Seeds.


def _seeds(saliency: Array64, rows: Side, columns: Side, seed: int) -> Iterator[Ids]:
    """Labels of the columns to start from; -1 for none."""
    yield in_order(columns.sizes)
    if saliency.any():
        yield clustered(saliency, rows.sizes, columns.sizes)
        yield spectral(saliency, rows, columns, seed)


def _heaviest(saliency: Array64) -> tuple[Ids, Ids]:
    """Rows and columns of the heaviest entries, heaviest first."""
    flat = saliency.reshape(-1)
    most = min(_HEAVY * max(saliency.shape), flat.size)
    found = np.argpartition(flat, flat.size - most)[flat.size - most :]
    found = found[flat[found] > 0]
    found = found[np.argsort(-flat[found], kind="stable")]
    i, j = np.unravel_index(found, saliency.shape)
    return np.asarray(i, np.int64), np.asarray(j, np.int64)


def clustered(saliency: Array64, row_sizes: Ids, column_sizes: Ids) -> Ids:
    """Labels of the columns by clusters that grow along the heaviest entries; -1 where none fits."""
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
    """Clusters into blocks, largest first, each where it shares most with what is there."""
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
            # Of equals the emptiest, so that large clusters start blocks of their own.
            score = np.where(fits, affinity[one], -1.0)
            ties = np.flatnonzero(score == score.max())
            block = int(ties[left[:, ties].sum(0).argmax()])
            place[one] = block
            left[:, block] -= size[:, one]
            affinity[:, block] += shared[:, one]
    return place[columns]


def spectral(saliency: Array64, rows: Side, columns: Side, seed: int) -> Ids:
    """Labels of the columns by balanced k-means on the first singular vectors.

    The present order where these cannot be computed: it is one start of several.
    """
    from scipy.sparse.linalg import ArpackError, svds

    count = len(rows.sizes)
    rank = min(count, min(saliency.shape) - 1)
    if rank < 1:
        return in_order(columns.sizes)
    # The root dampens single heavy entries, which otherwise are singular vectors of their own.
    damped = np.sqrt(saliency)
    left = 1 / np.sqrt(np.maximum(damped.sum(1), 1e-30))
    right = 1 / np.sqrt(np.maximum(damped.sum(0), 1e-30))
    start = np.random.default_rng(seed).standard_normal(min(saliency.shape))
    try:
        u, _, v = svds(left[:, None] * damped * right, k=rank, v0=start, tol=1e-3)
    except ArpackError:
        return in_order(columns.sizes)
    points = np.concatenate([u * left[:, None], v.T * right[:, None]])
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-30)
    n = len(saliency)
    # The first centres lie far from one another.
    chosen = [0]
    for _ in range(count - 1):
        chosen.append(int((points @ points[chosen].T).max(1).argmin()))
    centres = points[chosen]
    labels = in_order(columns.sizes)
    row_prices, column_prices = np.zeros(count), np.zeros(count)
    for _ in range(8):
        across = assign(points[:n] @ centres.T, rows.sizes, prices=row_prices)
        labels = assign(points[n:] @ centres.T, columns.sizes, prices=column_prices)
        both = np.concatenate([across, labels])
        centres = np.stack([points[both == b].mean(0) for b in range(count)])
    return labels


__all__ = ["Side", "clustered", "kept_mass", "search_blocks", "spectral"]
