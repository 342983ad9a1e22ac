"""Chains of affine nodes: lift each node to an affine map, then choose which neighbours become one map.

Merging two links can cost more while merging three costs less: in an inverted residual block, the expansion and
the depthwise convolution together cost more than before, but all three convolutions together cost less. Dynamic
programming over segments of bounded length therefore finds the cheapest segmentation of the whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...ir import Add, Conv, ConvTranspose, Identity, Linear, Node, Scale, Sub, Value
from .algebra.affine import Affine, Refused, Rules
from .algebra.nodes import ANY, Domain, affine_of, channels_of, common_domain, data_input, domain_of
from .cost import (
    ELEMENT,
    bias_map_cost,
    element_cost,
    kernel_macs,
    node_macs,
    positions,
    relative_positions,
)
from .emit import form_of

WINDOW = 8
"""The longest segment that is tried, in links (a link is a kernel with the scales that follow it)."""


class MergeLimits(Protocol):
    """The limits on a merge; see :class:`.merge_linear.MergeLinear`."""

    @property
    def max_kernel(self) -> int:
        """The largest kernel size that a merge may produce."""

    @property
    def max_mac_growth(self) -> float:
        """How many times the present cost a merged map may cost."""

    @property
    def max_growth_mb(self) -> float:
        """How many MiB of parameters a merge may add."""

    @property
    def force(self) -> bool:
        """Merge even if the merged map costs more."""

    @property
    def rules(self) -> Rules:
        """The rules of composition."""


@dataclass
class Link:
    """Consecutive nodes that are treated as one affine map.

    Attributes:
        nodes: The nodes in order. The first one is not an identity.
        affine: Their composition.
        before: The number of spatial positions of the input.
        after: The number of spatial positions of the result.
        cost: The present cost of the nodes; see :mod:`.cost`.
        macs: The multiply-accumulates in ``cost``.
        parts: The links that a plan joined into this one; empty otherwise.
    """

    nodes: list[Node]
    affine: Affine
    before: float
    after: float
    cost: float
    macs: float
    parts: list[Link] = field(default_factory=list)


@dataclass
class MissedMerge:
    """Two neighbours that were not merged, and the reason."""

    first: Node
    second: Node
    reason: str


@dataclass
class DomainRun:
    """A part of a chain whose nodes work along the same axes."""

    nodes: list[Node]
    domain: Domain

    @property
    def rank(self) -> int:
        """The spatial rank of the maps."""
        return self.domain if isinstance(self.domain, int) and self.domain > 0 else 0


def split_by_domain(nodes: Sequence[Node], missed: list[MissedMerge]) -> Iterator[DomainRun]:
    """Cut a chain where neighbours work along different axes, or where a node is not a plain affine map.

    Args:
        nodes: The chain.
        missed: Receives the pairs that are cut apart.
    """
    current = DomainRun([], ANY)
    problem: str | None = None
    for i, node in enumerate(nodes):
        own = domain_of(node)
        if isinstance(own, Refused):
            if i:
                missed.append(MissedMerge(nodes[i - 1], node, problem or own.reason))
            if current.nodes:
                yield current
            current, problem = DomainRun([], ANY), own.reason
            continue
        shared = common_domain(current.domain, own)
        if isinstance(shared, Refused):
            yield current
            current = DomainRun([], own)
            problem = shared.reason
        else:
            current.domain = shared
        if problem is not None and i:
            missed.append(MissedMerge(nodes[i - 1], node, problem))
        problem = None
        current.nodes.append(node)
    if current.nodes:
        yield current


def lift(run: DomainRun, missed: list[MissedMerge]) -> Iterator[list[Link]]:
    """Lists of links, one link for each node of a run; a new list starts at each node that is no affine map.

    Args:
        run: The run.
        missed: Receives the pairs that are cut apart.
    """
    nodes = trim_identities(run.nodes)
    source = data_input(nodes[0]) if nodes else None
    if source is None:
        return
    channels = channels_of(nodes, run.domain, source)
    if channels is None:
        return
    piece: list[Node] = []
    maps: list[Affine] = []
    problem: str | None = None
    for i, node in enumerate(nodes):
        found = affine_of(node, run.rank, channels[i])
        reason = found.reason if isinstance(found, Refused) else None
        if i and (problem or reason):
            missed.append(MissedMerge(nodes[i - 1], node, problem or reason or ""))
        problem = reason
        if isinstance(found, Refused):
            yield _links_with_positions(piece, maps, run.rank)
            piece, maps = [], []
        else:
            piece.append(node)
            maps.append(found)
    yield _links_with_positions(piece, maps, run.rank)


def _links_with_positions(nodes: Sequence[Node], maps: Sequence[Affine], rank: int) -> list[Link]:
    source = data_input(nodes[0]) if nodes else None
    if source is None:
        return []
    values = [source, *(n.output for n in nodes)]
    return links_of(nodes, maps, positions(values, rank) or relative_positions(maps))


def links_of(nodes: Sequence[Node], maps: Sequence[Affine], places: Sequence[float]) -> list[Link]:
    """One link for each node; an identity joins the link of the node before it.

    Args:
        nodes: The nodes.
        maps: Their maps.
        places: The number of positions before the first node, then after each node.
    """
    made: list[Link] = []
    for i, (node, affine) in enumerate(zip(nodes, maps, strict=True)):
        before, after = places[i], places[i + 1]
        if isinstance(node.op, Identity):
            if made:
                made[-1].nodes.append(node)
            continue
        macs = node_macs(node, affine, before, after)
        cost = macs + element_cost(node, affine, after)
        made.append(Link([node], affine, before, after, cost, macs))
    return made


def trim_identities(nodes: Sequence[Node]) -> list[Node]:
    """The nodes without the identities at both ends."""
    low, high = 0, len(nodes)
    while low < high and isinstance(nodes[low].op, Identity):
        low += 1
    while low < high and isinstance(nodes[high - 1].op, Identity):
        high -= 1
    return list(nodes[low:high])


def fold_scales(parts: Sequence[Link]) -> list[Link]:
    """Join scales to scales, and then to the kernel before them: this never costs more."""
    joined: list[Link] = []
    for part in parts:
        if joined and _is_scale(part) and _is_scale(joined[-1]):
            _join(joined, part)
        else:
            joined.append(part)
    folded: list[Link] = []
    for part in joined:
        if folded and _is_scale(part) and _takes_scale(folded[-1]):
            _join(folded, part)
        else:
            folded.append(part)
    return folded


def _is_scale(link: Link) -> bool:
    # Scales join only scales at this point, so the first node decides.
    return isinstance(link.nodes[0].op, Scale)


def _takes_scale(link: Link) -> bool:
    return (
        isinstance(link.nodes[0].op, Conv | ConvTranspose | Linear) and not link.affine.has_bias_map
    )


def _join(parts: list[Link], link: Link) -> None:
    left = parts[-1]
    merged = left.affine.then(link.affine)
    if isinstance(merged, Refused):
        parts.append(link)
        return
    left.nodes.extend(link.nodes)
    left.affine, left.after = merged, link.after
    left.cost += link.cost
    left.macs += link.macs


@dataclass
class Segment:
    """Neighbouring links that become one map, or a single link that stays as it is."""

    parts: list[Link]
    affine: Affine

    @property
    def nodes(self) -> list[Node]:
        """The nodes of all links."""
        return [n for part in self.parts for n in part.nodes]

    @property
    def is_merge(self) -> bool:
        """True if several nodes become one map."""
        return sum(not isinstance(n.op, Identity) for n in self.nodes) > 1


def merge_cost(
    nodes: Sequence[Node],
    affine: Affine,
    old: tuple[float, float],
    places: tuple[float, float],
    options: MergeLimits,
) -> float | str:
    """The cost of a merged map, or the reason why the merge is not worth it.

    Args:
        nodes: The nodes that would be replaced.
        affine: The map that would replace them.
        old: The present cost of the nodes, and the multiply-accumulates in it.
        places: The number of positions before and after.
        options: The limits.
    """
    form = form_of(nodes, affine)
    if form is None:
        return "neither is a convolution or a dense layer that can absorb the other"
    write = ELEMENT * affine.outputs * places[1]
    if form != "kernel":
        return write
    if min(affine.pads, default=0) < 0:
        return "the merged map would crop its input (negative padding)"
    largest = [1] * affine.rank
    for node in nodes:
        if isinstance(node.op, Conv | ConvTranspose) and node.inputs[1] is not None:
            taps = (node.inputs[1].type.static_shape or ())[2:]
            largest = [max(a, b) for a, b in zip(largest, taps, strict=False)]
    for taps_, known in zip(affine.taps, largest, strict=True):
        if taps_ > options.max_kernel and taps_ > known:
            return (
                f"the merged kernel would be {affine.kernel_text}, beyond "
                f"max-kernel={options.max_kernel}"
            )
    added = added_bytes(nodes, affine) / 2**20
    if added > options.max_growth_mb:
        return f"the merged weights would add {added:.0f} MiB to the model"
    macs = kernel_macs(affine, *places)
    # A bias map needs one more node, which reads the map and writes the result again.
    cost = macs + write * (2 if affine.has_bias_map else 1) + bias_map_cost(affine, places[1])
    if options.force or cost <= old[0] * options.max_mac_growth * (1 + 1e-9):
        return cost
    ratio = f"{macs / old[1]:.2f}x" if old[1] else "many times"
    shape = "one dense layer" if affine.rank == 0 else f"one {affine.kernel_text} kernel"
    if not affine.has_bias_map:
        return f"{shape} would cost {ratio} the MACs"
    numbers = f"{affine.outputs * places[1]:.0f} numbers"
    if macs > old[1]:
        return f"{shape} would cost {ratio} the MACs and take a bias map of {numbers}"
    return f"{shape} would cost {ratio} the MACs, too little saved for a bias map of {numbers}"


def added_bytes(nodes: Sequence[Node], affine: Affine) -> int:
    """Bytes of parameters that a merge adds, minus those of the constants that only the merged nodes read."""
    total = affine.weight.nbytes + (affine.const.nbytes if affine.const is not None else 0)
    gone: set[Value] = set()
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.data is not None and value.use_count == 1:
                gone.add(value)
    return total - sum(v.data.nbytes for v in gone if v.data is not None)


def plan(parts: Sequence[Link], options: MergeLimits) -> list[Segment]:
    """The cheapest segmentation of a run; of equal costs, the one with fewer nodes.

    Segments have a bounded length, so the segments are planned again as links until nothing more merges.
    """
    segments = _plan_once(parts, options)
    while len(segments) < len(parts) and len(segments) > 1:
        parts = [segment_as_link(segment, options) for segment in segments]
        segments = _plan_once(parts, options)
    return segments


def segment_as_link(segment: Segment, options: MergeLimits) -> Link:
    """A segment as one link, with the cost of its merged map."""
    first, last = segment.parts[0], segment.parts[-1]
    if len(segment.parts) == 1:
        return first
    places = (first.before, last.after)
    cost, macs = sum(p.cost for p in segment.parts), sum(p.macs for p in segment.parts)
    verdict = merge_cost(segment.nodes, segment.affine, (cost, macs), places, options)
    if not isinstance(verdict, str) and form_of(segment.nodes, segment.affine) == "kernel":
        cost, macs = verdict, kernel_macs(segment.affine, *places)
    return Link(segment.nodes, segment.affine, *places, cost, macs, segment.parts)


def _plan_once(parts: Sequence[Link], options: MergeLimits) -> list[Segment]:
    n = len(parts)
    best: list[tuple[float, float]] = [(math.inf, math.inf)] * (n + 1)
    best[0] = (0.0, 0.0)
    chosen: list[Segment | None] = [None] * (n + 1)
    for start in range(n):
        for segment, key in _segments_from(parts, start, options):
            end = start + len(segment.parts)
            total = (best[start][0] + key[0], best[start][1] + key[1])
            if total < best[end]:
                best[end], chosen[end] = total, segment
    found: list[Segment] = []
    at = n
    while at:
        last = chosen[at]
        assert last is not None
        found.append(last)
        at -= len(last.parts)
    return found[::-1]


def _segments_from(
    parts: Sequence[Link], start: int, options: MergeLimits
) -> Iterator[tuple[Segment, tuple[float, float]]]:
    """The segments that start at a link and are worth it, each with its sort key: the price, then the node count."""
    affine = parts[start].affine
    cost = macs = 0.0
    nodes: list[Node] = []
    for end in range(start, min(len(parts), start + WINDOW)):
        part = parts[end]
        if end > start:
            composed = affine.then(part.affine, options.rules)
            if isinstance(composed, Refused) or too_large(composed, affine, part, options):
                return
            affine = composed
        cost, macs = cost + part.cost, macs + part.macs
        nodes += part.nodes
        segment = Segment(list(parts[start : end + 1]), affine)
        price, count = cost, float(len(nodes))
        if end > start or segment.is_merge:
            places = (parts[start].before, part.after)
            verdict = merge_cost(nodes, affine, (cost, macs), places, options)
            if not isinstance(verdict, str):
                count = 2.0 if affine.has_bias_map else 1.0
                # At costs that are equal up to rounding, merge only if that leaves fewer nodes.
                bonus = 1 - 1e-9 if count < len(nodes) else 1 + 1e-9
                price = verdict / options.max_mac_growth * bonus
            elif end > start:
                continue
        # ``force`` ranks by the number of nodes first.
        yield segment, (count, price) if options.force else (price, count)


def too_large(composed: Affine, first: Affine, part: Link, options: MergeLimits) -> bool:
    """Whether a composed kernel exceeds the limit; composing it further only makes it larger."""
    return any(
        k > max(options.max_kernel, a, b)
        for k, a, b in zip(composed.taps, first.taps, part.affine.taps, strict=True)
    )


def boundary_reason(left: Segment, right: Segment, options: MergeLimits) -> str | None:
    """The reason why two neighbouring segments stay apart; ``None`` if merging them gains nothing."""
    merged = left.affine.then(right.affine, options.rules)
    if isinstance(merged, Refused):
        return merged.reason
    if merged.has_bias_map and len(left.nodes) == 1 and isinstance(right.nodes[0].op, Add | Sub):
        return None
    old = sum(p.cost for p in (*left.parts, *right.parts))
    macs = sum(p.macs for p in (*left.parts, *right.parts))
    places = (left.parts[0].before, right.parts[-1].after)
    verdict = merge_cost([*left.nodes, *right.nodes], merged, (old, macs), places, options)
    return verdict if isinstance(verdict, str) else "merging them otherwise saves more"
