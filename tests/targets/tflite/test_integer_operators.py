"""ONNX's operators on quantised numbers become int8 kernels: LiteRT against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from graphshrink import ModelError
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.write import to_bytes
from support.litert import KERNELS, model_of, run
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(5)
SCALES = {"x0": 0.03, "a": 10.0, "d": 2500.0, "e": 5e5, "m": 1e8}


def weight(*shape: int, dtype: Any = np.int8) -> Any:
    """Weights of half the range: pairs of products overflow 16 bits otherwise, where a processor has no VNNI."""
    middle = 0 if dtype == np.int8 else 128
    return (middle + RNG.integers(-64, 64, shape)).astype(dtype)


def network(dtype: Any, unsigned_weights: bool = False) -> tuple[ModelProto, dict[str, Any]]:
    """A convolution, a depthwise one, a pool, a pointwise one and a product, all of quantised numbers."""
    nodes, constants = [], dict[str, Any]()
    held = np.uint8 if unsigned_weights else np.int8
    middle = held(128 if unsigned_weights else 0)

    def layer(kind: str, x: str, y: str, w: Any, many: int, bias: int, **attributes: Any) -> None:
        scales = RNG.uniform(0.5, 1.5, many or ()).astype(np.float32)
        own = {"w": w, "s": scales, "z": np.full(many or (), middle, held)}
        if bias:
            own["b"] = RNG.integers(-500, 500, bias).astype(np.int32)
        constants.update({f"{y}_{k}": v for k, v in own.items()})
        source = "d" if x == "p" else "e" if x == "t" else x
        scale, zero = f"{source}_scale", f"{source}_zero"
        inputs = [x, scale, zero, *(f"{y}_{k}" for k in "wsz"), f"{y}_scale", f"{y}_zero"]
        more = [f"{y}_b"] if bias else []
        nodes.append(helper.make_node(kind, [*inputs, *more], [y], **attributes))

    for number, (name, scale) in enumerate(SCALES.items()):
        point = number - 2 + (128 if dtype == np.uint8 else 0)
        constants |= {f"{name}_scale": np.float32(scale), f"{name}_zero": np.array(point, dtype)}
    nodes.append(helper.make_node("QuantizeLinear", ["x", "x0_scale", "x0_zero"], ["x0"]))
    layer("QLinearConv", "x0", "a", weight(8, 3, 3, 3, dtype=held), 8, 8, pads=[1] * 4)
    layer("QLinearConv", "a", "d", weight(8, 1, 3, 3, dtype=held), 8, 0, group=8)
    nodes.append(helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2]))
    layer("QLinearConv", "p", "e", weight(6, 8, 1, 1, dtype=held), 0, 6)
    nodes.append(helper.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 3, 1]))
    layer("QLinearMatMul", "t", "m", weight(6, 4, dtype=held), 4, 0)
    nodes.append(helper.make_node("DequantizeLinear", ["m", "m_scale", "m_zero"], ["y"]))
    feeds = {"x": RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)}
    return model_of(nodes, feeds, ["y"], constants), feeds


@pytest.mark.parametrize(
    ("dtype", "unsigned_weights"), [(np.int8, False), (np.uint8, False), (np.uint8, True)]
)
def test_a_network_is_int8_throughout(dtype: Any, unsigned_weights: bool) -> None:
    before, feeds = network(dtype, unsigned_weights)
    (want,) = outputs_of(before, feeds, plain=True)
    assert np.unique(want).size > 10
    flat, notes, orders = flat_model(from_onnx(before), Options())
    codes = [operation.code for operation in flat.operations]
    assert codes.count("QUANTIZE") == codes.count("DEQUANTIZE") == 1
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED"} <= set(codes)
    assert not any("float32:" in note for note in notes)
    for kernels in KERNELS:
        (got,) = run(to_bytes(flat), feeds, kernels, orders).values()
        # Each kernel may round to the next step.
        assert np.abs(want - got).max() <= 2.1 * SCALES["m"], kernels
        assert np.abs(want - got).mean() <= 0.3 * SCALES["m"], kernels


def test_weights_with_other_zero_points_are_computed_in_float() -> None:
    w = weight(6, 3, 1, 1)
    inputs = ["x0", "s", "z", "w", "ws", "wz", "ys", "z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x0"]),
        helper.make_node("QLinearConv", inputs, ["c"]),
        helper.make_node("DequantizeLinear", ["c", "ys", "z"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.03), "z": np.int8(1), "w": w, "ws": np.float32(0.5), "wz": np.int8(7), "ys": np.float32(2.0),
    }  # fmt: skip
    feeds = {"x": RNG.standard_normal((1, 3, 4, 4)).astype(np.float32)}
    before = model_of(nodes, feeds, ["y"], constants)
    (want,) = outputs_of(before, feeds, plain=True)
    flat, notes, orders = flat_model(from_onnx(before), Options())
    assert any("float32" in note for note in notes)
    for kernels in KERNELS:
        (got,) = run(to_bytes(flat), feeds, kernels, orders).values()
        assert np.abs(want - got).max() <= 2.1


def test_products_of_two_computed_matrices() -> None:
    inputs = ["a0", "s", "z", "b0", "s", "z", "ys", "z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["a0"]),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["b0"]),
        helper.make_node("QLinearMatMul", inputs, ["c"]),
        helper.make_node("DequantizeLinear", ["c", "ys", "z"], ["y"]),
    ]
    constants = {"s": np.float32(0.03), "z": np.int8(1), "ys": np.float32(0.1)}
    feeds = {n: RNG.standard_normal(s).astype(np.float32) for n, s in (("a", (2, 3, 4)), ("b", (2, 4, 5)))}  # fmt: skip
    before = model_of(nodes, feeds, ["y"], constants)
    (want,) = outputs_of(before, feeds, plain=True)
    flat, _, orders = flat_model(from_onnx(before), Options())
    for kernels in KERNELS:
        (got,) = run(to_bytes(flat), feeds, kernels, orders).values()
        assert np.abs(want - got).max() <= 0.101


def refused(nodes: list[Any], constants: dict[str, Any], x: Any) -> str:
    before = model_of(nodes, {"x": x}, ["y"], constants)
    with pytest.raises(ModelError) as error:
        flat_model(from_onnx(before), Options())
    return str(error.value)


def test_scales_that_contradict_each_other_are_refused() -> None:
    """Integers that are read with another scale than they were written with are other numbers."""
    constants = {"s": np.float32(0.5), "t": np.float32(0.25), "z": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "z"], ["y"]),
    ]
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    assert "is not that of the integers that it reads" in refused(nodes, constants, x)


def test_dynamic_quantisation_is_refused() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    assert "quantise the model statically" in refused(nodes, {}, x)
