"""Regions against what they are defined as, by brute force over paths; dominators against networkx."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphshrink.ir import ArrayTensor, Graph, Node, Opaque, TensorType, Value, parse
from graphshrink.ir.analysis import DominatorTree, Region, regions
from support.work import work

SOURCE, SINK = "source", "sink"


def random_graph(seed: int, nodes: int, inputs: int = 1, spread: int = 4) -> Graph:
    """Opaque nodes that mostly read what is near, so that there is something to find."""
    rng = random.Random(seed)
    graph = Graph()
    values: list[Value] = [graph.add_input(f"x{i}") for i in range(inputs)]
    weight = graph.add_constant(ArrayTensor(np.zeros(1)), "w")
    for i in range(nodes):
        reads: list[Value | None] = [
            rng.choice(values[-spread:] if rng.random() < 0.9 else values)
            for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))
        ]
        if rng.random() < 0.3:
            reads.append(weight)
        if rng.random() < 0.05:
            reads = [weight, None]
        count = rng.choice((1, 1, 1, 1, 2, 3, 0 if i % 5 == 4 else 1))
        node = graph.append(Opaque(f"k{i}"), reads, types=[TensorType()] * count)
        values.extend(node.outputs)
    for value in values:
        # Most dangling ends are returned; some stay unread.
        if (not value.use_count and rng.random() < 0.8) or rng.random() < 0.03:
            graph.add_output(value)
    if not graph.outputs:
        graph.add_output(values[-1])
    graph.verify()
    return graph


def flow_of(graph: Graph) -> networkx.DiGraph:
    flow = networkx.DiGraph()
    flow.add_nodes_from([SOURCE, SINK])
    for value in graph.inputs:
        flow.add_edge(SOURCE, value)
    for node in graph.nodes:
        reads = [v for v in node.inputs if v is not None and v.data is None]
        if not reads:
            flow.add_edge(SOURCE, node)
        for value in reads:
            if len(value.users) + value.is_output > 1:
                # A reading of its own may be cut by itself.
                flow.add_edges_from([(value, (value, node)), ((value, node), node)])
            else:
                flow.add_edge(value, node)
        writes = [v for v in node.outputs if v.use_count]
        flow.add_edges_from([(node, v) for v in writes] or [(node, SINK)])
    for value in graph.outputs:
        flow.add_edge(value, SINK)
    # Inputs that nobody reads are on no path.
    flow.remove_nodes_from([v for v in graph.inputs if not v.use_count])
    return flow


def cut(
    flow: networkx.DiGraph, start: object, vertex: object, reverse: bool = False
) -> set[object]:
    """What can only be reached from ``start`` through ``vertex``."""
    whole = flow.reverse() if reverse else flow
    reached = networkx.descendants(whole, start) | {start}
    rest = networkx.restricted_view(whole, [vertex], [])
    return reached - networkx.descendants(rest, start) - {start}


def brute_force(graph: Graph) -> set[tuple[object, Value, frozenset[Node]]]:
    flow = flow_of(graph)
    points = [p for p in flow if p not in (SOURCE, SINK) and not isinstance(p, Node)]
    dominated = {p: cut(flow, SOURCE, p) for p in points}
    post_dominated = {p: cut(flow, SINK, p, reverse=True) for p in points}
    pairs = {
        (u, v)
        for u in points
        for v in points
        if u is not v and v in dominated[u] and u in post_dominated[v]
    }
    return {
        (u, v, frozenset(n for n in dominated[u] & post_dominated[v] if isinstance(n, Node)))
        for u, v in pairs
        if not any((u, w) in pairs and (w, v) in pairs for w in points)
    }


def check_tree(root: Region) -> None:
    """Every region's nodes are within its parent's, siblings share none, and order holds."""
    seen: list[Node] = []
    for region in root.walk():
        inner = set(region.all_nodes())
        for child in region.children:
            assert child.parent is region
            assert set(child.all_nodes()) < inner or region is root
        parts = [set(c.all_nodes()) for c in region.children]
        assert sum(map(len, parts)) + len(region.nodes) == len(inner)
        seen += region.nodes
    assert len(seen) == len(set(seen))


@given(st.integers(0, 10**9), st.integers(1, 24), st.integers(1, 2), st.integers(1, 5))
def test_equal_brute_force(seed: int, nodes: int, inputs: int, spread: int) -> None:
    graph = random_graph(seed, nodes, inputs, spread)
    root = regions(graph)
    found = [
        (r.entry if r.reader is None else (r.entry, r.reader), r.exit, frozenset(r.all_nodes()))
        for r in root.walk()
        if r is not root
    ]
    assert len(found) == len(set(found))
    assert set(found) == brute_force(graph)
    assert root.all_nodes() == list(graph.nodes)
    check_tree(root)


@given(st.integers(0, 10**9), st.integers(1, 60))
def test_the_smallest_region_around_another_is_its_parent(seed: int, nodes: int) -> None:
    root = regions(random_graph(seed, nodes, spread=3))
    every = [r for r in root.walk() if r is not root]
    nodes_of = {r: set(r.all_nodes()) for r in every}
    for region in every:
        around = [r for r in every if r is not region and nodes_of[region] < nodes_of[r]]
        smallest = min(around, key=lambda r: len(nodes_of[r]), default=root)
        assert region.parent is smallest


@given(st.integers(0, 10**9), st.integers(1, 80))
def test_dominators_equal_networkx(seed: int, size: int) -> None:
    rng = random.Random(seed)
    tree, flow = DominatorTree(), networkx.DiGraph()
    flow.add_node(0)
    for vertex in range(1, size):
        reads = [rng.randrange(max(0, vertex - rng.choice((2, 4, 80))), vertex) for _ in range(3)]
        flow.add_edges_from((p, vertex) for p in reads[: rng.randint(1, 3)])
        assert tree.add(list(flow.predecessors(vertex))) == vertex
    want = networkx.immediate_dominators(flow, 0)
    assert [tree.parent[v] for v in range(1, size)] == [want[v] for v in range(1, size)]
    below = networkx.DiGraph((tree.parent[v], v) for v in range(1, size))
    below.add_node(0)
    for v in range(size):
        reached = networkx.descendants(below, v) | {v}
        assert [tree.dominates(v, w) for w in range(size)] == [w in reached for w in range(size)]


def test_a_vertex_needs_a_predecessor() -> None:
    with pytest.raises(ValueError, match="predecessor"):
        DominatorTree().add(())


def names(region: Region) -> str:
    assert region.entry is not None
    assert region.exit is not None
    return f"{region.entry.name}-{region.exit.name}"


RESIDUAL = """graph g(%x: f32[1, 4, 8, 8]) {
  %w: f32[4, 4, 1, 1] = random 0
  %a: f32[1, 4, 8, 8] = Conv(%x, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
  %b: f32[1, 4, 8, 8] = Conv(%a, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
  %c: f32[1, 4, 8, 8] = Activation(%b) {kind="relu"}
  %d: f32[1, 4, 8, 8] = Conv(%c, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
  %e: f32[1, 4, 8, 8] = Add(%d, %a)
  %f: f32[1, 4, 8, 8] = Activation(%e) {kind="relu"}
  return y=%f
}
"""


def test_a_residual_block_is_a_region_inside_a_run() -> None:
    root = regions(parse(RESIDUAL))
    assert [names(r) for r in root.children] == ["x-a", "a-e", "e-f"]
    block = root.children[1]
    # The first is a branch: the skip reads its entry too.
    assert [names(r) for r in block.children] == ["a-b", "b-c", "c-d"]
    assert [r.reader and r.reader.name for r in block.children] == ["b", None, None]
    assert [n.name for n in block.nodes] == ["e"]
    assert [n.name for n in block.all_nodes()] == ["b", "c", "d", "e"]
    assert [[names(r) for r in run] for run in root.runs()] == [["x-a", "a-e", "e-f"]]
    assert [[names(r) for r in run] for run in block.runs()] == [["a-b", "b-c", "c-d"]]


def test_an_inner_value_that_is_returned_opens_the_region() -> None:
    graph = parse(RESIDUAL.replace("return y=%f", "return y=%f, side=%c"))
    root = regions(graph)
    assert [names(r) for r in root.walk() if r is not root] == ["x-a", "a-b", "b-c", "c-d", "e-f"]
    assert [[names(r) for r in run] for run in root.runs()] == [
        ["x-a"], ["a-b", "b-c"], ["c-d"], ["e-f"],
    ]  # fmt: skip


def test_several_results_join_before_a_region_ends() -> None:
    graph = parse("""graph g(%x: f32[4, 8]) {
      %a: f32[2, 8], %b: f32[2, 8] = Split(%x) {sizes=[2, 2]}
      %c: f32[2, 8] = Activation(%b) {kind="relu"}
      %d: f32[2, 8] = Mul(%a, %c)
      return d=%d
    }""")
    root = regions(graph)
    assert [names(r) for r in root.walk() if r is not root] == ["x-d", "b-c"]
    assert [n.op.name for n in root.children[0].nodes] == ["Split", "Mul"]


def test_an_unread_result_is_no_way_out_but_an_unread_node_is() -> None:
    graph = Graph()
    x = graph.add_input("x")
    first = graph.append(Opaque("k"), [x], types=[TensorType()] * 2, output_names=["a", "mask"])
    second = graph.append(Opaque("k"), [first.outputs[0]], types=[TensorType()])
    graph.add_output(second.output)
    assert len(regions(graph).children) == 2
    graph.append(Opaque("log"), [first.outputs[0]], types=[TensorType()])
    # What is logged leaves by a way of its own; what comes before is whole still.
    root = regions(graph)
    assert [(names(r), r.reader) for r in root.children] == [("x-a", None), ("a-opaque", second)]


def test_known_values_carry_no_flow() -> None:
    graph = parse("""graph g(%x: f32[4, 8], %s: f32[8]) {
      %w: f32[8] = random 1
      %v: f32[8] = Activation(%w) {kind="relu"}
      %y: f32[4, 8] = Mul(%x, %v)
      return y=%y
    }""")
    relu = next(iter(graph.nodes))
    relu.output.data = ArrayTensor(np.zeros(8, np.float32))
    root = regions(graph)
    assert [names(r) for r in root.walk() if r is not root] == ["x-y"]
    assert relu not in root.all_nodes()
    # With the value unknown, a second source flows in.
    relu.output.data = None
    assert relu in regions(graph).all_nodes()
    assert regions(graph).children == []


def comb(length: int) -> Graph:
    """Two long chains that join at every rung: the dominator of every join is far away."""
    graph = Graph()
    x = graph.add_input("x")
    a: Value = x
    b: Value = x
    c: Value = x
    for _ in range(length):
        a = graph.append(Opaque("a"), [a], types=[TensorType()]).output
        b = graph.append(Opaque("b"), [b], types=[TensorType()]).output
        c = graph.append(Opaque("c"), [a, b, c], types=[TensorType()]).output
    graph.add_output(c)
    return graph


def nest(length: int) -> Graph:
    """Skips inside skips: as many levels as nodes."""
    graph = Graph()
    value = graph.add_input("x")
    down = [value]
    for _ in range(length):
        down.append(graph.append(Opaque("d"), [down[-1]], types=[TensorType()]).output)
    value = down[-1]
    for skip in reversed(down[:-1]):
        value = graph.append(Opaque("u"), [value, skip], types=[TensorType()]).output
    graph.add_output(value)
    return graph


@pytest.mark.parametrize("make", [comb, nest])
def test_work_is_linear_in_deep_graphs(make: Callable[[int], Graph]) -> None:
    counts = []
    for length in (200, 2_000):
        graph = make(length)
        found = []
        counts.append(work(lambda graph=graph, found=found: found.append(regions(graph))))
        assert sum(1 for _ in found[0].walk()) == 2 * length + (2 if make is comb else 1)
    # Ten times the nodes, with room for a logarithm; a quadratic walk would do a hundred times as much.
    assert counts[1] < 14 * counts[0]


def test_runs_of_a_chain() -> None:
    graph = Graph()
    value = graph.add_input("x")
    for _ in range(5):
        value = graph.append(Opaque("k"), [value], types=[TensorType()]).output
    graph.add_output(value)
    (run,) = regions(graph).runs()
    assert len(run) == 5
    assert all(a.exit is b.entry for a, b in pairwise(run))
