"""Respelling a node does not make the file larger."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree

RNG = np.random.default_rng(0)
SIZE = 40


def model(
    nodes: list[object], weights: dict[str, object], ir_version: int, sizes: list[int]
) -> ModelProto:
    stored = [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, SIZE])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)
    graph = helper.make_graph(nodes, "g", inputs, [output], stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=ir_version
    )


def dense(ir_version: int = 8) -> ModelProto:
    """Layers of one weight, each with two biases, which become one."""
    nodes = []
    value = "x"
    for i in range(3):
        nodes += [
            helper.make_node("MatMul", [value, "w"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "b"], [f"a{i}"]),
            helper.make_node("Add", [f"a{i}", "c"], [f"s{i}"]),
            helper.make_node("Sigmoid", [f"s{i}"], [f"f{i}"]),
        ]
        value = f"f{i}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    names = {"w": (SIZE, SIZE), "b": (SIZE,), "c": (SIZE,)}
    weights = {n: RNG.normal(size=s).astype("f4") for n, s in names.items()}
    return model(nodes, weights, ir_version, [2, 3, SIZE])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_weight_is_not_stored_a_second_time(ir_version: int) -> None:
    before = dense(ir_version)
    made = shrink(before).model
    checker.check_model(made)
    agree(before, made, {"x": RNG.normal(size=(2, 3, SIZE)).astype("f4")})
    assert sum(n.op_type == "Add" for n in made.graph.node) == 3
    weights = [t for t in made.graph.initializer if len(t.dims) == 2]
    assert len(weights) == 1


def test_old_models_list_only_what_they_store() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["a"], axis=2),
        helper.make_node("MatMul", ["a", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    weights = {
        "w": RNG.normal(size=(SIZE, SIZE)).astype("f4"),
        "b": RNG.normal(size=SIZE).astype("f4"),
    }
    before = model(nodes, weights, 3, [6, SIZE])
    made = shrink(before).model
    checker.check_model(made)
    agree(before, made, {"x": RNG.normal(size=(2, 3, SIZE)).astype("f4")})
    assert [n.op_type for n in made.graph.node] == ["Flatten", "Gemm"]
    assert {v.name for v in made.graph.input} == {"x", *(t.name for t in made.graph.initializer)}
    assert made.ByteSize() <= before.ByteSize() + 64


def test_an_empty_pipeline_keeps_old_models_as_they_are() -> None:
    before = dense(3)
    before.graph.initializer.append(numpy_helper.from_array(np.ones(3, "f4"), "unused"))
    before.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [3]))
    assert shrink(before, passes="").model == before
