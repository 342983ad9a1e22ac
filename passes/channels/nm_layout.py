"""Where the channels of a group stand in the stripes of the weights that sum over them.

A stripe is a run of m numbers along a weight's reduction axis, of which an N:M pattern keeps n. Reordering a group moves
its units between stripes of every weight that reads them. These cases have a use:

- each unit has one channel in a stripe (single channels; the dimensions of all heads at once, where each head is
  a copy of its own; the channels of one group of a grouped convolution);
- a unit is several channels side by side within one stripe (two columns that a flatten joins).

Whole stripes that move change nothing (heads of 64 dimensions). Units that straddle stripes are refused. Weights that read
a group at different offsets divide it into stripes differently: then the division that has most of the numbers is
searched, and the others are counted when the order is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Pattern, Reduction
from ...ir.analysis import Placement
from ...ir.analysis.weights import NmWeight
from .nm_search import Ids, Scores

_CHUNK = 1 << 20
"""So many numbers at a time are read in float64."""

STRADDLES = "they move in units that straddle groups of {m}"
WHOLE = "they move in units that fill whole groups of {m}, so that nothing would change"


@dataclass(frozen=True, eq=False)
class Part:
    """The channels of a group in a run of rows of one weight.

    Attributes:
        weight: The weight.
        rows: The first row of :meth:`graphshrink.ir.Reduction.rows`, and the one behind the last.
        columns: The columns of each unit, of shape (units, width).
        others: Columns of the same stripes that are not the group's, of shape (others,), stripe by stripe.
        labels: For each unit the first unit that shares its stripe.
    """

    weight: NmWeight
    rows: tuple[int, int]
    columns: Ids
    others: Ids
    labels: Ids

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.rows[1] - self.rows[0]

    @property
    def key(self) -> tuple[int, bytes]:
        """Equal for parts that divide the units into stripes alike."""
        return self.columns.shape[1], self.labels.tobytes()


def parts_of(
    weights: Sequence[tuple[Placement, NmWeight]], pattern: Pattern
) -> tuple[list[Part], list[str]]:
    """All parts of a group in the weights that read it, and what is against those that have none, each reason once."""
    parts: list[Part] = []
    problems: dict[str, None] = {}
    for placement, weight in weights:
        assert weight.reduction is not None
        found = _parts(placement, weight, weight.reduction, pattern.m)
        if isinstance(found, str):
            problems.setdefault(found.format(m=pattern.m))
        else:
            parts += found
    return parts, list(problems)


def _parts(
    placement: Placement, weight: NmWeight, reduction: Reduction, m: int
) -> list[Part] | str:
    positions, length = placement.positions, reduction.length
    block, column = positions // length, positions % length
    stripe = positions // m  # Unique over blocks, because m divides the length.
    units, width = positions.shape
    if width % m == 0:
        runs = positions.reshape(units, -1, m)
        if bool((runs == runs[..., :1] // m * m + np.arange(m)).all()):
            return WHOLE
    rows = reduction.count // max(reduction.blocks, placement.blocks)

    def part(j: int, own: Ids) -> Part:
        first = int(block[0, j]) * rows
        labels, others = _stripes(own, stripe[:, j], m, length)
        return Part(weight, (first, first + rows), own, others, labels)

    apart = all(len(set(s)) == 1 for s in block.T.tolist())
    touched = [set(s) for s in stripe.T.tolist()]
    if apart and sum(map(len, touched)) == len(set().union(*touched)):
        return [part(j, column[:, j : j + 1]) for j in range(width)]
    inside = bool((stripe == stripe[:, :1]).all()) and apart and m % width == 0
    if inside and len(touched[0]) * m == positions.size:
        return [part(0, column)]
    return STRADDLES


def _stripes(columns: Ids, stripe: Ids, m: int, length: int) -> tuple[Ids, Ids]:
    """Labels of units, and the columns of their stripes that are not theirs, by label."""
    _, first, inverse = np.unique(stripe, return_index=True, return_inverse=True)
    mine = np.zeros(length, bool)
    mine[columns] = True
    used = columns[np.sort(first), 0] // m
    every = (used[:, None] * m + np.arange(m)).reshape(-1)
    return first[inverse.reshape(-1)], every[~mine[every]]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched: parts that divide the units alike, their rows one below the other.

    Attributes:
        parts: The parts.
        stripes: The columns of each stripe at first, of shape (stripes, m / width): units, then other columns.
        units: The number of units.
    """

    parts: tuple[Part, ...]
    stripes: Ids
    units: int

    @classmethod
    def of(cls, parts: Sequence[Part], pattern: Pattern) -> Problem:
        """The problem of the division that has most of the numbers."""
        sizes: dict[tuple[int, bytes], int] = {}
        for p in parts:
            sizes[p.key] = sizes.get(p.key, 0) + p.count
        key = max(sizes, key=lambda k: sizes[k])
        chosen = tuple(p for p in parts if p.key == key)
        labels = chosen[0].labels
        units, per = len(labels), pattern.m // chosen[0].columns.shape[1]
        stripes, others = [], units
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            missing = per - len(members)
            stripes.append(np.append(members, others + np.arange(missing)))
            others += missing
        return cls(chosen, np.stack(stripes), units)

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(p.count for p in self.parts)

    def scores(self, limit: int, rng: np.random.Generator) -> Scores:
        """The magnitudes, each weight by its mean, of shape (columns, width, rows).

        Args:
            limit: So many rows at most: a random sample, the same for the same generator.
            rng: The generator.
        """
        count = self.count
        sample = np.arange(count)
        if count > limit:
            sample = np.sort(rng.choice(count, limit, replace=False))
        width = self.parts[0].columns.shape[1]
        columns = self.units + len(self.parts[0].others)
        out = np.zeros((columns, width, len(sample)), np.float32)
        start = 0
        for weight, parts in _by_weight(self.parts):
            rows = magnitude(weight)
            # In float64: the mean of subnormal numbers is 0 in float32.
            scale = np.float64(_mean(rows))
            for p in parts:
                here = (sample >= start) & (sample < start + p.count)
                own = rows[p.rows[0] + sample[here] - start]
                out[: self.units, :, here] = own[:, p.columns].transpose(1, 2, 0) / scale
                out[self.units :, 0, here] = own[:, p.others].T / scale
                start += p.count
        return out

    def permutation(self, stripes: Ids) -> Ids:
        """The order of units that puts them into these stripes."""
        order = np.arange(self.units)
        own = self.stripes < self.units
        order[self.stripes[own]] = stripes[own]
        return order


