"""Sites: the regions of a graph that the planner can replace, one tensor in and one tensor out.

They come from the program structure tree (:mod:`graphshrink.ir.analysis.regions`) and from the coupled channel groups:

- *residual*: ``exit = entry + body(entry)``. The skip stays; candidates replace the body.
- *block*: a layer of a transformer, attention together with its MLP and the norms behind them; candidates leave it out.
- *branch*: branches that meet again, without an identity skip.
- *pair*: two layers that mix channels, with something in between that is not linear.
- *layer*: one convolution whose kernel is larger than one pixel.
- *matrix*: one dense layer, or one convolution of one pixel.
- *hidden*: the layers around a group of channels, or of heads, that some layers read. Candidates remove some of them.

Every site has a span: an interval of the nodes in tree order, in which each region is contiguous. Two sites exclude each
other if their spans overlap; a hidden site may also follow a hidden site that ends in its first layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..ir import (
    Activation,
    Add,
    Conv,
    Gate,
    Graph,
    GroupNorm,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Opaque,
    PRelu,
    Softmax,
    Value,
)
from ..ir.analysis import ChannelGroup, Region, channel_groups, regions
from ..passes.channels.cuts import Followed, cuts_of, one_less
from ..passes.depth.residual_blocks import Block, transformer_layers

REWRITTEN = ("residual", "branch", "pair", "layer")
"""The kinds of sites that are replaced as a whole."""


@dataclass(frozen=True, eq=False)
class Site:
    """A region that can be replaced.

    Attributes:
        kind: ``residual``, ``block``, ``branch``, ``pair``, ``layer``, ``matrix`` or ``hidden``.
        entry: The value that the region reads.
        exit: The value that it computes.
        nodes: Its nodes in topological order, without nodes that compute constants.
        span: The interval ``[start, stop)`` of its nodes in tree order. That of a hidden site with a closing layer ends at this layer,
            which it changes too.
        body: What is added to the entry, for a residual site.
        group: The channels that can be removed, for a hidden site.
        readers: The layers that sum over these channels and are refitted, for a hidden site.
        closer: The closing layer of a hidden site: its only reader, if the region ends there.
        of: The constant that tells it from other hidden sites that end with it.
    """

    kind: str
    entry: Value
    exit: Value
    nodes: tuple[Node, ...]
    span: tuple[int, int]
    body: Value | None = None
    group: ChannelGroup | None = None
    readers: tuple[Node, ...] = ()
    closer: Node | None = None
    of: str = ""

    @property
    def name(self) -> str:
        """A name that is unique in its graph: the kind and the name of the exit, and of the channels where several are read alike."""
        return f"{self.kind} {self.exit.name}{self.of and f' of {self.of}'}"

    def excludes(self, other: Site) -> bool:
        """Whether not both of two sites can be replaced."""
        (a, b), (c, d) = self.span, other.span
        if self.closer is not None and other.closer is not None:
            return a < d and c < b
        # The closing layer is changed too.
        b, d = b + (self.closer is not None), d + (other.closer is not None)
        return a < d and c < b


@dataclass
class Sites:
    """The sites of a graph.

    Attributes:
        found: All sites, by their spans.
        refused: Regions that are no sites, by name, with the reason.
        size: The number of nodes in tree order.
    """

    found: list[Site] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    size: int = 0


def find_sites(graph: Graph) -> Sites:
    """Find the regions of ``graph`` that candidates may replace."""
    tree = regions(graph)
    order, homes = _tree_order(tree)
    sites = Sites(size=len(order))
    finder = _Finder(order, homes, sites)
    for region in tree.walk():
        if region.entry is not None:
            finder.region(region)
        for run in region.runs():
            finder.run(run, region)
    for group in channel_groups(graph):
        finder.group(group)
    for block in transformer_layers(graph):
        finder.block(block)
    sites.found.sort(key=lambda s: (s.span, s.name))
    return sites


def is_mixing(node: Node) -> bool:
    """Whether a node is a layer that mixes channels: a dense layer, or a convolution that is not depthwise."""
    weight = node.input(1)
    if weight is None or weight.data is None:
        return False
    return isinstance(node.op, Linear) or (
        isinstance(node.op, Conv) and not (node.op.groups > 1 and weight.type.dim(1) == 1)
    )


_NONLINEAR = (Activation, Gate, PRelu, LayerNorm, GroupNorm, Softmax, Mul)


def _tree_order(tree: Region) -> tuple[dict[Node, int], dict[Node, list[Region]]]:
    """The place of each node in an order in which regions and runs are contiguous, and the regions around it, outermost first."""
    place = {node: i for i, node in enumerate(tree.all_nodes())}
    first: dict[Region, int] = {}
    for region in reversed(list(tree.walk())):
        inside = [place[n] for n in region.nodes] + [first[c] for c in region.children]
        first[region] = min(inside, default=0)
    order: dict[Node, int] = {}
    homes: dict[Node, list[Region]] = {}
    stack: list[tuple[Node | Region, list[Region]]] = [(tree, [])]
    while stack:
        item, around = stack.pop()
        if isinstance(item, Node):
            order[item], homes[item] = len(order), around
            continue
        within = [*around, item]
        items: list[tuple[int, list[Node | Region]]] = [(place[n], [n]) for n in item.nodes]
        items += [(first[run[0]], list(run)) for run in item.runs()]
        for _, parts in sorted(items, key=lambda x: x[0], reverse=True):
            stack += [(part, within) for part in reversed(parts)]
    return order, homes


class _Finder:
    def __init__(
        self, order: dict[Node, int], homes: dict[Node, list[Region]], sites: Sites
    ) -> None:
        self.order, self.homes, self.sites = order, homes, sites

    def region(self, region: Region) -> None:
        """A residual block, or branches that meet again."""
        entry, exit = region.entry, region.exit
        assert entry is not None
        assert exit is not None
        node = exit.producer
        if len(region.children) + len(region.nodes) < 2 or node is None:
            return
        nodes = region.all_nodes()
        if not any(is_mixing(n) for n in nodes):
            return
        body = _body(node, entry)
        self._add("residual" if body is not None else "branch", entry, exit, nodes, body)

    def run(self, run: list[Region], parent: Region) -> None:
        """Pairs of layers, and layers, in a sequence of regions."""
        alone = [
            r.nodes[0] if len(r.nodes) == 1 and not r.children and is_mixing(r.nodes[0]) else None
            for r in run
        ]
        layers = [i for i, node in enumerate(alone) if node is not None]
        for i in layers:
            node = alone[i]
            assert node is not None
            weight = node.required(1).type.static_shape
            if weight is not None:
                wide = max(weight[2:], default=1) > 1
                self._stretch("layer" if wide else "matrix", run[i : i + 1])
        for i, j in pairwise(layers):
            between = [n for r in run[i + 1 : j] for n in r.all_nodes()]
            if i == 0 and j == len(run) - 1 and _is_body(run, parent):
                continue  # The residual block is a site already.
            if not any(isinstance(n.op, _NONLINEAR) for n in between):
                continue  # merge-linear composes such layers where it pays.
            if any(_is_residual(r) for r in run[i + 1 : j]):
                continue
            self._stretch("pair", run[i : j + 1])

    def _stretch(self, kind: str, run: list[Region]) -> None:
        entry, exit = run[0].entry, run[-1].exit
        assert entry is not None
        assert exit is not None
        nodes = sorted((n for r in run for n in r.all_nodes()), key=self.order.__getitem__)
        self._add(kind, entry, exit, nodes)

    def _add(
        self, kind: str, entry: Value, exit: Value, nodes: list[Node], body: Value | None = None
    ) -> None:
        places = [self.order[n] for n in nodes]
        span = (min(places), max(places) + 1)
        if span[1] - span[0] != len(nodes):
            self.sites.refused[f"{kind} {exit.name}"] = "its nodes are not contiguous"
            return
        site = Site(kind, entry, exit, tuple(nodes), span, body)
        reason = problem(site)
        if reason:
            self.sites.refused[site.name] = reason
        else:
            self.sites.found.append(site)

    def block(self, block: Block) -> None:
        """A whole layer of a transformer, unless a residual block is all of it."""
        if not block.attends or any(
            s.entry is block.entry and s.exit is block.exit for s in self.sites.found
        ):
            return
        inside = set(block.nodes)
        for node in block.nodes:
            for value in node.inputs:
                if value is None or value.data is not None or value is block.entry:
                    continue
                if value.producer not in inside:
                    reason = f"it reads %{value.name} besides"
                    self.sites.refused[f"block {block.exit.name}"] = reason
                    return
        self._add("block", block.entry, block.exit, list(block.nodes))

    def group(self, group: ChannelGroup) -> None:
        """A hidden site, if layers of a region read the group."""
        name = f"hidden {group.values[0].name}"
        touched = sorted(
            {n for v in group.values for n in v.users if n in self.order},
            key=self.order.__getitem__,
        )
        readers = _readers(group, touched)
        if isinstance(readers, str):
            self.sites.refused.setdefault(name, readers)
            return
        region = self._around(touched)
        if region is None:
            self.sites.refused[name] = "no region with one entry and one exit holds all its layers"
            return
        nodes, entry, exit = region
        start, stop = self.order[nodes[0]], self.order[nodes[-1]] + 1
        if stop - start != len(nodes):
            self.sites.refused[name] = "its nodes are not contiguous"
            return
        closer = readers[0] if len(readers) == 1 and readers[0].output is exit else None
        if closer is not None:
            stop = self.order[closer]
        site = Site(
            "hidden", entry, exit, tuple(nodes), (start, stop), None, group, readers, closer
        )
        if any(s.name == site.name for s in self.sites.found):
            site = replace(site, of=group.values[0].name)
        reason = problem(site) or _stuck(site, group)
        if reason:
            self.sites.refused.setdefault(name, reason)
        else:
            self.sites.found.append(site)

    def _around(self, touched: list[Node]) -> tuple[list[Node], Value, Value] | None:
        """The shortest stretch of regions around some nodes: its nodes, entry and exit."""
        around = self.homes[touched[0]]
        depth = min(len(self.homes[n]) for n in touched)
        for node in touched[1:]:
            depth = min(
                depth,
                next((i for i in range(depth) if self.homes[node][i] is not around[i]), depth),
            )
        lowest = around[depth - 1]
        for run in lowest.runs():
            index = {child: i for i, child in enumerate(run)}
            spots = [
                index.get(self.homes[n][depth], -1) if len(self.homes[n]) > depth else -1
                for n in touched
            ]
            if min(spots) >= 0:
                part = run[min(spots) : max(spots) + 1]
                nodes = sorted((n for r in part for n in r.all_nodes()), key=self.order.__getitem__)
                assert part[0].entry is not None
                assert part[-1].exit is not None
                return nodes, part[0].entry, part[-1].exit
        return self._up_to(touched, lowest)

    def _up_to(self, touched: list[Node], region: Region) -> tuple[list[Node], Value, Value] | None:
        """The part of a region that computes the last of some nodes from its entry, as where several branches and a skip start together."""
        last, entry = touched[-1], region.entry
        if entry is None or len(last.outputs) != 1:
            return None
        within, inside, stack = set(region.all_nodes()), {last}, [last]
        while stack:
            for value in stack.pop().inputs:
                if value is None or value is entry or value.data is not None:
                    continue
                if value.producer not in within:
                    return None
                if value.producer not in inside:
                    inside.add(value.producer)
                    stack.append(value.producer)
        leaves = (
            v.is_output or not inside.issuperset(v.users)
            for n in inside - {last}
            for v in n.outputs
        )
        if any(leaves) or not inside.issuperset(touched):
            return None
        return sorted(inside, key=self.order.__getitem__), entry, last.output


def _body(node: Node, entry: Value) -> Value | None:
    """What a node adds to the entry, if it is an addition of the entry to something of the same type."""
    if not isinstance(node.op, Add) or entry not in node.inputs:
        return None
    other = next((v for v in node.inputs if v is not entry), None)
    same = other is not None and other.data is None and other.type == node.output.type
    return other if same and entry.type == node.output.type else None


def _is_body(run: list[Region], around: Region) -> bool:
    """Whether a sequence of regions is the whole body of a residual block."""
    if not _is_residual(around):
        return False
    assert around.entry is not None
    assert around.exit is not None
    assert around.exit.producer is not None
    return run[-1].exit is _body(around.exit.producer, around.entry)


def _is_residual(region: Region) -> bool:
    return (
        region.exit is not None
        and region.entry is not None
        and region.exit.producer is not None
        and _body(region.exit.producer, region.entry) is not None
    )


READS = 1 / 32
"""A layer that does less than this part of the work of the layer that reads the most is not refitted, as in squeeze-and-excitation."""


def _readers(group: ChannelGroup, touched: list[Node]) -> tuple[Node, ...] | str:
    """The layers to refit if channels of a group go, or the reason why these cannot go."""
    if any(p.blocks != 1 for p in group.placements):
        return "it has channels of a convolution of groups"
    for placement in group.placements:
        if placement.value.producer is not None or placement.value.is_output:
            return f"%{placement.value.name} is computed"
    readers = [n for n in touched if _sums_over(group, n)]
    if not readers:
        return "no layer with a constant weight sums over its channels"
    if any(n.required(1).use_count > 1 for n in readers):
        return "a layer that reads its channels shares its weight"
    work = [n.macs or 0 for n in readers]
    return tuple(n for n, w in zip(readers, work, strict=True) if w >= READS * max(work))


def _stuck(site: Site, group: ChannelGroup) -> str:
    """The reason why the nodes of a site cannot follow if a channel goes; empty if they can."""
    followed, inside = Followed(cuts_of([(group, one_less(group))]), norms=False), set(site.nodes)
    graph = site.nodes[0].graph
    assert graph is not None
    reason = followed.problem(n for n in graph.nodes if n in inside)
    return reason or ("its channels leave the region" if site.exit in followed.types else "")


def _sums_over(group: ChannelGroup, node: Node) -> bool:
    if not is_mixing(node) or (isinstance(node.op, Conv) and node.op.groups != 1):
        return False
    return any(p.value is node.inputs[1] and p.axis == 1 for p in group.placements)


def problem(site: Site) -> str:
    """The reason why a region cannot be replaced; empty if it can."""
    for value in (site.entry, site.exit):
        shape = value.type.shape
        if shape is None or len(shape) < 2:
            return f"the shape of %{value.name} is not known, or it has no axis of channels"
        if not all(isinstance(d, int) for d in shape[1:]):
            return f"sizes of %{value.name} are open (--fix-shape fixes them)"
        if value.type.dtype is None or not value.type.dtype.is_wide_float:
            return f"%{value.name} is not floating point"
    for node in site.nodes:
        if isinstance(node.op, Opaque):
            return f"{node.name} is an operator that is not understood"
        if len(node.outputs) != 1 and any(v.is_output for v in node.outputs):
            return f"{node.name} makes an output of the model"
    return ""
