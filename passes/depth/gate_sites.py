"""The activations of a graph as sites for gates: their names, and which of them prevent a merge.

A site is worth a gate if :mod:`..merge.merge_linear` could merge the maps around its activation once the activation is
removed, perhaps together with others (an inverted residual block merges only if both of its activations are removed). To
find this out, the survey tries the merge on a copy of the graph in which every activation is an identity, with the
algebra and the costs of the pass, and as if padding were hoisted. Along each chain it tries all runs of up to
:data:`..merge.chain.WINDOW` links, not only those of the cheapest plan, because which activations are removed is decided
later.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ...ir import ACTIVATIONS, Activation, Add, Gate, Graph, Identity, Node, PRelu, Rewriter, Value
from ...ir.options import suggestion
from ..infra.contract import PassError
from ..merge.algebra.affine import Refused
from ..merge.algebra.nodes import data_input
from ..merge.chain import (
    WINDOW,
    Link,
    MissedMerge,
    fold_scales,
    lift,
    merge_cost,
    plan,
    segment_as_link,
    split_by_domain,
    too_large,
    trim_identities,
)
from ..merge.merge_linear import LinearMerger, MergeLinear

SHOWN = 3
"""The number of names or reasons that an error lists."""


@dataclass
class ActivationSite:
    """An activation that can get a gate.

    Attributes:
        node: The activation.
        name: The unique name of the site.
        reason: The reason why nothing merges if the activation is removed; empty if something does.
        group: A number that sites share if a merge needs all of them to be removed; -1 without a merge.
        end: The last node of the smallest merge that removing the group allows.
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
    """All activations of a graph, in order, with unique names.

    A name is that of the node; if several nodes share it (a module that is called twice), a number is added.
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


@dataclass(frozen=True, eq=False)
class EndingPlace:
    """A place for an activation behind a part of a graph that merges once activations are removed.

    Attributes:
        site: The first of these activations.
        value: What the new activation reads: the last value of the part, after the addition if it ends in one.
        name: The name of the new node; it is unique and ends in ``ending``.
    """

    site: Node
    value: Value
    name: str

    def insert(self, rw: Rewriter, op: Activation | Gate, *more: Value) -> Node:
        """Insert an activation, or a gate with its number, for all who read the value."""
        uses = self.value.uses
        made = rw.insert(op, [self.value, *more], after=self.value.producer, name=self.name)
        for user, index in uses:
            rw.set_input(user, index, made.output)
        return made


def ending_places(graph: Graph, gone: Iterable[Node], options: MergeLinear) -> list[EndingPlace]:
    """The places behind the merges that removing activations allows where no activation stands yet.

    Args:
        graph: The graph; it may be changed while the places are used one after the other.
        gone: The activations that are removed.
        options: The options of the merge.
    """
    sites = {site.node: site for site in survey_activations(graph, options)}
    found: dict[Value, EndingPlace] = {}
    taken = {node.name for node in graph.nodes}
    for node in gone:
        site = sites[node]
        value = None if site.end is None else site.end.output
        if value is not None and value.has_one_use and isinstance(value.users[0].op, Add):
            value = value.users[0].output
        if value is None or value.is_output or value in found or any(map(is_site, value.users)):
            continue
        name = _ending_name(site.name, taken)
        taken.add(name)
        found[value] = EndingPlace(node, value, name)
    return list(found.values())


def _ending_name(site: str, taken: Collection[str]) -> str:
    """A name beside the site that is not taken. It ends in ``ending``, so that the pattern ``*ending`` matches all endings."""
    *parents, own = site.split(".")
    firsts = itertools.chain(("", f"{own}_"), (f"{own}_{i}_" for i in itertools.count(1)))
    names = (".".join([*parents, f"{first}ending"]) for first in firsts)
    return next(name for name in names if name not in taken)


def matches(pattern: str, names: Collection[str]) -> list[str]:
    """The names that a pattern with ``*`` and ``?`` matches. A pattern that is equal to a name, which may have brackets, matches only that name."""
    return [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]


def matching_names(names: Iterable[str], patterns: Sequence[str], what: str) -> dict[str, str]:
    """The names that match any of some patterns, each with the first pattern that matches it.

    Args:
        names: All names.
        patterns: Names, or patterns; see :func:`matches`.
        what: The pass and the option, for the error.

    Raises:
        PassError: If a pattern matches nothing.
    """
    names = list(names)
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = matches(pattern, names)
        if not hits:
            raise PassError(
                f"{what} {pattern!r} is not an activation of this graph{suggestion(pattern, names)}"
            )
        for name in hits:
            found.setdefault(name, pattern)
    return found


def check_parameterless(option: str, kind: str) -> None:
    """Check that the value of an option is a kind of activation without parameters.

    Raises:
        ValueError: If it is not.
    """
    if ACTIVATIONS.get(kind) != 0:
        plain = ", ".join(name for name, count in ACTIVATIONS.items() if not count)
        raise ValueError(f"{option} must be one of {plain}, not {kind!r}")


def survey_activations(graph: Graph, options: MergeLinear) -> list[ActivationSite]:
    """All activations of a graph, and for each whether something merges if it is removed.

    Args:
        graph: The graph, which is not changed.
        options: The options of the merge.
    """
    names = site_names(graph)
    twin = graph.clone()
    rw = Rewriter(twin)
    twins = dict(zip(graph.nodes, twin.nodes, strict=True))
    places = {twins[node]: ActivationSite(node, name) for node, name in names.items()}
    for place in places:
        rw.replace(place, Identity(), place.inputs[:1])
    finder = _ActivationSurvey(options, rw, sites=places)
    finder.run(twin)
    for place, site in places.items():
        if not finder.windows.get(place):
            site.reason = (
                finder.why.get(place) or finder.branch_reason(place) or _end_reason(site.node)
            )
    originals = dict(zip(twins.values(), twins, strict=True))
    for place, number in _group_numbers(finder.windows).items():
        places[place].group = number
        places[place].end = originals.get(min(finder.windows[place], key=_width).end)
    return list(places.values())


def _end_reason(node: Node) -> str:
    """The reason why an activation is not between two linear ops that could merge."""
    value = node.inputs[0]
    if value is None or value.producer is None:
        return "there is nothing before it"
    if data_input(value.producer) is None and not isinstance(value.producer.op, Identity):
        return f"the op before it ({value.producer.op.name}) is not linear"
    if not value.has_one_use:
        return "its input has other users"
    if not node.output.has_one_use:
        return (
            "its result is an output" if node.output.is_output else "its result has several users"
        )
    user = node.output.users[0]
    if data_input(user) is None:
        return f"the op after it ({user.op.name}) is not linear"
    return "nothing merges across it"


@dataclass(frozen=True)
class _Window:
    """A part of the graph that could become one map: the sites inside, and its last node."""

    sites: frozenset[Node]
    end: Node


def _width(window: _Window) -> int:
    return len(window.sites)


@dataclass
class _ActivationSurvey(LinearMerger):
    """A merge that only notes which chains could merge; it does merge additions.

    Attributes:
        sites: The identities in place of activations, each with its site.
        windows: For each of them, the parts of the graph around it that could become one map.
        why: For each of them, the reason why a merge across it failed.
    """

    sites: dict[Node, ActivationSite] = field(default_factory=dict)
    windows: dict[Node, list[_Window]] = field(default_factory=dict)
    why: dict[Node, str] = field(default_factory=dict)

    def merge_chain(self, nodes: Sequence[Node]) -> None:
        """Examine every run of a chain."""
        missed: list[MissedMerge] = []
        for run in split_by_domain(nodes, missed):
            for parts in lift(run, missed):
                self.examine(parts)
        for miss in missed:
            for node in (miss.first, miss.second):
                if node in self.sites:
                    self.why[node] = miss.reason

    def examine(self, links: Sequence[Link]) -> None:
        """Note the sites inside each run of links that could become one map."""
        links = self.merged_between_sites(links)
        for start, first in enumerate(links):
            affine = first.affine
            cost, macs = first.cost, first.macs
            nodes = list(first.nodes)
            for end in range(start + 1, min(len(links), start + WINDOW)):
                link = links[end]
                found = self.inside(links[start : end + 1])
                longer = affine.then(link.affine, self.options.rules)
                if isinstance(longer, Refused):
                    self.note_reason(found, longer.reason, end - start)
                    break
                large = too_large(longer, affine, link, self.options)
                affine, cost, macs = longer, cost + link.cost, macs + link.macs
                nodes = [*nodes, *link.nodes]
                places = (first.before, link.after)
                verdict = merge_cost(nodes, affine, (cost, macs), places, self.options)
                if isinstance(verdict, str):
                    self.note_reason(found, verdict, end - start)
                else:
                    self.note_window(found, trim_identities(nodes)[-1])
                if large:
                    break

    def merged_between_sites(self, links: Sequence[Link]) -> list[Link]:
        """The links after all merges that cross no site."""
        pieces: list[list[Link]] = [[]]
        for link in links:
            pieces[-1].append(link)
            if any(node in self.sites for node in link.nodes):
                pieces.append([])
        made: list[Link] = []
        for piece in pieces:
            segments = plan(fold_scales(piece), self.options) if piece else []
            made.extend(segment_as_link(segment, self.options) for segment in segments)
        return made

    def inside(self, links: Sequence[Link]) -> frozenset[Node]:
        """The sites in some links, without identities at the end."""
        nodes = [node for link in links for node in link.nodes]
        while nodes and isinstance(nodes[-1].op, Identity):
            nodes.pop()
        return frozenset(node for node in nodes if node in self.sites)

    def note_window(self, found: frozenset[Node], end: Node) -> None:
        """Note that removing all of ``found`` allows a merge whose last node is ``end``."""
        for node in found:
            self.windows.setdefault(node, []).append(_Window(found, end))

    def branch_reason(self, place: Node) -> str:
        """The reason why the addition before a site was not merged; empty if there is none."""
        value = place.inputs[0]
        reason = (
            None if value is None or value.producer is None else self.reasons.get(value.producer)
        )
        return f"before it, {reason.reason}" if reason is not None else ""

    def note_reason(self, found: frozenset[Node], reason: str, length: int) -> None:
        """Note why removing ``found`` allows no merge; a reason about direct neighbours (length 1) has precedence."""
        for node in found:
            if length == 1:
                self.why[node] = reason
            else:
                self.why.setdefault(node, reason)

    def merge_branches(
        self, node: Node, source: Value, first: list[Node], second: list[Node]
    ) -> str | None:
        """Merge two branches, and note the sites inside."""
        found = frozenset(n for n in (*first, *second) if n in self.sites)
        reason = super().merge_branches(node, source, first, second)
        if reason is None:
            self.note_window(found, node)
        else:
            self.note_reason(found, reason, 2)
        return reason


def _group_numbers(windows: dict[Node, list[_Window]]) -> dict[Node, int]:
    """A group number for each site; the sites of a smallest window share it (union-find)."""
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
