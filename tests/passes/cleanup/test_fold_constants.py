"""fold-constants: what counts as growth, and copies of constants."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree

RNG = np.random.default_rng(0)


def model(nodes: list[object], weights: dict[str, object], shape: list[int | str]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ops(made: ModelProto) -> list[str]:
    return [n.op_type for n in made.graph.node]


@pytest.mark.parametrize("kept", [False, True])
def test_a_weight_that_is_cut_and_joined_again_is_no_growth(kept: bool) -> None:
    pieces = [(0, 128), (384, 512), (128, 384)]
    nodes = [
        helper.make_node("Slice", ["w", f"s{i}", f"e{i}", "zero"], [f"p{i}"])
        for i in range(3)
    ]  # fmt: skip
    nodes += [
        helper.make_node("Concat", ["p0", "p1", "p2"], ["v"], axis=0),
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["b"]),
        # Somebody else may read the weight: then both forms have to be stored.
        helper.make_node(*(("MatMul", ["a", "w"]) if kept else ("Cos", ["a"])), ["c"]),
        helper.make_node("Concat", ["b", "c"], ["y"], axis=1),
    ]
    weights = {"w": RNG.normal(size=(512, 64)).astype("f4"), "zero": np.array([0])}
    for i, (start, end) in enumerate(pieces):
        weights |= {f"s{i}": np.array([start]), f"e{i}": np.array([end])}
    before = model(nodes, weights, [2, 512])
    result = shrink(before, passes="fold-constants,prune-dead")
    agree(before, result.model, {"x": RNG.normal(size=(2, 512)).astype("f4")})
    assert ("Slice" in ops(result.model)) == kept
    reasons = {r.reason for p in result.report.passes for r in p.refusals}
    assert any("131072 bytes" in r for r in reasons) == kept


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_a_weight_are_the_weight(copies: int) -> None:
    nodes = [
        helper.make_node("Identity", [f"w{i}" if i else "w"], [f"w{i + 1}"]) for i in range(copies)
    ]
    nodes += [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", f"w{copies}"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["y"]),
    ]
    weights = {
        "w": RNG.normal(size=(160, 160)).astype("f4"),
        "bias": RNG.normal(size=160).astype("f4"),
    }
    before = model(nodes, weights, ["n", 3, 160])
    for passes in ("fold-constants,prune-dead", None):
        made = shrink(before, passes=passes).model
        agree(before, made, {"x": RNG.normal(size=(2, 3, 160)).astype("f4")})
        assert "Identity" not in ops(made)
        assert made.ByteSize() < before.ByteSize()


def test_a_copy_that_is_an_output_stays() -> None:
    nodes = [
        helper.make_node("Identity", ["w"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["z"]),
    ]
    before = model(nodes, {"w": np.ones((2, 3), "f4")}, [2, 3])
    before.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    made = shrink(before).model
    agree(before, made, {"x": RNG.normal(size=(2, 3)).astype("f4")})
    assert [o.name for o in made.graph.output] == ["y", "z"]
