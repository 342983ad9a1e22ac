"""Channel orders for 2:4 sparsity: our search, the published search of stripe groups, and random orders.

    OMP_NUM_THREADS=1 python benchmarks/permutation.py [--sizes 64 256 512] [--seeds 1]

The matrices have Gaussian entries. *Efficacy* measures kept magnitude: it is the share of the gap between 2:4 pruning in the given
order and unstructured pruning to 50 % that an order closes. Times are CPU times. These searches are compared:

- *stripe groups*: the search that Pool and Yu describe in "Channel permutations for N:M sparsity" (NeurIPS 2021) and
  that ASP runs by default, implemented here in NumPy from that description: for each pair of stripes, find the best of
  the 35 ways to distribute its 8 columns; apply the best pairs that do not overlap; then try only pairs with a changed
  stripe again. If nothing improves, two columns of a random pair are exchanged, at most 100 times.
- *ours*: the search of ``permute-channels`` for a group of this size.
- *ours, a tenth*: the same, stopped after a tenth of the time that the stripe groups took.
- *random*: random orders, for as long as the stripe groups took (10 s at most).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from graphshrink.ir import Pattern
from graphshrink.passes.channels.nm_search import search_order
from graphshrink.passes.channels.permute_channels import default_steps

Matrix = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]
PATTERN = Pattern(2, 4)
RANDOM_LIMIT = 10.0
ESCAPES = 100

PAIRS = list(itertools.combinations(range(8), 2))
SPLITS = [
    ((0, *left), tuple(sorted(set(range(1, 8)) - set(left))))
    for left in itertools.combinations(range(1, 8), 3)
]
"""The 35 ways to distribute 8 columns over two stripes; the first one changes nothing."""


def kept(matrix: Matrix) -> float:
    """The magnitude that 2:4 pruning keeps of a matrix (rows, columns)."""
    return PATTERN.kept_score(matrix)


def efficacy(matrix: Matrix, order: Order) -> float:
    """The share of the gap to unstructured pruning that an order closes."""
    naive = kept(matrix)
    half = matrix.size // 2
    unstructured = float(np.sort(matrix, axis=None)[half:].sum(dtype=np.float64))
    return (kept(matrix[:, order]) - naive) / (unstructured - naive)


class StripeGroups:
    """The published search. The matrix is stored transposed, so that each column is contiguous in memory."""

    def __init__(self, matrix: Matrix, seed: int) -> None:
        self.columns = np.ascontiguousarray(matrix.T)
        self.rng = np.random.default_rng(seed)
        self.order = np.arange(len(self.columns))
        count = len(self.columns) // 4
        self.pairs = np.array(list(itertools.combinations(range(count), 2)))
        self.gain = np.zeros(len(self.pairs))
        self.best = np.zeros(len(self.pairs), np.int64)
        self.rows = matrix.shape[0]

    def run(self) -> Order:
        """Search, and return the best order that was found."""
        changed = np.unique(self.pairs)
        escapes, total, top, result = 0, 0.0, 0.0, self.order.copy()
        while True:
            self._update(changed)
            used: list[int] = []
            for place in np.argsort(-self.gain, kind="stable"):
                if self.gain[place] <= 1e-4:
                    break
                if not set(self.pairs[place]) & set(used):
                    self._apply(place, SPLITS[self.best[place]])
                    total += self.gain[place]
                    used += list(self.pairs[place])
            if total > top:
                top, result = total, self.order.copy()
            if not used:
                if escapes == ESCAPES:
                    return result
                escapes += 1
                place = int(self.rng.integers(len(self.pairs)))
                a, b = int(self.rng.integers(4)), int(self.rng.integers(4))
                left, right = list(range(4)), list(range(4, 8))
                left[a], right[b] = right[b], left[a]
                before = self._value(self.pairs[place])
                self._apply(place, (tuple(left), tuple(right)))
                total += self._value(self.pairs[place]) - before
                used = list(self.pairs[place])
            changed = np.array(used)

    def _apply(self, place: int, split: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        first, second = self.pairs[place]
        slots = np.r_[first * 4 : first * 4 + 4, second * 4 : second * 4 + 4]
        self.order[slots] = self.order[slots][[*split[0], *split[1]]]

    def _value(self, pair: npt.NDArray[np.int64]) -> float:
        columns = self.columns[self.order.reshape(-1, 4)[pair]]
        return float(np.sort(columns, axis=1)[:, 2:].sum(dtype=np.float64))

    def _update(self, changed: npt.NDArray[np.int64]) -> None:
        """Find the best distribution for every pair that has a changed stripe."""
        stale = np.flatnonzero(np.isin(self.pairs, changed).any(axis=1))
        run = max(1, (1 << 17) // (8 * self.rows))
        for start in range(0, len(stale), run):
            own = stale[start : start + run]
            stripes = self.order.reshape(-1, 4)[self.pairs[own]].reshape(len(own), 8)
            x = self.columns[stripes]
            # The two largest of four numbers (a, b), (c, d) are a + b, c + d, or the larger number of each pair.
            high = {p: np.maximum(x[:, p[0]], x[:, p[1]]) for p in PAIRS}
            both = {p: x[:, p[0]] + x[:, p[1]] for p in PAIRS}

            def top(four: tuple[int, ...], high: dict = high, both: dict = both) -> Matrix:
                p, q = four[:2], four[2:]
                best = np.maximum(both[p], both[q])
                return np.maximum(best, high[p] + high[q]).sum(axis=1)

            values = np.stack([top(a) + top(b) for a, b in SPLITS])
            self.best[own] = values.argmax(axis=0)
            self.gain[own] = values.max(axis=0) - values[0]


def stripe_groups(matrix: Matrix, seed: int) -> Order:
    """The order that the published search finds."""
    return StripeGroups(matrix, seed).run()


def ours(matrix: Matrix, seed: int, seconds: float = 0.0) -> Order:
    """The order that the search of ``permute-channels`` finds."""
    scores = np.ascontiguousarray(matrix.T)[:, None]
    stripes = np.arange(len(scores)).reshape(-1, 4)
    steps = default_steps(len(scores))
    found = search_order(scores, stripes, PATTERN, steps=steps, seed=seed, seconds=seconds)
    return found.ravel()


def random_orders(matrix: Matrix, seed: int, seconds: float) -> Order:
    """The best of as many random orders as the time allows."""
    rng = np.random.default_rng(seed)
    best, found = kept(matrix), np.arange(matrix.shape[1])
    start = time.process_time()
    while time.process_time() - start < seconds:
        order = rng.permutation(matrix.shape[1])
        value = kept(matrix[:, order])
        if value > best:
            best, found = value, order
    return found


def timed(search: Callable[[], Order]) -> tuple[Order, float]:
    """The order that a search finds, and its CPU seconds."""
    start = time.process_time()
    return search(), time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print("| size | search | efficacy | CPU s | CPU time relative to stripe groups |")
    print("| --- | --- | ---: | ---: | ---: |")
    for size in options.sizes:
        rows: dict[str, list[tuple[float, float]]] = {}
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)
            matrix = np.abs(rng.standard_normal((size, size))).astype(np.float32)
            theirs = timed(lambda m=matrix, s=seed: stripe_groups(m, s))
            searches = {"stripe groups": theirs, "ours": timed(lambda m=matrix, s=seed: ours(m, s))}
            tenth = theirs[1] / 10
            searches["ours, a tenth"] = timed(lambda m=matrix, s=seed, t=tenth: ours(m, s, t))
            limit = min(theirs[1], RANDOM_LIMIT)
            searches["random"] = timed(lambda m=matrix, s=seed, t=limit: random_orders(m, s, t))
            for name, (order, seconds) in searches.items():
                rows.setdefault(name, []).append((efficacy(matrix, order), seconds))
        base = np.mean(rows["stripe groups"], axis=0)[1]
        for name, found in rows.items():
            quality, seconds = np.mean(found, axis=0)
            shape = f"{size}x{size}"
            print(f"| {shape} | {name} | {quality:.1%} | {seconds:.2f} | {seconds / base:.1%} |")


if __name__ == "__main__":
    main()
