"""Recurrent layers, which are unrolled: every form, against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphshrink import ModelError
from support.litert import compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(3)
STEPS, BATCH, FEATURES, HIDDEN = 4, 2, 5, 3
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "lstm": ("LSTM", 4, {}),
    "gru": ("GRU", 3, {}),
    "gru-after": ("GRU", 3, {"linear_before_reset": 1}),
    "rnn": ("RNN", 1, {}),
    "rnn-relu": ("RNN", 1, {"activations": ["Relu"]}),
}


def numbers(*shape: int) -> Any:
    return RNG.normal(scale=0.5, size=shape).astype(np.float32)


def layer(
    kind: str,
    direction: str,
    state: str,
    *,
    biased: bool = True,
    steps: int = STEPS,
    peepholes: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """A model of one layer with all its results, and its inputs."""
    operator, gates, given = KINDS[kind]
    d, rows = 1 + (direction == "bidirectional"), gates * HIDDEN
    attributes = {k: v * d if isinstance(v, list) else v for k, v in given.items()}
    weights = {"w": numbers(d, rows, FEATURES), "r": numbers(d, rows, HIDDEN)}
    if biased:
        weights["b"] = numbers(d, 2 * rows)
    feeds = {"x": numbers(steps, BATCH, FEATURES)}
    states = ["h", "c"][: 2 if operator == "LSTM" else 1]
    if state != "none":
        (feeds if state == "computed" else weights).update(
            {name: numbers(d, BATCH, HIDDEN) for name in states}
        )
    inputs = ["x", "w", "r", "b" if biased else "", "", *(states if state != "none" else [])]
    if peepholes:
        weights["p"] = numbers(d, 3 * HIDDEN)
        inputs += [*([""] * len(states) if state == "none" else []), "p"]
    outputs = ["y", "last_h", "last_c"][: 1 + len(states)]
    node = helper.make_node(
        operator, inputs, outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )
    return model_of([node], feeds, outputs, weights), feeds


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind: str) -> None:
    for direction, state, biased in product(
        ("forward", "reverse", "bidirectional"), ("none", "constant", "computed"), (True, False)
    ):
        compared(*layer(kind, direction, state, biased=biased))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step(kind: str) -> None:
    compared(*layer(kind, "bidirectional", "none", steps=1))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first(kind: str) -> None:
    """Between the transposes of sequences that are stored batch first."""
    operator, gates, attributes = KINDS[kind]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(operator, ["t", "w", "r"], ["y"], hidden_size=HIDDEN, **attributes),
        helper.make_node("Squeeze", ["y", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["z"], perm=[1, 0, 2]),
    ]
    rows = gates * HIDDEN
    weights = {"w": numbers(1, rows, FEATURES), "r": numbers(1, rows, HIDDEN), "one": np.array([1])}
    feeds = {"x": numbers(BATCH, STEPS, FEATURES)}
    flat = compared(model_of(nodes, feeds, ["z"], weights), feeds)
    assert not [o for o in flat.operations if o.code == "TRANSPOSE"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match="no elements"):
        compared(*layer(kind, "forward", "none", steps=0))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("state", ["none", "computed"])
def test_peepholes(direction: str, state: str) -> None:
    """Gates that read the cell state: before the step, and after it for the output gate."""
    compared(*layer("lstm", direction, state, peepholes=True))
