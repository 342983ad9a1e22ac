"""Rows of parameters in which every value of each meets every value of every other one, in place of all combinations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any


def pairs(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The rows, always the same: each next one has the most pairs that no row has yet."""
    values = [list(p) for p in parameters]

    def met(row: tuple[int, ...]) -> set[Any]:
        return set(combinations(enumerate(row), 2))

    rows = {row: met(row) for row in product(*(range(len(v)) for v in values))}
    left = set().union(*rows.values())
    chosen = []
    while left:
        best = max(rows, key=lambda row: len(rows[row] & left))
        left -= rows.pop(best)
        chosen.append(tuple(v[i] for v, i in zip(values, best, strict=True)))
    return chosen
