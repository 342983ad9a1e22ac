"""Chains of affine nodes: lifting them to maps, and choosing which runs become one map.

A pair that loses can be part of a triple that wins (an inverted residual block grows when its expanding
and its depthwise convolution merge, and shrinks when the projecting one joins them). So the cheapest
segmentation of the whole chain is found by dynamic programming over segments of bounded length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...ir import Add, Conv, ConvTranspose, Identity, Linear, Node, Scale, Sub, Value
from .algebra.affine import Affine, Refused, Rules
from .algebra.nodes import ANY, Domain, affine_of, channels_of, data_input, domain_of, meet
from .cost import (
    ELEMENT,
    element_cost,
    map_cost,
    map_macs,
    node_macs,
    positions,
    relative_positions,
)
from .emit import form_of

WINDOW = 8
"""The longest segment that is tried, in links (a link is a kernel with the scales behind it)."""


class Options(Protocol):
    """What decides whether a merge pays; see :class:`.merge_linear.MergeLinear`."""

    @property
    def max_kernel(self) -> int:
        """The largest kernel that a merge may make."""

    @property
    def max_mac_growth(self) -> float:
        """How much more than before a merged map may cost."""

    @property
    def max_growth_mb(self) -> float:
        """How many MiB of parameters a merge may add."""

    @property
    def force(self) -> bool:
        """Merge whatever the cost."""

    @property
    def rules(self) -> Rules:
        """What composition may do."""


@dataclass
class Link:
    """Nodes that are one map, between ``before`` and ``after`` positions.

    Attributes:
        nodes: In order; identities only behind other nodes.
        affine: Their composition.
        cost: What the nodes cost now.
        macs: The multiply-accumulates in that.
        parts: The links that it was joined from, when a plan joined them.
    """

    nodes: list[Node]
    affine: Affine
    before: float
    after: float
    cost: float
    macs: float
    parts: list[Link] = field(default_factory=list)


@dataclass
class Missed:
    """Two neighbours that were not merged, and why."""

    first: Node
    second: Node
    reason: str


@dataclass
class Run:
    """A stretch of a chain that works along the same axes."""

    nodes: list[Node]
    domain: Domain

    @property
    def rank(self) -> int:
        """The spatial rank of its maps."""
        return self.domain if isinstance(self.domain, int) and self.domain > 0 else 0


def runs(nodes: Sequence[Node], missed: list[Missed]) -> Iterator[Run]:
    """Cut a chain where neighbours work along different axes or a node is no plain affine map."""
    current = Run([], ANY)
    problem: str | None = None
    for i, node in enumerate(nodes):
        own = domain_of(node)
        if isinstance(own, Refused):
            if i:
                missed.append(Missed(nodes[i - 1], node, problem or own.reason))
            if current.nodes:
                yield current
            current, problem = Run([], ANY), own.reason
            continue
        shared = meet(current.domain, own)
        if isinstance(shared, Refused):
            yield current
            current = Run([], own)
            problem = shared.reason
        else:
            current.domain = shared
        if problem is not None and i:
            missed.append(Missed(nodes[i - 1], node, problem))
        problem = None
        current.nodes.append(node)
    if current.nodes:
        yield current


def lift(run: Run, missed: list[Missed]) -> Iterator[list[Link]]:
    """The links of a run, one for each node; cut at nodes whose numbers forbid it."""
    nodes = _trimmed(run.nodes)
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
        value = data_input(node)
        assert value is not None
        found = affine_of(node, run.rank, channels[i], value)
        reason = found.reason if isinstance(found, Refused) else None
        if i and (problem or reason):
            missed.append(Missed(nodes[i - 1], node, problem or reason or ""))
        problem = reason
        if isinstance(found, Refused):
            yield _placed(piece, maps, run.rank)
            piece, maps = [], []
        else:
            piece.append(node)
            maps.append(found)
    yield _placed(piece, maps, run.rank)


def _placed(nodes: Sequence[Node], maps: Sequence[Affine], rank: int) -> list[Link]:
    source = data_input(nodes[0]) if nodes else None
    if source is None:
        return []
    values = [source, *(n.output for n in nodes)]
    return links(nodes, maps, positions(values, maps, rank) or relative_positions(maps))


def links(nodes: Sequence[Node], maps: Sequence[Affine], places: Sequence[float]) -> list[Link]:
    """One link for each node, identities joined to the node in front of them.

    Args:
        nodes: The nodes.
        maps: Their maps.
        places: The positions in front of the first node, then behind each.
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


