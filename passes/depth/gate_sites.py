"""Activations as sites: their names, and which of them keep something from being merged.

A site is worth a gate when its activation stands between maps that :mod:`..merge.merge_linear` would make one, were the
activation not there, perhaps together with others (an inverted residual block merges only when both of its
activations go). So the merge is tried on a copy of the graph in which every activation is an identity,
by the pass's own algebra and costs; padding counts as if it were hoisted. Along each chain all runs of up
to :data:`.merge_chain.WINDOW` links are tried, not only those of the cheapest plan: which activations go is
decided later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ...ir import ACTIVATIONS, Activation, Gate, Graph, Identity, Node, PRelu, Rewriter, Value
from ...ir.options import suggestion
from ..infra.contract import PassError
from ..merge.algebra.affine import Refused
from ..merge.algebra.nodes import data_input
from ..merge.chain import (
    WINDOW,
    Link,
    Missed,
    as_link,
    fold_scales,
    judge,
    lift,
    plan,
    real,
    runs,
    too_large,
)
from ..merge.merge_linear import MergeLinear, Walk

SHOWN = 3
"""How many names or reasons an error lists."""


@dataclass
class Site:
    """An activation that a gate could be put on.

    Attributes:
        node: The activation.
        name: A name that no other site has.
        reason: Why nothing merges without it; empty when something does.
        group: Sites that only together let something merge have the same number.
        end: The last node of the smallest stretch that merges when they go.
    """

    node: Node
    name: str
    reason: str = ""
    group: int = -1
    end: Node | None = None


def is_site(node: Node) -> bool:
    """Whether a node is an activation, gated or not."""
    return isinstance(node.op, Activation | PRelu | Gate)


def site_names(graph: Graph) -> dict[Node, str]:
    """All activations of a graph, in order, by names of their own.

    A name is the node's name; where several share one (a module that is called twice) a number is added.
    """
    nodes = [node for node in graph.nodes if is_site(node)]
    count = Counter(node.name for node in nodes)
    taken = set(count)
    found: dict[Node, str] = {}
    last: Counter[str] = Counter()
    for node in nodes:
        name = node.name
        while count[node.name] > 1 and name in taken:
            last[node.name] += 1
            name = f"{node.name}_{last[node.name]}"
        taken.add(name)
        found[node] = name
    return found


def chosen(names: Iterable[str], patterns: Sequence[str], what: str) -> dict[str, str]:
    """The names that patterns stand for, each with its pattern.

    Args:
        names: All names there are.
        patterns: Names, or patterns with ``*`` and ``?``. A name that is there stands for itself alone.
        what: What is being named, for the error.

    Raises:
        PassError: If a pattern stands for nothing.
    """
    names = list(names)
    known = set(names)
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = [pattern] if pattern in known else [n for n in names if fnmatchcase(n, pattern)]
        if not hits:
            raise PassError(
                f"{what} {pattern!r} is no activation of this graph{suggestion(pattern, names)}"
            )
        for name in hits:
            found.setdefault(name, pattern)
    return found


def check_plain(option: str, kind: str) -> None:
    """Check that an option names a kind of activation without parameters.

    Raises:
        ValueError: If it does not.
    """
    if ACTIVATIONS.get(kind) != 0:
        plain = ", ".join(name for name, count in ACTIVATIONS.items() if not count)
        raise ValueError(f"{option} is one of {plain}, not {kind!r}")


def survey(graph: Graph, options: MergeLinear) -> list[Site]:
    """All activations, and for each whether something merges without it.

    Args:
        graph: The graph, which stays as it is.
        options: What may be merged, and what it may cost.
    """
    names = site_names(graph)
    twin = graph.clone()
    rw = Rewriter(twin)
    twins = dict(zip(graph.nodes, twin.nodes, strict=True))
    places = {twins[node]: Site(node, name) for node, name in names.items()}
    for place in places:
        rw.replace(place, Identity(), place.inputs[:1])
    walk = _Survey(options, rw, sites=places)
    walk.run(twin)
    for place, site in places.items():
        if not walk.windows.get(place):
            site.reason = walk.why.get(place) or walk.ends(place) or _ends(site.node)
    originals = dict(zip(twins.values(), twins, strict=True))
    for place, number in _grouped(walk.windows).items():
        places[place].group = number
        places[place].end = originals.get(min(walk.windows[place], key=_width).end)
    return list(places.values())


def _ends(node: Node) -> str:
    """Why an activation is not between two linear ops."""
    value = node.inputs[0]
    if value is None or value.producer is None:
        return "there is nothing in front of it"
    if data_input(value.producer) is None and not isinstance(value.producer.op, Identity):
        return f"what is in front of it ({value.producer.op.name}) is not linear"
    if not value.has_one_use:
        return "its input has other users"
    if not node.output.has_one_use:
        return (
            "its result is an output" if node.output.is_output else "its result has several users"
        )
    user = node.output.users[0]
    if data_input(user) is None:
        return f"what follows it ({user.op.name}) is not linear"
    return "nothing merges across it"


@dataclass(frozen=True)
class _Window:
    """A stretch of the graph that could be one map: the sites inside, and its last node."""

    sites: frozenset[Node]
    end: Node


def _width(window: _Window) -> int:
    return len(window.sites)


@dataclass
class _Survey(Walk):
    """A walk that notes what could be merged instead of merging chains; additions are merged."""

    sites: dict[Node, Site] = field(default_factory=dict)
    windows: dict[Node, list[_Window]] = field(default_factory=dict)
    why: dict[Node, str] = field(default_factory=dict)

    def chain(self, nodes: Sequence[Node]) -> None:
        """Try every run of a chain."""
        missed: list[Missed] = []
        for run in runs(nodes, missed):
            for parts in lift(run, missed):
                self.examine(parts)
        for miss in missed:
            for node in (miss.first, miss.second):
                if node in self.sites:
                    self.why[node] = miss.reason

    def examine(self, links: Sequence[Link]) -> None:
        """Note which sites lie inside runs of links that could be one map."""
        links = self.settled(links)
        for start, first in enumerate(links):
            affine = first.affine
            cost, macs = first.cost, first.macs
            nodes = list(first.nodes)
            for end in range(start + 1, min(len(links), start + WINDOW)):
                link = links[end]
                found = self.inside(links[start : end + 1])
                longer = affine.then(link.affine, self.options.rules)
                if isinstance(longer, Refused):
                    self.refused(found, longer.reason, end - start)
                    break
                large = too_large(longer, affine, link, self.options)
                affine, cost, macs = longer, cost + link.cost, macs + link.macs
                nodes = [*nodes, *link.nodes]
                places = (first.before, link.after)
                verdict = judge(nodes, affine, (cost, macs), places, self.options)
                if isinstance(verdict, str):
                    self.refused(found, verdict, end - start)
                else:
                    self.note(found, real(nodes)[-1])
                if large:
                    break

    def settled(self, links: Sequence[Link]) -> list[Link]:
        """The links that are left once everything has merged that merges with the sites in place."""
        pieces: list[list[Link]] = [[]]
        for link in links:
            pieces[-1].append(link)
            if any(node in self.sites for node in link.nodes):
                pieces.append([])
        made: list[Link] = []
        for piece in pieces:
            segments = plan(fold_scales(piece), self.options) if piece else []
            made.extend(as_link(segment, self.options) for segment in segments)
        return made

    def inside(self, links: Sequence[Link]) -> frozenset[Node]:
        """The sites between the first and the last node that does something."""
        nodes = [node for link in links for node in link.nodes]
        while nodes and isinstance(nodes[-1].op, Identity):
            nodes.pop()
        return frozenset(node for node in nodes if node in self.sites)

    def note(self, found: frozenset[Node], end: Node) -> None:
        """Sites that together let something merge, up to ``end``."""
        for node in found:
            self.windows.setdefault(node, []).append(_Window(found, end))

    def ends(self, place: Node) -> str:
        """Why the branches in front of a site are not one map, where there are any."""
        value = place.inputs[0]
        reason = (
            None if value is None or value.producer is None else self.reasons.get(value.producer)
        )
        return f"in front of it, {reason.reason}" if reason is not None else ""

    def refused(self, found: frozenset[Node], reason: str, length: int) -> None:
        """Why sites do not; what is said of direct neighbours counts."""
        for node in found:
            if length == 1:
                self.why[node] = reason
            else:
                self.why.setdefault(node, reason)

    def add(self, node: Node, source: Value, first: list[Node], second: list[Node]) -> str | None:
        """Merge two branches, and note the sites inside."""
        found = frozenset(n for n in (*first, *second) if n in self.sites)
        reason = super().add(node, source, first, second)
        if reason is None:
            self.note(found, node)
        else:
            self.refused(found, reason, 2)
        return reason


def _grouped(windows: dict[Node, list[_Window]]) -> dict[Node, int]:
    """A number for each site; sites in one smallest window share it."""
    root: dict[Node, Node] = {node: node for node in windows}

    def find(node: Node) -> Node:
        while root[node] is not node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node, found in windows.items():
        least = min(map(_width, found))
        for window in found:
            if _width(window) == least:
                for other in window.sites:
                    root[find(other)] = find(node)
    numbers: dict[Node, int] = {}
    return {node: numbers.setdefault(find(node), len(numbers)) for node in windows}
