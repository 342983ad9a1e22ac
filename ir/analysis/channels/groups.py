"""Coupled channel groups: which channels of a graph may change places, and which constants move with them.

A group is a set of units (single channels, or blocks of them, such as attention heads) that can be put in any order
without changing what the graph computes, if all constants that hold them are reordered together. Groups are
about positions, not numbers: permuting one leaves all others valid, so they can be applied in any order.
Channel pruning needs the same groups: channels that move together are removed together.

How it works. :class:`.flow.ChannelFlow` labels every axis of every constant with elements and
records what binds them. Elements that are joined form *classes*. Two classes may be swapped when
nothing in the records tells them apart: the k-th element of one (elements are numbered along their origins)
lies in the same axis of the same constant as the k-th of the other, under the same mark, in the same
bindings. That makes the swap an automorphism of all bindings, so that every value is only reordered. Classes
with equal records therefore form a group, in which every permutation is allowed.

Projections (many dimensions, one head) can be read in two ways: the parent stays and its children move among
themselves, or the parent moves and takes its children along. Three readings are tried; each is
sound by itself. *Within rows*: dimensions move within each head. *Rows*: heads move among those
that share columns (the query heads of one key head). *All*: whatever hangs together moves as one (key heads with
their queries). Records are compared by 128-bit sums of hashes, so that the time is near-linear.

The idea of classes of coupled channels is that of dependency graphs (Fang et al., *DepGraph*, 2023); heads, blocks, and
what may be permuted rather than removed, are treated here by elements instead of by op rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph import Graph, Value
from .elements import Binding, Elements, Ids, Origin
from .flow import ChannelFlow


@dataclass(frozen=True, eq=False)
class Placement:
    """The positions of the units of a group in one constant.

    Attributes:
        value: The constant.
        axis: The axis.
        positions: Indices along the axis, of shape (units, channels per unit): row ``i`` is unit ``i``.
        blocks: More than 1 where the channels differ from one block of rows (axis 0) to the next, as along axis 1
            of a grouped convolution's weight: index ``p`` is then channel ``p % size`` in block ``p // size``.
    """

    value: Value
    axis: int
    positions: npt.NDArray[np.int64]
    blocks: int = 1

    @property
    def unit(self) -> int:
        """The number of indices that one unit takes along the axis."""
        return int(self.positions.shape[1])

    @property
    def offset(self) -> int:
        """The first index that the group takes along the axis."""
        return int(self.positions.min())

    @property
    def is_contiguous(self) -> bool:
        """Whether the units are runs of indices, one behind the other."""
        flat = self.positions.reshape(-1)
        return bool((flat == np.arange(self.offset, self.offset + flat.size)).all())


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that may be put in any order.

    Attributes:
        size: The number of units.
        placements: Everything that moves, in the order of the graph; one for each axis of a constant.
    """

    size: int
    placements: tuple[Placement, ...]

    @property
    def unit(self) -> int:
        """The number of channels in a unit: 1, or more for heads and for the groups of a convolution."""
        return min(p.unit for p in self.placements)

    @property
    def name(self) -> str:
        """A readable name: the first position of the group."""
        first = self.placements[0]
        return f"%{first.value.name} axis {first.axis} from {first.offset}"

    @property
    def values(self) -> tuple[Value, ...]:
        """The constants that move, each once."""
        return tuple(dict.fromkeys(p.value for p in self.placements))

    def __repr__(self) -> str:
        return (
            f"<ChannelGroup {self.name}: {self.size} x {self.unit}, {len(self.values)} constants>"
        )


@dataclass(frozen=True)
class FixedChannels:
    """Channels of a constant that are in no group.

    Attributes:
        value: The constant.
        axis: The axis.
        count: Their number.
        reason: Why.
    """

    value: Value
    axis: int
    count: int
    reason: str


