"""Bodies of If, Loop and Scan are shrunk as graphs of their own; onnxruntime compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.hosts.onnx.scopes import all_nodes
from support.onnx_run import agree

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(5)
SIZE = 24
"""Weights of this many rows and columns are too large to be stored in a body."""


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array((RNG.standard_normal(shape) / 4).astype(np.float32), name)


def info(name: str, shape: Any = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def body(
    nodes: list[Any], outputs: list[Any], inputs: list[Any] | None = None, tensors: Any = ()
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs or [], outputs, list(tensors))


def model(nodes: list[Any], outputs: list[str], tensors: list[Any]) -> ModelProto:
    inputs = [info("x", ["n", SIZE]), info("c", [], BOOL), info("trips", [], INT)]
    graph = helper.make_graph(nodes, "g", inputs, [info(o) for o in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(read: str, made: str, w: str, mark: str) -> list[NodeProto]:
    """A dense layer of several nodes that merge into one, and two transposes that cancel."""
    return [
        node("MatMul", f"{read} {w}", f"m{mark}"),
        node("Add", f"m{mark} b", f"a{mark}"),
        node("Mul", f"a{mark} s", f"l{mark}"),
        node("Transpose", f"l{mark}", f"t{mark}", perm=[1, 0]),
        node("Transpose", f"t{mark}", f"u{mark}", perm=[1, 0]),
        node("Relu", f"u{mark}", made),
    ]


def check(made: ModelProto, **options: Any) -> tuple[ModelProto, Any]:
    """Shrink, and compare for both values of the condition and two numbers of trips."""
    result = shrink(made, **options)
    x = RNG.standard_normal((3, SIZE)).astype(np.float32)
    for c, trips in ((True, 2), (False, 0), (False, 3)):
        feeds = {"x": x, "c": np.array(c), "trips": np.array(trips)}
        agree(made, result.model, feeds)
    return result.model, result.report


def kinds(found: ModelProto) -> list[str]:
    return sorted(n.op_type for n in all_nodes(found.graph.node))


def common() -> list[TensorProto]:
    return [tensor("w", SIZE, SIZE), tensor("b", SIZE), tensor("s", SIZE)]


def loop(inside: list[Any], made: str, read: str, mark: str) -> NodeProto:
    """A loop whose state passes ``inside``, with a scanned result."""
    inputs = [info(f"i{mark}", [], INT), info(f"k{mark}", [], BOOL), info(f"v{mark}", ["n", SIZE])]
    outputs = [info(f"k2{mark}", [], BOOL), info(f"r{mark}"), info(f"z{mark}")]
    nodes = [
        *inside,
        node("Identity", f"k{mark}", f"k2{mark}"),
        node("Identity", f"r{mark}", f"q{mark}"),
        node("Identity", f"q{mark}", f"z{mark}"),
    ]
    return node("Loop", f"trips c {read}", made, body=body(nodes, outputs, inputs))


def test_branches_share_a_name_and_a_weight_of_the_graph_around_them() -> None:
    then = body(dense("x", "p", "w", "_1"), [info("p")])
    other = body(
        [*dense("x", "h", "w2", "_1"), node("Neg", "h", "p2")], [info("p2")], tensors=[tensor("w2", SIZE, SIZE)]
    )  # fmt: skip
    made = model([node("If", "c", "y", then_branch=then, else_branch=other)], ["y"], common())
    small, report = check(made, check=True)
    assert kinds(small) == ["Gemm", "Gemm", "If", "Neg", "Relu", "Relu"]
    # Large weights are stored outside, and nothing of the old ones is left.
    assert {t.dims[0] for t in small.graph.initializer if len(t.dims) == 2} == {SIZE}
    assert sum(len(t.dims) == 2 for t in small.graph.initializer) == 2
    assert report.passes[0].text == "bodies"
    assert any("in then_branch of y" in w.what for w in report.passes[0].rewrites)
    assert not any(r.rolled_back for r in report.passes)
    assert (report.before.nodes, report.after.nodes) == (12, 6)


def test_a_loop_in_a_branch() -> None:
    then = body([loop(dense("v_1", "r_1", "w", "_2"), "o zs", "x", "_1")], [info("o")])
    other = body([node("Identity", "x", "same")], [info("same")])
    made = model([node("If", "c", "y", then_branch=then, else_branch=other)], ["y"], common())
    small, report = check(made)
    # The condition of the loop, its scanned result and the other branch need a node each.
    assert kinds(small) == ["Gemm", "Identity", "Identity", "Identity", "If", "Loop", "Relu"]
    assert report.not_understood[0].kind in ("onnx:If", "onnx:Loop")
    assert {e.kind for e in report.not_understood} == {"onnx:If", "onnx:Loop"}


def test_a_scan_whose_layer_is_also_used_outside() -> None:
    inside = body(
        [*dense("e", "r", "w", "_1"), node("Identity", "st", "st2")],
        [info("st2", [1]), info("r")],
        [info("st", [1]), info("e", ["n", SIZE])],
    )
    made = model(
        [
            node("Unsqueeze", "x zero", "xs"),
            node("Scan", "one xs", "last ys", body=inside, num_scan_inputs=1),
            node("MatMul", "x w", "y"),
        ],
        ["last", "ys", "y"],
        [
            *common(),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    small, _ = check(made)
    assert kinds(small) == ["Gemm", "Identity", "MatMul", "Relu", "Scan", "Unsqueeze"]
    assert "w" in {t.name for t in small.graph.initializer}


def test_an_if_with_a_known_condition_within_a_branch_is_its_branch() -> None:
    inner = node(
        "If", "yes", "p",
        then_branch=body(dense("x", "h", "w", "_1"), [info("h")]),
        else_branch=body([node("Neg", "x", "n_")], [info("n_")]),
    )  # fmt: skip
    other = body([node("Neg", "x", "n")], [info("n")])
    outer = node("If", "c", "y", then_branch=body([inner], [info("p")]), else_branch=other)
    known = numpy_helper.from_array(np.array(True), "yes")
    small, report = check(model([outer], ["y"], [*common(), known]))
    assert kinds(small) == ["Gemm", "If", "Neg", "Relu"]
    assert any("known condition" in n and "in then_branch of y" in n for n in report.notes)


def test_what_stays_has_a_reason_and_names_do_not_clash() -> None:
    then = body(
        [
            *dense("x", "p0", "w", "_1"),
            node("RandomUniformLike", "p0", "p1"),
            node("Mul", "p1 zero", "p2"),
            node("Add", "p0 p2", "p"),
        ],
        [info("p")],
    )
    other = body([node("Neg", "x", "n")], [info("n")])
    made = model(
        [node("If", "c", "y", then_branch=then, else_branch=other), node("MatMul", "x o", "z")],
        ["y"],
        [
            *common(),
            tensor("o", SIZE, SIZE),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ],
    )
    small, report = check(made, passes="merge-linear,sparsify{method=magnitude},prune-dead")
    assert kinds(small).count("Gemm") == 1
    refusals = {f.reason for f in report.passes[0].refusals}
    assert any("sparsify is not exact" in r for r in refusals)
    assert any(e.kind == "onnx:RandomUniformLike" for e in report.not_understood)


@pytest.mark.parametrize("passes", [[], "prune-dead"])
def test_bodies_without_changes_stay_as_they_are(passes: Any) -> None:
    then = body([node("Neg", "x", "p")], [info("p")])
    other = body([node("Abs", "x", "q")], [info("q")])
    made = model([node("If", "c", "y", then_branch=then, else_branch=other)], ["y"], [])
    assert shrink(made, passes).model == made
