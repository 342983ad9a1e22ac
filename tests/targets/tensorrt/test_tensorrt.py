"""Files for TensorRT: the same numbers in onnxruntime, and a side-car that says how to build them.

No engine is built here: that needs a GPU (see test_tensorrt_engine.py).
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from zoo.exports import example, exported
from zoo.models import SMALL

from graphshrink import ModelError, UsageError, shrink
from support.cli import fails, small_model, succeeds, write
from support.onnx_run import outputs_of
from support.sparse import sparse_model

FP16 = 2e-3
"""How far float16 may move an output, of the largest one."""


def saved(source: Any, target: Path, passes: Any = None, **options: Any) -> dict[str, Any]:
    """Save for TensorRT; the side-car, read back from its file."""
    done = shrink(source, passes, target="tensorrt").save(target, **options)
    assert done.files == (target, target.with_suffix(".trt.json"))
    onnx.checker.check_model(target, full_check=True)
    data: dict[str, Any] = json.loads(done.files[1].read_text())
    assert data == done.data["tensorrt"]
    return data


def error(source: Path, target: Path, feeds: Any) -> float:
    """How far apart two files are, of the largest output."""
    worst = 0.0
    for want, got in zip(
        outputs_of(source, feeds, plain=True), outputs_of(target, feeds, plain=True), strict=True
    ):
        assert want.dtype == got.dtype
        assert want.shape == got.shape
        assert np.abs(want).max() > 1e-2
        worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_zoo_keeps_its_numbers(name: str, onnx_files: Path, tmp_path: Path) -> None:
    source, image = exported(name, onnx_files), example(name).numpy()
    data = saved(source, tmp_path / "a.onnx")
    assert error(source, tmp_path / "a.onnx", image) < 1e-5
    assert data["precision"]["type"] == "fp32"
    data = saved(source, tmp_path / "b.onnx", fp16=True)
    assert 0 < error(source, tmp_path / "b.onnx", image) < FP16
    types = {p.data_type for p in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert data["precision"]["low_nodes"] > 10
    assert (tmp_path / "b.onnx").stat().st_size < 0.62 * (tmp_path / "a.onnx").stat().st_size


def test_a_torch_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    for options, limit in (({}, 1e-5), ({"fp16": True}, FP16)):
        result = shrink(model, example_inputs=(x,), target="tensorrt")
        done = result.save(tmp_path / "m.onnx", **options)
        (got,) = outputs_of(tmp_path / "m.onnx", x.numpy())
        want = model(x).detach().numpy()
        assert np.abs(got - want).max() < limit * np.abs(want).max()
        assert done.data["tensorrt"]["sparsity"]["layers"][0]["shape"] == [8, 3, 3, 3]
        assert done.data["tensorrt"]["opset"] == 23
    # With a profile, the batch size is open.
    result.save(tmp_path / "m.onnx", profile="input:1x3x8x8:2x3x8x8:4x3x8x8")
    three = torch.randn(3, 3, 8, 8)
    (got,) = outputs_of(tmp_path / "m.onnx", three.numpy())
    assert np.abs(got - model(three).detach().numpy()).max() < 1e-5


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.onnx")
    files = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        saved(source, folder / "m.onnx", fp16=True, profile="x:1x3x16x16:8x3x16x16:32x3x16x16")
        files.append([(p.name, p.read_bytes()) for p in sorted(folder.iterdir())])
    assert files[0] == files[1]
    assert [name for name, _ in files[0]] == ["m.onnx", "m.trt.json"]


def test_the_side_car(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.onnx")
    profile = "x:1x3x16x16:8x3x16x16:32x3x16x16"
    data = saved(source, tmp_path / "m.onnx", profile=profile, trt_version="10.13")
    assert data["schema"] == 1
    assert data["model"] == "m.onnx"
    assert data["tensorrt"]["version"] == "10.13"
    assert data["tensorrt"]["operators"]["table"] == "10.1"
    assert data["opset"] == 17
    assert data["inputs"] == [{"name": "x", "type": "FP32", "shape": ["batch", 3, 16, 16]}]
    assert data["outputs"] == [{"name": "y", "type": "FP32", "shape": ["batch", 8, 16, 16]}]
    assert data["profiles"] == [
        {"x": {"min": [1, 3, 16, 16], "opt": [8, 3, 16, 16], "max": [32, 3, 16, 16]}}
    ]
    assert data["trtexec"] == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --stronglyTyped --minShapes=x:1x3x16x16 "
        "--optShapes=x:8x3x16x16 --maxShapes=x:32x3x16x16 --profilingVerbosity=detailed "
        "--exportLayerInfo=m.layers.json --verbose"
    )
    # TensorRT 11 has strongly typed networks only.
    data = saved(source, tmp_path / "m.onnx", profile=profile)
    assert data["tensorrt"]["version"] == "11.1"
    assert "--stronglyTyped" not in data["trtexec"]


@pytest.mark.parametrize("options", [{}, {"fp16": True}, {"bf16": True}])
def test_which_weights_can_be_sparse(tmp_path: Path, options: Any) -> None:
    source = sparse_model(tmp_path / "in.onnx")
    data = saved(source, tmp_path / "m.onnx", "prune-dead", **options)
    layers = {layer["nodes"][0]: layer for layer in data["sparsity"]["layers"]}
    found = {n: (y["valid"], y["eligible"], y["likely"]) for n, y in layers.items()}
    assert found == {
        "first": (True, True, True),
        "second": (False, False, False),
        "third": (False, False, False),
        "head": (True, True, False),
    }
    assert layers["second"]["reason"] == "the pattern does not hold"
    assert layers["first"]["reason"] is None
    assert "--sparsity=enable" in data["trtexec"]


def test_polygraphy_agrees_about_the_pattern(tmp_path: Path) -> None:
    """NVIDIA's own check of the file, by its own walk over the graph."""
    sparse = pytest.importorskip("polygraphy.tools.sparse", reason="needs polygraphy")
    saved(sparse_model(tmp_path / "in.onnx"), tmp_path / "m.onnx", "prune-dead", fp16=True)
    model = onnx.load(tmp_path / "m.onnx")
    pruner = sparse.SparsityPruner(model)
    pruner.check()
    made = {n.name: n.input[1] for n in model.graph.node if len(n.input) > 1}
    assert pruner.sparse_tensors == {made["first"], made["head"]}


