"""Search for an order of columns in which an N:M pattern keeps the largest sum of scores.

Columns are divided into stripes of m; the pattern keeps the n largest scores in every row of a stripe. The order inside
a stripe and the order of stripes do not matter, so this is a partition problem; a move of the search exchanges two
columns of different stripes. A table holds the gains of all exchanges. Let ``t[a]`` be, row by row, the n-th largest
score in the stripe of column ``a`` without ``a``. If ``k`` replaces ``a``, the stripe keeps, in addition to what it
keeps without ``a``::

    A[a, k] = sum over rows of max(0, score[k] - t[a])

and if the stripe loses ``L[a]`` without ``a``, exchanging a and k gains ``A[a, k] + A[k, a] - L[a] - L[k]``. An exchange
changes only the rows of A for the columns of two stripes. The search is a tabu search (Glover, 1989): it makes the best
exchange even if that loses, and the two columns then rest for some steps, so that the search leaves local optima. The
best order seen is the result.

Pool and Yu, "Channel permutations for N:M sparsity", NeurIPS 2021, state the problem, and search pairs of stripes (all
35 ways to divide 8 columns) with random escapes. Each such way is one exchange or two. Updating the table after an
exchange takes 2m rows of sums, where a pair of stripes takes 70 evaluations with each of its neighbours.

Scores are rounded to whole numbers, small enough that every sum is exact in float32. So the result does not depend on
the order of sums, the number of threads or the machine. Only a limit in seconds makes it depend on the machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Pattern

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_EXACT = 1 << 24
"""Whole numbers up to this one are exact in float32."""

_LEVELS = 30000
"""The largest whole number that scores are rounded to."""

_CHUNK = 1 << 18
"""How many numbers are compared at a time, so that they stay in the CPU cache."""


def search_order(
    scores: Scores,
    stripes: Ids,
    pattern: Pattern,
    *,
    steps: int,
    seed: int,
    frozen: npt.NDArray[np.bool_] | None = None,
    seconds: float = 0.0,
) -> Ids:
    """Search for a division of columns into stripes that keeps a larger sum of scores.

    Args:
        scores: Non-negative scores of shape (columns, width, rows): ``width`` adjacent columns move as one.
        stripes: The initial columns of each stripe, of shape (stripes, m / width).
        pattern: The pattern.
        steps: The number of exchanges.
        seed: The seed of the random number of steps that columns rest.
        frozen: A mask of the columns that do not move.
        seconds: Stop after this CPU time; 0 for no limit. With a limit the result depends on the machine.

    Returns:
        The best columns of each stripe, in the shape of ``stripes``. Frozen columns are at their old positions.
    """
    until = time.thread_time() + seconds if seconds else None
    table = _ExchangeTable(scores, stripes, pattern, frozen)
    rng = np.random.default_rng(seed)
    free = int(np.count_nonzero(~table.frozen))
    low, high = max(3, free // 16), max(6, free // 6)
    best, found, total = 0.0, table.stripes.copy(), 0.0
    rests: dict[int, list[int]] = {}
    for step in range(steps):
        place = int(table.gain.argmax())
        gain = float(table.gain.flat[place])
        if gain == -np.inf and rests:
            # With few columns, all of them can be resting.
            rests.clear()
            table.wake()
            continue
        if gain == -np.inf or (until is not None and time.thread_time() > until):
            break
        pair = divmod(place, len(scores))
        total += gain
        for column in pair:
            table.resting[column] = True
            rests.setdefault(step + int(rng.integers(low, high)), []).append(column)
        rested = rests.pop(step, [])
        table.resting[rested] = False
        table.exchange(*pair, rested)
        if total > best:
            best, found = total, table.stripes.copy()
    return found


def whole_numbers(scores: npt.NDArray[Any], rows: int, pattern: Pattern) -> Scores:
    """Scores as whole numbers, so small that the kept sum of a stripe over ``rows`` rows is exact in float32."""
    top = float(scores.max(initial=0.0))
    if top == 0.0:
        return np.zeros(scores.shape, np.float32)
    levels = max(1, min(_LEVELS, _EXACT // max(1, pattern.n * rows)))
    return np.floor(scores * np.float32(levels / top)).astype(np.float32)


class _ExchangeTable:
    """The table of the gains of all exchanges.

    Attributes:
        stripes: The columns of each stripe.
        gain: The gain of exchanging two columns; minus infinity if the exchange is not allowed.
        resting: A mask of the columns that may not be exchanged now.
    """

    def __init__(
        self,
        scores: Scores,
        stripes: Ids,
        pattern: Pattern,
        frozen: npt.NDArray[np.bool_] | None,
    ) -> None:
        columns, self.width, self.rows = scores.shape
        self.n, self.pattern = pattern.n, pattern
        self.scores = whole_numbers(scores, self.rows, pattern)
        self.flat = self.scores.reshape(columns, -1)
        self.ones = np.ones(self.rows, np.float32)
        self.stripes = stripes.copy()
        self.stripe, self.place = np.empty(columns, np.int64), np.empty(columns, np.int64)
        self.stripe[stripes] = np.arange(len(stripes))[:, None]
        self.place[stripes] = np.arange(stripes.shape[1])
        self.frozen = np.zeros(columns, bool) if frozen is None else frozen
        self.resting = self.frozen.copy()
        self.more = np.empty((columns, columns), np.float32)
        self.loss = np.empty(columns, np.float32)
        self.gain = np.empty((columns, columns), np.float32)
        self.buffer = np.empty((max(1, min(columns, _CHUNK // self.rows)), self.rows), np.float32)
        # In chunks, so that the temporary arrays are not larger than the table.
        run = max(1, _CHUNK // max(1, stripes.shape[1] * self.rows))
        for start in range(0, len(stripes), run):
            self._refresh(np.arange(start, min(start + run, len(stripes))))
        self._update_gains(np.arange(columns))

    def exchange(self, a: int, b: int, rested: list[int]) -> None:
        """Exchange two columns, and update the gains of both stripes and of the columns ``rested``."""
        places = [(self.stripe[c], self.place[c]) for c in (a, b)]
        for column, (stripe, place) in zip((b, a), places, strict=True):
            self.stripes[stripe, place] = column
            self.stripe[column], self.place[column] = stripe, place
        changed = self._refresh(self.stripe[[a, b]])
        self._update_gains(np.unique(np.append(changed, np.array(rested, np.int64))))

    def wake(self) -> None:
        """Let all resting columns be exchanged again, except frozen ones."""
        self.resting = self.frozen.copy()
        self._update_gains(np.arange(len(self.scores)))

    def _update_gains(self, columns: Ids) -> None:
        """Recompute ``gain`` for all exchanges of these columns."""
        gain = self.more[columns] + self.more[:, columns].T
        gain -= self.loss[columns][:, None]
        gain -= self.loss
        gain[self.stripe[columns][:, None] == self.stripe] = -np.inf
        gain[:, self.resting] = -np.inf
        gain[self.resting[columns]] = -np.inf
        self.gain[columns] = gain
        self.gain[:, columns] = gain.T

    def _refresh(self, stripes: Ids) -> Ids:
        """Recompute ``more`` and ``loss`` of the columns of these stripes."""
        columns = self.stripes[stripes].reshape(-1)
        if self.width == 1:
            self._refresh_single(columns, self.stripes.shape[1])
        else:
            self._refresh_wide(columns, self.stripes.shape[1])
        return columns

    def _refresh_single(self, columns: Ids, m: int) -> None:
        own = self.flat[columns].reshape(-1, m, self.rows)
        ordered = np.sort(own, axis=1)
        least, next_ = ordered[:, m - self.n, None], ordered[:, m - self.n - 1, None]
        # Without one of the n largest scores, the next largest is kept.
        threshold = np.where(own >= least, next_, least).reshape(-1, self.rows)
        self.loss[columns] = np.maximum(own - next_, 0).reshape(-1, self.rows) @ self.ones
        more = np.empty((len(columns), len(self.flat)), np.float32)
        height = len(self.buffer)
        for start in range(0, len(self.flat), height):
            part = self.flat[start : start + height]
            buffer = self.buffer[: len(part)]
            for i in range(len(columns)):
                np.maximum(part, threshold[i], out=buffer)
                np.dot(buffer, self.ones, out=more[i, start : start + len(part)])
        more -= (threshold @ self.ones)[:, None]
        self.more[columns] = more

    def _refresh_wide(self, columns: Ids, units: int) -> None:
        """Like ``_refresh_single`` for units of several columns: evaluate each stripe with every other unit in its place."""
        for first in range(0, len(columns), units):
            group = columns[first : first + units]
            kept = self._kept(self.scores[group].reshape(1, -1, self.rows))
            for column in group:
                rest = self.scores[group[group != column]].reshape(1, -1, self.rows)
                step = max(1, len(self.buffer) // max(1, units * self.width))
                for start in range(0, len(self.scores), step):
                    others = self.scores[start : start + step]
                    whole = np.broadcast_to(rest, (len(others), *rest.shape[1:]))
                    together = np.concatenate([whole, others], axis=1)
                    self.more[column, start : start + step] = self._kept(together)
                self.loss[column] = kept[0]

    def _kept(self, stripes: Scores) -> Scores:
        """The sum of scores that each of several stripes ``(count, m, rows)`` keeps."""
        size = stripes.shape[1]
        top = np.partition(stripes, size - self.n, axis=1)[:, size - self.n :]
        return np.asarray(top.sum(axis=(1, 2)), np.float32)


__all__ = ["search_order", "whole_numbers"]
