"""Shapes that are computed when a network runs are computed once for all nodes that need them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphshrink import shrink
from support.onnx_run import outputs_of


@pytest.mark.parametrize("opset", [13, 17])
def test_equal_shapes_are_written_once(opset: int) -> None:
    def size(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Shape", [name], [f"{name}_shape"]),
            helper.make_node("Gather", [f"{name}_shape", "zero"], [f"{name}_rows"]),
            helper.make_node("Concat", [f"{name}_rows", "three"], [f"{name}_sizes"], axis=0),
        ]

    graph = helper.make_graph(
        [
            *size("x"),
            helper.make_node("Expand", ["a", "x_sizes"], ["wide_a"]),
            helper.make_node("Expand", ["b", "x_sizes"], ["wide_b"]),
            helper.make_node("Concat", ["x", "wide_a", "wide_b"], ["y"], axis=1),
        ],
        "sizes",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            *(helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "ab"),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("three", TensorProto.INT64, [1], [3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    made = shrink(model).model
    kinds = Counter(n.op_type for n in made.graph.node)
    assert kinds["Expand"] == 2
    assert kinds["Shape"] == 1
    assert len(made.graph.node) <= len(graph.node)
    rng = np.random.default_rng(0)
    for rows in (1, 4):
        feeds = {"x": rng.standard_normal((rows, 2)).astype(np.float32)}
        feeds |= {n: rng.standard_normal((1, 3)).astype(np.float32) for n in "ab"}
        np.testing.assert_array_equal(outputs_of(made, feeds)[0], outputs_of(model, feeds)[0])