def test_polygraphy_finds_no_fault(onnx_files: Path, tmp_path: Path) -> None:
    """NVIDIA's linter, which runs the file node by node."""
    pytest.importorskip("polygraphy", reason="needs polygraphy")
    from polygraphy.tools._main import main as polygraphy

    saved(exported("mobilenet_v2", onnx_files), tmp_path / "m.onnx")
    report = tmp_path / "lint.json"
    words = ["polygraphy", "check", "lint", str(tmp_path / "m.onnx"), "-o", str(report), "--silent"]
    with mock.patch.object(sys, "argv", words), pytest.raises(SystemExit) as stop:
        sys.exit(polygraphy())
    assert not stop.value.code
    found = json.loads(report.read_text())
    assert found["summary"]["failing"] == []
    assert [e for e in found["lint_entries"] if e["level"] == "exception"] == []


def test_profiles(tmp_path: Path) -> None:
    source, out = small_model(tmp_path / "in.onnx"), tmp_path / "m.onnx"

    def refused(*profiles: str) -> str:
        with pytest.raises(UsageError) as caught:
            shrink(source, target="tensorrt").save(out, profile=profiles)
        assert not out.exists()
        return str(caught.value)

    assert "x has free sizes: give --profile x:1x3x16x16:8x3x16x16:32x3x16x16" in refused()
    assert "the model has no input 'z'; its inputs are x" in refused("z:1x3x16x16")
    assert "two profiles" in refused("x:1x3x16x16", "x:2x3x16x16")
    assert "has 4 axes, not 3" in refused("x:1x3x16")
    assert "axis 1 of input 'x' is 3, not 4" in refused("x:1x3x16x16:1x4x16x16:2x3x16x16")
    assert "axis 0 is not min <= opt <= max" in refused("x:4x3x16x16:2x3x16x16:8x3x16x16")
    assert "differ in rank" in refused("x:1x3x16x16:1x3x16x16:1x3x16")
    for text in ("x", "x:axb", ":1x3", "x:-1x3x16x16"):
        assert "is not NAME:min:opt:max" in refused(text)
    data = saved(source, out, profile="x:4x3x16x16")
    assert data["profiles"][0]["x"] == {k: [4, 3, 16, 16] for k in ("min", "opt", "max")}


def test_profiles_of_several_inputs(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.onnx",
        [helper.make_node("Add", ["a:0", "b"], ["y"])],
        {"a:0": ["n", 4], "b": ["n", 4]},
        {"y": ["n", 4]},
        [],
    )
    out = tmp_path / "m.onnx"
    with pytest.raises(
        UsageError, match="a:0, b have free sizes: give --profile a:0:1x4:8x4:32x4 --"
    ):
        shrink(source, target="tensorrt").save(out)
    with pytest.raises(UsageError, match="'a:0' and 'b' give n different sizes: 1x2x3 and 1x2x4"):
        shrink(source, target="tensorrt").save(out, profile=["a:0:1x4:2x4:3x4", "b:1x4:2x4:4x4"])
    data = saved(source, out, profile=["a:0:1x4:2x4:3x4", "b:1x4:2x4:3x4"])
    # trtexec wants names that hold a colon in quotes, and the shell wants those quoted.
    assert "--minShapes='a:0':1x4,b:1x4" in shlex.split(data["trtexec"])


