"""Initializers that are also inputs: passes see them as weights, unless the caller keeps them as inputs with a default."""

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
from support.cli import call, succeeds
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


NOTE = "6 inputs have a default and are weights here, no inputs: w, gain, shift, mean, variance and 1 more"
REMEDY = " (--overridable-initializers keeps them as inputs)"


@pytest.mark.parametrize("version", [3, 4, 8])
@pytest.mark.parametrize("target", ["tflite", "tensorrt"])
def test_the_default_holds(target: str, version: int, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert" if target == "tflite" else "onnx_graphsurgeon")
    source = tmp_path / "in.onnx"
    written = tmp_path / ("out.tflite" if target == "tflite" else "out.onnx")
    onnx.save(network(version), source)
    said = succeeds(source, written, "--target", target)
    assert (NOTE in said) == (version >= 4)
    # No file of these targets has such inputs, with the option or without.
    assert "--overridable-initializers" not in said
    if version >= 4 or target == "tflite":
        assert inputs(written) == ["x"]
    # The batch norm and the factor were folded into the weights, which are constant.
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
    result = shrink(source, overridable_initializers=True)
    emitted = result.save(target)
    assert inputs(target) == ["x"]
    assert any(note.startswith("inputs that have a default") for note in emitted.notes)
    lite = LiteModel(target)
    lite.feed({"x": X.transpose(0, 2, 3, 1)})
    lite.invoke()
    (want,) = outputs_of(source, {"x": X})
    np.testing.assert_allclose(lite.results()[0].transpose(0, 3, 1, 2), want, rtol=1e-4, atol=1e-4)
    # The result itself is unchanged.
    assert [v.name for v in result.model.graph.input] == [v.name for v in network().graph.input]


@pytest.mark.parametrize("version", [3, 4, 8])
def test_they_are_weights(version: int, tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network(version), source)
    said = succeeds(source, target, "--check")
    assert (NOTE + REMEDY in said) == (version >= 4)
    assert "3 -> 1 nodes" in said
    (want,) = outputs_of(source, {"x": X})
    (got,) = outputs_of(target, {"x": X})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if version >= 4:
        assert inputs(target) == ["x"]
    compared = json.loads(succeeds("compare", source, target, "--runs", 1, "--json"))
    assert compared["error"] < 1e-6


def test_no_command_names_an_option_that_it_lacks(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnx.save(network(), source)
    said = succeeds("inspect", source)
    assert NOTE in said
    assert "--overridable-initializers" not in said


def test_they_stay_inputs_where_the_caller_wants_to_set_them(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network(), source)
    said = succeeds(source, target, "--overridable-initializers", "--check")
    assert "default" not in said
    assert "8 -> 8 nodes" in said
    assert inputs(target) == inputs(source)
    other = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    (want,) = outputs_of(source, {"x": X, "w": other})
    (got,) = outputs_of(target, {"x": X, "w": other})
    np.testing.assert_array_equal(got, want)


def test_the_model_that_was_given_keeps_its_inputs() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    assert [v.name for v in shrink(model).model.graph.input] == ["x"]
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_without_other_inputs_keeps_them(tmp_path: Path) -> None:
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(X * 0, "x"))
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    said = succeeds(source, target)
    assert "every input of the model has a default: all stay inputs" in said
    assert inputs(target) == inputs(source)


def test_a_sparse_initializer_is_no_input_either(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([2.0], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1]), "s_indices")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "s"], ["y"])],
            "sparse",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, (3,)) for n in ("x", "s")],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3,))],
            sparse_initializer=[helper.make_sparse_tensor(values, indices, [3])],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    succeeds(source, target)
    assert inputs(target) == ["x"]
    (got,) = outputs_of(target, {"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(got, [1, 3, 1])


@pytest.mark.parametrize("set_by_data", [False, True])
def test_comparing_uses_the_defaults_unless_the_data_set_them(
    set_by_data: bool, tmp_path: Path
) -> None:
    source, other, data = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "data.npz"
    onnx.save(network(), source)
    model = network()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    )
    onnx.save(model, other)
    np.savez(data, x=X, **({"w": np.ones((4, 3, 3, 3), np.float32)} if set_by_data else {}))
    done = call("compare", source, other, "--runs", 1, "--json", "--data", data)
    error = json.loads(done.out)["error"]
    assert (done.code, error) == (0, 0) if set_by_data else done.code == 1 and error > 0.1


def test_calibration_needs_no_defaults(tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    source, data = tmp_path / "in.onnx", tmp_path / "data.npz"
    onnx.save(network(), source)
    np.savez(data, x=X)
    target = tmp_path / "out.onnx"
    succeeds(source, target, "--target", "tensorrt", "--fp16", "--calibration", data)
    assert inputs(target) == ["x"]
