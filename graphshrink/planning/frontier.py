"""The trade-off of a plan: of all sets of replacements with a true loss, those that no other set beats."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from .survey import Choice

COLUMNS = ("cost", "unit", "speedup", "loss", "chosen", "sites", "replacements")
"""The columns of the CSV file."""


@dataclass(frozen=True)
class FrontierPoint:
    """One set of replacements that was scored as a whole.

    Attributes:
        cost: Its cost: measured for the chosen set, else predicted from the sum of its savings.
        loss: Its loss on the scoring samples.
        chosen: Whether it is the planned network.
        sites: Its replacements as ``site: candidate``, in the order of their names.
    """

    cost: float
    loss: float
    chosen: bool
    sites: list[str]


def frontier(
    singles: Iterable[Choice],
    scores: Mapping[frozenset[Choice], float],
    chosen: frozenset[Choice],
    cost: Callable[[frozenset[Choice]], float],
    measured: tuple[float, float],
) -> list[FrontierPoint]:
    """The sets that are cheaper than all sets with a smaller loss, from the smallest loss to the largest.

    Args:
        singles: All candidates, each scored alone.
        scores: The losses of sets that were scored.
        chosen: The planned set, which is always a point.
        cost: The predicted cost of a set.
        measured: The cost and the loss of the planned set.
    """
    known = {frozenset([c]): c.loss for c in singles} | dict(scores) | {frozenset(): 0.0}
    known.pop(chosen, None)
    points = [
        FrontierPoint(cost(made), loss, False, _names(made))
        for made, loss in known.items()
        if isfinite(loss)
    ]
    points.append(FrontierPoint(*measured, True, _names(chosen)))
    points.sort(key=lambda p: (p.loss, p.cost, p.sites))
    kept: list[FrontierPoint] = []
    cheapest = float("inf")
    for point in points:
        if point.cost < cheapest or point.chosen:
            kept.append(point)
        cheapest = min(cheapest, point.cost)
    return kept


def _names(made: frozenset[Choice]) -> list[str]:
    return sorted(f"{site}: {label}" for site, label in (c.key for c in made))


def to_csv(points: Iterable[Mapping[str, Any]], before: float, unit: str) -> str:
    """The text of a CSV file with one line for each point.

    Args:
        points: The points as a plan has them.
        before: The cost of the given model.
        unit: The unit of costs.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        speedup = f"{before / point['cost']:.6g}" if point["cost"] > 0 else ""
        row = [point["cost"], unit, speedup, point["loss"], "yes" if point["chosen"] else "no"]
        writer.writerow([*row, len(point["sites"]), "; ".join(point["sites"])])
    return text.getvalue()
