"""The positions of a channel group in the stripes of the weights that sum over it.

A stripe is m consecutive numbers along the reduction axis of a weight, of which an N:M pattern keeps n. Reordering a
group moves its units between the stripes of every weight that reads them. Two cases are supported:

- each unit has one channel in a stripe (single channels; a dimension of all heads at once; the channels of one group of
  a grouped convolution);
- a unit is several adjacent channels within one stripe (two columns that a flatten joins).

Moving whole stripes changes nothing (heads of 64 dimensions). Units that straddle stripes are refused. Weights that read
a group at different offsets divide it into stripes differently. The search then uses the division that covers most
numbers; all divisions count when the resulting order is compared with the present one.
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
"""How many numbers are converted to float64 at a time."""

STRADDLES = "they move in units that straddle groups of {m}"
WHOLE = "they move in units that fill whole groups of {m}, so that nothing would change"


@dataclass(frozen=True, eq=False)
class WeightPart:
    """The channels of a group in consecutive rows of one weight.

    Attributes:
        weight: The weight.
        rows: The range of rows of :meth:`graphshrink.ir.Reduction.rows`: the first one, and the one after the last.
        columns: The columns of each unit, of shape (units, width).
        others: The columns of the same stripes that are not in the group, of shape (others,), stripe by stripe.
        labels: For each unit, the index of the first unit in its stripe.
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
        """A key that is equal for parts that divide the units into the same stripes."""
        return self.columns.shape[1], self.labels.tobytes()


def parts_of(
    weights: Sequence[tuple[Placement, NmWeight]], pattern: Pattern
) -> tuple[list[WeightPart], list[str]]:
    """The parts of a group in the weights that read it, and the reasons why other weights have none, without duplicates."""
    parts: list[WeightPart] = []
    problems: dict[str, None] = {}
    for placement, weight in weights:
        if weight.reduction is None:
            continue
        found = _parts_or_reason(placement, weight, weight.reduction, pattern.m)
        if isinstance(found, str):
            problems.setdefault(found.format(m=pattern.m))
        else:
            parts += found
    return parts, list(problems)


def _parts_or_reason(
    placement: Placement, weight: NmWeight, reduction: Reduction, m: int
) -> list[WeightPart] | str:
    positions, length = placement.positions, reduction.length
    block, column = positions // length, positions % length
    stripe = positions // m  # Different in different blocks, because m divides the length.
    units, width = positions.shape
    if width % m == 0:
        runs = positions.reshape(units, -1, m)
        if bool((runs == runs[..., :1] // m * m + np.arange(m)).all()):
            return WHOLE
    rows = reduction.count // max(reduction.blocks, placement.blocks)

    def part(j: int, own: Ids) -> WeightPart:
        first = int(block[0, j]) * rows
        labels, others = _stripes(own, stripe[:, j], m, length)
        return WeightPart(weight, (first, first + rows), own, others, labels)

    apart = all(len(set(s)) == 1 for s in block.T.tolist())
    touched = [set(s) for s in stripe.T.tolist()]
    if apart and sum(map(len, touched)) == len(set().union(*touched)):
        return [part(j, column[:, j : j + 1]) for j in range(width)]
    inside = bool((stripe == stripe[:, :1]).all()) and apart and m % width == 0
    if inside and len(touched[0]) * m == positions.size:
        return [part(0, column)]
    return STRADDLES


def _stripes(columns: Ids, stripe: Ids, m: int, length: int) -> tuple[Ids, Ids]:
    """The labels of the units, and the other columns of their stripes, in the order of the labels."""
    _, first, inverse = np.unique(stripe, return_index=True, return_inverse=True)
    mine = np.zeros(length, bool)
    mine[columns] = True
    used = columns[np.sort(first), 0] // m
    every = (used[:, None] * m + np.arange(m)).reshape(-1)
    return first[inverse.reshape(-1)], every[~mine[every]]


@dataclass(frozen=True, eq=False)
class OrderProblem:
    """The search problem: parts that divide the units into the same stripes, with their rows concatenated.

    Attributes:
        parts: The parts.
        stripes: The initial columns of each stripe, of shape (stripes, m / width). Numbers below ``units`` are units,
            the others are columns that are not in the group.
        units: The number of units.
    """

    parts: tuple[WeightPart, ...]
    stripes: Ids
    units: int

    @classmethod
    def of(cls, parts: Sequence[WeightPart], pattern: Pattern) -> OrderProblem:
        """The problem for the division into stripes that covers most rows."""
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
        """The magnitudes, those of each weight divided by their mean, of shape (columns, width, rows).

        Args:
            limit: The largest number of rows; a random sample is taken of more.
            rng: The generator of the sample.
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
            scale = np.float64(_rounded_mean(rows))
            for p in parts:
                here = (sample >= start) & (sample < start + p.count)
                own = rows[p.rows[0] + sample[here] - start]
                out[: self.units, :, here] = own[:, p.columns].transpose(1, 2, 0) / scale
                out[self.units :, 0, here] = own[:, p.others].T / scale
                start += p.count
        return out

    def permutation(self, stripes: Ids) -> Ids:
        """The order of units that results in these stripes."""
        order = np.arange(self.units)
        own = self.stripes < self.units
        order[self.stripes[own]] = stripes[own]
        return order


def magnitude(weight: NmWeight) -> npt.NDArray[Any]:
    """The magnitudes of a weight's rows, in its own type, at least float32.

    Raises:
        ValueError: If the weight is not a constant, or its numbers cannot be read.
    """
    if weight.value is None or weight.value.data is None or weight.reduction is None:
        raise ValueError(weight.problem or "it is not a constant")
    array = weight.value.data.numpy()
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return np.abs(weight.reduction.rows(wide))


def _rounded_mean(rows: npt.NDArray[Any]) -> float:
    """The mean, rounded to three digits so that it does not depend on the order of the sum; 1 if all numbers are 0."""
    return float(f"{rows.mean(dtype=np.float64):.3g}") or 1.0


def kept_magnitude(
    parts: Sequence[WeightPart], pattern: Pattern, permutation: Ids
) -> tuple[float, float, float]:
    """The magnitude that a pattern keeps in the stripes of all parts, computed exactly.

    The magnitudes of each weight are divided by their mean, as in the search.

    Returns:
        The kept magnitude in the present order, the one in the order ``permutation``, and the whole magnitude.
    """
    before = after = whole = 0.0
    for weight, own in _by_weight(parts):
        rows = magnitude(weight)
        scale = _rounded_mean(rows)
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


def _by_weight(parts: Sequence[WeightPart]) -> Iterator[tuple[NmWeight, list[WeightPart]]]:
    """The parts grouped by weight, in order, so that each weight is read once."""
    found: dict[NmWeight, list[WeightPart]] = {}
    for p in parts:
        found.setdefault(p.weight, []).append(p)
    yield from found.items()


__all__ = [
    "STRADDLES",
    "WHOLE",
    "OrderProblem",
    "WeightPart",
    "kept_magnitude",
    "magnitude",
    "parts_of",
]
