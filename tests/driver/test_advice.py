"""Advice: its figures, what it says where nothing is gained, and that its commands run."""

from __future__ import annotations

import ast
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphshrink
from graphshrink import UsageError, advise
from graphshrink.advice.advice import Finding
from support.cli import fails, small_model, succeeds, write
from support.small_networks import residual_model


def dense(path: Path, *weights: np.ndarray) -> Path:
    """Square dense layers with ReLUs behind."""
    nodes: list[Any] = []
    for i in range(len(weights)):
        nodes.append(helper.make_node("Gemm", [f"r{i}", f"w{i}"], [f"c{i}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i + 1}"]))
    shape, last = [1, weights[0].shape[0]], f"r{len(weights)}"
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    return write(path, nodes, {"r0": shape}, {last: shape}, tensors)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    samples = np.random.default_rng(0).standard_normal((60, 1, 6, 6)).astype(np.float32)
    np.savez("samples.npz", x=samples)
    return residual_model(tmp_path / "in.onnx")


def test_figures_of_a_residual_network(network: Path) -> None:
    found = advise(str(network))
    stem, block, head = 8 * 9 * 36, 2 * 8 * 16 * 9 * 36, 5 * 8
    assert found.size.macs == stem + 2 * block + head
    assert found["exact"].gain == "no"
    assert found["exact"].figures["layers"] == (6, 6)
    deep = found["depth"]
    assert deep.gain == "possible"
    assert deep.figures["residual_blocks"] == 2
    assert deep.figures["residual_share"] == pytest.approx(2 * block / found.size.macs)
    # Channels of the blocks, and of the stem with the stream behind it, which the dense layer sums.
    assert found["width"].figures["channels"] >= 2 * 16
    assert found["2:4"].gain == "no"
    assert found["2:4"].figures["fit"] == 5  # The stem sums over one channel.
    assert "NVIDIA" in found["2:4"].text
    assert found["latency"].gain == "unknown"


def test_the_commands_run(network: Path) -> None:
    found = json.loads(succeeds("advise", network, "--json"))
    commands = {
        f["command"] for f in found["findings"] if f["command"] and "--measure" not in f["command"]
    }
    assert len(commands) >= 2
    for command in commands:
        # The planned speedup is timed; the same plan by MACs is not.
        command = command.replace("--speedup 1.3", "--macs 0.8").replace("SAMPLES", "samples.npz")
        program, *words = shlex.split(command)
        assert program == "graphshrink"
        succeeds(*words)
    assert Path("small.onnx").exists()


def test_exact_merges_come_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("a", "b")
    tensors = [
        numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), n) for n in names
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    path = write(tmp_path / "two layers.onnx", nodes, {"x": [4, 8]}, {"y": [4, 8]}, tensors)
    found = advise(path)
    assert (found["exact"].gain, found["exact"].figures["layers"]) == ("yes", (2, 1))
    assert "50% fewer MACs" in found["exact"].text
    assert found.conclusion.startswith("Without any loss: exact merges.")
    program, *words = shlex.split(found["exact"].command)
    assert (program, words[0]) == ("graphshrink", str(path))


def test_the_conclusion_enumerates_what_is_possible(network: Path) -> None:
    gains = {"exact": "yes", "depth": "possible", "width": "possible", "blocks": "possible"}
    findings = tuple(Finding(name, gain, "") for name, gain in gains.items())
    said = replace(advise(network), findings=findings).conclusion
    assert said.startswith("Without any loss: exact merges. Depth, width and blocks can make it")


def test_nothing_is_gained_and_it_says_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = write(tmp_path / "in.onnx", nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, [])
    printed = succeeds("advise", path)
    assert "Nothing will be gained here" in printed
    assert "--speedup" not in printed
    gains = {f.capability: f.gain for f in advise(path).findings}
    assert {gains[c] for c in ("exact", "depth", "width", "2:4", "blocks", "int8")} == {"no"}


def test_folded_batch_norms_are_called_a_small_gain(tmp_path: Path) -> None:
    found = advise(small_model(tmp_path / "in.onnx"))
    assert found["exact"].gain == "small"
    assert "most runtimes" in found["exact"].text


