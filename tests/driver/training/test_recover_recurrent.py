"""Recurrent layers of ONNX files are trained: torch's weights go back into ONNX's order of gates, by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import recover_file, shrink
from graphshrink.readers import HostReaders
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.trainable import Trainable

STEPS, INPUTS, HIDDEN = 5, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X = np.random.default_rng(0).standard_normal((64, STEPS, 2, INPUTS)).astype(np.float32)


def network(kind: str, directions: int, bias: bool = True, **attributes: Any) -> ModelProto:
    rng = np.random.default_rng(1)
    rows = GATES[kind] * HIDDEN
    shapes = {"w": (directions, rows, INPUTS), "r": (directions, rows, HIDDEN), "b": (directions, 2 * rows), "v": (HIDDEN, 2)}  # fmt: skip
    weights = {n: (0.5 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
    if not bias:
        del weights["b"]
    if directions == 2:
        attributes["direction"] = "bidirectional"
    nodes = [
        helper.make_node(kind, ["x", "w", "r", *(["b"] if bias else [])], ["y"], "layer", hidden_size=HIDDEN, **attributes),
        helper.make_node("MatMul", ["y", "v"], ["z"], "head"),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, "n", INPUTS])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [STEPS, directions, "n", 2])
    made = [numpy_helper.from_array(a, name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [z], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def numbers(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("kind", "attributes"), [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
)
def test_what_torch_trained_is_what_the_file_computes(
    kind: str, attributes: dict[str, Any], directions: int
) -> None:
    model = network(kind, directions, **attributes)
    trainable = Trainable(shrink(model, []).graph, HostReaders())
    assert not trainable.frozen
    same = to_onnx(trainable.trained()).SerializeToString(deterministic=True)
    assert same == model.SerializeToString(deterministic=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in trainable.module.parameters():
            p.add_(0.3 * torch.randn_like(p))
        wanted = trainable.module(torch.from_numpy(X[0])).numpy()
    written = to_onnx(trainable.trained())
    np.testing.assert_allclose(run(written, X[0]), wanted, rtol=1e-4, atol=1e-5)
    before = numbers(model)
    assert all((a != before[name]).mean() > 0.9 for name, a in numbers(written).items())


@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_recurrent_layer_learns_and_stays_sparse(bias: bool, tmp_path: Path) -> None:
    teacher = network("LSTM", 2, bias)
    student = shrink(teacher, "sparsify{sparsity=0.5}").model
    samples = [(x,) for x in X]
    done = recover_file(student, teacher, samples, epochs=5, lr=0.1, measure="mse", progress=False)
    assert not any("were not trained" in note for note in done.notes)
    assert done.after.loss < 0.9 * done.before.loss
    done.save(tmp_path / "out.onnx")
    found, before = numbers(onnx.load(tmp_path / "out.onnx")), numbers(student)
    for name in ("w", "r"):
        ((own, was),) = [(found[n], a) for n, a in before.items() if n.startswith(name)]
        assert (was == 0).mean() >= 0.45
        assert not own[was == 0].any()
        assert not np.array_equal(own, was)
