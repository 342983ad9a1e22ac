"""Initial states of zero go, whatever computes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree

RNG = np.random.default_rng(0)
HIDDEN = 4


def layer(kind: str, gates: int, state: float, copies: int) -> ModelProto:
    """A recurrent layer both ways whose states are expanded to the batch of its input, and joined or cut."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "one", "two"], ["batch"]),
        helper.make_node("Concat", ["batch", "width"], ["target"], axis=0),
        helper.make_node("Expand", ["state", "target"], ["wide"]),
        helper.make_node("Unsqueeze", ["wide", "zero"], ["single"]),
        helper.make_node("Concat", ["single"] * copies, ["many"], axis=0),
        helper.make_node("Slice", ["many", "zero", "two"], ["h"]),
        helper.make_node(
            kind, ["x", "w", "r", "b", "", "h", *(["h"] if kind == "LSTM" else [])], ["y"], direction="bidirectional", hidden_size=HIDDEN
        ),
    ]  # fmt: skip
    weights = {
        "w": RNG.normal(size=(2, gates * HIDDEN, 3)).astype("f4"),
        "r": RNG.normal(size=(2, gates * HIDDEN, HIDDEN)).astype("f4"),
        "b": RNG.normal(size=(2, 2 * gates * HIDDEN)).astype("f4"),
        "state": np.full(1, state, "f4"),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "width": np.array([HIDDEN]),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("state", [0.0, 0.5])
def test_states_of_zero_go(kind: str, gates: int, state: float, copies: int) -> None:
    before = layer(kind, gates, state, copies)
    made = shrink(before).model
    agree(before, made, {"x": RNG.normal(size=(5, 2, 3)).astype("f4")})
    agree(before, made, {"x": RNG.normal(size=(1, 1, 3)).astype("f4")})
    kinds = [n.op_type for n in made.graph.node]
    assert (kinds == [kind]) == (state == 0)
