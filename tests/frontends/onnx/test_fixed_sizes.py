"""Sizes of inputs that are fixed: what follows from them, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import UsageError, shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque
from graphshrink.targets.onnx.emitter import to_onnx
from support.cli import fails, succeeds
from support.onnx_run import outputs_of


def flattening(width: str | None = "w", given: str = "n") -> ModelProto:
    """A pooling, and a reshape to sizes that are computed from those of the input."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [given, 4, "h", width])
    half = helper.make_tensor_value_info("half", TensorProto.FLOAT, [given, 4, "h2", "w2"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [given, "h2*w2", 4])
    nodes = [
        helper.make_node("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["half"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["half", "sizes"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["y"], perm=[0, 2, 1]),
    ]
    constants = [
        numpy_helper.from_array(np.array(v, np.int64), n)
        for n, v in (("zero", [0]), ("two", [2]), ("rest", [-1]))
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], constants, value_info=[half])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


X = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)


def test_everything_behind_is_known() -> None:
    model = flattening()
    before = model.SerializeToString()
    free = from_onnx(model)
    assert not all(v.type.is_static for n in free.nodes for v in n.outputs)
    result = shrink(model, fixed_shapes={"x": (2, 4, 6, 8)}, check=True)
    assert model.SerializeToString() == before
    assert [n.op.name for n in result.graph.nodes] == ["MaxPool", "Reshape", "Transpose"]
    assert str(result.graph.outputs[0].type) == "f32[2, 12, 4]"
    made = result.model
    onnx.checker.check_model(made, full_check=True)
    assert [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim] == [2, 4, 6, 8]
    (want,), (got,) = outputs_of(model, {"x": X}), outputs_of(made, {"x": X})
    np.testing.assert_array_equal(want, got)


def test_a_size_may_stay_free() -> None:
    graph = from_onnx(flattening(), {"x": (None, 4, 6, 8)})
    assert str(graph.inputs[0].type) == "f32[n, 4, 6, 8]"
    assert str(next(iter(graph.nodes)).output.type) == "f32[n, 4, 3, 4]"


def test_a_symbol_is_fixed_everywhere() -> None:
    model = flattening()
    other = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    model.graph.input.append(other)
    model.graph.node.append(helper.make_node("Relu", ["z"], ["r"]))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 3]))
    graph = from_onnx(model, {"x": (5, 4, 6, 8)})
    assert str(graph.inputs[1].type) == "f32[5, 3]"
    assert str(graph.outputs[1].type) == "f32[5, 3]"
    with pytest.raises(UsageError, match="input 'z': n is both 5 and 6"):
        from_onnx(model, {"x": (5, 4, 6, 8), "z": (6, 3)})


def test_a_question_mark_is_no_symbol() -> None:
    model = flattening("?", "?")
    graph = from_onnx(model)
    assert graph.inputs[0].type.shape == (None, 4, "h", None)
    fixed = from_onnx(model, {"x": (2, 4, 6, 8)})
    assert str(fixed.outputs[0].type) == "f32[2, 12, 4]"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x1": (1, 4, 6, 8)}, "the model has no input 'x1'; did you mean 'x'"),
        ({"q": (1,)}, "the model has no input 'q'; inputs are x"),
        ({"x": (1, 4, 6)}, "input 'x' takes nx4xhxw, not 1x4x6"),
        ({"x": (1, 3, 6, 8)}, "input 'x' takes nx4xhxw, not 1x3x6x8"),
    ],
)
def test_what_does_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_onnx(flattening(), shapes)


def test_the_option(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(flattening(), path)
    succeeds(path, out, "--fix-shape", "x:?x4x6x8", "--check")
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["n", 4, 6, 8]
    assert "--fix-shape 'x:a' is not NAME:SIZES" in fails(path, out, "--fix-shape", "x:a")
    # The sizes that one of two models has fixed are those that both are compared on.
    succeeds("compare", path, out, "--runs", "1")


def test_torch_models_have_example_inputs() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="fixed_shapes are for ONNX models"):
        shrink(torch.nn.ReLU(), fixed_shapes={"x": (1,)})


def test_a_range_of_floats_is_a_constant() -> None:
    nodes = [
        helper.make_node("Range", ["zero", "five", "half"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(v, np.float32), n)
        for n, v in (("zero", 0), ("five", 5), ("half", 0.5))
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [10]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = next(iter(from_onnx(model).nodes)).output
    assert found.data is not None
    np.testing.assert_array_equal(found.data.numpy(), np.arange(0, 5, 0.5, np.float32))
    for value in (np.inf, np.nan, 1e30):
        constants[1].CopyFrom(numpy_helper.from_array(np.array(value, np.float32), "five"))
        del model.graph.initializer[:]
        model.graph.initializer.extend(constants)
        assert next(iter(from_onnx(model).nodes)).output.data is None


@pytest.mark.parametrize("wrong", ["n", 7])
def test_a_wrong_size_of_an_output_gives_way_to_the_inferred_one(wrong: str | int) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], axis=2),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [wrong, 4])
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), ir_version=8)
    graph = from_onnx(made, {"x": [2, None, None]})
    assert graph.outputs[0].type.shape == (6, 4)
    assert not any(isinstance(node.op, Opaque) for node in graph.nodes)
    (stated,) = to_onnx(graph).graph.output
    assert [d.dim_value for d in stated.type.tensor_type.shape.dim] == [6, 4]
