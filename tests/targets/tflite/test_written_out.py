"""ONNX operators without an op in the IR are written out for TFLite, and LiteRT is held against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphshrink import ModelError, shrink
from support.cli import succeeds
from support.litert import KERNELS, model_of, run_saved
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)
node = helper.make_node


def integers(kind: type, *shape: int) -> Any:
    info = np.iinfo(kind)
    return RNG.integers(info.min, info.max + 1, shape).astype(kind)


def held(nodes: list[Any], feeds: dict[str, Any], weights: dict[str, Any], folder: Path) -> str:
    """Save for TFLite, compare with onnxruntime, and give back the note on the reading."""
    model = model_of(nodes, feeds, [nodes[-1].output[0]], weights)
    done = shrink(model).save(folder / "m.tflite", keep_nchw_io=True)
    (want,) = outputs_of(model, feeds)
    for kernels in KERNELS:
        (got,) = run_saved(done, feeds, kernels)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    (note,) = [n for n in done.notes if "read again" in n]
    return note


@pytest.mark.parametrize(("a_kind", "b_kind"), [(np.uint8, np.uint8), (np.int8, np.int8)])
@pytest.mark.parametrize("zeros", ["none", "scalar", "columns"])
def test_matmul_integer(a_kind: type, b_kind: type, zeros: str, tmp_path: Path) -> None:
    weights = {"w": integers(b_kind, 6, 4)}
    names = ["x", "w"]
    if zeros != "none":
        weights |= {"a0": integers(a_kind, 1)[0], "b0": integers(b_kind, 1)[0]}
        names += ["a0", "b0"]
    if zeros == "columns":
        weights["b0"] = np.zeros(4, b_kind)
    held([node("MatMulInteger", names, ["y"])], {"x": integers(a_kind, 3, 6)}, weights, tmp_path)


@pytest.mark.parametrize("zero", [np.uint8(7), np.array([7], np.uint8)], ids=["scalar", "vector"])
def test_matmul_integer_of_a_vector_gives_a_vector(zero: Any, tmp_path: Path) -> None:
    weights = {"w": integers(np.uint8, 6, 4), "a0": zero}
    nodes = [node("MatMulInteger", ["x", "w", "a0"], ["y"])]
    held(nodes, {"x": integers(np.uint8, 6)}, weights, tmp_path)


@pytest.mark.parametrize("zero", [np.uint8(9), np.array([9], np.uint8)], ids=["scalar", "vector"])
def test_conv_integer_over_one_axis(zero: Any, tmp_path: Path) -> None:
    weights = {"w": integers(np.uint8, 3, 2, 3), "x0": np.uint8(7), "w0": zero}
    nodes = [node("ConvInteger", ["x", "w", "x0", "w0"], ["y"], pads=[1, 1])]
    held(nodes, {"x": integers(np.uint8, 1, 2, 6)}, weights, tmp_path)


def test_conv_integer_pads_with_its_zero_point(tmp_path: Path) -> None:
    weights = {"w": integers(np.uint8, 4, 2, 3, 3), "x0": np.uint8(7), "w0": np.uint8(100)}
    nodes = [node("ConvInteger", ["x", "w", "x0", "w0"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])]
    held(nodes, {"x": integers(np.uint8, 1, 2, 5, 5)}, weights, tmp_path)


@pytest.mark.parametrize("data", ["plain", "positive", "zeros", "one"])
def test_a_dynamically_quantised_layer(data: str, tmp_path: Path) -> None:
    x = {
        "plain": RNG.standard_normal((3, 6)), "positive": RNG.uniform(1, 2, (3, 6)),
        "zeros": np.zeros((3, 6)), "one": np.ones((1, 6)),
    }[data].astype(np.float32)  # fmt: skip
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["f", "s"], ["y"]),
    ]
    # Processors without VNNI add pairs of products in 16 bits, which larger weights overflow.
    weight = integers(np.int8, 6, 4) // np.int8(2)
    note = held(nodes, {"x": x}, {"w": weight}, tmp_path)
    assert "with DynamicQuantizeLinear, MatMulInteger written out" in note


def test_operators_that_onnx_defines_by_functions(tmp_path: Path) -> None:
    x = RNG.standard_normal((4, 5)).astype(np.float32)
    loss = [node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], reduction="sum")]
    held(loss, {"x": x, "t": np.array([1, 0, 4, 2])}, {}, tmp_path)


def test_what_stays_is_named_once_the_rest_is_written_out(tmp_path: Path) -> None:
    nodes = [
        node("MatMulInteger", ["x", "w"], ["i"], name="product"),
        node("Cast", ["i"], ["f"], to=1),
        node("Det", ["f"], ["y"], name="det"),
    ]
    model = model_of(nodes, {"x": integers(np.uint8, 3, 3)}, ["y"], {"w": integers(np.uint8, 3, 3)})
    with pytest.raises(ModelError) as caught:
        shrink(model).save(tmp_path / "m.tflite")
    assert "onnx:Det (det: the IR has no such op)" in str(caught.value)
    assert "MatMulInteger" not in str(caught.value)


def test_external_weights(tmp_path: Path) -> None:
    nodes = [node("MatMulInteger", ["x", "w"], ["y"])]
    x = {"x": integers(np.uint8, 3, 40)}
    model = model_of(nodes, x, ["y"], {"w": integers(np.uint8, 40, 40)})
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    succeeds(tmp_path / "m.onnx", tmp_path / "m.tflite")
    (want,) = outputs_of(tmp_path / "m.onnx", x)
    (got,) = run_saved(shrink(tmp_path / "m.onnx").save(tmp_path / "n.tflite"), x, "builtin")
    assert np.array_equal(want, got)


@pytest.mark.parametrize("form", ["window", "length", "both", "two-sided", "flat", "odd"])
def test_short_time_fourier_transforms(form: str, tmp_path: Path) -> None:
    size = 15 if form == "odd" else 16
    weights: dict[str, Any] = {"step": np.array(5)}
    names = ["x", "step", "", ""]
    if form != "length":
        weights["window"], names[2] = np.hanning(size).astype(np.float32), "window"
    if form in ("length", "both"):
        weights["size"], names[3] = np.array(size), "size"
    signal = RNG.standard_normal((2, 64) if form == "flat" else (2, 64, 1)).astype(np.float32)
    made = node("STFT", names, ["y"], onesided=int(form != "two-sided"))
    assert "STFT" in held([made], {"x": signal}, weights, tmp_path)


def test_transforms_that_stay(tmp_path: Path) -> None:
    x = RNG.standard_normal((1, 64, 2)).astype(np.float32)
    made = node("STFT", ["x", "step", "w"], ["y"], onesided=0)
    weights = {"step": np.array(4), "w": np.ones(16, np.float32)}
    with pytest.raises(ModelError, match="STFT"):
        shrink(model_of([made], {"x": x}, ["y"], weights)).save(tmp_path / "m.tflite")


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_one_hot_codes(axis: int, kind: type, tmp_path: Path) -> None:
    weights = {"depth": np.array(4, kind), "values": np.float32([-1, 2])}
    indices = RNG.integers(-6, 6, (3, 5)).astype(kind)
    made = node("OneHot", ["x", "depth", "values"], ["y"], axis=axis)
    assert "OneHot" in held([made], {"x": indices}, weights, tmp_path)