@dataclass(frozen=True)
class ChannelGroups:
    """The channels of a graph.

    Attributes:
        groups: The groups; those of single channels first, then those of blocks.
        fixed: The channels that cannot be permuted, with reasons.
    """

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[FixedChannels, ...]
    _along: dict[tuple[Value, int], list[tuple[ChannelGroup, Placement]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for group in self.groups:
            for placement in group.placements:
                key = (placement.value, placement.axis)
                self._along.setdefault(key, []).append((group, placement))

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def along(self, value: Value, axis: int) -> tuple[tuple[ChannelGroup, Placement], ...]:
        """The groups that move channels of a constant along one axis, with their places there."""
        return tuple(self._along.get((value, axis), ()))

    def reasons(self, value: Value, axis: int) -> tuple[str, ...]:
        """Why channels of a constant along one axis keep their places."""
        return tuple(f.reason for f in self.fixed if f.value is value and f.axis == axis)


REORDERED = "channels were reordered: checkpoints from before do not fit, though their shapes do"
"""The note on a graph whose channels were reordered."""

UNLIKE = "no other channel is used alike"
"""The reason for a channel that nothing fixes, but that nothing can change places with."""


def channel_groups(graph: Graph) -> ChannelGroups:
    """Find the channels of ``graph`` that may be permuted.

    Only shapes are read, not weights. Ops that are not understood are barriers:
    their operands and results keep their order. Time and memory grow with the number of nodes and channels.
    """
    flow = ChannelFlow(graph)
    flow.run()
    table = _Table(flow.elements)
    return ChannelGroups(*table.find())


Hashes = npt.NDArray[np.uint64]

_READINGS: tuple[tuple[frozenset[Binding], Binding | None, tuple[Binding, ...]], ...] = (
    (frozenset({Binding.JOIN, Binding.COLUMN}), Binding.ROW, ()),
    (frozenset({Binding.JOIN, Binding.ROW}), Binding.COLUMN, (Binding.ROW,)),
    (frozenset(Binding), None, (Binding.ROW, Binding.COLUMN)),
)
"""What moves together, whose parents stay, and what a class must have to be new in this reading."""


class _Table:
    """Elements and bindings as flat arrays."""

    def __init__(self, elements: Elements) -> None:
        self.size = elements.size
        self.origins: list[Origin] = [o for _, o in elements.origins]
        starts = np.array([s for s, _ in elements.origins], np.int64)
        counts = np.diff(np.append(starts, self.size))
        self.start = np.repeat(starts, counts)
        self.origin = np.repeat(np.arange(len(starts), dtype=np.int64), counts)
        self.constant = np.array([o.value is not None for o in self.origins], bool)[self.origin]
        self.a = _joined([a for a, _, _ in elements.bindings])
        self.b = _joined([b for _, b, _ in elements.bindings])
        lengths = [a.size for a, _, _ in elements.bindings]
        self.kind = np.repeat(np.array([k for _, _, k in elements.bindings], np.int64), lengths)
        self.binding = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        self.fixed = elements.fixed
        self.mark: list[Hashes] = [np.zeros(self.size, np.uint64) for _ in _SEEDS]
        for number, ids in enumerate(elements.marks):
            for seed, marks in zip(_SEEDS, self.mark, strict=True):
                marks[ids] += _mixed(seed + 4, np.uint64(number))

    def find(self) -> tuple[tuple[ChannelGroup, ...], tuple[FixedChannels, ...]]:
        """All groups, and the channels that are in none."""
        covered = np.zeros(self.size, bool)
        groups: list[ChannelGroup] = []
        for joined, staying, needed in _READINGS:
            if needed and not bool(np.isin(self.kind, needed).any()):
                continue
            groups += self._groups(joined, staying, needed, covered)
        return tuple(groups), tuple(self._fixed(covered, self._reasons()))

    # Groups.

    def _groups(
        self,
        joined: frozenset[Binding],
        staying: Binding | None,
        needed: tuple[Binding, ...],
        covered: npt.NDArray[np.bool_],
    ) -> list[ChannelGroup]:
        moving = np.isin(self.kind, list(joined))
        a, b = self.a[moving], self.b[moving]
        label = components(self.size, a, b)
        order = np.argsort(label, kind="stable")
        first = np.flatnonzero(np.diff(label[order], prepend=-1))
        count = np.diff(np.append(first, self.size))
        number = np.empty(self.size, np.int64)
        number[order] = np.repeat(np.arange(first.size), count)
        rank = np.empty(self.size, np.int64)
        rank[order] = np.arange(self.size) - np.repeat(first, count)

        stays = np.zeros(first.size, bool)
        for ids, _ in self.fixed:
            stays[number[ids]] = True
        held = self.kind == staying if staying is not None else np.zeros(self.kind.size, bool)
        stays[number[self.b[held]]] = True
        useful = np.zeros(first.size, bool)
        useful[number[self.constant]] = True
        for kind in needed:
            has = np.zeros(first.size, bool)
            has[number[self.a[self.kind == kind]]] = True
            useful &= has
        chosen = np.flatnonzero(useful & ~stays)

        records = [
            self._records(seed, marks, number, rank, first.size, moving, held)[chosen]
            for seed, marks in zip(_SEEDS, self.mark, strict=True)
        ]
        # Stable, so that the units of a group stay in the order of the graph.
        ordering = np.lexsort(records)
        same = np.ones(max(ordering.size - 1, 0), bool)
        for record in records:
            same &= record[ordering][1:] == record[ordering][:-1]
        found: list[tuple[int, ChannelGroup]] = []
        for run in np.split(ordering, np.flatnonzero(~same) + 1):
            if run.size < 2:
                continue
            classes = chosen[run]
            members = order[first[classes][:, None] + np.arange(count[classes[0]])]
            covered[members] = True
            found.append((int(members[0, 0]), self._group(members)))
        return [group for _, group in sorted(found, key=lambda pair: pair[0])]

    def _records(
        self,
        seed: int,
        marks: Hashes,
        number: Ids,
        rank: Ids,
        classes: int,
        moving: npt.NDArray[np.bool_],
        held: npt.NDArray[np.bool_],
    ) -> Hashes:
        """One sum of hashes for each class: its places, its marks, its bindings."""
        total = np.zeros(classes, np.uint64)
        np.add.at(total, number, _mixed(seed, self.origin, rank, marks))
        a, b, binding = self.a[moving], self.b[moving], self.binding[moving]
        np.add.at(total, number[a], _mixed(seed + 1, binding, rank[a], rank[b]))
        # A parent that stays is identified by its own number.
        a, b, binding = self.a[held], self.b[held], self.binding[held]
        np.add.at(total, number[a], _mixed(seed + 2, binding, rank[a], b))
        return total

    def _group(self, members: Ids) -> ChannelGroup:
        """The group of these elements: one row for each unit."""
        sources = self.origin[members[0]]
        if not bool((self.origin[members] == sources).all()):
            raise AssertionError("hashes of unlike channels collide")
        placements = []
        for source in np.unique(sources):
            origin = self.origins[source]
            if origin.value is not None:
                own = members[:, sources == source]
                positions = own - self.start[own]
                placements.append(Placement(origin.value, origin.axis, positions, origin.blocks))
        return ChannelGroup(len(members), tuple(placements))

    # Channels that are in no group.

    def _reasons(self) -> Ids:
        """For each element the number of the first reason that fixes its class; -1 for none."""
        moving = self.kind != Binding.ROW
        label = components(self.size, self.a[moving], self.b[moving])
        reason = np.full(self.size, -1, np.int64)
        for number in reversed(range(len(self.fixed))):
            reason[label[self.fixed[number][0]]] = number
        return reason[label]

    def _fixed(self, covered: npt.NDArray[np.bool_], reasons: Ids) -> Iterator[FixedChannels]:
        left = np.flatnonzero(self.constant & ~covered)
        if not left.size:
            return
        pairs, counts = np.unique(
            np.stack([self.origin[left], reasons[left]]), axis=1, return_counts=True
        )
        for (source, reason), count in zip(pairs.T, counts, strict=True):
            origin = self.origins[source]
            assert origin.value is not None
            why = UNLIKE if reason < 0 else self.fixed[reason][1]
            yield FixedChannels(origin.value, origin.axis, int(count), why)


def components(size: int, a: Ids, b: Ids) -> Ids:
    """The smallest member of the connected component of each of ``size`` vertices, for edges ``a``-``b``.

    Roots hook onto smaller roots, then all paths are halved to nothing; the number of rounds is
    logarithmic (Shiloach and Vishkin, 1982).
    """
    label = np.arange(size, dtype=np.int64)
    while a.size:
        low, high = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
        np.minimum.at(label, high, low)
        while True:
            above = label[label]
            if bool((above == label).all()):
                break
            label = above
        apart = label[a] != label[b]
        a, b = a[apart], b[apart]
    return label


_SEEDS = (0x51, 0xA7)


def _mixed(seed: int, *parts: Any) -> Any:
    """A 64-bit hash of integers, elementwise (the finaliser of SplitMix64, once a part)."""
    found: Any = np.uint64(seed)
    with np.errstate(over="ignore"):
        for part in parts:
            x = (found ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            found = x ^ (x >> np.uint64(31))
    return found


def _joined(arrays: list[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


__all__ = [
    "REORDERED",
    "ChannelGroup",
    "ChannelGroups",
    "FixedChannels",
    "Placement",
    "channel_groups",
]
