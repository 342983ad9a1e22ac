"""Initial states of zero go, whatever computes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree

RNG = np.random.default_rng(0)
HIDDEN = 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    kind: str, state: float, copies: int, filled: bool = False, **attrs: float
) -> ModelProto:
    """A layer that reads both ways, whose states have the batch of its input and are joined and cut."""
    fill = numpy_helper.from_array(np.full(1, state, "f4"))
    made = ("ConstantOfShape", ["target"]) if filled else ("Expand", ["state", "target"])
    states = ["h", "h"] if kind == "LSTM" else ["h"]
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "one", "two"], ["batch"]),
        helper.make_node("Concat", ["batch", "width"], ["target"], axis=0),
        helper.make_node(*made, ["wide"], **({"value": fill} if filled else {})),
        helper.make_node("Unsqueeze", ["wide", "zero"], ["single"]),
        helper.make_node("Concat", ["single"] * copies, ["many"], axis=0),
        helper.make_node("Slice", ["many", "zero", "two"], ["h"]),
        helper.make_node(
            kind, ["x", "w", "r", "b", "", *states], ["y"], direction="bidirectional", hidden_size=HIDDEN,
            **attrs,
        ),
    ]  # fmt: skip
    rows = GATES[kind] * HIDDEN
    weights = {
        "w": RNG.normal(size=(2, rows, 3)).astype("f4"),
        "r": RNG.normal(size=(2, rows, HIDDEN)).astype("f4"),
        "b": RNG.normal(size=(2, 2 * rows)).astype("f4"),
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


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("state", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_states_of_zero_go(kind: str, state: float, copies: int, filled: bool) -> None:
    before = recurrent(kind, state, copies, filled)
    made = shrink(before).model
    agree(before, made, {"x": RNG.normal(size=(5, 2, 3)).astype("f4")})
    agree(before, made, {"x": RNG.normal(size=(1, 1, 3)).astype("f4")})
    kinds = [n.op_type for n in made.graph.node]
    assert (kinds == [kind]) == (state == 0)


@pytest.mark.parametrize("state", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_states_of_zero_go_from_layers_that_clip(kind: str, state: float) -> None:
    """The IR has no op for them, so that the host's node is written without the input."""
    before = recurrent(kind, state, 2, clip=0.3)
    made = shrink(before).model
    agree(before, made, {"x": RNG.normal(size=(5, 2, 3)).astype("f4")})
    assert ([n.op_type for n in made.graph.node] == [kind]) == (state == 0)


def test_a_value_that_is_both_the_state_and_the_input_stays() -> None:
    """Both are zero, and a batch of one step of the hidden size has the same shape as a state."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("Shape", ["a"], ["sizes"]),
        helper.make_node("Expand", ["state", "sizes"], ["h"]),
        helper.make_node("GRU", ["h", "w", "r", "b", "", "h"], ["y"], hidden_size=HIDDEN),
    ]
    weights = {
        "w": RNG.normal(size=(1, 3 * HIDDEN, HIDDEN)).astype("f4"),
        "r": RNG.normal(size=(1, 3 * HIDDEN, HIDDEN)).astype("f4"),
        "b": RNG.normal(size=(1, 6 * HIDDEN)).astype("f4"),
        "state": np.zeros(1, "f4"),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    agree(before, shrink(before).model, {"x": RNG.normal(size=(1, 2, HIDDEN)).astype("f4")})
