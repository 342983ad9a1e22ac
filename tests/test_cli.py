"""The command line from outside: results, one-line errors, exit codes, files left as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv, batch norm and SiLU of a symbolic batch."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "gamma": (8,), "beta": (8,), "mean": (8,)}
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["var"] = rng.uniform(0.5, 1.5, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 16, 16])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "in.onnx"
    onnx.save(made, path)
    return path


def cli(*arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphshrink", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def fails(*arguments: Any) -> str:
    """The one line that a wrong call prints."""
    lines = cli(*arguments, code=2).stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_shrink_folds_the_batch_norm(model: Path) -> None:
    out, report = model.with_name("out.onnx"), model.with_name("r.json")
    assert "3 -> 2 nodes" in cli(model, out, "--check", "--report", report).stdout
    shrunk = onnx.load(out)
    onnx.checker.check_model(shrunk, full_check=True)
    assert [n.op_type for n in shrunk.graph.node] == ["Conv", "Sigmoid", "Mul"]
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    first, second = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for p in (model, out)
    )
    assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()
    written = json.loads(report.read_text())
    assert written["after"]["ops"] == {"Activation": 1, "Conv": 1}
    assert max(p["error"] for p in written["passes"]) < 1e-5


def test_same_bytes_every_time(model: Path) -> None:
    a, b = model.with_name("a.onnx"), model.with_name("b.onnx")
    cli(model, a)
    cli(model, b)
    assert a.read_bytes() == b.read_bytes()


def test_output_may_be_the_input(model: Path) -> None:
    cli(model, model)
    assert len(onnx.load(model).graph.node) == 3


def test_torch_is_not_imported(model: Path) -> None:
    code = (
        "import sys; from graphshrink.cli import main\n"
        f"sys.argv = ['graphshrink', {str(model)!r}, {str(model.with_name('o.onnx'))!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'scipy', 'networkx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_inspect_compare_and_passes(model: Path) -> None:
    out = model.with_name("out.onnx")
    cli(model, out)
    assert json.loads(cli("inspect", model, "--json").stdout)["macs"] == 8 * 27 * 256
    found = json.loads(cli("compare", model, out, "--runs", 5, "--json").stdout)
    assert found["equal"]
    assert found["speedup"]["low"] <= found["speedup"]["median"] <= found["speedup"]["high"]
    names = {p["name"] for p in json.loads(cli("passes", "--json").stdout)}
    assert {"merge-linear", "fold-constants", "prune-dead"} <= names


def test_compare_of_different_models_is_exit_1(model: Path) -> None:
    other = onnx.load(model)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "b"))
    path = model.with_name("other.onnx")
    onnx.save(other, path)
    assert "differ" in cli("compare", model, path, "--runs", 1, code=1).stderr


def test_bad_input(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    truncated, text, empty = (tmp_path / n for n in ("cut.onnx", "text.onnx", "empty.onnx"))
    truncated.write_bytes(model.read_bytes()[:-50])
    text.write_text("not a model\n")
    empty.touch()
    assert "no such file" in fails(tmp_path / "none.onnx", out)
    assert "truncated or not an ONNX" in fails(truncated, out)
    assert "not an ONNX" in fails(text, out)
    assert "empty" in fails(empty, out)
    assert "is a folder" in fails(tmp_path, out)
    assert "does not exist" in fails(model, tmp_path / "no" / "out.onnx")
    assert "does not exist" in fails(model, text / "out.onnx")
    assert "did you mean 'prune-dead'" in fails(model, out, "--passes", "prun-dead")
    assert "no option 'max-kernal'; did you mean 'max-kernel'" in fails(
        model, out, "--passes", "merge-linear{max-kernal=5}"
    )
    assert "takes int, not 'big'" in fails(model, out, "--passes", "merge-linear{max-kernel=big}")
    assert "takes batchx3x16x16, not 1x3x8x8" in fails(
        model, out, "--check", "--input", "x:1x3x8x8"
    )
    assert "did you mean 'x'" in fails(model, out, "--check", "--input", "xx:1x3x16x16")
    assert "is not NAME:" in fails(model, out, "--check", "--input", "x=1x3")
    assert out.read_bytes() == b"old"


def external(folder: Path, location: str) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [tensor],
    )
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def test_external_data_must_be_there_and_inside(tmp_path: Path) -> None:
    outside, folder, out = tmp_path / "secret.bin", tmp_path / "model", tmp_path / "out.onnx"
    outside.write_bytes(bytes(48))
    assert "is missing" in fails(external(folder, "w.bin"), out)
    assert "outside" in fails(external(folder, "../secret.bin"), out)
    assert "outside" in fails(external(folder, str(outside)), out)
    (folder / "link.bin").symlink_to(outside)
    assert "outside" in fails(external(folder, "link.bin"), out)
    (folder / "short.bin").write_bytes(bytes(40))
    assert "ends at byte 48" in fails(external(folder, "short.bin"), out)
    assert not out.exists()


def test_external_data_goes_along_to_another_folder(tmp_path: Path) -> None:
    source, out = external(tmp_path / "model", "w.bin"), tmp_path / "elsewhere" / "out.onnx"
    weights = np.arange(12, dtype=np.float32)
    (source.parent / "w.bin").write_bytes(weights.tobytes())
    out.parent.mkdir()
    cli(source, out)
    cli(source, out)
    assert len(list(out.parent.iterdir())) == 2
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
    assert y.tolist() == [weights.reshape(4, 3).sum(1).tolist()]


def test_kill_while_writing_leaves_the_old_pair(tmp_path: Path) -> None:
    source, out = external(tmp_path / "model", "w.bin"), tmp_path / "out.onnx"
    (source.parent / "w.bin").write_bytes(np.ones(12, np.float32).tobytes())
    cli(source, out)
    for attempt in range(6):
        (source.parent / "w.bin").write_bytes(np.full(12, attempt, np.float32).tobytes())
        process = subprocess.Popen([sys.executable, "-m", "graphshrink", str(source), str(out)],
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        time.sleep(0.25 + 0.07 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
        assert len(set(y.ravel().tolist())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: run the tests as a user")
def test_read_only_folder(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "read-only" in fails(model, folder / "out.onnx")
