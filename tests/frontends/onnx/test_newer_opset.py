"""Models of old opsets are read in a newer one, by onnx's converter: the numbers stay, and what cannot be converted is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import ModelError, UsageError, shrink, shrink_graph
from support.cli import fails, succeeds, write
from support.onnx_run import outputs_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def old(path: Path, opset: int = 11, **options: Any) -> Path:
    """Operators whose meaning or form changed in opset 13: a softmax over all axes behind the first, axes as attributes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Softmax", ["h"], ["s"]),
        helper.make_node("Unsqueeze", ["s"], ["u"], axes=[0]),
        helper.make_node("ReduceSum", ["u"], ["r"], axes=[3], keepdims=0),
        helper.make_node("Squeeze", ["r"], ["y"], axes=[0]),
    ]
    weight = numpy_helper.from_array(RNG.standard_normal((4, 4)).astype(np.float32), "w")
    return write(path, nodes, {"x": ["n", 3, 4]}, {"y": ["n", 3]}, [weight], opset=opset, **options)


def opset_of(path: Path) -> int:
    return int(onnx.load(path).opset_import[0].version)


def test_the_numbers_stay(tmp_path: Path) -> None:
    given, out = old(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    printed = succeeds(given, out, "--passes", "", "--opset", "17")
    assert opset_of(out) == 17
    assert "opset 11 became opset 17, by the converter of onnx" in printed
    before, after = (outputs_of(onnx.load(p), {"x": X}) for p in (given, out))
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)
    assert opset_of(given) == 11
    onnx.checker.check_model(onnx.load(out))


def test_a_pass_that_needs_it(tmp_path: Path) -> None:
    given, out = old(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "samples.npz", x=np.concatenate([X] * 8))
    options = ["--passes", "default,quantize", "--calibration", tmp_path / "samples.npz"]
    assert "convert the model to a newer one first: --opset 17" in fails(given, out, *options)
    succeeds(given, out, *options, "--opset", "17")
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_bodies_metadata_and_external_data(tmp_path: Path) -> None:
    def body(name: str, node: Any) -> Any:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)])  # fmt: skip

    then = body("then", helper.make_node("Softmax", ["h"], ["a"]))
    other = body("other", helper.make_node("ReduceSum", ["h"], ["b"], axes=[2], keepdims=1))
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    weight = numpy_helper.from_array(RNG.standard_normal((3, 4)).astype(np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    model.metadata_props.add(key="a", value="b")
    given = tmp_path / "in.onnx"
    onnx.save(model, given, save_as_external_data=True, location="w.bin", size_threshold=0)
    made = shrink(given, "", opset=17).model
    assert made.opset_import[0].version == 17
    assert (made.metadata_props[0].key, made.metadata_props[0].value) == ("a", "b")
    for truth in (True, False):
        feeds = {"x": X, "c": np.array(truth)}
        before, after = (outputs_of(m, feeds) for m in (onnx.load(given), made))
        np.testing.assert_allclose(after[0], before[0], rtol=1e-6)


def test_the_same_opset_changes_nothing(tmp_path: Path) -> None:
    model = onnx.load(old(tmp_path / "in.onnx"))
    assert shrink(model, "", opset=11).model == model


def test_what_is_refused(tmp_path: Path) -> None:
    given, out = old(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert "has opset 11, and no older one can be written: --opset 9" in fails(given, out, "--opset", "9")  # fmt: skip
    assert "--opset 99: onnx" in fails(given, out, "--opset", "99")
    assert "--passes '' --opset 17" in fails(given, out, "--opset", "17", "--speedup", "1.5", "--calibration", "x.npz")  # fmt: skip
    with pytest.raises(UsageError, match=r"save\(path, opset=...\)"):
        shrink(nn.Linear(2, 2), example_inputs=(torch.zeros(1, 2),), opset=17)
    model = onnx.load(given)
    model.functions.append(
        helper.make_function("mine", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 11)])
    )  # fmt: skip
    with pytest.raises(ModelError, match="does not convert functions"):
        shrink(model, "", opset=17)


@pytest.mark.parametrize("check", [False, True])
def test_wrong_conversions_are_noticed(check: bool, tmp_path: Path) -> None:
    """onnx's converter makes Upsample a Resize whose coordinates are others by default: the same numbers for some sizes only."""

    def upsampled(mode: str) -> Path:
        node = helper.make_node("Upsample", ["x", "s"], ["y"], mode=mode)
        scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
        shapes: list[Any] = [{"x": [1, 1, 4, 4]}, {"y": [1, 1, 8, 8]}]
        return write(tmp_path / f"{mode}.onnx", [node], *shapes, [scales], opset=9)

    x = RNG.standard_normal((1, 1, 4, 4)).astype(np.float32)
    nearest = upsampled("nearest")
    before, after = (outputs_of(m, {"x": x}) for m in (onnx.load(nearest), shrink(nearest, "", opset=17, check=check).model))  # fmt: skip
    np.testing.assert_array_equal(after[0], before[0])
    with pytest.raises(ModelError, match="outputs differ by"):
        shrink(upsampled("linear"), "", opset=17, check=check)


def test_graphs_too(tmp_path: Path) -> None:
    model = onnx.load(old(tmp_path / "in.onnx"))
    assert shrink_graph(model).opset_import[0].version == 11
