"""``merge-linear``: consecutive affine maps become one map.

Batch norms fold into convolutions, convolutions compose with each other, with pads and with pools, and an addition of
two branches that start at the same value becomes one map. The algebra (:mod:`.algebra.affine`) decides what can merge
and how exactly; the cost model (:mod:`.cost`) decides whether a merge is worth it. For every pair of neighbours that
could merge and does not, a refusal gives the reason.

The pass walks the graph once, in topological order. It tries an addition when it reaches it (its branches are merged
by then), and a chain when it reaches its last node. A chain that grew by a merged addition is tried again, but only
its last few nodes, so that the walk is linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from ...ir import Add, Conv, Graph, Identity, Node, Opaque, Pad, Refusal, Rewriter, Sub, Value
from ...ir.options import Bounds
from ..infra.contract import Context, Pass
from ..infra.registry import register
from .algebra.affine import Affine, Refused, Rules
from .algebra.nodes import (
    ANY,
    Domain,
    affine_of,
    channels_of,
    common_domain,
    data_input,
    domain_of,
    identity_map,
    weight_problem,
)
from .chain import (
    WINDOW,
    Link,
    MissedMerge,
    Segment,
    boundary_reason,
    fold_scales,
    lift,
    links_of,
    merge_cost,
    plan,
    split_by_domain,
    trim_identities,
)
from .cost import ELEMENT, positions, relative_positions
from .emit import Merge


@register
@dataclass(frozen=True)
class MergeLinear(Pass):
    """Compose consecutive affine maps into one; exact, unless ``allow_border`` is set.

    Attributes:
        max_kernel: The largest size along any axis of a kernel that grows by merging.
        allow_border: Also merge if the result differs along the spatial border.
        bias_maps: Also merge if the bias becomes a constant over the spatial axes (static sizes only).
        force: Merge even if the merged map costs more.
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
        """The rules of composition."""
        return Rules(self.allow_border, self.bias_maps)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        LinearMerger(self, rw, in_torch=ctx.target == "fx").run(graph)


def neighbours(node: Node) -> Iterator[Node]:
    """The nodes that compute what a node reads, and those that read its results."""
    for value in node.inputs:
        if value is not None and value.producer is not None:
            yield value.producer
    for value in node.outputs:
        yield from value.users


