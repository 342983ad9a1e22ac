"""``merge-linear``: runs of affine maps become one map.

Batch norms fold into convolutions, convolutions compose, pads and pools join them, and branches that
start at the same value and are added become one. What is merged, and how exactly, is decided by the
algebra (:mod:`.algebra.affine`); whether it pays by the cost model (:mod:`.cost`). Every pair of neighbours that could
merge and does not has its reason in the refusals.

One walk in topological order: an addition is tried when it is reached (its branches are merged by then), a chain
when its last node is reached. A chain that grew by an addition is looked at again, but only its last few
nodes, so that the walk is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from ...ir import Add, Graph, Identity, Node, Opaque, Refusal, Rewriter, Sub, Value
from ...ir.options import Bounds
from ..infra.contract import Context, Pass
from ..infra.registry import register
from .algebra.affine import Affine, Refused, Rules
from .algebra.nodes import (
    ANY,
    Domain,
    affine_of,
    channels_of,
    data_input,
    domain_of,
    identity_map,
    meet,
    weight_problem,
)
from .chain import (
    WINDOW,
    Link,
    Missed,
    Segment,
    boundary,
    fold_scales,
    judge,
    lift,
    links,
    plan,
    real,
    runs,
)
from .cost import ELEMENT, positions, relative_positions
from .emit import Merge


@register
@dataclass(frozen=True)
class MergeLinear(Pass):
    """Compose runs of affine maps into one: exact, unless ``allow_border`` is set.

    Attributes:
        max_kernel: Kernels that grow by merging may not become larger than this along any axis.
        allow_border: Also merge where the result differs at a rim of the spatial border.
        bias_maps: Merge where the constant becomes a map over the spatial axes (static sizes only).
        force: Merge even where the merged map costs more.
        max_mac_growth: How many times the present cost a merged map may cost.
        max_growth_mb: How many MiB of parameters one merge may add to the model.
    """

    name = "merge-linear"
    asks_first = True
    max_kernel: Annotated[int, Bounds(at_least=1)] = 7
    allow_border: bool = False
    bias_maps: bool = True
    force: bool = False
    max_mac_growth: Annotated[float, Bounds(above=0)] = 1.0
    max_growth_mb: float = 16.0

    @property
    def rules(self) -> Rules:
        """What composition may do."""
        return Rules(self.allow_border, self.bias_maps)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        Walk(self, rw).run(graph)


@dataclass
class Walk:
    """One run of the pass over a graph.

    Attributes:
        options: The pass.
        rw: What changes the graph.
        reasons: Why a node was not merged with the one in front of it.
        merges: What was merged, oldest first, each with the node that makes its result now.
    """

    options: MergeLinear
    rw: Rewriter
    reasons: dict[Node, Refusal] = field(default_factory=dict)
    merges: list[tuple[Merge, Node]] = field(default_factory=list)
    done: set[Node] = field(default_factory=set)
    temporary: set[Value] = field(default_factory=set)

    def run(self, graph: Graph) -> None:
        """Merge what pays; leaves the reasons for the rest with the rewriter."""
        for node in graph.nodes:
            if isinstance(node.op, Add | Sub) and data_input(node) is None:
                self.addition(node)
            if data_input(node) is None:
                self.dynamic(node)
                continue
            if self.follower(node.output) is None:
                self.chain(self.collect(node))
        for node, refusal in self.reasons.items():
            if node.graph is graph:
                self.rw.skip(node, refusal.reason)

    # Chains.

    @staticmethod
    def follower(value: Value) -> Node | None:
        """The affine node that alone reads ``value``."""
        if not value.has_one_use:
            return None
        user = value.users[0]
        return user if data_input(user) is value else None

    def collect(self, last: Node) -> list[Node]:
        """The chain that ends in ``last``, with few of the nodes that were looked at before."""
        nodes, again = [last], 0
        while True:
            value = data_input(nodes[-1])
            assert value is not None
            before = value.producer
            if before is None or data_input(before) is None:
                break
            if not value.has_one_use:
                where = "is an output of the graph" if value.is_output else "has other users"
                self.missed(Missed(before, nodes[-1], f"%{value.name} in between {where}"))
                break
            again += before in self.done
            if again > WINDOW:
                break
            nodes.append(before)
        self.done.update(nodes)
        return nodes[::-1]

    def dynamic(self, node: Node) -> None:
        """Say so where a linear op has weights that are not known, or such that the IR cannot stand for it."""
        if isinstance(node.op, Opaque) and node.op.reason:
            kind = node.op.kind.partition(":")[2]
            reason = f"{kind} is not merged: {node.op.reason}"
            self.reasons[node] = Refusal(node.name, reason, node.op.name)
            return
        problem = weight_problem(node)
        value = node.inputs[0] if node.inputs else None
        if problem is None or value is None or value.producer is None:
            return
        if data_input(value.producer) is not None:
            self.missed(Missed(value.producer, node, problem))

    def chain(self, nodes: Sequence[Node]) -> None:
        """Merge what pays in a chain."""
        if len(nodes) < 2:
            return
        missed: list[Missed] = []
        for run in runs(nodes, missed):
            for parts in lift(run, missed):
                if len(parts) > 1:
                    self.segments(plan(fold_scales(parts), self.options))
        for miss in missed:
            self.missed(miss)

    def segments(self, segments: Sequence[Segment]) -> None:
        """Emit the chosen segments and note why they stay apart."""
        reasons = [boundary(a, b, self.options) for a, b in pairwise(segments)]
        ends = [self.emit(segment) for segment in segments]
        for end, reason in zip(ends, reasons, strict=False):
            if reason is None:
                continue
            user = end.output.users[0]
            while isinstance(user.op, Identity) and user.output.has_one_use:
                user = user.output.users[0]
            self.missed(Missed(end, user, reason))

    def emit(self, segment: Segment) -> Node:
        """Emit a segment; returns the node that makes its result now."""
        nodes = real(segment.nodes)
        if not segment.is_merge:
            return nodes[-1]
        if self.apply(nodes, segment.affine):
            return nodes[-1]
        for part in segment.parts if len(segment.parts) > 1 else segment.parts[0].parts:
            self.emit(Segment([part], part.affine))
        return real(segment.nodes)[-1]

    def apply(self, nodes: Sequence[Node], affine: Affine) -> bool:
        """Replace ``nodes`` by ``affine``, unless a verdict or the numbers are against it."""
        source = data_input(nodes[0])
        assert source is not None
        return self.replace(Merge(nodes, source, affine))

    def replace(self, merge: Merge) -> bool:
        """Do a merge unless its numbers forbid it."""
        problem = self.problem(merge)
        nodes = merge.nodes
        if problem is not None:
            self.missed(Missed(nodes[-2], nodes[-1], problem))
            return False
        self.emit_merge(merge)
        return True

    def problem(self, merge: Merge) -> str | None:
        """What its numbers or the target have against a merge."""
        return merge.problem() or self.rw.unwritable(merge.sketch())

    def emit_merge(self, merge: Merge) -> None:
        """Do a merge that nothing is against."""
        for node in merge.nodes:
            self.reasons.pop(node, None)
        made = merge.emit(self.rw, self.temporary)
        self.done.add(made)
        self.merges.append((merge, made))

    def missed(self, miss: Missed) -> None:
        """Note one reason for one pair; a later look at the same pair counts."""
        if isinstance(miss.first.op, Identity) or isinstance(miss.second.op, Identity):
            return
        text = f"not merged with {miss.first.name}: {miss.reason}"
        self.reasons[miss.second] = Refusal(miss.second.name, text, miss.second.op.name)

    # Additions.

    def addition(self, node: Node) -> None:
        """Merge two branches that start at the same value."""
        a, b = node.inputs
        dtype = node.output.type.dtype
        if a is None or b is None or a is b or a.data is not None or b.data is not None:
            return
        if dtype is None or not dtype.is_wide_float:
            return
        found = _meeting(a, b, strict=True)
        if found is None:
            shared = _meeting(a, b, strict=False)
            if shared is not None and (shared[1] or shared[2]):
                self.refuse(node, "a value inside a branch has other users")
            return
        source, first, second = found
        if all(isinstance(n.op, Identity) for n in (*first, *second)):
            return
        reason = self.add(node, source, first, second)
        if reason is not None:
            self.refuse(node, reason)

    def refuse(self, node: Node, reason: str) -> None:
        self.reasons[node] = Refusal(node.name, f"branches not merged: {reason}", node.op.name)

    def add(self, node: Node, source: Value, first: list[Node], second: list[Node]) -> str | None:
        """Merge two branches and their addition; returns the reason when that fails."""
        domain: Domain = ANY
        for part in (*first, *second):
            own = domain_of(part)
            shared = own if isinstance(own, Refused) else meet(domain, own)
            if isinstance(shared, Refused):
                return shared.reason
            domain = shared
        rank = domain if isinstance(domain, int) and domain > 0 else 0
        channels = self.source_channels(source, domain, first, second)
        if channels is None:
            return "the number of channels is not known"
        lifted: list[list[Affine]] = []
        for path in (first, second):
            maps = _maps(path, domain, rank, channels, source)
            if isinstance(maps, Refused):
                return maps.reason
            lifted.append(maps)
        parts = self.branch_links(first, second, lifted, rank, source)
        dtype = node.output.type.dtype
        assert dtype is not None
        sides: list[Affine] = []
        for maps in lifted:
            side = identity_map(rank, channels, source, dtype)
            for affine in maps:
                longer = side.then(affine, self.options.rules)
                if isinstance(longer, Refused):
                    return longer.reason
                side = longer
            sides.append(side)
        total = sides[0] + (sides[1].negated() if isinstance(node.op, Sub) else sides[1])
        if isinstance(total, Refused):
            return total.reason
        after = next(p[-1].after for p in parts if p)
        before = next(p[0].before for p in parts if p)
        flat = [link for path in parts for link in path]
        cost = sum(link.cost for link in flat) + ELEMENT * total.outputs * after
        macs = sum(link.macs for link in flat)
        nodes = [*first, *second, node]
        verdict = judge(nodes, total, (cost, macs), (before, after), self.options)
        if isinstance(verdict, str):
            return verdict
        merge = Merge(nodes, source, total)
        problem = self.problem(merge)
        if problem is not None:
            return problem
        self.emit_merge(merge)
        return None

    @staticmethod
    def source_channels(
        source: Value, domain: Domain, first: list[Node], second: list[Node]
    ) -> int | None:
        """The channels that both branches start from."""
        for path in (first, second):
            found = channels_of(path, domain, source) if path else None
            if found:
                return found[0]
        return None

    @staticmethod
    def branch_links(
        first: list[Node],
        second: list[Node],
        lifted: Sequence[Sequence[Affine]],
        rank: int,
        source: Value,
    ) -> list[list[Link]]:
        """The links of both branches, with positions counted alike."""
        known = [
            positions([source, *(n.output for n in path)], maps, rank)
            for path, maps in zip((first, second), lifted, strict=True)
        ]
        if None in known:
            known = [relative_positions(maps) for maps in lifted]
        return [
            links(path, maps, places)
            for path, maps, places in zip((first, second), lifted, known, strict=True)
            if places is not None
        ]


def _maps(
    path: list[Node], domain: Domain, rank: int, channels: int, source: Value
) -> list[Affine] | Refused:
    """The maps of the nodes of a branch."""
    counts = channels_of(path, domain, source) if path else []
    if counts is None:
        return Refused("the number of channels is not known")
    if counts and counts[0] != channels:
        return Refused("the branches take different numbers of channels")
    made: list[Affine] = []
    for node, count in zip(path, counts, strict=True):
        value = data_input(node)
        assert value is not None
        found = affine_of(node, rank, count, value)
        if isinstance(found, Refused):
            return found
        made.append(found)
    return made


def _meeting(a: Value, b: Value, *, strict: bool) -> tuple[Value, list[Node], list[Node]] | None:
    """The nearest value that two operands both come from through affine nodes.

    Args:
        a: The first operand.
        b: The second operand.
        strict: Pass only through values that nobody else reads.
    """
    left, right = _upstream(a, strict), _upstream(b, strict)
    depth = {value: i for i, (value, _) in enumerate(left)}
    for i, (value, _) in enumerate(right):
        if value in depth:
            first = [n for _, n in left[1 : depth[value] + 1] if n is not None]
            second = [n for _, n in right[1 : i + 1] if n is not None]
            return value, first[::-1], second[::-1]
    return None


def _upstream(value: Value, strict: bool) -> list[tuple[Value, Node | None]]:
    """``value`` and what it comes from, each with the affine node behind it."""
    found: list[tuple[Value, Node | None]] = [(value, None)]
    while len(found) <= WINDOW and (value.has_one_use or not strict):
        node = value.producer
        before = None if node is None else data_input(node)
        if before is None:
            break
        found.append((before, node))
        value = before
    return found
