"""What is read from logs and layer information of trtexec.

The fixtures are written by hand in the forms that NVIDIA's developer guide ("Sparsity", "Engine Inspector") and public logs
show (https://github.com/NVIDIA/TensorRT/issues/4056 and 4020); the names of kernels are of that kind.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphshrink.frontends.onnx import from_onnx
from graphshrink.ir import ModelError
from graphshrink.targets.tensorrt.sidecar import sparse_layers
from graphshrink.targets.tensorrt.trtexec_log import (
    EngineLayer,
    parse_layers,
    parse_log,
    read_report,
    with_engine_results,
)
from support.cli import fails, succeeds, write

DATA = Path(__file__).parent / "trtexec"


def sparse(*shape: int) -> np.ndarray:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    array[:, ::2] = 0.0
    return array


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Four convolutions, three of them with the pattern; the names are those of the fixtures."""
    weights = {"w1": sparse(64, 64, 3, 3), "w2": sparse(64, 64, 1, 1), "w3": sparse(256, 64, 1, 1)}
    weights["w4"] = np.random.default_rng(1).standard_normal((8, 256, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2"),
        helper.make_node("Conv", ["c", "w3"], ["d"], name="conv3"),
        helper.make_node("Conv", ["d", "w4"], ["y"], name="conv4"),
    ]
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    return write(tmp_path / "m.onnx", nodes, {"x": [1, 64, 8, 8]}, {"y": [1, 8, 6, 6]}, tensors)


def test_a_log_of_before_8_6() -> None:
    report = read_report(DATA / "old.log")
    assert (report.eligible, report.sparse) == (3, 2)
    assert report.layers == (
        EngineLayer("conv1 + relu1", ("conv1", "relu1"), True, True),
        EngineLayer("conv2", ("conv2",), True, False),
        EngineLayer("conv3", ("conv3",), True, True),
    )
    assert report.milliseconds == 0.412


def test_a_log_of_10_the_last_round_counts() -> None:
    report = read_report(DATA / "new.log")
    assert (report.eligible, report.sparse) == (3, 1)
    assert [layer.name for layer in report.layers if layer.sparse] == ["conv1 + relu1"]
    node = report.of_node("relu1")
    assert node is not None
    assert node.sparse
    assert report.of_node("conv4") is None


def test_counts_without_names() -> None:
    text = (
        "[I] [TRT] (Sparsity) Found 39 layer(s) eligible to use sparse tactics\n"
        "[I] [TRT] (Sparsity) Chose 0 layer(s) using sparse tactics\n"
    )
    report = parse_log(text)
    assert (report.eligible, report.sparse, report.layers) == (39, 0, ())


def test_nothing_eligible() -> None:
    text = (
        "[TensorRT] INFO: (Sparsity) Layers eligible for sparse math: \n"
        "[TensorRT] INFO: (Sparsity) TRT inference plan picked sparse implementation for layers: \n"
    )
    assert parse_log(text).to_dict() == {
        "eligible": 0, "sparse": 0, "milliseconds": None, "layers": []
    }  # fmt: skip


@pytest.mark.parametrize("name", ["layers-10.json", "layers-11.json"])
def test_layer_information(name: str) -> None:
    """Weights with the pattern are one thing, a sparse kernel is another."""
    report = read_report(DATA / name)
    assert (report.eligible, report.sparse) == (2, 1)
    first = report.of_node("conv1")
    assert first is not None
    assert first.kernel is not None
    assert first.sparse
    assert "sptensor" in first.kernel
    second = report.of_node("conv2")
    assert second is not None
    assert (second.eligible, second.sparse) == (True, False)
    third = report.of_node("conv3")
    assert third is not None
    assert (third.eligible, third.sparse) == (False, False)


def test_kernels_that_are_called_dense_are_not_sparse() -> None:
    names = {
        "sm80_xmma_fprop_sparse_conv_f16f16_f16f32_f32_nhwckrsc_nhwc_sptensor16x8x32_t1r1s1": True,
        "sm80_xmma_fprop_avdt_sparse_int8int8_f32": True,
        "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_nt_n_tilesize128x128x64_sptensor16x8x32": True,
        "sm80_xmma_fprop_avdt_dense_int8int8_f32": False,
        "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_tensor16x8x32": False,
    }
    layers = [{"Name": f"l{i}", "TacticName": name} for i, name in enumerate(names)]
    report = parse_layers({"Layers": layers})
    assert [layer.sparse for layer in report.layers] == list(names.values())


def test_weights_beside_what_the_engine_did(model: Path) -> None:
    rows = with_engine_results(sparse_layers(from_onnx(model)), read_report(DATA / "new.log"))
    assert [(r["nodes"], r["valid"], r["engine"]) for r in rows] == [
        (["conv1"], True, "sparse"),
        (["conv2"], True, "dense"),
        (["conv3"], True, "dense"),
        (["conv4"], False, None),
    ]
    rows = with_engine_results(
        sparse_layers(from_onnx(model)), read_report(DATA / "layers-11.json")
    )
    assert [r["engine"] for r in rows] == ["sparse", "dense", "not eligible", None]


def test_the_command_line_shows_it(model: Path) -> None:
    printed = succeeds("inspect", model, "--trt-log", DATA / "new.log")
    lines = [line.split() for line in printed.splitlines()]
    assert ["conv1", "64x64x3x3", "yes", "yes", "no", "sparse", "-"] in lines
    assert ["conv2", "64x64x1x1", "yes", "yes", "no", "dense", "-"] in lines
    assert ["conv4", "8x256x1x1", "no", "no", "no", "not", "named", "-"] in lines
    assert (
        "3 layers with the pattern in the engine, 1 of them with sparse kernels; 0.398 ms"
        in printed
    )
    found = json.loads(succeeds("inspect", model, "--trt-log", DATA / "layers-10.json", "--json"))
    assert (found["eligible"], found["sparse"]) == (2, 1)
    assert "sptensor" in found["weights"][0]["kernel"]


def test_a_log_of_another_model_is_noticed(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "other.log"
    log.write_text((DATA / "new.log").read_text().replace("conv", "layer"))
    assert "names no node of" in succeeds("inspect", model, "--trt-log", log)


def test_files_that_are_something_else(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "x.log"
    assert "No such file" in fails("inspect", model, "--trt-log", other)
    other.write_text("[I] Engine built in 3 sec.\n")
    assert "--sparsity=enable --verbose" in fails("inspect", model, "--trt-log", other)
    other.write_text('{"Layers": ["conv1", "conv2"]}')
    assert "--profilingVerbosity=detailed" in fails("inspect", model, "--trt-log", other)
    other.write_text('{"nodes": []}')
    assert "no list of Layers" in fails("inspect", model, "--trt-log", other)
    other.write_text('{"Layers": ')
    assert "x.log" in fails("inspect", model, "--trt-log", other)
    with pytest.raises(ModelError, match="no list of Layers"):
        parse_layers([])