@dataclass
class LinearMerger:
    """One run of the pass over a graph.

    Attributes:
        options: The pass.
        rw: The rewriter of the graph.
        reasons: For a node that was not merged with the node before it: the reason.
        merges: The merges, oldest first, each with the node that now makes the result.
        done: The nodes that were part of a chain already.
        temporary: The constants that the pass made.
        in_torch: Whether the graph becomes a torch module, whose convolutions have even pads alone.
    """

    options: MergeLinear
    rw: Rewriter
    reasons: dict[Node, Refusal] = field(default_factory=dict)
    merges: list[tuple[Merge, Node]] = field(default_factory=list)
    done: set[Node] = field(default_factory=set)
    temporary: set[Value] = field(default_factory=set)
    in_torch: bool = False

    def run(self, graph: Graph) -> None:
        """Merge where it is worth it, and record a refusal for every other pair."""
        for node in graph.nodes:
            if isinstance(node.op, Add | Sub) and data_input(node) is None:
                self.merge_addition(node)
            if data_input(node) is None:
                self.note_unknown_weights(node)
                continue
            if self.next_affine(node.output) is None:
                self.merge_chain(self.collect_chain(node))
        for node, refusal in self.reasons.items():
            if node.graph is graph:
                self.rw.skip(node, refusal.reason)

    # Chains.

    @staticmethod
    def next_affine(value: Value) -> Node | None:
        """The affine node that reads ``value``, if nothing else reads it."""
        if not value.has_one_use:
            return None
        user = value.users[0]
        return user if data_input(user) is value else None

    def collect_chain(self, last: Node) -> list[Node]:
        """The chain that ends in ``last``, with at most ``WINDOW`` nodes that were in a chain before."""
        nodes, again = [last], 0
        while True:
            value = data_input(nodes[-1])
            before = None if value is None else value.producer
            if value is None or before is None or data_input(before) is None:
                break
            if not value.has_one_use:
                where = "is an output of the graph" if value.is_output else "has other users"
                self.note_missed(
                    MissedMerge(before, nodes[-1], f"%{value.name} between them {where}")
                )
                break
            again += before in self.done
            if again > WINDOW:
                break
            nodes.append(before)
        self.done.update(nodes)
        return nodes[::-1]

    def note_unknown_weights(self, node: Node) -> None:
        """Record a refusal if a linear op has no constant weights, or is opaque with a reason and beside an affine node."""
        if isinstance(node.op, Opaque) and node.op.reason:
            if any(data_input(n) is not None for n in neighbours(node)):
                kind = node.op.kind.partition(":")[2]
                reason = f"{kind} is not merged: {node.op.reason}"
                self.reasons[node] = Refusal(node.name, reason, node.op.name)
            return
        problem = weight_problem(node)
        value = node.inputs[0] if node.inputs else None
        if problem is None or value is None or value.producer is None:
            return
        before = value.producer
        if data_input(before) is not None or weight_problem(before) is not None:
            self.note_missed(MissedMerge(value.producer, node, problem))

    def merge_chain(self, nodes: Sequence[Node]) -> None:
        """Merge the segments of a chain for which it is worth it."""
        if len(nodes) < 2:
            return
        missed: list[MissedMerge] = []
        for run in split_by_domain(nodes, missed):
            for parts in lift(run, missed):
                if len(parts) > 1:
                    self.emit_segments(plan(fold_scales(parts), self.options))
        for miss in missed:
            self.note_missed(miss)

    def emit_segments(self, segments: Sequence[Segment]) -> None:
        """Emit the chosen segments, and note the reasons why neighbouring segments stay apart."""
        reasons = [boundary_reason(a, b, self.options) for a, b in pairwise(segments)]
        ends = [self.emit_segment(segment) for segment in segments]
        for end, reason in zip(ends, reasons, strict=False):
            if reason is None:
                continue
            user = end.output.users[0]
            while isinstance(user.op, Identity) and user.output.has_one_use:
                user = user.output.users[0]
            self.note_missed(MissedMerge(end, user, reason))

    def emit_segment(self, segment: Segment) -> Node:
        """Emit a segment, or its parts if it cannot be merged; returns the node that now makes the result."""
        nodes = trim_identities(segment.nodes)
        if not segment.is_merge:
            return nodes[-1]
        source = data_input(nodes[0])
        if source is not None and self.try_merge(Merge(nodes, source, segment.affine)):
            return nodes[-1]
        for part in segment.parts if len(segment.parts) > 1 else segment.parts[0].parts:
            self.emit_segment(Segment([part], part.affine))
        return trim_identities(segment.nodes)[-1]

    def try_merge(self, merge: Merge) -> bool:
        """Do a merge, or note the reason why it cannot be done; returns whether it was done."""
        problem = self.problem(merge)
        nodes = merge.nodes
        if problem is not None:
            self.note_missed(MissedMerge(nodes[-2], nodes[-1], problem))
            return False
        self.emit_merge(merge)
        return True

    def problem(self, merge: Merge) -> str | None:
        """The reason why the numbers or the target forbid a merge; ``None`` if nothing does."""
        if self.in_torch and _is_uneven(merge):
            return "torch pads unevenly by a call of its own"
        return merge.problem() or self.rw.unwritable(merge.sketch())

    def emit_merge(self, merge: Merge) -> None:
        """Do a merge that has no problem."""
        for node in merge.nodes:
            self.reasons.pop(node, None)
        made = merge.emit(self.rw, self.temporary)
        self.done.add(made)
        self.merges.append((merge, made))

    def note_missed(self, miss: MissedMerge) -> None:
        """Note why a pair was not merged; a later reason for the same pair replaces an earlier one."""
        if isinstance(miss.first.op, Identity) or isinstance(miss.second.op, Identity):
            return
        text = f"not merged with {miss.first.name}: {miss.reason}"
        self.reasons[miss.second] = Refusal(miss.second.name, text, miss.second.op.name)

    # Additions.

    def merge_addition(self, node: Node) -> None:
        """Merge an addition or subtraction of two branches that start at the same value."""
        a, b = node.inputs
        dtype = node.output.type.dtype
        if a is None or b is None or a is b or a.data is not None or b.data is not None:
            return
        if dtype is None or not dtype.is_wide_float:
            return
        found = _common_source(a, b, sole_readers=True)
        if found is None:
            shared = _common_source(a, b, sole_readers=False)
            if shared is not None and (shared[1] or shared[2]):
                self.note_refused(node, "a value inside a branch has other users")
            return
        source, first, second = found
        if all(isinstance(n.op, Identity) for n in (*first, *second)):
            return
        reason = self.merge_branches(node, source, first, second)
        if reason is not None:
            self.note_refused(node, reason)

    def note_refused(self, node: Node, reason: str) -> None:
        """Note why the branches of an addition are not merged."""
        self.reasons[node] = Refusal(node.name, f"branches not merged: {reason}", node.op.name)

    def merge_branches(
        self, node: Node, source: Value, first: list[Node], second: list[Node]
    ) -> str | None:
        """Merge two branches and their addition; returns the reason if that fails.

        Args:
            node: The addition or subtraction.
            source: The value that both branches start from.
            first: The nodes of the left operand's branch.
            second: The nodes of the right operand's branch.
        """
        domain = _shared_domain([*first, *second])
        if isinstance(domain, Refused):
            return domain.reason
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
        if dtype is None:
            return "the element type is not known"
        total = self.branch_sum(node, identity_map(rank, channels, source, dtype), lifted)
        if isinstance(total, Refused):
            return total.reason
        after = next(p[-1].after for p in parts if p)
        before = next(p[0].before for p in parts if p)
        flat = [link for path in parts for link in path]
        cost = sum(link.cost for link in flat) + ELEMENT * total.outputs * after
        macs = sum(link.macs for link in flat)
        nodes = [*first, *second, node]
        verdict = merge_cost(nodes, total, (cost, macs), (before, after), self.options)
        if isinstance(verdict, str):
            return verdict
        merge = Merge(nodes, source, total)
        problem = self.problem(merge)
        if problem is not None:
            return problem
        self.emit_merge(merge)
        return None

    def branch_sum(
        self, node: Node, identity: Affine, lifted: Sequence[Sequence[Affine]]
    ) -> Affine | Refused:
        """The sum or the difference of two branches as one map.

        Args:
            node: The addition or subtraction.
            identity: The identity on the source of the branches.
            lifted: The maps of each branch.
        """
        sides: list[Affine] = []
        for maps in lifted:
            side = identity
            for affine in maps:
                longer = side.then(affine, self.options.rules)
                if isinstance(longer, Refused):
                    return longer
                side = longer
            sides.append(side)
        return sides[0] + (sides[1].negated() if isinstance(node.op, Sub) else sides[1])

    @staticmethod
    def source_channels(
        source: Value, domain: Domain, first: list[Node], second: list[Node]
    ) -> int | None:
        """The number of channels of the value that both branches start from."""
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
        """The links of both branches; positions are absolute for both, or relative for both."""
        known = [positions([source, *(n.output for n in path)], rank) for path in (first, second)]
        if None in known:
            known = [relative_positions(maps) for maps in lifted]
        return [
            links_of(path, maps, places)
            for path, maps, places in zip((first, second), lifted, known, strict=True)
            if places is not None
        ]