def _trimmed(nodes: Sequence[Node]) -> Sequence[Node]:
    """Without the identities at both ends."""
    low, high = 0, len(nodes)
    while low < high and isinstance(nodes[low].op, Identity):
        low += 1
    while low < high and isinstance(nodes[high - 1].op, Identity):
        high -= 1
    return nodes[low:high]


def fold_scales(parts: Sequence[Link]) -> list[Link]:
    """Join scales to scales, then to the kernel in front of them: that never loses."""
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
    # Scales are joined to scales before anything else, so that the first node tells.
    return isinstance(link.nodes[0].op, Scale)


def _takes_scale(link: Link) -> bool:
    return isinstance(link.nodes[0].op, Conv | ConvTranspose | Linear) and not link.affine.has_map


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


def real(nodes: Sequence[Node]) -> list[Node]:
    """The nodes up to the last one that is no identity."""
    return list(_trimmed(nodes))


@dataclass
class Segment:
    """Neighbouring links that become one map (or a single link, left as it is)."""

    parts: list[Link]
    affine: Affine

    @property
    def nodes(self) -> list[Node]:
        """The nodes of all links."""
        return [n for part in self.parts for n in part.nodes]

    @property
    def is_merge(self) -> bool:
        """True when more than one node becomes one map."""
        return sum(not isinstance(n.op, Identity) for n in self.nodes) > 1


def judge(
    nodes: Sequence[Node],
    affine: Affine,
    old: tuple[float, float],
    places: tuple[float, float],
    options: Options,
) -> float | str:
    """What a merge costs, or why it is not worth it.

    Args:
        nodes: The nodes that would be replaced.
        affine: The map that would replace them.
        old: What they cost now, and the multiply-accumulates in that.
        places: The positions before and after.
        options: The limits.
    """
    form = form_of(nodes, affine)
    if form is None:
        return "neither is a convolution or a dense layer that could take up the other"
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
    macs = map_macs(affine, *places)
    # A map is one more node, which writes again and reads the map.
    cost = macs + write * (2 if affine.has_map else 1) + map_cost(affine, places[1])
    if options.force or cost <= old[0] * options.max_mac_growth * (1 + 1e-9):
        return cost
    ratio = f"{macs / old[1]:.2f}x" if old[1] else "many times"
    shape = "one dense layer" if affine.rank == 0 else f"one {affine.kernel_text} kernel"
    if not affine.has_map:
        return f"{shape} would cost {ratio} the MACs"
    numbers = f"{affine.outputs * places[1]:.0f} numbers"
    if macs > old[1]:
        return f"{shape} would cost {ratio} the MACs and take a bias map of {numbers}"
    return f"{shape} would cost {ratio} the MACs, too little saved for a bias map of {numbers}"


def added_bytes(nodes: Sequence[Node], affine: Affine) -> int:
    """Bytes of parameters that a merge adds to the model, less those that nobody else uses."""
    total = affine.weight.nbytes + (affine.const.nbytes if affine.const is not None else 0)
    gone: set[Value] = set()
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.data is not None and value.use_count == 1:
                gone.add(value)
    return total - sum(v.data.nbytes for v in gone if v.data is not None)


