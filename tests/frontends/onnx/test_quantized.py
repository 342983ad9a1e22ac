"""Quantised ONNX models: read as quantise and dequantise ops, and quantised when they come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import Pipeline, Rewriter, shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import ArrayTensor, Dequantize, Graph, Opaque, Quantize
from graphshrink.ir.analysis import channel_groups
from graphshrink.ir.analysis.dequantized import dequantized_from
from graphshrink.targets.onnx.emitter import to_onnx
from support.evaluate import evaluate
from support.onnx_run import agree, outputs_of
from support.permutations import permute_all
from support.work import work

RNG = np.random.default_rng(0)


def quantized(per_axis: bool = True, dense: bool = False, opset: int = 17) -> ModelProto:
    """Quantise, dequantise, a layer with int8 weights, a scale, and out the same way."""
    shape = (6, 8) if dense else (6, 4, 3, 3)
    scale = RNG.uniform(0.01, 0.02, 6 if per_axis else ()).astype(np.float32)
    tensors = {
        "xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.int8(-3),
        "q": RNG.integers(-128, 128, shape).astype(np.int8), "ws": scale,
        "wz": np.zeros(scale.shape, np.int8), "b": RNG.normal(size=6).astype(np.float32),
        "m": RNG.uniform(0.5, 1.5, (6,) if dense else (6, 1, 1)).astype(np.float32),
    }  # fmt: skip
    axis = {"axis": 0} if per_axis else {}
    layer = helper.make_node("Gemm", ["xf", "w", "b"], ["h"], transB=1) if dense else helper.make_node(
        "Conv", ["xf", "w", "b"], ["h"])  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["q", "ws", "wz"], ["w"], **axis),
        layer,
        helper.make_node("Mul", ["h", "m"], ["s"]),
        helper.make_node("QuantizeLinear", ["s", "ys", "yz"], ["sq"]),
        helper.make_node("DequantizeLinear", ["sq", "ys", "yz"], ["y"]),
    ]
    given = (5, 8) if dense else (1, 4, 7, 7)
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("dense", [False, True], ids=["conv", "gemm"])
@pytest.mark.parametrize("per_axis", [False, True], ids=["tensor", "axis"])
def test_quantised_models_stay_quantised(per_axis: bool, dense: bool) -> None:
    model = quantized(per_axis, dense)
    graph = from_onnx(model)
    assert not any(isinstance(n.op, Opaque) for n in graph.nodes)
    assert [n.op for n in graph.nodes if isinstance(n.op, (Quantize, Dequantize))] == [
        Quantize("u8"), Dequantize(), Dequantize(0 if per_axis else 1), Quantize("i8"), Dequantize(),
    ]  # fmt: skip
    result = shrink(model)
    kinds = [n.op_type for n in result.model.graph.node]
    assert kinds.count("DequantizeLinear") == 3
    stored = {t.name: t.data_type for t in result.model.graph.initializer}
    assert stored["q"] == TensorProto.INT8
    reasons = [r for p in result.report.passes for r in p.refusals]
    assert any("quantised" in r.reason for r in reasons)
    shape = (5, 8) if dense else (1, 4, 7, 7)
    agree(model, result.model, {"x": RNG.normal(size=shape).astype(np.float32)})


def respelled(graph: Graph) -> ModelProto:
    rw = Rewriter(graph)
    for node in graph.nodes:
        if any(v.data is None for v in node.outputs):
            rw.replace(node, node.op, node.inputs)
    return to_onnx(graph)


# Before opset 13 there is one scale for all.
@pytest.mark.parametrize(
    ("per_axis", "opset"), [(False, 11), (False, 17), (True, 13), (True, 17), (True, 21)]
)
def test_quantised_models_spelled_anew(per_axis: bool, opset: int) -> None:
    model = quantized(per_axis, opset=opset)
    x = RNG.normal(size=(1, 4, 7, 7)).astype(np.float32)
    agree(model, respelled(from_onnx(model)), {"x": x})
    # A value that is halfway between two integers may be rounded either way.
    (want,), (got,) = outputs_of(model, x), evaluate(from_onnx(model), [x])
    assert np.abs(got - want).max() <= 0.05 + 1e-6
    assert np.mean(np.abs(got - want) > 1e-6) < 0.01


def test_blocks_and_narrow_types_stay_opaque() -> None:
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0, block_size=2)
    graph = helper.make_graph(
        [node],
        "blocks",
        [helper.make_tensor_value_info("q", TensorProto.INT8, (4, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 3))],
        [numpy_helper.from_array(np.ones((2, 3), np.float32), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (made,) = from_onnx(model).nodes
    assert isinstance(made.op, Opaque)
    assert to_onnx(from_onnx(model)) == model


def test_folding_leaves_integers_alone() -> None:
    graph = from_onnx(quantized())
    records = Pipeline("fold-constants,prune-dead").run(graph)
    assert any("quantised numbers" in r.reason for p in records for r in p.refusals)
    assert sum(isinstance(n.op, Dequantize) for n in graph.nodes) == 3


def mixed(first: bool, middle: bool) -> ModelProto:
    """Three convolutions and a scale; the first one's weight and the scale may be quantised."""
    tensors = {
        "w": RNG.integers(-128, 128, (6, 4, 1, 1)).astype(np.int8), "s": np.float32(0.01),
        "m": RNG.integers(1, 128, (6, 1, 1)).astype(np.int8),
        "v": RNG.normal(size=(8, 6, 1, 1)).astype(np.float32),
        "u": RNG.normal(size=(5, 8, 1, 1)).astype(np.float32),
    }  # fmt: skip
    nodes = []
    for name, quantised in (("w", first), ("m", middle)):
        if quantised:
            nodes.append(helper.make_node("DequantizeLinear", [name, "s"], [f"{name}f"]))
        else:
            tensors[f"{name}f"] = tensors.pop(name) * np.float32(0.01)
    nodes += [
        helper.make_node("Conv", ["x", "wf"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "mf"], ["b"], name="scale"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"], name="second"),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "u"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 5, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = {"x": RNG.normal(size=(1, 4, 5, 5)).astype(np.float32)}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("middle", [False, True])
def test_channels_of_quantised_constants_keep_their_places(first: bool, middle: bool) -> None:
    model = mixed(first, middle)
    graph = from_onnx(model)
    found = channel_groups(graph)
    held = first or middle
    assert [g.size for g in found] == ([8] if held else [6, 8])
    second = next(n for n in graph.nodes if n.name == "second").inputs[1]
    assert second is not None
    reasons = found.reasons(second, 1)
    assert any("is quantised" in r for r in reasons) == held
    permute_all(graph, 0)
    made = to_onnx(graph)
    kinds = [n.op_type for n in made.graph.node]
    assert kinds.count("DequantizeLinear") == first + middle
    stored = {t.name: t.data_type for t in made.graph.initializer}
    assert {stored.get(k) for k, q in (("w", first), ("m", middle)) if q} <= {TensorProto.INT8}
    agree(model, made, X)


def test_quantised_factors_do_not_merge() -> None:
    model = mixed(first=False, middle=True)
    result = shrink(model)
    assert [n.op_type for n in result.model.graph.node].count("Mul") == 1
    reasons = [r.reason for p in result.report.passes for r in p.refusals]
    assert any("its weight" in r and "is quantised" in r for r in reasons)
    agree(model, result.model, X)
    merged = shrink(mixed(first=False, middle=False)).model
    assert "Mul" not in [n.op_type for n in merged.graph.node]


def test_quantised_kernels_are_not_expanded() -> None:
    graph = from_onnx(mixed(first=True, middle=False))
    (record,) = Pipeline("expand-linear").run(graph)
    assert [r.node for r in record.refusals if "%wf is quantised" in r.reason] == ["first"]
    assert "second.expand" in {n.name for n in graph.nodes}
    (node,) = (n for n in graph.nodes if n.name == "first")
    assert node.inputs[1] is not None
    assert node.inputs[1].producer is not None


def chain(length: int) -> Graph:
    """A dequantised weight behind many transposes."""
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w0"])]
    nodes += [helper.make_node("Transpose", [f"w{i}"], [f"w{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("MatMul", ["x", f"w{length}"], ["y"]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])]
    known = [numpy_helper.from_array(np.ones((2, 2), np.int8), "q"),
             numpy_helper.from_array(np.float32(0.5), "s")]  # fmt: skip
    return from_onnx(
        helper.make_model(helper.make_graph(nodes, "g", given, made, known),
                          opset_imports=[helper.make_opsetid("", 17)])
    )  # fmt: skip


def test_where_a_constant_comes_from_is_walked_once() -> None:
    graph = chain(40)
    values = [graph.value(f"w{i}") for i in range(40, 0, -1)]

    def asked() -> None:
        assert {dequantized_from(v) for v in values} == {"i8"}

    first = work(asked)
    assert work(asked) < 0.7 * first
    # Each is walked once: twice as many take twice the work.
    longer = chain(80)
    values = [longer.value(f"w{i}") for i in range(80, 0, -1)]
    assert work(asked) < 2.2 * first
    rw, behind = Rewriter(graph), graph.value("w1").producer
    assert behind is not None
    rw.set_input(behind, 0, rw.constant(ArrayTensor(np.ones((2, 2), np.float32))))
    assert dequantized_from(graph.value("w40")) is None


def of_opset_21(nodes: list[Any], dtype: int, tensors: list[Any]) -> ModelProto:
    """A model of an input x of some element type and an output y of float32, both 4 x 4."""
    x = helper.make_tensor_value_info("x", dtype, [4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph(nodes, "small", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_other_element_types_stay_what_they_are_and_say_why(dtype: str) -> None:
    """The reason is the element type, and not blocks of scales, which these have none of."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = helper.make_tensor("z", getattr(TensorProto, dtype), [], [0])
    model = of_opset_21(nodes, TensorProto.FLOAT, [scale, zero])
    short = {"INT4": "i4", "UINT4": "u4", "FLOAT8E4M3FN": "f8e4m3fn", "FLOAT8E5M2": "f8e5m2"}[dtype]
    reasons = [n.op.reason for n in from_onnx(model).nodes if isinstance(n.op, Opaque)]
    wanted = "its quantised numbers must be one of i8, u8, i16, u16"
    assert reasons == [f"to {short}: {wanted}", f"of {short}: {wanted}"]
    made = shrink(model).model
    assert [n.op_type for n in made.graph.node] == ["QuantizeLinear", "DequantizeLinear"]


def test_blocks_say_so() -> None:
    nodes = [helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=0, block_size=2)]
    scales = numpy_helper.from_array(np.full((2, 4), 0.1, np.float32), "s")
    model = of_opset_21(nodes, TensorProto.INT8, [scales])
    (node,) = from_onnx(model).nodes
    assert isinstance(node.op, Opaque)
    assert node.op.reason.startswith("in blocks")
