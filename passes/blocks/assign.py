"""Assign channels to blocks of given sizes so that the sum of benefits is maximal: a transportation problem.

There are few blocks and many channels. :func:`scipy.optimize.linear_sum_assignment`, with a column for each place in a
block, would take cubic time in the number of channels. Here every channel starts in its best block at prices that
balance the blocks: a few steps of subgradient ascent on the dual; if most channels want the same block, rounds in which
each block computes its own price for the right number of channels, as in Jacobi auctions (Bertsekas, 1992). Then, while
a block is too full, channels move along the cheapest path from a block that is too full to one that is not (successive
shortest paths on a graph of k vertices; Ahuja, Magnanti and Orlin, *Network Flows*, 1993, section 9.7). The result is
optimal for any prices, because at every step the labels are the best ones for the present sizes of the blocks.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .blocks import Array64, Ids

Mask = npt.NDArray[np.bool_]

_PRICES = 16
"""The number of subgradient steps; each costs about as much as one move."""

_ROUNDS = 24
"""The number of rounds in which blocks compute their own prices; each costs about as much as three moves."""

_DAMPING = 0.8
"""How far a round moves the prices to the new ones, which blocks compute as if the other prices stayed the same."""


def assign(
    benefit: Array64, sizes: Ids, cells: Ids | None = None, prices: Array64 | None = None
) -> Ids:
    """The block of each channel, with the maximal sum of benefits.

    Args:
        benefit: The benefit of each channel in each block, of shape (channels, blocks).
        sizes: The number of channels of each block; they add up to the number of channels.
        cells: The cell of each channel, if every block must take equally many channels of every cell (a
            uniform contingency table). All cells have the same size, a multiple of the number of blocks.
        prices: The initial price of each block. The final prices are stored in place: they are a good start for
            similar benefits. The labels are optimal for any prices.

    Returns:
        The label (block) of each channel.
    """
    if prices is None:
        prices = np.zeros(sizes.size)
    if cells is None:
        return _transport(benefit, sizes, prices)
    labels = np.empty(len(benefit), np.int64)
    count = int(cells.max()) + 1
    for cell in range(count):
        inside = np.flatnonzero(cells == cell)
        labels[inside] = _transport(benefit[inside], sizes // count, prices)
    return labels


def _transport(benefit: Array64, sizes: Ids, prices: Array64) -> Ids:
    count = sizes.size
    labels = _labels_at_prices(benefit, sizes, prices)
    load = np.bincount(labels, minlength=count)
    cost = np.full((count, count), np.inf)
    mover = np.zeros((count, count), np.int64)

    def refresh(block: int) -> None:
        """Find the cheapest channel to move from a block to each other block."""
        inside = np.flatnonzero(labels == block)
        if not inside.size:
            cost[block] = np.inf
            return
        losses = benefit[inside, block][:, None] - benefit[inside]
        best = losses.argmin(0)
        mover[block] = inside[best]
        cost[block] = losses[best, np.arange(count)]
        cost[block, block] = 0.0

    for block in range(count):
        refresh(block)
    while (load > sizes).any():
        path = _cheapest_path(cost, load > sizes, load < sizes)
        for source, target in pairwise(path):
            labels[mover[source, target]] = target
        load[path[0]] -= 1
        load[path[-1]] += 1
        for block in path:
            refresh(block)
    return labels


def _labels_at_prices(benefit: Array64, sizes: Ids, prices: Array64) -> Ids:
    """The best block of each channel at the best prices tried, which are stored in ``prices``.

    The best prices are those with the least overfull blocks.
    """
    count = sizes.size
    price = kept = prices.copy()
    labels: Ids = (benefit - price).argmax(1).astype(np.int64)
    best, least = labels, _overfull(labels, sizes)
    step = float(np.ptp(benefit, axis=1).mean())
    for turn in range(_PRICES + _ROUNDS):
        if not least or (turn >= _PRICES and least <= count):
            break
        if turn < _PRICES:
            price = price + step / (1 + turn) * (np.bincount(labels, minlength=count) / sizes - 1)
        else:
            start = kept if turn == _PRICES else price
            price = start + _DAMPING * (_own_prices(benefit, sizes, start) - start)
        labels = (benefit - price).argmax(1).astype(np.int64)
        over = _overfull(labels, sizes)
        if over < least:
            best, least, kept = labels, over, price
    prices[:] = kept
    return best.copy()


def _overfull(labels: Ids, sizes: Ids) -> int:
    """The number of channels by which blocks are overfull."""
    return int(np.maximum(np.bincount(labels, minlength=sizes.size) - sizes, 0).sum())


def _own_prices(benefit: Array64, sizes: Ids, price: Array64) -> Array64:
    """For each block, the price at which exactly its number of channels prefers it, at the present prices of the others."""
    rows = np.arange(len(benefit))
    value = benefit - price
    first = value.argmax(1)
    highest = value[rows, first]
    value[rows, first] = -np.inf
    others = np.repeat(highest[:, None], sizes.size, axis=1)
    others[rows, first] = value.max(1)
    # One row for each block, so that ``partition`` reads contiguous memory.
    margin = np.ascontiguousarray((benefit - others).T)
    found = np.empty(sizes.size)
    for size in np.unique(sizes):
        at = [max(len(rows) - int(size) - 1, 0), min(len(rows) - int(size), len(rows) - 1)]
        same = sizes == size
        found[same] = np.partition(margin[same], at, axis=1)[:, at].mean(1)
    return found


def _cheapest_path(cost: Array64, full: Mask, free: Mask) -> list[int]:
    """The blocks along the cheapest path from a full block to a free one (Bellman-Ford)."""
    count = len(cost)
    distance = np.where(full, 0.0, np.inf)
    before = np.full(count, -1, np.int64)
    # A tolerance, so that rounding does not make a cycle of length 0 negative.
    least = 1e-12 * float(np.abs(cost[np.isfinite(cost)]).max(initial=0.0))
    for _ in range(count):
        through = distance[:, None] + cost
        best = through.argmin(0)
        found = through[best, np.arange(count)]
        shorter = found < distance - least
        if not shorter.any():
            break
        distance = np.where(shorter, found, distance)
        before = np.where(shorter, best, before)
    path = [int(np.where(free, distance, np.inf).argmin())]
    while before[path[-1]] >= 0 and len(path) <= count:
        path.append(int(before[path[-1]]))
    return path[::-1]


__all__ = ["assign"]