def plan(parts: Sequence[Link], options: Options) -> list[Segment]:
    """The cheapest segmentation of a run; fewer nodes win where costs are equal.

    Segments are of bounded length, so their results are planned again for as long as they merge.
    """
    segments = _plan_once(parts, options)
    while len(segments) < len(parts) and len(segments) > 1:
        parts = [as_link(segment, options) for segment in segments]
        segments = _plan_once(parts, options)
    return segments


def as_link(segment: Segment, options: Options) -> Link:
    """A segment as one link that costs what its merged map costs."""
    first, last = segment.parts[0], segment.parts[-1]
    if len(segment.parts) == 1:
        return first
    places = (first.before, last.after)
    cost, macs = sum(p.cost for p in segment.parts), sum(p.macs for p in segment.parts)
    verdict = judge(segment.nodes, segment.affine, (cost, macs), places, options)
    if not isinstance(verdict, str) and form_of(segment.nodes, segment.affine) == "kernel":
        cost, macs = verdict, map_macs(segment.affine, *places)
    return Link(segment.nodes, segment.affine, *places, cost, macs, segment.parts)


def _plan_once(parts: Sequence[Link], options: Options) -> list[Segment]:
    n = len(parts)
    best: list[tuple[float, float]] = [(math.inf, math.inf)] * (n + 1)
    best[0] = (0.0, 0.0)
    chosen: list[Segment | None] = [None] * (n + 1)
    for start in range(n):
        affine = parts[start].affine
        cost = macs = 0.0
        nodes: list[Node] = []
        for end in range(start, min(n, start + WINDOW)):
            part = parts[end]
            if end > start:
                composed = affine.then(part.affine, options.rules)
                if isinstance(composed, Refused) or too_large(composed, affine, part, options):
                    break
                affine = composed
            cost, macs = cost + part.cost, macs + part.macs
            nodes += part.nodes
            segment = Segment(list(parts[start : end + 1]), affine)
            price, count = cost, float(len(nodes))
            if end > start or segment.is_merge:
                verdict = judge(
                    nodes, affine, (cost, macs), (parts[start].before, part.after), options
                )
                if isinstance(verdict, str):
                    if end > start:
                        continue
                else:
                    count = 2.0 if affine.has_map else 1.0
                    # Costs that are equal but for rounding: fewer nodes win, else it stays.
                    bonus = 1 - 1e-9 if count < len(nodes) else 1 + 1e-9
                    price = verdict / options.max_mac_growth * bonus
            key = (count, price) if options.force else (price, count)
            total = (best[start][0] + key[0], best[start][1] + key[1])
            if total < best[end + 1]:
                best[end + 1], chosen[end + 1] = total, segment
    found: list[Segment] = []
    at = n
    while at:
        segment_ = chosen[at]
        assert segment_ is not None
        found.append(segment_)
        at -= len(segment_.parts)
    return found[::-1]


def too_large(composed: Affine, first: Affine, part: Link, options: Options) -> bool:
    """Whether a kernel has grown beyond the limit; composing it further only makes it larger."""
    return any(
        k > max(options.max_kernel, a, b)
        for k, a, b in zip(composed.taps, first.taps, part.affine.taps, strict=True)
    )


def boundary(left: Segment, right: Segment, options: Options) -> str | None:
    """Why two neighbouring segments stay apart; ``None`` where there was nothing to gain."""
    merged = left.affine.then(right.affine, options.rules)
    if isinstance(merged, Refused):
        return merged.reason
    if merged.has_map and len(left.nodes) == 1 and isinstance(right.nodes[0].op, Add | Sub):
        return None
    old = sum(p.cost for p in (*left.parts, *right.parts))
    macs = sum(p.macs for p in (*left.parts, *right.parts))
    places = (left.parts[0].before, right.parts[-1].after)
    verdict = judge([*left.nodes, *right.nodes], merged, (old, macs), places, options)
    return verdict if isinstance(verdict, str) else "merging them otherwise saves more"