def test_float64_is_refused_or_cast(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64))
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="product"),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(weight, "w")]
    source = write(tmp_path / "in.onnx", nodes, {"x": [2, 64]}, {"y": [2, 64]}, tensors)
    out = tmp_path / "m.onnx"
    with pytest.raises(
        ModelError, match=r"TensorRT has no float64, the type of w, .*--float64 cast"
    ):
        shrink(source, target="tensorrt").save(out)
    with pytest.raises(UsageError, match="option 'float64' is one of refuse, cast, not 'maybe'"):
        shrink(source, target="tensorrt").save(out, float64="maybe")
    data = saved(source, out, float64="cast")
    assert any("float64 became float32" in note for note in data["notes"])
    assert error(source, out, rng.standard_normal((2, 64)).astype(np.float32)) < 1e-5
    assert "DOUBLE" not in onnx.printer.to_text(onnx.load(out)).upper()
    weight[3, 3] = 1e60
    write(source, nodes, {"x": [2, 64]}, {"y": [2, 64]}, [numpy_helper.from_array(weight, "w")])
    with pytest.raises(ModelError, match="float32 cannot hold the numbers of w: 1e"):
        shrink(source, target="tensorrt").save(out, float64="cast")


def test_float64_inputs_and_outputs_change_their_type(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(2.5))),
         helper.make_node("Mul", ["x", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [3])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = saved(model, tmp_path / "m.onnx", float64="cast")
    assert (data["inputs"][0]["type"], data["outputs"][0]["type"]) == ("FP32", "FP32")
    (got,) = outputs_of(tmp_path / "m.onnx", np.array([1.0, 2.0, 3.0], np.float32))
    assert got.tolist() == [2.5, 5.0, 7.5]


def test_opsets_out_of_range(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    out = tmp_path / "m.onnx"
    for opset, version, remedy in ((6, "11.1", 9), (21, "10.1", 20)):
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        with pytest.raises(ModelError, match=rf"the model has {opset}: .*\(model, {remedy}\)"):
            shrink(model, target="tensorrt").save(out, trt_version=version)
    assert not out.exists()


def test_external_data_stays_external(tmp_path: Path) -> None:
    source = sparse_model(tmp_path / "in.onnx")
    folder, out = tmp_path / "split", tmp_path / "m.onnx"
    folder.mkdir()
    onnx.save(onnx.load(source), folder / "in.onnx", save_as_external_data=True,
              location="weights.bin", size_threshold=0)  # fmt: skip
    data = saved(folder / "in.onnx", out, fp16=True)
    assert [p.suffix for p in sorted(tmp_path.glob("m.onnx*"))] == [".onnx", ".data"]
    x = np.random.default_rng(1).standard_normal((1, 256, 2, 2)).astype(np.float32)
    assert error(source, out, x) < FP16
    assert data["sparsity"]["layers"][0]["valid"]


def test_an_old_side_car_never_stands_beside_a_new_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = sparse_model(tmp_path / "in.onnx"), tmp_path / "m.onnx"
    saved(source, out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="is named 'nothing'"):
        shrink(source, target="tensorrt").save(out, fp16=True, keep_float32="nothing")
    assert out.read_bytes() == before
    assert out.with_suffix(".trt.json").exists()

    def fail(*_: object) -> None:
        raise ModelError("killed")

    monkeypatch.setattr("graphshrink.targets.tensorrt.sidecar", fail)
    with pytest.raises(ModelError, match="killed"):
        shrink(source, target="tensorrt").save(out, fp16=True)
    assert out.read_bytes() != before
    assert not out.with_suffix(".trt.json").exists()


def test_the_command_line(tmp_path: Path) -> None:
    source, out = small_model(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    profile = "x:1x3x16x16:8x3x16x16:32x3x16x16"
    given = (source, out, "--target", "tensorrt", "--profile", profile)
    report = json.loads(succeeds(*given, "--fp16", "--json"))
    assert report["emitted"]["files"] == [str(out), str(tmp_path / "out.trt.json")]
    assert report["emitted"]["tensorrt"]["precision"]["type"] == "fp16"
    notes = [line for line in succeeds(*given, "--fp16").splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: 3 nodes compute in fp16, 0 stay in float32"
    assert "--calibration" in notes[1]
    written = json.loads((tmp_path / "out.trt.json").read_text())
    assert written == report["emitted"]["tensorrt"]
    assert "exclude each other" in fails(*given, "--fp16", "--bf16")
    assert "keep-float32 needs fp16 or bf16" in fails(*given, "--keep-float32", "Conv")
    assert "is not a TensorRT version" in fails(*given, "--trt-version", "eleven")
    assert "--profile x:1x3x16x16:8x3" in fails(source, out, "--target", "tensorrt")
    assert "target onnx has no option 'fp16'" in fails(source, out, "--fp16")
    clash = fails(*given, "--report", tmp_path / "out.trt.json")
    assert "would overwrite" in clash


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    line = fails(small_model(tmp_path / "in.onnx"), tmp_path / "o.onnx", "--target", "tensorrt")
    assert '[tensorrt]"' in line
    assert not (tmp_path / "o.onnx").exists()
