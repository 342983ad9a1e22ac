"""How a reshape joins and splits axes, and how channels follow it.

The two shapes are matched into *runs*: the shortest sequences of input and output axes that have the same
number of elements. Axes of different runs are independent, so a run of one input axis and one output axis needs no
known sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...ops import Flatten, Reshape
from ...types import Dim
from .elements import Elements, Entry, Factor, projection

MAX_COPIES = 1 << 20
"""Channels are not followed through a reshape that joins them with more than this many positions."""


@dataclass(frozen=True)
class AxisRun:
    """Input axes ``first`` to ``last`` (exclusive) become output axes ``begin`` to ``end``.

    Attributes:
        known: False if sizes are unknown, so that channels cannot be followed.
    """

    first: int
    last: int
    begin: int
    end: int
    known: bool = True


def axis_runs(op: Reshape | Flatten, source: Sequence[Dim], target: Sequence[Dim]) -> list[AxisRun]:
    """The runs of a node that reshapes; an axis that it copies equals its source even if its size is unknown."""
    marked, goal = list(source), list(target)
    if isinstance(op, Reshape):
        for i, d in enumerate(op.shape):
            if d is None and source[i] is None:
                marked[i] = goal[i] = f"axis {i}"
    return runs_of(marked, goal)


_Key = int | str


def runs_of(source: Sequence[Dim], target: Sequence[Dim]) -> list[AxisRun]:
    """The runs of a reshape; ``None`` in a shape equals no other size.

    Sizes are matched from the left up to an unknown one, and the rest from the right.
    """
    left = [_key(d, f"?in{i}") for i, d in enumerate(source)]
    right = [_key(d, f"?out{i}") for i, d in enumerate(target)]
    found, i, j = _prefix(left, right)
    runs = [AxisRun(a, b, c, d) for a, b, c, d in found]
    if i == len(left) and j == len(right):
        return runs
    tail, k, m = _prefix(left[i:][::-1], right[j:][::-1])
    n, o = len(left), len(right)
    runs.append(AxisRun(i, n - k, j, o - m, known=False))
    runs += [AxisRun(n - b, n - a, o - d, o - c) for a, b, c, d in reversed(tail)]
    return runs


def _key(dim: Dim, unknown: str) -> _Key:
    return unknown if dim is None else f"={dim}" if isinstance(dim, str) else dim


def _prefix(
    left: Sequence[_Key], right: Sequence[_Key]
) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """Runs from the start as far as they go, and where they end."""
    runs: list[tuple[int, int, int, int]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        a, b = i, j
        sizes = [1, 1]
        symbols: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        while True:
            lacking_left, lacking_right = symbols[1] - symbols[0], symbols[0] - symbols[1]
            even = sizes[0] == sizes[1] and not lacking_left and not lacking_right
            if even and (a, b) != (i, j):
                break
            # The side that lacks a symbol, or is smaller, takes one more axis.
            if lacking_left and lacking_right:
                return runs, i, j
            side = 0 if lacking_left else 1 if lacking_right else int(sizes[0] > sizes[1])
            if (a, b) == (i, j):
                side = 0 if a < len(left) else 1
            place, keys = (a, left) if side == 0 else (b, right)
            if place == len(keys):
                return runs, i, j
            key = keys[place]
            if isinstance(key, int):
                sizes[side] *= key
            else:
                symbols[side][key] += 1
            if side == 0:
                a += 1
            else:
                b += 1
        # An axis of size 1 on one side only is a run to nothing.
        runs.append((i, a, j, b))
        i, j = a, b
    return runs, i, j


def reshape_entries(
    elements: Elements,
    entries: Sequence[Entry],
    source: Sequence[Dim],
    target: Sequence[Dim],
    runs: Sequence[AxisRun],
    name: str,
) -> list[Entry]:
    """The entries of the axes of the result; channels that cannot be followed are fixed.

    Args:
        elements: Where elements and bindings are kept.
        entries: The entries of the axes of the input.
        source: The input's shape.
        target: The result's shape.
        runs: From :func:`runs_of`.
        name: The node, for reasons.
    """
    run_of = {axis: run for run in runs for axis in range(run.first, run.last)}
    made: list[Entry] = [
        None if d == 1 else f"{name} makes this axis in a fixed order" for d in target
    ]
    for run in runs:
        if (run.last - run.first, run.end - run.begin) == (1, 1):
            entry = entries[run.first]
            if isinstance(entry, str):
                made[run.begin] = entry
    for factors in _companions(entries, run_of):
        touched = sorted({run_of[a].first for f in factors for a in f.axes})
        stretch = [run_of[a] for a in touched]
        reason = _obstacle(factors, stretch, source)
        if reason is not None:
            for factor in factors:
                elements.fix(factor.ids, f"{name} {reason}")
            continue
        factor = factors[0] if len(factors) == 1 else _product(elements, factors)
        axes = [a for run in stretch for a in range(run.first, run.last)]
        sizes = [_static(source[a]) for a in axes]
        ids = factor.ids
        if any(n != 1 for a, n in zip(axes, sizes, strict=True) if a not in factor.axes):
            tracked = [k for k, a in enumerate(axes) if a in factor.axes]
            ids = elements.copies(ids, tracked, sizes)
        results = [b for run in stretch for b in range(run.begin, run.end) if target[b] != 1]
        shape = _result_shape(stretch, results, source, target)
        if shape is None:
            elements.fix(factor.ids, f"{name} makes axes of unknown size of it")
            continue
        ids = ids.reshape(shape)
        whole = elements.collapsed(ids)
        if whole is not None:
            ids, kept = whole
            results = [results[k] for k in kept]
        result = Factor(tuple(results), ids)
        for axis in results:
            made[axis] = result
    return made


def _companions(entries: Sequence[Entry], run_of: dict[int, AxisRun]) -> list[list[Factor]]:
    """The factors, those together that have axes in one run."""
    home: dict[int, list[Factor]] = {}
    for axis, entry in enumerate(entries):
        if not isinstance(entry, Factor) or axis != entry.axes[0]:
            continue
        together = [entry]
        for other in {id(h): h for a in entry.axes if (h := home.get(run_of[a].first))}.values():
            together += other
        for factor in together:
            home.update((run_of[a].first, together) for a in factor.axes)
    return list({id(h): h for h in home.values()}.values())


def _product(elements: Elements, factors: Sequence[Factor]) -> Factor:
    """One grid for several factors that meet in one axis (whole heads, and dimensions that they share)."""
    axes = sorted(a for f in factors for a in f.axes)
    sizes = {a: n for f in factors for a, n in zip(f.axes, f.ids.shape, strict=True)}
    grid = elements.new([sizes[a] for a in axes])
    for factor in factors:
        kept = [axes.index(a) for a in factor.axes]
        parents = factor.ids.reshape([sizes[a] if a in factor.axes else 1 for a in axes])
        elements.project(grid, parents, projection(grid, kept))
    return Factor(tuple(axes), grid)


def _static(dim: Dim) -> int:
    return dim if isinstance(dim, int) else -1


def _obstacle(
    factors: Sequence[Factor], stretch: Sequence[AxisRun], source: Sequence[Dim]
) -> str | None:
    tracked = math.prod(f.ids.size for f in factors)
    count = 1
    for run in stretch:
        if not run.known:
            return "reshapes it with axes of unknown size"
        for size in source[run.first : run.last]:
            if not isinstance(size, int):
                return "joins it with an axis of unknown size"
            count *= size
    if count > MAX_COPIES and (count > tracked or len(factors) > 1):
        return "joins it with too many positions to follow"
    return None


def _result_shape(
    stretch: Sequence[AxisRun], results: Sequence[int], source: Sequence[Dim], target: Sequence[Dim]
) -> list[int] | None:
    shape: dict[int, int] = {}
    for run in stretch:
        total = math.prod(_static(d) for d in source[run.first : run.last])
        sizes = [target[b] for b in range(run.begin, run.end)]
        if len(sizes) == 1:
            shape[run.begin] = total
            continue
        if not all(isinstance(d, int) for d in sizes) or math.prod(map(_static, sizes)) != total:
            return None
        shape.update({run.begin + k: _static(d) for k, d in enumerate(sizes)})
    return [shape[b] for b in results]


__all__ = ["AxisRun", "axis_runs", "reshape_entries", "runs_of"]
