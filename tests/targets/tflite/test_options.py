"""The options of the target, what files say of themselves, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from graphshrink import MissingExtra, ModelError, UsageError, shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.running.litert import LiteModel
from graphshrink.targets.tflite import Options, convert, write
from graphshrink.targets.tflite.flat import FlatModel, FlatOperation, FlatTensor
from support.cli import call, fails, succeeds
from support.litert import KERNELS, codes, compared, interpreter, model_of, relative, run, run_saved
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 300), nn.ReLU(), nn.Linear(300, 5),
    ).eval()  # fmt: skip


X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def wanted() -> Any:
    with torch.no_grad():
        return small_net()(X).numpy()


def test_default_and_kept_order_of_axes(tmp_path: Path) -> None:
    result = shrink(small_net(), example_inputs=(X,))
    last = result.save(tmp_path / "last.tflite")
    kept = result.save(tmp_path / "kept.tflite", keep_nchw_io=True)
    for done, shape, transposes in ((last, (1, 16, 16, 3), 0), (kept, (1, 3, 16, 16), 1)):
        model = LiteModel(done.files[0])
        assert model.inputs[0].type.shape == shape
        assert model.operations.get("TRANSPOSE", (0, 0))[0] == transposes
        for kernels in KERNELS:
            assert relative(wanted(), run_saved(done, X.numpy(), kernels)[0]) < 1e-5
    assert "channels last" in last.notes[0]
    assert "channels last" not in kept.notes[0]
    assert result.report.to_dict()["emitted"]["inputs"] == {"input": [0, 1, 2, 3]}


def test_a_flattened_image_moves_the_weight_and_not_the_data(tmp_path: Path) -> None:
    done = shrink(small_net(), example_inputs=(X,)).save(tmp_path / "m.tflite")
    assert set(done.data["operations"]) == {
        "PAD",
        "CONV_2D",
        "MAX_POOL_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
    }


def test_a_flattened_image_that_others_read_too() -> None:
    """The order in memory is undone for those who are no dense layers."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
        helper.make_node("ReduceMax", ["f"], ["z"], keepdims=0),
        helper.make_node("Softmax", ["f"], ["s"]),
    ]
    weights = {"k": numbers(4, 2, 3, 3), "w": numbers(36, 3)}
    feeds = {"x": numbers(2, 2, 5, 5)}
    flat = compared(model_of(nodes, feeds, ["y", "z", "s"], weights), feeds)
    assert codes(flat).count("TRANSPOSE") == 1


def test_half_weights(tmp_path: Path) -> None:
    result = shrink(small_net(), example_inputs=(X,))
    full = result.save(tmp_path / "full.tflite").files[0]
    done = result.save(tmp_path / "half.tflite", weights="float16")
    assert done.files[0].stat().st_size < 0.6 * full.stat().st_size
    for kernels in KERNELS:
        error = relative(wanted(), run_saved(done, X.numpy(), kernels)[0])
        assert 1e-6 < error < 2e-3


def test_a_note_says_when_nothing_became_half(tmp_path: Path) -> None:
    small = shrink(nn.Linear(4, 3).eval(), example_inputs=(torch.randn(2, 4),))
    note = "no weight became float16: only float32 weights of 256 numbers or more do"
    assert note in small.save(tmp_path / "small.tflite", weights="float16").notes
    assert note not in small.save(tmp_path / "full.tflite").notes
    large = shrink(small_net(), example_inputs=(X,))
    assert note not in large.save(tmp_path / "large.tflite", weights="float16").notes


def test_an_odd_batch_norm_is_refused_with_its_reason(tmp_path: Path) -> None:
    tensors = {n: np.ones(3, np.float32) for n in ("scale", "bias", "mean")}
    tensors["var"] = np.array([1, -1, 1], np.float32)
    nodes = [helper.make_node("BatchNormalization", ["x", *tensors], ["y"], name="odd")]
    result = shrink(model_of(nodes, {"x": numbers(1, 3, 4, 4)}, ["y"], tensors))
    with pytest.raises(ModelError, match=r"BatchNormalization \(odd: its variance is -1 somewhere"):
        result.save(tmp_path / "m.tflite")


def test_weights_that_half_floats_cannot_hold_stay() -> None:
    weight = numbers(4, 8, 3, 3)
    weight[0] = 1e5
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    feeds = {"x": numbers(1, 8, 5, 5)}
    flat = compared(model_of(nodes, feeds, ["y"], {"w": weight}), feeds, weights="float16")
    assert codes(flat) == ["CONV_2D"]