def test_open_sizes_are_the_first_step(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    shapes: tuple[Any, Any] = ({"x": ["n", 3, "h", "w"]}, {"y": ["n", 4, "h2", "w2"]})
    path = write(tmp_path / "in.onnx", nodes, *shapes, [weight])
    found = advise(path)
    assert found["depth"].gain == found["width"].gain == "unknown"
    assert found["depth"].command == f"graphshrink advise {path} --fix-shape 'x:?x3xHxW'"
    assert "sizes" in found.conclusion
    fixed = json.loads(succeeds("advise", path, "--fix-shape", "x:?x3x8x8", "--json"))
    assert "unknown" not in {
        f["gain"] for f in fixed["findings"] if f["capability"] in ("depth", "width")
    }
    (command,) = {f["command"] for f in fixed["findings"] if f["capability"] == "tflite"}
    assert command.endswith("--fix-shape 'x:?x3x8x8'")


def test_patterns_that_are_there_already_are_gains(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    assert advise(dense(tmp_path / "a.onnx", weight))["2:4"].gain == "possible"
    half = weight.copy()
    half.reshape(512, 128, 4)[..., :2] = 0
    found = advise(dense(tmp_path / "b.onnx", half))
    assert found["2:4"].gain == "yes"
    assert "--target tensorrt" in found["2:4"].command
    blocks = weight * np.kron(np.eye(4, dtype=np.float32), np.ones((128, 128), np.float32))
    rows, columns = (np.random.default_rng(i).permutation(512) for i in (1, 2))
    path = dense(tmp_path / "c.onnx", weight, blocks[rows][:, columns], weight)
    found = advise(path)
    assert (found["blocks"].gain, found["blocks"].figures["exact"]) == ("yes", 1)
    command = found["blocks"].command.replace("blocks.onnx", str(tmp_path / "o.onnx"))
    succeeds(*shlex.split(command)[1:])
    assert (tmp_path / "o.onnx").stat().st_size < 0.8 * path.stat().st_size


def test_a_quantised_model_is_told_what_is_carried(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    path = write(tmp_path / "in.onnx", nodes, {"x": [1, 4]}, {"y": [1, 4]}, [scale, zero])
    found = advise(path)
    assert "before it is quantised" in found["int8"].text
    with pytest.raises(KeyError):
        found["int4"]


def test_layers_that_can_compute_in_integers(network: Path, tmp_path: Path) -> None:
    found = advise(network)["int8"]
    assert found.gain == "possible"
    assert (found.figures["layers"], found.figures["other_layers"]) == (6, 0)
    before, after = found.figures["bytes"]
    _, *words = shlex.split(found.command.replace("SAMPLES", "samples.npz"))
    succeeds(*words)
    written = graphshrink.shrink("int8.onnx", "").report.after
    # Weights are a quarter of their size; scales and zero points come on top.
    assert after < written.bytes < before
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    double = TensorProto.DOUBLE
    values = [helper.make_tensor_value_info(n, double, [4, 4]) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), ir_version=8)
    assert (advise(model)["int8"].gain, "float32" in advise(model)["int8"].text) == ("no", True)


def test_integers_without_weights_and_without_sizes(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    shapes = {"a": [4, 8], "b": [8, 4]}
    products = advise(write(tmp_path / "two.onnx", [node], shapes, {"y": [4, 4]}, []))["int8"]
    assert products.gain == "possible"
    assert "bytes" not in products.text
    weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    size = ["n", 8, "h", "w_"]
    found = advise(write(tmp_path / "open.onnx", [conv], {"x": size}, {"y": size}, [weight]))
    assert found["int8"].gain == "unknown"
    assert "1 of 1 layer can compute in 8-bit integers, but MACs are unknown" in found["int8"].text
    assert found["int8"].command == found["depth"].command


def test_what_tflite_refuses_is_named(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="mine", name="odd")
    path = write(tmp_path / "in.onnx", [node], {"x": [1, 4]}, {"y": [1, 4]}, [])
    found = advise(path)
    assert found["tflite"].gain == "no"
    assert "odd" in found["tflite"].text
    (note,) = [n for n in found.notes if "not understood" in n]
    assert f"graphshrink inspect {path}" in note


def test_latencies_come_from_the_table_or_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(tmp_path / "t.sqlite"))
    path = dense(tmp_path / "in.onnx", np.eye(8, dtype=np.float32))
    assert advise(path)["latency"].gain == "unknown"
    assert not (tmp_path / "t.sqlite").exists()
    threaded = advise(path, threads=2)["latency"]
    assert threaded.command.endswith("--measure --device ort-cpu --threads 2")
    measured = advise(path, measure=True)["latency"]
    assert measured.gain in ("yes", "no")
    assert measured.figures["before_ms"] > 0
    looked_up = advise(path)["latency"]
    assert looked_up.figures["ops_ms"] == measured.figures["ops_ms"]
    assert list(looked_up.figures["ops_ms"]) == ["Linear + relu"]


def test_onnx_needs_no_torch(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert advise(network)["tflite"].gain == "yes"


def test_models_in_memory_get_calls(network: Path) -> None:
    model = onnx.load(network)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    found = advise(model)
    assert found.model == "ModelProto"
    assert found["depth"].command == "graphshrink.plan(model, samples, speedup=1.3).apply().model"
    names = {"graphshrink": graphshrink, "model": model}
    eval(found["tflite"].command, names)
    assert Path("out.tflite").exists()


def test_torch_models(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
    nn = torch.nn
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    found = advise(model, example_inputs=(torch.zeros(1, 8, 6, 6),))
    assert found["depth"].gain == "possible"
    for command in found.commands:
        assert "example_inputs=inputs" in command
        ast.parse(command)
    bare = advise(model)
    assert bare["depth"].command == "graphshrink.advise(model, example_inputs=inputs)"


def test_forms_for_people(network: Path) -> None:
    found = advise(network)
    assert repr(found).startswith(f"<Advice for {network}: exact merges: no")
    table, _, commands = str(found).partition("Next:")
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in str(found)
    assert f"    {found['depth'].command}\n" in commands  # Whole, on a line of its own.
    assert found._repr_html_().startswith("<pre")
    assert json.loads(json.dumps(found.to_dict()))["conclusion"] == found.conclusion
    lines = succeeds("advise", network).splitlines()
    assert any(line.startswith("depth: possible: 2 residual blocks") for line in lines)


def test_wrong_use(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    assert "nothing.onnx" in fails("advise", tmp_path / "nothing.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("not a model\n")
    assert "text.onnx" in fails("advise", text)
    assert "no input 'y'" in fails("advise", model, "--fix-shape", "y:1x3")
    assert "there is no device 'gpu'" in fails("advise", model, "--device", "gpu")
    with pytest.raises(UsageError, match="cannot shrink a int"):
        advise(3)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    weight = np.full((16, 16), np.nan, np.float32)
    found = advise(dense(tmp_path / "in.onnx", weight, weight))
    assert found["width"].gain in ("possible", "no")


def test_an_empty_graph(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph([], "g", value, value), ir_version=8)
    assert "Nothing will be gained" in advise(model).conclusion
