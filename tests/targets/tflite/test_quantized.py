"""Q/DQ models become int8 files: against onnxruntime on the same quantised model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from zoo.exports import example, exported

from graphshrink import ModelError, shrink
from graphshrink.running.litert import LiteModel
from graphshrink.targets.emitted import Emitted
from support.litert import KERNELS, relative, run, run_saved
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)


class Samples:
    """What onnxruntime calibrates on."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.batches: Iterator[Any] = iter(
            [
                {name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)}
                for i in range(3)
            ]
        )

    def get_next(self) -> Any:
        return next(self.batches, None)


def quantized(name: str, onnx_files: Path, folder: Path, signed: bool) -> Path:
    """A small network, shrunk, then quantised by onnxruntime."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)
    source, target = folder / "small.onnx", folder / "quantized.onnx"
    result = shrink(exported(name, onnx_files))
    result.save(source)
    quantize_static(
        source, target, Samples(result.graph.inputs[0].name, tuple(example(name).shape)),  # type: ignore[arg-type]
        quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
    )  # fmt: skip
    return target


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", ["lenet", "mobilenet_v2"])
def test_networks(name: str, signed: bool, onnx_files: Path, tmp_path: Path) -> None:
    model, x = quantized(name, onnx_files, tmp_path, signed), example(name).numpy()
    (want,) = outputs_of(model, x, plain=True)
    done = shrink(model).save(tmp_path / "q.tflite")
    assert done.data["operations"]["QUANTIZE"] == done.data["operations"]["DEQUANTIZE"] == 1
    assert not any("float32:" in note for note in done.notes)
    # A step of the output is about 1 / 128 of its largest value.
    for kernels, steps in (("xnnpack", 1), ("builtin", 3)):
        (got,) = run_saved(done, x, kernels)
        assert relative(want, got) <= (steps + 0.1) / 127
    operations = LiteModel(done.files[0]).operations
    assert operations["CONV_2D"][0] == operations["CONV_2D"][1]
    assert done.files[0].stat().st_size < 1.1 * model.stat().st_size


def layer(node: Any, x: Any, scales: dict[str, Any], rest: dict[str, Any]) -> onnx.ModelProto:
    """Quantise, dequantise, one node with what it needs, quantise, dequantise."""
    axes = {"w": {"axis": 0}} if np.ndim(scales.get("w_scale", 0)) else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        *(
            [
                helper.make_node(
                    "DequantizeLinear", ["q", "w_scale", "w_zero"], ["w"], **axes.get("w", {})
                )
            ]
            if "q" in rest
            else []
        ),
        node,
        helper.make_node("QuantizeLinear", ["h", "t", "u"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "t", "u"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in {**scales, **rest}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


SCALES: dict[str, Any] = {
    "s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.1), "u": np.uint8(128),
}  # fmt: skip


def saved(model: onnx.ModelProto, folder: Path) -> Emitted:
    return shrink(model).save(folder / "q.tflite")


@pytest.mark.parametrize("channels", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("kind", ["Conv", "depthwise", "Gemm", "MatMul"])
def test_layers_are_exact_to_one_step(kind: str, channels: bool, tmp_path: Path) -> None:
    fan_out, attributes, shape = 6, {}, (2, 4, 7, 7)
    weight_shape: tuple[int, ...] = (6, 4, 3, 3)
    if kind == "depthwise":
        weight_shape, shape, attributes = (6, 1, 3, 3), (2, 3, 7, 7), {"group": 3}
    elif kind in ("Gemm", "MatMul"):
        weight_shape, shape = (6, 20) if kind == "Gemm" else (20, 6), (3, 20)
        attributes = {"transB": 1} if kind == "Gemm" else {}
        channels = channels and kind == "Gemm"
    scale = RNG.uniform(0.01, 0.02, fan_out if channels else ()).astype(np.float32)
    rest: dict[str, Any] = {
        "q": RNG.integers(-127, 128, weight_shape).astype(np.int8), "w_zero": np.zeros(scale.shape, np.int8),
    }  # fmt: skip
    inputs = ["xf", "w"]
    if kind != "MatMul":
        rest["b"] = RNG.normal(size=6).astype(np.float32)
        inputs.append("b")
    node = helper.make_node("Conv" if kind == "depthwise" else kind, inputs, ["h"], **attributes)
    x = RNG.standard_normal(shape).astype(np.float32)
    model = layer(node, x, {**SCALES, "w_scale": scale}, rest)
    done = saved(model, tmp_path)
    wanted = {"depthwise": "DEPTHWISE_CONV_2D", "Conv": "CONV_2D"}.get(kind, "FULLY_CONNECTED")
    assert set(done.data["operations"]) == {"QUANTIZE", wanted, "DEQUANTIZE"}
    (want,) = outputs_of(model, {"x": x}, plain=True)
    for kernels in KERNELS:
        (got,) = run_saved(done, x, kernels)
        assert np.abs(want - got).max() < 1.01 * 0.1, kernels


@pytest.mark.parametrize(
    ("kind", "code"),
    [("MaxPool", "MAX_POOL_2D"), ("AveragePool", "AVERAGE_POOL_2D"), ("GlobalAveragePool", "MEAN"),
     ("Sigmoid", "LOGISTIC"), ("Tanh", "TANH"), ("Flatten", "RESHAPE"), ("Relu", "RELU")],
)  # fmt: skip
def test_other_kernels(kind: str, code: str, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {}
    if kind.endswith("Pool") and not kind.startswith("Global"):
        attributes = {
            "kernel_shape": [2, 2],
            "strides": [2, 2],
            "pads": [1, 1, 1, 1] if kind == "MaxPool" else [0] * 4,
        }
    node = helper.make_node(kind, ["xf"], ["h"], **attributes)
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32) - 1
    model = layer(node, x, SCALES, {})
    done = saved(model, tmp_path)
    assert code in done.data["operations"]
    assert done.data["operations"]["DEQUANTIZE"] == 1
    (want,) = outputs_of(model, {"x": x}, plain=True)
    for kernels in KERNELS:
        (got,) = run_saved(done, x, kernels)
        assert np.abs(want - got).max() < 1.01 * 0.1, kernels


def test_what_has_no_kernel_is_computed_in_float_and_said(tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    model = layer(helper.make_node("Erf", ["xf"], ["h"]), x, {**SCALES, "t": np.float32(0.01)}, {})
    done = saved(model, tmp_path)
    assert any("Unary is computed in float32" in note for note in done.notes)
    (want,) = outputs_of(model, {"x": x}, plain=True)
    assert np.abs(want - run_saved(done, x, "builtin")[0]).max() < 0.0101


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("ReduceMax", {"axes": [1]}),
     ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}),
     ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 0, 0]})],
)  # fmt: skip
def test_int8_forms_without_a_kernel_are_computed_in_float(
    kind: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    axes = {"axes": np.array(attributes.pop("axes"))} if "axes" in attributes else {}
    node = helper.make_node(kind, ["xf", *axes], ["h"], **attributes)
    x = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)
    model = layer(node, x, {**SCALES, "t": np.float32(0.02)}, axes)
    done = saved(model, tmp_path)
    assert any("is computed in float32" in note for note in done.notes)
    (want,) = outputs_of(model, {"x": x}, plain=True)
    for kernels in KERNELS:
        assert np.abs(want - run_saved(done, x, kernels)[0]).max() < 1.01 * 0.02, kernels


def test_quantised_inputs_and_outputs_keep_their_type(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["f"]),
        helper.make_node("MaxPool", ["f"], ["m"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(7), "z")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    done = saved(model, tmp_path)
    x = RNG.integers(0, 256, (1, 3, 4, 4)).astype(np.uint8)
    (want,) = outputs_of(model, {"x": x})
    got = run(done.files[0], {"x": x}, "builtin", done.data)["y"]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    port = LiteModel(done.files[0]).inputs[0]
    assert (round(port.quantization[0], 6), port.quantization[1]) == (0.1, 7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"u": np.uint16(0)}, "activations can only be int8 or uint8, not u16"),
     ({"t": np.full(3, 0.1, np.float32), "u": np.zeros(3, np.uint8)}, "the activation has a scale for each channel")],
)  # fmt: skip
def test_what_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    with pytest.raises(ModelError, match=reason):
        saved(layer(helper.make_node("Relu", ["xf"], ["h"]), x, {**SCALES, **change}, {}), tmp_path)
