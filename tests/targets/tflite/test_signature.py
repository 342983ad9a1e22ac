"""Names of inputs and outputs in files from torch, and errors that list every reason at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from graphshrink import ModelError, shrink
from graphshrink.running.litert import LiteModel
from support.cli import succeeds
from support.litert import interpreter, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')


@dataclasses.dataclass
class Fields:
    logits: torch.Tensor
    extra: torch.Tensor


torch.utils._pytree.register_dataclass(Fields)


class Dict(nn.Module):
    def forward(self, input: Any, mask: Any) -> Any:
        return {"scores": input - mask, "hidden": (input * 2, mask * 3)}


class One(nn.Module):
    def forward(self, input: Any) -> Any:
        return torch.relu(input)


class Tuple(nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return x + y, x - y, x + y


class Data(nn.Module):
    def forward(self, output: Any) -> Any:
        return Fields(output + 1, output * 2)


class Nested(nn.Module):
    def forward(self, batch: Any) -> Any:
        return {"z": batch["b"] + 1, "a": batch["c"] * 2}


A, B = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])

CASES = [
    (Dict(), (A, B), ["input", "mask"], ["scores", "hidden_0", "hidden_1"]),
    (One(), (A,), ["input"], ["output"]),
    (Tuple(), (A, B), ["x", "y"], ["output_0", "output_1", "output_2"]),
    (Data(), (A,), ["output"], ["logits", "extra"]),
    (Nested(), ({"b": A, "c": B},), ["batch_b", "batch_c"], ["z", "a"]),
]


@pytest.mark.parametrize("exported", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize(("module", "given", "inputs", "outputs"), CASES)
def test_names_are_those_of_forward(
    module: nn.Module, given: Any, inputs: Any, outputs: Any, exported: bool, tmp_path: Path
) -> None:
    model: Any = torch.export.export(module.eval(), given) if exported else module.eval()
    shrink(model, example_inputs=given).save(tmp_path / "m.tflite")
    found = LiteModel(tmp_path / "m.tflite")
    assert [p.name for p in found.inputs] == inputs
    assert [p.name for p in found.outputs] == outputs
    leaves = torch.utils._pytree.tree_leaves
    feeds = dict(zip(inputs, [x.numpy() for x in leaves(given)], strict=True))
    made = interpreter(tmp_path / "m.tflite").get_signature_runner()(**feeds)
    result = module(*given)
    want = [result.logits, result.extra] if isinstance(result, Fields) else leaves(result)
    for name, tensor in zip(outputs, want, strict=True):
        assert np.array_equal(made[name], tensor.numpy())


def test_an_exported_onnx_file_and_the_tflite_file_of_its_module_are_comparable(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.randn(1, 3, 4, 4)
    onnx_file, lite_file = tmp_path / "m.onnx", tmp_path / "m.tflite"
    torch.onnx.export(module, (x,), onnx_file, dynamo=True, verbose=False)
    shrink(module, example_inputs=(x,)).save(lite_file)
    printed = succeeds("compare", onnx_file, lite_file, "--runs", 1)
    assert "matched in order: linear = output" in printed


def refusal(nodes: list[Any], feeds: dict[str, Any], outputs: list[str]) -> str:
    with pytest.raises(ModelError) as raised:
        shrink(model_of(nodes, feeds, outputs)).save("never.tflite")
    return str(raised.value)


def test_nodes_behind_a_refused_one_are_tried_too() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Asinh", ["d"], ["a"], name="later"),
        helper.make_node("Relu", ["a"], ["y"], name="fine"),
        helper.make_node("MaxPool", ["w"], ["p"], name="pool", kernel_shape=[2, 2, 2]),
        helper.make_node("Relu", ["p"], ["z"], name="fine_too"),
    ]
    feeds = {
        "x": np.ones((1, 2, 2), np.float32),
        "w": np.ones((1, 1, 4, 4, 4), np.float32),
    }
    said = refusal(nodes, feeds, ["y", "z"])
    assert "onnx:Det (first: the IR has no such op)" in said
    assert "MaxPool (pool: 3-D" in said
    assert "fine" not in said


def test_several_refused_nodes_in_a_row_are_all_named() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], name="one", kernel_shape=[2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("MaxPool", ["b"], ["y"], name="two", kernel_shape=[2, 2, 2]),
    ]
    said = refusal(nodes, {"x": np.ones((1, 1, 6, 6, 6), np.float32)}, ["y"])
    assert "MaxPool (one, two: 3-D" in said
