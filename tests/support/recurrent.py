"""Recurrent layers as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru-after": ("GRU", {"linear_before_reset": 1}),
    "rnn": ("RNN", {}),
    "rnn-relu": ("RNN", {"activations": ["Relu"]}),
}
"""Operators and attributes of the kinds of layers."""

STEPS, BATCH = 5, 2


def weights_of(
    kind: str, hidden: int, inputs: int, directions: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Random matrices and biases."""
    rng = np.random.default_rng(seed)
    rows = GATES[KINDS[kind][0]] * hidden
    made = {
        "w": rng.normal(size=(directions, rows, inputs)),
        "r": rng.normal(size=(directions, rows, hidden)) * 0.5,
        "b": rng.normal(size=(directions, 2 * rows)),
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def recurrent_model(
    kind: str,
    weights: Mapping[str, Any],
    *,
    direction: str = "forward",
    state: str = "none",
    lengths: bool = False,
    peepholes: bool = False,
    dense: bool = True,
    tied: bool = False,
    batch: int | None = BATCH,
    **attrs: Any,
) -> onnx.ModelProto:
    """A dense layer, a recurrent layer and a dense layer on its results, so that channels may move on both sides.

    Args:
        kind: One of :data:`KINDS`.
        weights: Its matrices, and its bias if there is one.
        direction: The direction.
        state: The initial states: ``none``, ``constant``, or ``given`` as inputs of the model.
        lengths: Whether the lengths of the sequences are an input.
        peepholes: Whether an LSTM has peepholes.
        dense: Whether there are the dense layers.
        tied: Whether the last states of both directions are read by one weight, so that their units must be in one order.
        batch: The batch size of the input.
        attrs: More attributes of the operator.
    """
    op, own = KINDS[kind]
    d, _, inputs = weights["w"].shape
    hidden = weights["r"].shape[2]
    states = 2 if op == "LSTM" else 1
    if d == 2 and "activations" in own:
        own = {"activations": own["activations"] * 2}
    rng = np.random.default_rng(9)
    constants = dict(weights)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, batch, inputs])
    given, nodes, reads = [x], [], "x"
    if dense:
        constants["wi"] = rng.normal(size=(inputs, inputs)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["x", "wi"], ["xi"], name="before"))
        reads = "xi"
    operands = [reads, "w", "r", "b" if "b" in weights else "", "", *[""] * states]
    if lengths:
        operands[4] = "lengths"
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH]))
    if state != "none":
        for place in range(states):
            name = f"start{place}"
            operands[5 + place] = name
            if state == "given":
                shape = [d, BATCH, hidden]
                given.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            else:
                constants[name] = rng.normal(size=(d, BATCH, hidden)).astype(np.float32)
    if peepholes:
        operands.append("p")
        constants["p"] = rng.normal(size=(d, 3 * hidden)).astype(np.float32)
    while not operands[-1]:
        operands.pop()
    ends = ["last", "cell"][:states]
    attrs = {**own, "hidden_size": hidden, "direction": direction, **attrs}
    nodes.append(helper.make_node(op, operands, ["y", *ends], name="layer", **attrs))
    outputs: list[Any] = []
    if dense:
        constants["shape"] = np.array([0, 0, -1], np.int64)
        nodes += [
            helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["t", "shape"], ["flat"]),
        ]
        constants["states"] = np.array([0, -1], np.int64)
        for name, value in (("out", "flat"), *((f"end{e}", e) for e in ends)):
            size = hidden if tied and name != "out" else d * hidden
            if name != "out" and not tied:
                made = [f"{value}_turned", f"{value}_flat"]
                nodes.append(helper.make_node("Transpose", [value], made[:1], perm=[1, 0, 2]))
                nodes.append(helper.make_node("Reshape", [made[0], "states"], made[1:]))
                value = made[1]
            constants[f"w_{name}"] = rng.normal(size=(size, 3)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [value, f"w_{name}"], [name], name=name))
            shape = [STEPS, batch, 3] if name == "out" else [d, batch, 3] if tied else [batch, 3]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    else:
        shape = [STEPS, d, batch, hidden]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
        outputs += [
            helper.make_tensor_value_info(e, TensorProto.FLOAT, [d, batch, hidden]) for e in ends
        ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        given,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def feeds_of(model: onnx.ModelProto, seed: int = 5) -> dict[str, Any]:
    """Random inputs of a model of :func:`recurrent_model`."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [d.dim_value or BATCH for d in value.type.tensor_type.shape.dim]
        if value.name == "lengths":
            feeds[value.name] = np.array([STEPS, STEPS - 2], np.int32)
        else:
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    return feeds


def initializers(model: onnx.ModelProto, op: str) -> list[Sequence[Any]]:
    """The two matrices of each node of an operator."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [
        [constants[name] for name in node.input[1:3]]
        for node in model.graph.node
        if node.op_type == op
    ]
