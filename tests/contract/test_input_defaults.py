"""Inputs that have a default: files that cannot have such inputs hold the default, as a constant that passes see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.running.litert import LiteModel
from support.cli import succeeds
from support.onnx_run import outputs_of

X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)


def network(ir_version: int = 8) -> ModelProto:
    """Convolution, batch norm and a factor, whose weights are listed as inputs."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {"w": rng.standard_normal((4, 3, 3, 3))}
    weights |= {name: rng.uniform(0.5, 1, 4) for name in ("gain", "shift", "mean", "variance")}
    weights["factor"] = np.array(3.0)
    norm = ["c", "gain", "shift", "mean", "variance"]
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w"], ["c"]),
                helper.make_node("BatchNormalization", norm, ["n"]),
                helper.make_node("Mul", ["n", "factor"], ["y"]),
            ],
            "network",
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape)
                for n, a in ({"x": X} | weights).items()
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 6, 6))],
            [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=ir_version,
    )


def inputs(path: Path) -> list[str]:
    if path.suffix == ".tflite":
        return [port.name for port in LiteModel(path).inputs]
    return [value.name for value in onnx.load(path).graph.input]


@pytest.mark.parametrize("version", [3, 4, 8])
@pytest.mark.parametrize("target", ["tflite", "tensorrt"])
def test_the_default_holds(target: str, version: int, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert" if target == "tflite" else "onnx_graphsurgeon")
    source = tmp_path / "in.onnx"
    written = tmp_path / ("out.tflite" if target == "tflite" else "out.onnx")
    onnx.save(network(version), source)
    said = succeeds(source, written, "--target", target)
    note = "inputs that have a default are constants in this file: w, gain, shift, mean, variance"
    assert (note in said) == (version >= 4)
    if version >= 4 or target == "tflite":
        assert inputs(written) == ["x"]
    # The batch norm and the factor went into the weights, which are known.
    assert "3 -> 1 nodes" in said
    compared = json.loads(succeeds("compare", source, written, "--runs", 1, "--json"))
    assert compared["error"] < 1e-6


def test_the_default_holds_where_the_target_is_chosen_late(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path / "external"
    folder.mkdir()
    source, target = folder / "in.onnx", tmp_path / "out.tflite"
    model = network()
    model.graph.node[1].CopyFrom(helper.make_node("Relu", ["c"], ["n"]))
    onnx.save(model, source, save_as_external_data=True, location="in.data", size_threshold=64)
    result = shrink(source)
    emitted = result.save(target)
    assert inputs(target) == ["x"]
    assert any(note.startswith("inputs that have a default") for note in emitted.notes)
    lite = LiteModel(target)
    lite.feed({"x": X.transpose(0, 2, 3, 1)})
    lite.invoke()
    (want,) = outputs_of(source, {"x": X})
    np.testing.assert_allclose(lite.results()[0].transpose(0, 3, 1, 2), want, rtol=1e-4, atol=1e-4)
    # The result itself is what it was.
    assert [v.name for v in result.model.graph.input] == [v.name for v in network().graph.input]


def test_plain_onnx_keeps_the_inputs(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network(), source)
    assert "default" not in succeeds(source, target)
    assert inputs(target) == inputs(source)


def test_calibration_needs_no_defaults(tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    source, data = tmp_path / "in.onnx", tmp_path / "data.npz"
    onnx.save(network(), source)
    np.savez(data, x=X)
    target = tmp_path / "out.onnx"
    succeeds(source, target, "--target", "tensorrt", "--fp16", "--calibration", data)
    assert inputs(target) == ["x"]
