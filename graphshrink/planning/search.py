"""The best sum: choose options for sites so that the sum of savings is large and the sum of losses is small.

Savings are rounded to whole *ticks*; for these the search is exact. Sites are intervals of nodes in tree order, so a choice is a
path through the places between nodes: a path steps over a node that stays, or jumps over the interval of a site. Nested sites are
alternatives on the way, and sites that follow each other add up, so that Pareto fronts unite over nested choices and add along chains
without a walk through the tree. A hidden site ends at its closing layer, which may be the first layer of another hidden site and of
nothing else; so there are two places in front of each node, one of them for paths that arrive by a hidden site.

Dynamic programming: for each place and number of ticks, the smallest loss of a path that saves as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TICKS = 2000
"""The number of ticks that all of the cost is divided into."""


@dataclass(frozen=True)
class Option:
    """One way to replace a site.

    Attributes:
        span: The interval ``[start, stop)`` of nodes.
        hidden: Whether it is a hidden site, which also changes node ``stop``.
        ticks: What it saves, in ticks; at least 0.
        loss: What it loses.
    """

    span: tuple[int, int]
    hidden: bool
    ticks: int
    loss: float


@dataclass(frozen=True)
class Point:
    """A point of a Pareto front.

    Attributes:
        ticks: The sum of savings.
        loss: The sum of losses.
        options: The indices of the chosen options, in the order of their spans.
    """

    ticks: int
    loss: float
    options: tuple[int, ...]


class Front:
    """The Pareto front of all choices.

    Args:
        size: The number of nodes.
        options: All options.
        ticks: The largest sum of savings that matters; larger sums count as this one.
    """

    def __init__(self, size: int, options: Sequence[Option], ticks: int = TICKS) -> None:
        self.options = options
        places = 2 * (size + 1)
        self.loss: npt.NDArray[np.float64] = np.full((places, ticks + 1), np.inf)
        self.choice: npt.NDArray[np.int32] = np.full((places, ticks + 1), -1, np.int32)
        """The last option of the best path, or -1 if its last step is over a node."""
        self.before: npt.NDArray[np.int32] = np.full((places, ticks + 1), -1, np.int32)
        """The ticks of that path in front of its last step."""
        self.came: npt.NDArray[np.int32] = np.full((places, ticks + 1), -1, np.int32)
        """The place in front of its last step."""
        self.loss[0, 0] = 0
        starts: list[list[int]] = [[] for _ in range(size + 1)]
        for i, option in enumerate(options):
            starts[option.span[0]].append(i)
        for node in range(size):
            for hidden in (False, True):
                place = 2 * node + hidden
                self._step(place, 2 * (node + 1), -1, 0, 0.0)
                for i in starts[node]:
                    option = options[i]
                    if hidden and not option.hidden:
                        continue
                    end = 2 * option.span[1] + option.hidden
                    self._step(place, end, i, option.ticks, option.loss)

    def _step(self, place: int, end: int, choice: int, ticks: int, loss: float) -> None:
        """Extend all paths at a place to another place."""
        top = self.loss.shape[1] - 1
        ticks = min(ticks, top)
        self._improve(
            end,
            slice(ticks, None),
            self.loss[place, : top + 1 - ticks] + loss,
            np.arange(top + 1 - ticks, dtype=np.int32),
            choice,
            place,
        )
        if ticks:
            # What saves more than the top counts as the top.
            tail = self.loss[place, top - ticks + 1 :]
            best = int(np.argmin(tail))
            self._improve(
                end,
                slice(top, None),
                tail[best : best + 1] + loss,
                np.array([top - ticks + 1 + best], np.int32),
                choice,
                place,
            )

    def _improve(
        self,
        end: int,
        cut: slice,
        losses: npt.NDArray[np.float64],
        before: npt.NDArray[np.int32],
        choice: int,
        place: int,
    ) -> None:
        better = losses < self.loss[end, cut]
        self.loss[end, cut][better] = losses[better]
        self.choice[end, cut][better] = choice
        self.before[end, cut][better] = before[better]
        self.came[end, cut][better] = place

    def points(self) -> list[Point]:
        """The front: more ticks and more loss from point to point."""
        last = len(self.loss) - 2
        made: list[Point] = []
        best = np.inf
        for ticks in range(self.loss.shape[1] - 1, -1, -1):
            loss = float(self.loss[last, ticks])
            if loss < best:
                best = loss
                made.append(Point(ticks, loss, self._path(last, ticks)))
        return made[::-1]

    def at_least(self, ticks: int) -> Point | None:
        """The choice of the smallest loss that saves at least this much; ``None`` if there is none."""
        last, top = len(self.loss) - 2, self.loss.shape[1] - 1
        if ticks > top:
            return None
        ticks = max(ticks, 0)
        best = ticks + int(np.argmin(self.loss[last, ticks:]))
        if not np.isfinite(self.loss[last, best]):
            return None
        return Point(best, float(self.loss[last, best]), self._path(last, best))

    def _path(self, place: int, ticks: int) -> tuple[int, ...]:
        made = []
        while place > 0:
            choice = int(self.choice[place, ticks])
            if choice >= 0:
                made.append(choice)
            place, ticks = int(self.came[place, ticks]), int(self.before[place, ticks])
        return tuple(reversed(made))