def _is_uneven(merge: Merge) -> bool:
    """Whether a merge only gives uneven padding to the convolution behind it."""
    ops = [n.op for n in merge.nodes if not isinstance(n.op, Identity)]
    if len(ops) != 2 or not isinstance(ops[0], Pad) or not isinstance(ops[1], Conv):
        return False
    pads, half = merge.affine.pads, merge.affine.rank
    return tuple(pads[:half]) != tuple(pads[half:])


def _shared_domain(nodes: Sequence[Node]) -> Domain | Refused:
    """The domain that fits all nodes."""
    domain: Domain = ANY
    for node in nodes:
        own = domain_of(node)
        shared = own if isinstance(own, Refused) else common_domain(domain, own)
        if isinstance(shared, Refused):
            return shared
        domain = shared
    return domain


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
        found = affine_of(node, rank, count)
        if isinstance(found, Refused):
            return found
        made.append(found)
    return made


def _common_source(
    a: Value, b: Value, *, sole_readers: bool
) -> tuple[Value, list[Node], list[Node]] | None:
    """The nearest value from which affine nodes compute both operands, and the nodes of both branches.

    Args:
        a: The first operand.
        b: The second operand.
        sole_readers: Follow a value only if it has a single reader.
    """
    left, right = _upstream(a, sole_readers), _upstream(b, sole_readers)
    depth = {value: i for i, (value, _) in enumerate(left)}
    for i, (value, _) in enumerate(right):
        if value in depth:
            first = [n for _, n in left[1 : depth[value] + 1] if n is not None]
            second = [n for _, n in right[1 : i + 1] if n is not None]
            return value, first[::-1], second[::-1]
    return None


def _upstream(value: Value, sole_readers: bool) -> list[tuple[Value, Node | None]]:
    """``value`` and the values before it, each with the affine node that reads it on the way to ``value``."""
    found: list[tuple[Value, Node | None]] = [(value, None)]
    while len(found) <= WINDOW and (value.has_one_use or not sole_readers):
        node = value.producer
        before = None if node is None else data_input(node)
        if before is None:
            break
        found.append((before, node))
        value = before
    return found
