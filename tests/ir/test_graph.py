"""The structure of a graph under every way to change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink.ir import (
    Activation,
    Add,
    ArrayTensor,
    Concat,
    DType,
    Exactness,
    Graph,
    GraphError,
    Identity,
    Node,
    Opaque,
    Rewriter,
    Split,
    Squeeze,
    TensorType,
    Value,
    VerificationError,
    parse,
    verify,
)
from support.evaluate import evaluate
from support.graphs import networks
from support.work import work

TEXT = """graph g(%x: f32[1, 4]) {
  %c: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  %a: f32[1, 4] = Activation(%x) {kind="relu"}
  %b: f32[1, 4] = Add(%a, %c)
  %d: f32[1, 4] = Mul(%b, %a)
  return y=%d, side=%a
}
"""
RELU = Activation("relu")


@pytest.fixture
def graph() -> Graph:
    return parse(TEXT)


# What is kept while a graph changes.


def act(draw: Any, graph: Graph, rw: Rewriter) -> None:
    """One random change that a pass might make."""
    nodes = list(graph.nodes)
    values = list(graph.values())
    kind = draw(
        st.sampled_from(["insert", "replace", "set_input", "uses", "erase", "constant", "drop"])
    )
    place = draw(st.integers(0, max(0, len(nodes) - 1)))
    node = nodes[place] if nodes else None
    made: dict[Value, int] = {v: -1 for v in values if v.producer is None}
    made |= {v: i for i, n in enumerate(nodes) for v in n.outputs}
    match kind:
        case "insert" if node is not None:
            source = draw(st.sampled_from([v for v in values if made[v] < place]))
            if draw(st.booleans()):
                rw.insert(RELU, [source], before=node)
            else:
                rw.insert(
                    Add(), [source, source], after=node, name=draw(st.sampled_from(["", "n"]))
                )
        case "replace" if node is not None and len(node.outputs) == 1:
            same = [v for v in values if made[v] < place and v.type == node.output.type]
            if same:
                rw.replace(
                    node, draw(st.sampled_from([RELU, Identity()])), [draw(st.sampled_from(same))]
                )
        case "set_input" if node is not None and node.inputs:
            index = draw(st.integers(0, len(node.inputs) - 1))
            old = node.inputs[index]
            if old is not None:
                same = [v for v in values if made[v] < place and v.type == old.type]
                rw.set_input(node, index, draw(st.sampled_from(same)))
        case "uses":
            old = draw(st.sampled_from(values))
            first = min((made[n.output] for n, _ in old.uses if n.outputs), default=len(nodes))
            same = [v for v in values if made[v] < first and v.type == old.type]
            if same:
                rw.replace_uses(old, draw(st.sampled_from(same)))
        case "erase" if node is not None:
            if any(v.use_count for v in node.outputs):
                with pytest.raises(GraphError, match="still used"):
                    rw.erase(node)
            else:
                rw.erase(node)
                assert node.graph is None
                with pytest.raises(GraphError, match="not \\(or no longer\\) in this graph"):
                    rw.erase(node)
        case "constant":
            rw.constant(ArrayTensor(np.ones((1, 2, 6, 6))), draw(st.sampled_from(["w", "c"])))
        case "drop":
            for value in graph.constants:
                if not value.use_count:
                    rw.erase_constant(value)


@settings(max_examples=50)
@given(networks(), st.data())
def test_links_hold_after_any_changes(graph: Graph, data: st.DataObject) -> None:
    rw = Rewriter(graph)
    names = list(graph.output_names)
    for _ in range(data.draw(st.integers(1, 12))):
        act(data.draw, graph, rw)
        verify(graph)
    assert graph.output_names == names
    assert len(graph) == len(list(graph.nodes))
    assert rw.changed == bool(rw.rewrites)
    assert parse(graph.text()).text() == graph.text()


@given(networks(), st.data())
def test_a_clone_is_another_graph(graph: Graph, data: st.DataObject) -> None:
    before, outputs = graph.text(full=True), evaluate(graph)
    graph.notes.append("note")
    for node in graph.nodes:
        node.origin = object()
    twin = graph.clone()
    verify(twin)
    assert twin.text(full=True) == before
    assert twin.notes == graph.notes
    assert [n.origin for n in twin.nodes] == [n.origin for n in graph.nodes]
    assert not set(twin.values()) & set(graph.values())
    rw = Rewriter(twin)
    for _ in range(data.draw(st.integers(1, 6))):
        act(data.draw, twin, rw)
    twin.notes.append("more")
    verify(graph)
    assert graph.text(full=True) == before
    for want, got in zip(outputs, evaluate(graph), strict=True):
        np.testing.assert_array_equal(want, got)
    # Names that are free in one are not taken from the other.
    assert graph.unique_name("w") not in {v.name for v in graph.values()}


def test_adopting_a_backup_undoes_everything(graph: Graph) -> None:
    backup, stale = graph.clone(), next(iter(graph.nodes))
    rw = Rewriter(graph)
    for node in list(graph.nodes)[1:]:
        rw.replace(node, Identity(), [graph.inputs[0]])
    graph.output_names[0] = "other"
    graph.adopt(backup)
    verify(graph)
    assert graph.text() == TEXT
    assert all(n.graph is graph for n in graph.nodes)
    with pytest.raises(GraphError, match="no longer"):
        Rewriter(graph).erase(stale)
    Rewriter(graph).insert(RELU, [graph.inputs[0]])
    verify(graph)


# Reading.


def test_uses_of_a_value(graph: Graph) -> None:
    a, c = graph.value("a"), graph.value("c")
    assert [(n.name, i) for n, i in a.uses] == [("b", 0), ("d", 1)]
    assert (a.use_count, a.is_output, a.has_one_use) == (3, True, False)
    assert (c.use_count, c.is_output, c.has_one_use) == (1, False, True)
    double = graph.append(Add(), [c, c])
    assert [n.name for n in c.users] == ["b", double.name]
    assert c.use_count == 3
    assert graph.value("d").index == 0
    with pytest.raises(KeyError, match="no value %q"):
        graph.value("q")


def test_names_stay_unique() -> None:
    graph = Graph()
    values = [graph.add_input(n) for n in ("a", "a", "a_1", "", "a", "")]
    assert [v.name for v in values] == ["a", "a_1", "a_1_1", "v", "a_2", "v_1"]
    node = graph.append(Identity(), [values[0]], name="a")
    assert (node.name, node.output.name) == ("a", "a_3")
    Rewriter(graph).erase(node)
    # A name is free again when its value has gone.
    assert graph.append(Identity(), [values[0]], output_names=["a_3"]).output.name == "a_3"


def test_work_is_linear_when_all_names_are_equal() -> None:
    def build(length: int) -> None:
        graph = Graph()
        value = graph.add_input("v", TensorType(DType.F32, (2,)))
        for _ in range(length):
            value = graph.append(Identity(), [value], name="v").output
        verify(graph)

    assert work(lambda: build(5_000)) < 11 * work(lambda: build(500))


# Walking.


@settings(max_examples=70)
@given(st.integers(1, 8), st.data())
def test_nodes_may_go_while_one_walks(size: int, data: st.DataObject) -> None:
    graph = Graph()
    x = graph.add_input("x")
    nodes = [graph.append(RELU, [x], name=f"n{i}") for i in range(size)]
    rw = Rewriter(graph)
    seen = []
    for node in graph.nodes:
        assert node.graph is graph
        seen.append(node)
        for victim in data.draw(st.lists(st.sampled_from(nodes), unique=True, max_size=4)):
            if victim.graph is graph:
                rw.erase(victim)
    # Whatever was still there when its turn came was seen, once and in order.
    assert seen == [n for n in nodes if n in seen]
    assert set(graph.nodes) <= set(seen)
    verify(graph)


def test_what_is_inserted_behind_is_walked(graph: Graph) -> None:
    rw = Rewriter(graph)
    walked = []
    for node in graph.nodes:
        walked.append(node.name)
        if node.name == "a":
            rw.insert(RELU, [node.output], after=node, name="new")
    assert walked == ["a", "new", "b", "d"]


def test_nothing_is_placed_beside_a_removed_node(graph: Graph) -> None:
    rw = Rewriter(graph)
    gone = rw.insert(RELU, [graph.inputs[0]])
    rw.erase(gone)
    for place in ({"before": gone}, {"after": gone}):
        with pytest.raises(GraphError, match="no longer"):
            rw.insert(RELU, [graph.inputs[0]], **place)
    verify(graph)


# Refused changes leave the graph as it was.


@pytest.mark.parametrize(("change", "message"), [
    (lambda g, rw, n: rw.replace(n, Add(), [g.inputs[0]]), "Add takes 2 inputs, not 1"),
    (lambda g, rw, n: rw.replace(n, Split((2, 2), 1), [g.inputs[0]]), "Split has 2 results, Add has 1"),
    (lambda g, rw, n: rw.replace(n, Concat(1), [g.inputs[0]] * 2), r"gives f32\[1, 8\], but its readers expect"),
    (lambda g, rw, n: rw.replace(n, Squeeze((1,)), [g.inputs[0]]), "Squeeze of axis 1"),
    (lambda g, rw, n: rw.replace_uses(g.value("a"), g.value("c")), "cannot replace"),
    (lambda g, rw, n: rw.erase_constant(g.value("c")), "still used"),
    (lambda g, rw, n: rw.erase_constant(g.value("x")), "not a plain constant"),
    (lambda g, rw, n: rw.resize(n, Add(), [g.inputs[0]] * 3), "Add takes 2 inputs, not 3"),
    (lambda g, rw, n: rw.insert(RELU, []), "Activation takes 1 inputs, not 0"),
    (lambda g, rw, n: g.append(Opaque("k"), []), "cannot infer its result types"),
    (lambda g, rw, n: g.append(RELU, [g.inputs[0]], types=[]), "has 1 result, not 0"),
])  # fmt: skip
def test_refused_changes(
    graph: Graph, change: Callable[[Graph, Rewriter, Node], None], message: str
) -> None:
    rw = Rewriter(graph)
    with pytest.raises((GraphError, ValueError), match=message):
        change(graph, rw, list(graph.nodes)[1])
    assert graph.text() == TEXT
    assert not rw.changed
    assert not rw.rewrites
    verify(graph)


def test_a_rewriter_keeps_to_its_graph(graph: Graph) -> None:
    rw = Rewriter(graph.clone())
    node = next(iter(graph.nodes))
    for change in (
        lambda: rw.erase(node),
        lambda: rw.replace(node, RELU, node.inputs),
        lambda: rw.set_input(node, 0, None),
    ):
        with pytest.raises(GraphError, match="not \\(or no longer\\) in this graph"):
            change()


def test_replacing_keeps_names_and_drops_what_no_longer_holds(graph: Graph) -> None:
    node = graph.value("b").producer
    assert node is not None
    node.origin = object()
    node.output.data = ArrayTensor(np.zeros((1, 4), np.float32))
    Rewriter(graph).replace(node, Identity(), [graph.value("a")], name="new")
    assert node.origin is None
    assert node.output.data is None
    assert (node.name, node.output.name) == ("new", "b")
    verify(graph)


def test_replacing_refines_types() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 3)))
    node = graph.append(Opaque("k"), [x], types=[TensorType(None, ("n", None))])
    graph.add_output(node.output)
    Rewriter(graph).replace(node, RELU, [x])
    assert node.output.type == x.type


# Recording.


def test_rewrites_group_changes(graph: Graph) -> None:
    rw = Rewriter(graph, exactness=Exactness.BORDER)
    a, b, d = graph.nodes
    with rw.rewrite("nothing", a):
        pass
    with rw.rewrite("two things", a, b) as done:
        rw.replace(a, Identity(), a.inputs)
        rw.set_input(b, 0, graph.inputs[0])
        rw.set_input(b, 0, graph.inputs[0])
        with pytest.raises(GraphError, match="already under way: two things"), rw.rewrite("x"):
            pass
    assert done.mutations == 2
    assert [(r.what, r.nodes, r.exactness) for r in rw.rewrites] == [
        ("two things", ("a", "b"), Exactness.BORDER)
    ]
    rw.replace(d, Identity(), [b.output])
    assert [r.mutations for r in rw.rewrites] == [2, 1]
    assert rw.mutations == 3
    with rw.rewrite("weaker", a, exactness=Exactness.APPROXIMATE):
        rw.replace(a, RELU, a.inputs)
    assert rw.worst is Exactness.APPROXIMATE
    assert str(rw.worst) == "approximate"


def test_what_failed_halfway_is_recorded(graph: Graph) -> None:
    rw = Rewriter(graph)
    a = next(iter(graph.nodes))

    def fails() -> None:
        with rw.rewrite("half", a):
            rw.replace(a, Identity(), a.inputs)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fails()
    assert [r.what for r in rw.rewrites] == ["half"]
    with rw.rewrite("next", a):
        rw.replace(a, RELU, a.inputs)


def test_refusals_are_kept_once(graph: Graph) -> None:
    rw = Rewriter(graph)
    a, b, _ = graph.nodes
    for _ in range(3):
        rw.skip(a, "too large")
        rw.skip(b, "too large")
    assert [(r.node, r.op, r.reason) for r in rw.refusals] == [
        ("a", "Activation", "too large"), ("b", "Add", "too large"),
    ]  # fmt: skip
    assert not rw.changed


# What verify must catch: every kind of damage, made by hand.


def node_of(graph: Graph, name: str) -> Node:
    return next(n for n in graph.nodes if n.name == name)


def swap(graph: Graph) -> None:
    """Put the second node in front of the first."""
    b = node_of(graph, "b")
    graph._unlink(b)
    graph._link(b, graph._first, None)


def two_producers(graph: Graph) -> None:
    node_of(graph, "d")._outputs = node_of(graph, "b").outputs


def ring(graph: Graph) -> None:
    assert graph._first is not None
    assert graph._last is not None
    graph._last._next = graph._first
    graph._first._prev = graph._last


DAMAGE: dict[str, tuple[Callable[[Graph], object], str]] = {
    "reads before it is made": (swap, "reads %a before it is defined"),
    "a value of another graph": (
        lambda g: g._set_input(node_of(g, "d"), 0, parse(TEXT).value("x")), "before it is defined"),
    "a use that the list lacks": (
        lambda g: g.value("a")._uses.pop((node_of(g, "b"), 0)), "use list of %a"),
    "a use that is not there": (
        lambda g: g.value("c")._uses.update({(node_of(g, "d"), 0): None}), "use list of %c"),
    "a stale use of a removed node": (
        lambda g: g._unlink(node_of(g, "d")), "output %d is never defined"),
    "an output that is never defined": (
        lambda g: g._set_output(0, Value("q")), "output %q is never defined"),
    "a wrong output count": (lambda g: setattr(g.value("a"), "outputs", 2), "output count of %a"),
    "too few output names": (lambda g: g.output_names.pop(), "output names differ"),
    "equal names": (lambda g: setattr(g.value("b"), "name", "x"), "two values are named %x"),
    "a renamed value": (lambda g: setattr(g.value("b"), "name", "q"), "names in use"),
    "a name not recorded": (lambda g: g._names.discard("b"), "names in use is wrong about %b"),
    "a wrong producer": (lambda g: setattr(g.value("b"), "producer", None), "producer"),
    "two producers": (two_producers, "producer"),
    "a constant without data": (lambda g: setattr(g.value("c"), "data", None), "%c has no data"),
    "data of another shape": (
        lambda g: setattr(g.value("c"), "data", ArrayTensor(np.zeros(5, np.float32))), "holds a tensor"),
    "data of another type": (
        lambda g: setattr(g.value("c"), "data", ArrayTensor(np.zeros(4))), "holds a tensor"),
    "a type that the op does not give": (
        lambda g: setattr(g.value("b"), "type", TensorType(DType.F32, (1, 5))), "Add gives"),
    "an element type that it does not give": (
        lambda g: setattr(g.value("d"), "type", TensorType(DType.F64, (1, 4))), "gives"),
    "inputs that do not fit": (
        lambda g: setattr(node_of(g, "a"), "op", Squeeze((1,))), "Squeeze of axis 1"),
    "too few inputs": (lambda g: setattr(node_of(g, "a"), "op", Add()), "Add takes 2 inputs, not 1"),
    "too many results": (
        lambda g: setattr(node_of(g, "a"), "op", Split((2, 2), 1)), "has 2 results"),
    "a wrong count": (lambda g: setattr(g, "_count", 4), "3 nodes are linked, but the count is 4"),
    "a count too small": (lambda g: setattr(g, "_count", 2), "d is not linked"),
    "a node that thinks it is elsewhere": (
        lambda g: setattr(node_of(g, "b"), "graph", Graph()), "b|linked|made"),
    "a broken back link": (lambda g: setattr(node_of(g, "d"), "_prev", None), "d is not linked"),
    "a lost end": (lambda g: setattr(g, "_last", node_of(g, "b")), "last node"),
    "a ring": (ring, "linked|named"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_catches(graph: Graph, damage: str) -> None:
    verify(graph)
    change, message = DAMAGE[damage]
    change(graph)
    with pytest.raises(VerificationError, match=message):
        graph.verify()


def test_verify_allows_what_is_only_unknown(graph: Graph) -> None:
    graph.value("b").type = TensorType()
    graph.value("a").type = TensorType(None, (None, "n"))
    verify(graph)
