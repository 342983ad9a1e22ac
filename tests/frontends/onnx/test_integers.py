"""ONNX's operators on quantised numbers: read, spelled again, and their channels reordered, to the bit as onnxruntime has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from graphshrink import ir
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque, Rewriter
from graphshrink.ir.analysis import channel_groups
from graphshrink.targets.onnx.emitter import to_onnx
from support.litert import model_of
from support.onnx_run import outputs_of
from support.permutations import permute_all

RNG = np.random.default_rng(5)


def q(*shape: int, dtype: Any = np.int8) -> Any:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def small(*shape: int) -> Any:
    """Weights with which pairs of products fit in 16 bits: in other orders they would overflow on processors without VNNI."""
    return q(*shape) // np.int8(2)


def f(*shape: int) -> Any:
    return RNG.uniform(0.05, 0.2, shape).astype(np.float32)


U, I8 = np.uint8, np.int8
Case = tuple[str, tuple[Any, ...], dict[str, Any]]
CONV = (np.float32(0.1), U(130)), (np.float32(9.0), U(120))


def conv(x: Any, w: Any, scales: Any, zeros: Any, bias: Any = None, **attributes: Any) -> Case:
    (before, after), more = CONV, () if bias is None else (bias,)
    return "QLinearConv", (x, *before, w, scales, zeros, *after, *more), attributes


CASES: dict[str, Case] = {
    "conv": conv(q(2, 4, 5, 5, dtype=U), q(6, 4, 3, 3), f(6), np.zeros(6, I8), np.arange(6, dtype=np.int32), pads=[1, 1, 0, 1]),
    "conv-one-scale": conv(q(2, 4, 5, 5, dtype=U), q(6, 4, 3, 3, dtype=U), f(), U(128), strides=[2, 1], dilations=[1, 2]),
    "conv-groups": conv(q(2, 4, 5, 5, dtype=U), q(6, 2, 3, 3), f(6), np.zeros(6, I8), group=2, kernel_shape=[3, 3]),
    "conv-depthwise": conv(q(2, 4, 5, 5, dtype=U), q(4, 1, 3, 3), f(4), np.zeros(4, I8), group=4, auto_pad="SAME_UPPER"),
    "conv-line": conv(q(2, 4, 5, dtype=U), q(6, 4, 3), f(1), np.zeros(1, I8)),
    "conv-one-channel": conv(q(1, 1, 3, 3, dtype=U), q(1, 1, 1, 1), f(1), np.zeros(1, I8)),
    "product": ("QLinearMatMul", (q(3, 4), np.float32(0.1), I8(3), q(4, 5), np.float32(0.2), I8(0), np.float32(9.0), I8(-3)), {}),
    "product-columns": ("QLinearMatMul", (q(2, 3, 4, dtype=U), np.float32(0.1), U(100), q(4, 5), f(5), np.zeros(5, I8), np.float32(9.0), U(3)), {}),
    "product-batches": ("QLinearMatMul", (q(2, 3, 4, dtype=U), np.float32(0.1), U(100), q(2, 4, 5), np.float32(0.2), I8(0), np.float32(9.0), U(3)), {}),
    "integer": ("MatMulInteger", (q(3, 4), q(4, 5)), {}),
    "integer-zeros": ("MatMulInteger", (q(3, 4, dtype=U), q(4, 5), U(100), I8(3)), {}),
    "integer-columns": ("MatMulInteger", (q(2, 3, 4, dtype=U), q(4, 5), U(100), q(5)), {}),
    "dynamic": ("DynamicQuantizeLinear", (RNG.standard_normal((2, 3, 4)).astype(np.float32),), {}),
    "dynamic-positive": ("DynamicQuantizeLinear", (f(3, 4) + 5,), {}),
    "dynamic-zeros": ("DynamicQuantizeLinear", (np.zeros(3, np.float32),), {}),
}  # fmt: skip
OPS = {"QLinearConv": ir.QuantizedConv, "QLinearMatMul": ir.QuantizedMatMul, "MatMulInteger": ir.IntegerMatMul, "DynamicQuantizeLinear": ir.DynamicQuantize}  # fmt: skip


def model(case: Case, opset: int = 17) -> tuple[ModelProto, dict[str, Any]]:
    kind, (x, *rest), attributes = case
    outputs = ["y", "scale", "zero"] if kind.startswith("Dynamic") else ["y"]
    constants = {f"c{i}": np.asarray(c) for i, c in enumerate(rest)}
    node = helper.make_node(kind, ["x", *constants], outputs, **attributes)
    made = model_of([node], {"x": x}, outputs, constants)
    made.opset_import[0].version = opset
    return made, {"x": x}


@pytest.mark.parametrize("opset", [11, 17, 21])
@pytest.mark.parametrize("name", CASES)
def test_read_and_spelled_again(name: str, opset: int) -> None:
    before, feeds = model(CASES[name], opset)
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    (node,) = graph.nodes
    assert isinstance(node.op, OPS[CASES[name][0]])
    Rewriter(graph).replace(node, node.op, node.inputs)
    wanted = outputs_of(before, feeds, plain=True)
    for want, got, value in zip(wanted, outputs_of(to_onnx(graph), feeds, plain=True), graph.outputs, strict=True):  # fmt: skip
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype
        assert value.type.accepts(ir.TensorType(ir.DType.of(want.dtype), want.shape))


LEFT: dict[str, Case] = {
    "rows": ("QLinearMatMul", (q(3, 4), f(3), q(3), q(4, 5), np.float32(0.2), I8(0), np.float32(9.0), I8(-3)), {}),
    "integer-rows": ("MatMulInteger", (q(3, 4), q(4, 5), q(3)), {}),
    "scales": conv(q(2, 4, 5, 5, dtype=U), q(6, 4, 3, 3), f(5), np.zeros(5, I8)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_other_scales_stay_opaque(name: str) -> None:
    before, _ = model(LEFT[name])
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    assert all(isinstance(node.op, Opaque) for node in graph.nodes)


def network() -> tuple[ModelProto, dict[str, Any]]:
    """Quantised convolutions, one of them depthwise, a pool, and a product."""
    nodes, constants = [], dict[str, Any]()

    def layer(kind: str, x: str, y: str, w: Any, size: int, axis_scales: bool, bias: bool, **attributes: Any) -> None:  # fmt: skip
        scales, zeros = (f(size), np.zeros(size, I8)) if axis_scales else (f(), I8(0))
        own = {"w": w, "s": scales, "z": zeros, **({"b": q(size).astype(np.int32)} if bias else {})}
        constants.update({f"{y}_{k}": v for k, v in own.items()})
        inputs = [x, "sx", "zx", f"{y}_w", f"{y}_s", f"{y}_z", "sy", "zx"]
        nodes.append(helper.make_node(kind, [*inputs, *([f"{y}_b"] if bias else [])], [y], **attributes))  # fmt: skip

    constants |= {"sx": np.float32(0.1), "zx": U(128), "sy": np.float32(1.5)}
    nodes.append(helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["x0"]))
    layer("QLinearConv", "x0", "a", small(8, 3, 3, 3), 8, True, True, pads=[1] * 4)
    layer("QLinearConv", "a", "d", small(8, 1, 3, 3), 8, True, False, group=8)
    nodes.append(helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2]))
    layer("QLinearConv", "p", "e", small(6, 8, 1, 1), 6, False, True)
    nodes.append(helper.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 3, 1]))
    layer("QLinearMatMul", "t", "m", small(6, 4), 4, True, False)
    nodes.append(helper.make_node("DequantizeLinear", ["m", "sx", "zx"], ["y"]))
    feeds = {"x": RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)}
    return model_of(nodes, feeds, ["y"], constants), feeds


def test_reordered_channels_change_nothing() -> None:
    before, feeds = network()
    graph = from_onnx(before)
    assert not any(isinstance(node.op, Opaque) for node in graph.nodes)
    found = {(p.value.name, p.axis) for group in channel_groups(graph) for p in group.placements}
    for place in (("a_w", 0), ("a_s", 0), ("a_z", 0), ("a_b", 0), ("d_w", 0), ("d_s", 0), ("e_w", 1), ("e_w", 0), ("e_b", 0), ("m_w", 0)):  # fmt: skip
        assert place in found, place
    permute_all(graph, 1)
    after = to_onnx(graph)
    assert after != before
    want, got = (outputs_of(m, feeds, plain=True)[0] for m in (before, after))
    assert np.unique(want).size > 10
    np.testing.assert_array_equal(got, want)


def test_dynamic_layers_are_reordered() -> None:
    """A dense layer of integers between two others, whose input is quantised when the network runs."""
    constants = {
        "w": RNG.standard_normal((5, 8)).astype(np.float32), "v": small(8, 6), "z": q(6), "s": f(6),
        "u": RNG.standard_normal((6, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "sq", "zq"]),
        helper.make_node("MatMulInteger", ["q", "v", "zq", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["c"], to=1),
        helper.make_node("Mul", ["c", "s"], ["d"]),
        helper.make_node("Mul", ["d", "sq"], ["e"]),
        helper.make_node("MatMul", ["e", "u"], ["y"]),
    ]
    feeds = {"x": RNG.standard_normal((2, 5)).astype(np.float32)}
    before = model_of(nodes, feeds, ["y"], constants)
    graph = from_onnx(before)
    assert not any(isinstance(node.op, Opaque) for node in graph.nodes)
    found = {(p.value.name, p.axis) for group in channel_groups(graph) for p in group.placements}
    assert {("v", 0), ("v", 1), ("z", 0)} <= found
    permute_all(graph, 1)
    after = to_onnx(graph)
    want, got = (outputs_of(m, feeds, plain=True)[0] for m in (before, after))
    np.testing.assert_allclose(got, want, rtol=1e-5)