def test_dynamic_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ConvTranspose", ["r", "t"], ["u"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["u"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ]
    weights = {
        "k": numbers(4, 3, 3, 3),
        "t": numbers(4, 6, 2, 2),
        "w": numbers(5, 6),
        "b": numbers(5),
    }
    feeds = {"x": numbers(1, 3, 8, 8)}
    shapes: dict[str, list[int | str]] = {"x": ["batch", 3, 8, 8]}
    model = model_of(nodes, feeds, ["y"], weights, shapes)
    done = shrink(model).save(tmp_path / "m.tflite")
    assert LiteModel(done.files[0]).inputs[0].type.shape == (None, 8, 8, 3)
    x = numbers(3, 3, 8, 8)
    (want,) = outputs_of(model, {"x": x})
    for kernels in KERNELS:
        loaded = interpreter(done.files[0], kernels)
        (port,) = loaded.get_input_details()
        loaded.resize_tensor_input(port["index"], (3, 8, 8, 3))
        loaded.allocate_tensors()
        loaded.set_tensor(port["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        loaded.invoke()
        assert relative(want, loaded.get_tensor(loaded.get_output_details()[0]["index"])) < 1e-5


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shrink(small_net(), example_inputs=(X,)).save(tmp_path / f"{name}.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_weights_are_written_once_and_aligned(tmp_path: Path) -> None:
    weights = {"a": numbers(64, 64), "b": np.zeros(64, np.float32)}
    weights["c"] = weights["a"].copy()
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "c", "b"], ["y"], transB=1),
    ]
    feeds = {"x": numbers(2, 64)}
    path = shrink(model_of(nodes, feeds, ["y"], weights), "").save(tmp_path / "m.tflite").files[0]
    content = path.read_bytes()
    needle = weights["a"].tobytes()
    assert content.count(needle) == 1
    assert content.index(needle) % 16 == 0
    assert content[4:8] == b"TFL3"
    assert struct.unpack("<I", content[:4])[0] < len(content)


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    from graphshrink import __version__

    path = shrink(small_net(), example_inputs=(X,)).save(tmp_path / "m.tflite").files[0]
    model = LiteModel(path)
    assert model.written_by == __version__
    assert model.minimum_runtime == "1.5.0"
    assert json.loads(model.metadata(convert.METADATA) or b"")["inputs"] == {"input": [0, 2, 3, 1]}
    assert [str(p) for p in model.inputs] == ["input: f32[1, 16, 16, 3] channels last"]


