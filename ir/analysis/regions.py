"""Single-entry single-exit regions: the program structure tree of a graph.

A region lies between two values, its entry and its exit: whatever flows into its nodes flows through the
entry, and whatever flows out of them flows through the exit, so that the whole region may be replaced by
anything that computes the exit from the entry. Regions nest or are disjoint, which makes them a tree.

The notion is that of Johnson, Pearson and Pingali, *The program structure tree: computing control regions
in linear time* (PLDI 1994), applied to data flow: the entry dominates the exit and the exit post-dominates
the entry. Where a value has several readers, each reader is an entry of its own besides, so that every
branch of a residual block is a region, and the block around them is one too. Only canonical regions are
listed: the shortest one at each entry. Longer ones are runs of siblings (:meth:`Region.runs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..graph import Graph, Node, Value
from .dominators import DominatorTree


@dataclass(eq=False, slots=True)
class Region:
    """A single-entry single-exit region.

    Attributes:
        entry: The value that all flow enters by; ``None`` for the whole graph.
        exit: The value that all flow leaves by; ``None`` for the whole graph.
        reader: The one reader of ``entry`` that is inside, for a region that is one of the branches behind
            its entry; ``None`` when every reader of ``entry`` is inside.
        parent: The smallest region around this one; ``None`` for the whole graph.
        children: The largest regions inside, in the order in which flow reaches their entries.
        nodes: The nodes that are in no child, in topological order.
    """

    entry: Value | None
    exit: Value | None
    reader: Node | None
    parent: Region | None = field(repr=False)
    children: list[Region] = field(default_factory=list, repr=False)
    nodes: list[Node] = field(default_factory=list, repr=False)
    _order: dict[Node, int] = field(default_factory=dict, repr=False)

    def walk(self) -> Iterator[Region]:
        """This region and all inside it, each before its children."""
        stack = [self]
        while stack:
            region = stack.pop()
            yield region
            stack.extend(reversed(region.children))

    def all_nodes(self) -> list[Node]:
        """The nodes of this region and of all inside it, in topological order."""
        return sorted((n for r in self.walk() for n in r.nodes), key=self._order.__getitem__)

    def runs(self) -> list[list[Region]]:
        """The children as longest runs in which each exit is the next one's entry, in order.

        Every stretch of a run is a single-entry single-exit region too.
        """
        following = {c.entry: c for c in self.children if c.reader is None}
        exits = {child.exit for child in self.children}
        found = []
        for child in self.children:
            if child.reader is None and child.entry in exits:
                continue
            run = [child]
            while (after := following.get(run[-1].exit)) is not None:
                run.append(after)
            found.append(run)
        return found


_Point = Value | tuple[Value, Node]
"""Where flow can be cut: a value, or one of its several readers' reading of it."""


def regions(graph: Graph) -> Region:
    """The program structure tree of a graph; the root is the whole graph.

    Values that are known at compile time carry no flow: weights enter a region freely, and a node that only
    computes such values is in no region. A node whose results nobody reads counts as a way out, so run
    ``prune-dead`` first. Takes O(n log n) time for n uses of values, without recursion.
    """
    flow = _Flow(graph)
    root = Region(None, None, None, None)
    behind: dict[_Point, Region] = {}  # the region that a point is the entry of
    around: dict[_Point, Region] = {}  # the smallest region that a point is strictly inside

    def innermost(dominator: _Point | None, at: _Point | None) -> Region:
        """The smallest region around what has ``dominator`` as its nearest dominating point."""
        if dominator is None:
            return root
        region = behind.get(dominator)
        return around[dominator] if region is None or region.exit is at else region

    def place(point: _Point, dominator: _Point | None) -> None:
        around[point] = parent = innermost(dominator, point)
        post_dominator = flow.post_dominator.get(point)
        # They are entry and exit of a region if each is the nearest such point of the other.
        if isinstance(post_dominator, Value) and flow.dominator[post_dominator] is point:
            entry, reader = (point, None) if isinstance(point, Value) else point
            region = Region(entry, post_dominator, reader, parent, _order=root._order)
            behind[point] = region
            parent.children.append(region)

    for value in graph.inputs:
        place(value, None)
    for node in flow.nodes:
        for point in flow.reads[node]:
            if not isinstance(point, Value):
                place(point, point[0])
        dominator = flow.node_dominator[node]
        root._order[node] = len(root._order)
        innermost(dominator, None).nodes.append(node)
        for value in node.outputs:
            if value.data is None:
                place(value, dominator)
    return root


class _Flow:
    """The nearest points that dominate and post-dominate each point and node that carries flow.

    The flow graph has a vertex for each node and each point, a source in front of the inputs and a
    sink behind the outputs.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes = [n for n in graph.nodes if not n.is_constant]
        self.reads: dict[Node, list[_Point]] = {}
        self.node_dominator: dict[Node, _Point | None] = {}
        self.dominator: dict[_Point, _Point | None] = {}
        self.post_dominator: dict[_Point, _Point | None] = {}
        inside = set(self.nodes)
        # In how many ways a value flows on.
        ways = {
            v: sum(n in inside for n in v.users) + v.is_output
            for v in graph.values()
            if v.data is None
        }
        for node in self.nodes:
            self.reads[node] = [
                v if ways[v] == 1 else (v, node)
                for v in dict.fromkeys(node.inputs)
                if v is not None and v.data is None
            ]
        self._dominators(graph)
        self._post_dominators(graph, ways)

    def _dominators(self, graph: Graph) -> None:
        tree = DominatorTree()
        vertex: dict[_Point, int] = {}
        nearest: list[_Point | None] = [
            None
        ]  # for each vertex: itself if it is a point, else its nearest dominating point

        def add(point: _Point, predecessor: int) -> None:
            self.dominator[point] = nearest[predecessor]
            vertex[point] = tree.add((predecessor,))
            nearest.append(point)

        for value in graph.inputs:
            add(value, 0)
        for node in self.nodes:
            for point in self.reads[node]:
                if not isinstance(point, Value):
                    add(point, vertex[point[0]])
            place = tree.add([vertex[p] for p in self.reads[node]] or (0,))
            self.node_dominator[node] = nearest[tree.parent[place]]
            nearest.append(self.node_dominator[node])
            for value in node.outputs:
                if value.data is None:
                    add(value, place)

    def _post_dominators(self, graph: Graph, ways: dict[Value, int]) -> None:
        tree = DominatorTree()
        # Where each value flows to: filled by its readers, which come first in this direction.
        onward: dict[Value, list[int]] = {v: [0] for v in graph.outputs}
        nearest: list[_Point | None] = [None]

        def add(point: _Point, successors: list[int]) -> int:
            vertex = tree.add(successors)
            self.post_dominator[point] = nearest[tree.parent[vertex]]
            nearest.append(point)
            return vertex

        for node in reversed(self.nodes):
            # A result that nobody reads leads nowhere.
            successors = [add(v, onward.pop(v)) for v in node.outputs if v in onward and v in ways]
            vertex = tree.add(successors or (0,))
            nearest.append(nearest[tree.parent[vertex]])
            for point in self.reads[node]:
                if isinstance(point, Value):
                    onward.setdefault(point, []).append(vertex)
                else:
                    onward.setdefault(point[0], []).append(add(point, [vertex]))
        for value in graph.inputs:
            if value in onward:
                add(value, onward[value])
