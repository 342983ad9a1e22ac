"""Operators that prepare inputs are scales, which merge into the layers behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import agree

RNG = np.random.default_rng(0)


def model(
    nodes: list[Any], shape: list[Any], kind: int = TensorProto.FLOAT, **held: Any
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in held.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
@pytest.mark.parametrize("size", [1, 4])
def test_scalers_merge_into_a_dense_layer(kind: int, size: int) -> None:
    numbers = [1.5, -2.0, 0.5, 3.0][:size]
    nodes = [
        helper.make_node(
            "Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=numbers, scale=numbers
        ),
        helper.make_node("Gemm", ["s", "w"], ["y"]),
    ]
    made = model(nodes, [3, 4], kind, w=RNG.standard_normal((4, 5)).astype(np.float32))
    assert to_onnx(from_onnx(made)) == made
    small = shrink(made).model
    want = ["Gemm"] if kind == TensorProto.FLOAT else ["Cast", "Gemm"]
    assert [n.op_type for n in small.graph.node] == want
    x = RNG.integers(-5, 5, (3, 4)).astype(helper.tensor_dtype_to_np_dtype(kind))
    agree(made, small, {"x": x})


def test_image_scalers_merge_into_a_convolution() -> None:
    nodes = [
        helper.make_node("ImageScaler", ["x"], ["s"], scale=0.5, bias=[1.0, -2.0, 3.0]),
        helper.make_node("Conv", ["s", "w"], ["y"]),
    ]
    made = model(nodes, [1, 3, 8, 8], w=RNG.standard_normal((2, 3, 3, 3)).astype(np.float32))
    made.opset_import[0].version = 8  # onnxruntime knows the operator until opset 9.
    small = shrink(made).model
    assert [n.op_type for n in small.graph.node] == ["Conv"]
    agree(made, small, {"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)})