def test_command_line(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.tflite"
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    onnx.save(
        model_of(nodes, {"x": numbers(1, 3, 8, 8)}, ["y"], {"w": numbers(4, 3, 3, 3)}), source
    )
    said = succeeds(source, target)
    assert "x float32[1x8x8x3] channels last" in said
    shown = succeeds("inspect", target)
    assert "0 TRANSPOSE" in shown
    assert "x: f32[1, 8, 8, 3] channels last" in shown
    found = json.loads(succeeds("inspect", target, "--json"))
    assert found["operations"] == {"CONV_2D": {"count": 1, "xnnpack": 1}}
    compared_ = json.loads(succeeds("compare", source, target, "--runs", 3, "--json"))
    assert compared_["equal"]
    assert compared_["error"] < 1e-5
    assert "speed of B beside A" in succeeds("compare", target, source, "--runs", 3)
    kept = tmp_path / "kept.tflite"
    succeeds(source, kept, "--keep-nchw-io", "--weights", "float16")
    assert "2 TRANSPOSE" in succeeds("inspect", kept)
    assert json.loads(succeeds("compare", kept, target, "--runs", 3, "--json"))["equal"]


def test_compare_tells_wrong_numbers(tmp_path: Path) -> None:
    for name, scale in (("a.onnx", 1.0), ("b.onnx", 1.1)):
        nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
        onnx.save(
            model_of(nodes, {"x": numbers(2, 3)}, ["y"], {"s": np.float32(scale)}), tmp_path / name
        )
    succeeds(tmp_path / "b.onnx", tmp_path / "b.tflite")
    done = call("compare", tmp_path / "a.onnx", tmp_path / "b.tflite", "--runs", 3)
    assert done.code == 1
    assert "differ by 1.00e-01" in done.err


def test_files_of_other_converters_are_compared_by_their_sizes(tmp_path: Path) -> None:
    """No metadata: (1, 8, 8, 3) beside (1, 3, 8, 8) is channels last."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": numbers(1, 3, 8, 8)}, ["y"], {"w": numbers(4, 3, 3, 3)})
    onnx.save(model, tmp_path / "a.onnx")
    graph = shrink(model).graph
    flat, *_ = convert.flat_model(graph, Options())
    flat.metadata.clear()
    flat.inputs[0] = ("serving_default_args_0:0", flat.inputs[0][1])
    (tmp_path / "b.tflite").write_bytes(write.to_bytes(flat))
    assert json.loads(succeeds("compare", tmp_path / "a.onnx", tmp_path / "b.tflite", "--json"))[
        "equal"
    ]
    assert "another converter" in succeeds("inspect", tmp_path / "b.tflite")


# What is refused.


def refusal(nodes: list[Any], feeds: dict[str, Any], outputs: list[str], **kept: Any) -> str:
    with pytest.raises(ModelError) as raised:
        shrink(model_of(nodes, feeds, outputs, **kept)).save("never.tflite")
    assert not Path("never.tflite").exists()
    return str(raised.value)


def test_one_error_names_every_op_that_is_missing() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Tanh", ["x"], ["other"]),
        helper.make_node("Det", ["other"], ["b"], name="second"),
        helper.make_node("NonZero", ["x"], ["c"], name="third"),
        helper.make_node("Relu", ["a"], ["d"], name="fine"),
    ]
    said = refusal(nodes, {"x": numbers(1, 3, 4, 4)}, ["b", "c", "d"])
    why = "the IR has no such op"
    assert said == (
        "the model cannot be written as TFLite: "
        f"onnx:Det (first, second: {why}); onnx:NonZero (third: {why})"
    )


def test_the_reason_of_the_reading_is_given() -> None:
    parts = dict.fromkeys(("scale", "shift", "mean"), np.ones(3, np.float32))
    node = helper.make_node("BatchNormalization", ["x", *parts, "var"], ["y"])
    negative = np.array([1, -1, 1], np.float32)
    said = refusal([node], {"x": numbers(1, 3, 4, 4)}, ["y"], weights=parts | {"var": negative})
    assert "onnx:BatchNormalization (y: " in said
    assert "variance" in said


def test_torch_models_are_told_of_the_other_way(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    with pytest.raises(ModelError, match=r"det.*via='litert-torch'"):
        shrink(Odd().eval(), example_inputs=(torch.eye(3),)).save(tmp_path / "m.tflite")


def test_spatial_sizes_that_are_not_known() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    said = refusal([node], {"x": numbers(1, 3, 8, 8)}, ["y"], weights={"w": numbers(4, 3, 3, 3)},
                   shapes={"x": [1, 3, "height", "width"]})  # fmt: skip
    assert (
        "Conv (conv: its spatial size is not known (1x3xheightxwidth): fix it with --fix-shape or fixed_shapes)"
        in said
    )


def test_whole_numbers_that_tflite_cannot_compute() -> None:
    node = helper.make_node("Div", ["x", "x"], ["y"], name="div")
    said = refusal([node], {"x": np.ones((2, 3), np.int8)}, ["y"])
    assert said == "the model cannot be written as TFLite: Div (div: LiteRT has no kernel for int8)"


def test_element_types_that_tflite_has_not() -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"], name="add")
    assert "no kernels for u64" in refusal([node], {"x": np.ones((2, 3), np.uint64)}, ["y"])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_are_computed_in_float32_and_it_is_said(dtype: str, tmp_path: Path) -> None:
    x = numbers(2, 3).astype(dtype)
    model = model_of([helper.make_node("Tanh", ["x"], ["y"])], {"x": x}, ["y"])
    model.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    done = shrink(model).save(tmp_path / "m.tflite")
    assert f"{dtype} is computed in float32, inputs and outputs too" in done.notes
    (got,) = run_saved(done, x.astype(np.float32), "builtin")
    assert relative(np.tanh(x.astype(np.float64)), got) < 1e-5


def test_more_than_a_file_can_hold() -> None:
    huge = np.broadcast_to(np.float32(0), (2**15, 2**14 + 1))
    x, w = FlatTensor("x", (1, 2**14 + 1), "FLOAT32"), FlatTensor("w", huge.shape, "FLOAT32", huge)
    y = FlatTensor("y", (1, 2**15), "FLOAT32")
    fields = {"fusedActivationFunction": 0, "keepNumDims": False}
    dense = FlatOperation("FULLY_CONNECTED", (x, w), (y,), ("FullyConnectedOptions", fields))
    with pytest.raises(
        ModelError, match=r"2,147,614,720 bytes, and a \.tflite file holds 2 GB at most"
    ):
        write.to_bytes(FlatModel("m", [("x", x)], [("y", y)], [dense]))


@pytest.mark.parametrize("name", ["ai_edge_litert", "flatbuffers"])
def test_the_extra_is_missing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    result = shrink(small_net(), example_inputs=(X,))
    with pytest.raises(MissingExtra, match=r"\[tflite\]"):
        result.save(tmp_path / "m.tflite")


def test_litert_torch_is_missing(tmp_path: Path) -> None:
    result = shrink(small_net(), example_inputs=(X,))
    with pytest.raises(MissingExtra, match=r"\[litert-torch\]"):
        result.save(tmp_path / "m.tflite", via="litert-torch")


def test_wrong_options(tmp_path: Path) -> None:
    result = shrink(small_net(), example_inputs=(X,))
    with pytest.raises(UsageError, match="option 'weights' is one of float32, float16, not 'int4'"):
        result.save(tmp_path / "m.tflite", weights="int4")
    with pytest.raises(UsageError, match="option 'via' is one of"):
        result.save(tmp_path / "m.tflite", via="magic")
    with pytest.raises(UsageError, match="does not exist"):
        result.save(tmp_path / "none" / "m.tflite")


def test_files_that_are_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    assert "cannot read" in fails("inspect", bad)
    bad.write_bytes(b"nothing at all")
    assert "is not a .tflite file" in fails("inspect", bad)
    bad.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 64)
    assert "LiteRT cannot load" in fails("inspect", bad)
    assert "--text" in fails("inspect", bad, "--text")


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the shape of input_1 is not known"):
        shrink(small_net()).save(tmp_path / "m.tflite")


def test_inputs_and_constants_that_are_returned(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["k"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("y", "x2", "k")],
        [onnx.numpy_helper.from_array(numbers(2, 3), "c")],
    )
    graph.node.append(helper.make_node("Identity", ["x"], ["x2"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    done = shrink(model).save(tmp_path / "m.tflite")
    x = numbers(2, 3)
    for kernels in KERNELS:
        got = run(done.files[0], {"x": x}, kernels)
        for want, name in zip(outputs_of(model, {"x": x}), ("y", "x2", "k"), strict=True):
            np.testing.assert_array_equal(got[name], want)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_compare_takes_floats_of_other_sizes_and_scalars(dtype: Any, tmp_path: Path) -> None:
    """A file computes in float32 what the model has in another size, and a scalar stays one."""
    source, target = tmp_path / "in.onnx", tmp_path / "out.tflite"
    feeds = {"x": np.array([[1, 2, 3]], dtype), "s": np.array(2, dtype)}
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"]), helper.make_node("Exp", ["s"], ["z"])]
    onnx.save(model_of(nodes, feeds, ["y", "z"]), source)
    succeeds(source, target)
    error = json.loads(succeeds("compare", source, target, "--runs", 1, "--json"))["error"]
    assert error < (2e-3 if dtype is np.float16 else 1e-6)
    assert json.loads(succeeds("compare", target, source, "--runs", 1, "--json"))["equal"]
    data = tmp_path / "data.npz"
    np.savez(data, **feeds)
    assert json.loads(succeeds("compare", source, target, "--data", data, "--json"))["equal"]


def test_compare_without_inputs(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.tflite"
    weights = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 0.1])}
    onnx.save(model_of([helper.make_node("Div", ["a", "b"], ["y"])], {}, ["y"], weights), source)
    succeeds(source, target)
    assert json.loads(succeeds("compare", source, target, "--runs", 1, "--json"))["equal"]


def test_a_value_that_torch_returns_twice_is_two_outputs(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Any) -> Any:
            y = torch.relu(x)
            return y, y, x * 2.0

    x = torch.randn(2, 3)
    done = shrink(Twice().eval(), example_inputs=(x,)).save(tmp_path / "m.tflite")
    assert len(done.data["outputs"]) == 3
    for kernels in KERNELS:
        for got, want in zip(run_saved(done, x.numpy(), kernels), Twice()(x), strict=True):
            assert np.array_equal(got, want.numpy())


def test_a_resize_to_nothing_is_refused() -> None:
    scales = np.array([1, 1, 2, 0.5], np.float32)
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    model = model_of([node], {"x": np.zeros((1, 2, 4, 1), np.float32)}, ["y"], {"scales": scales})
    with pytest.raises(ModelError, match=r"Resize .*it has no elements"):
        convert.flat_model(from_onnx(model), Options())
