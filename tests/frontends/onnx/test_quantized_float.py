"""onnxruntime's own operators on quantised numbers are ops between a dequantisation and a quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import agree, outputs_of

MS = {"domain": "com.microsoft"}
LAYERS: list[tuple[str, str, str, float, int, dict[str, Any]]] = [
    ("QLinearAdd", "x y", "a", 0.04, 1, {}),
    ("QLinearMul", "a y", "m", 0.06, 2, {}),
    ("QLinearLeakyRelu", "m", "l", 0.05, -20, {"alpha": 0.1}),
    ("QLinearSigmoid", "l", "s", 1 / 256, -128, {}),
    ("QLinearConcat", "l s", "c", 0.05, -10, {"axis": 1}),
    ("QLinearAveragePool", "c", "p", 0.04, -12, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("QLinearGlobalAveragePool", "p", "g", 0.02, -30, {}),
]
FEEDS = {
    n: np.random.default_rng(i).normal(size=(2, 4, 6, 6)).astype(np.float32)
    for i, n in enumerate(("in_x", "in_y"))
}


def network(dtype: Any, **more: Any) -> ModelProto:
    shift = 128 if dtype == np.uint8 else 0
    stored: dict[str, Any] = {}

    def scale(name: str, size: float, zero: int) -> list[str]:
        stored[f"{name}_s"], stored[f"{name}_z"] = np.float32(size), np.array(zero + shift, dtype)
        return [f"{name}_s", f"{name}_z"]

    nodes = [
        helper.make_node("QuantizeLinear", [f"in_{n}", *scale(n, 0.03, z)], [n])
        for n, z in (("x", 3), ("y", -4))
    ]
    for kind, read, made, size, zero, attributes in LAYERS:
        operands = [part for n in read.split() for part in (n, f"{n}_s", f"{n}_z")]
        own = scale(made, size, zero)
        inputs = [*own, *operands] if kind == "QLinearConcat" else [*operands, *own]
        extra = more if "Pool" in kind else {}
        nodes.append(helper.make_node(kind, inputs, [made], **MS, **attributes, **extra))
    nodes += [
        helper.make_node("DequantizeLinear", [n, f"{n}_s", f"{n}_z"], [f"out_{n}"]) for n in "gp"
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in FEEDS.items()],
        [helper.make_tensor_value_info(f"out_{n}", TensorProto.FLOAT, None) for n in "gp"],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_read_and_written_as_they_were(dtype: Any) -> None:
    made = network(dtype)
    graph = from_onnx(made)
    assert not any(isinstance(node.op, Opaque) for node in graph.nodes)
    assert to_onnx(graph) == made
    small = shrink(made).model
    # Nothing but constants is shared: the operators stay whole although some dequantise the same numbers.
    assert [n.op_type for n in small.graph.node] == [n.op_type for n in made.graph.node]
    agree(made, small, FEEDS)


def test_equal_operators_are_shared_whole() -> None:
    made = network(np.int8)
    twin = type(made.graph.node[2]).FromString(made.graph.node[2].SerializeToString())
    twin.output[0] = "a2"
    made.graph.node.insert(3, twin)
    made.graph.node[4].input[3:6] = ["a2", "a_s", "a_z"]
    small = shrink(made).model
    assert len(small.graph.node) == len(made.graph.node) - 1
    agree(made, small, FEEDS)


def test_channels_last_stays() -> None:
    graph = from_onnx(network(np.int8, channels_last=1))
    kinds = {node.op.kind for node in graph.nodes if isinstance(node.op, Opaque)}
    assert {f"onnx:com.microsoft.QLinear{k}AveragePool" for k in ("", "Global")} <= kinds


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_int8_kernels_of_tflite(dtype: Any) -> None:
    pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')
    from graphshrink.targets.tflite import Options
    from graphshrink.targets.tflite.convert import flat_model
    from graphshrink.targets.tflite.write import to_bytes
    from support.litert import KERNELS, run

    made = network(dtype)
    flat, _, orders = flat_model(from_onnx(made), Options())
    codes = {operation.code for operation in flat.operations}
    assert {"ADD", "MUL", "CONCATENATION", "LOGISTIC", "AVERAGE_POOL_2D"} <= codes
    for kernels in KERNELS:
        got = run(to_bytes(flat), FEEDS, kernels, orders).values()
        for want, array, step in zip(outputs_of(made, FEEDS), got, (0.02, 0.04), strict=True):
            # Each of the layers in front may round the other way, by one step.
            assert np.abs(want - array).max() < 2.5 * step