def magnitude(weight: NmWeight) -> npt.NDArray[Any]:
    """The magnitudes of a weight's rows, in its type or float32."""
    assert weight.value is not None
    assert weight.value.data is not None
    assert weight.reduction is not None
    array = weight.value.data.numpy()
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return np.abs(weight.reduction.rows(wide))


def _mean(rows: npt.NDArray[Any]) -> float:
    """The mean to three digits, so that the order of a sum does not show; 1 where all is zero."""
    return float(f"{rows.mean(dtype=np.float64):.3g}") or 1.0


def kept(parts: Sequence[Part], pattern: Pattern, permutation: Ids) -> tuple[float, float, float]:
    """What the pattern keeps of all parts' stripes: as they are, reordered, and what there is, exactly.

    Each weight counts by its mean, as in the search.
    """
    before = after = whole = 0.0
    for weight, own in _by_weight(parts):
        rows = magnitude(weight)
        scale = _mean(rows)
        step = max(1, _CHUNK // rows.shape[1])
        for p in own:
            source = np.arange(rows.shape[1])
            source[p.columns] = p.columns[permutation]
            used = np.unique(p.columns // pattern.m)
            every = (used[:, None] * pattern.m + np.arange(pattern.m)).reshape(-1)
            for start in range(*p.rows, step):
                part = rows[start : min(start + step, p.rows[1])]
                before += pattern.kept_score(part[:, every]) / scale
                after += pattern.kept_score(part[:, source[every]]) / scale
                whole += float(part[:, every].sum(dtype=np.float64)) / scale
    return before, after, whole


def _by_weight(parts: Sequence[Part]) -> Iterator[tuple[NmWeight, list[Part]]]:
    """Parts by weight, in their order, so that each is read once."""
    found: dict[NmWeight, list[Part]] = {}
    for p in parts:
        found.setdefault(p.weight, []).append(p)
    yield from found.items()


__all__ = ["STRADDLES", "WHOLE", "Part", "Problem", "kept", "magnitude", "parts_of"]
