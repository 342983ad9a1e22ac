"""``pivot`` and ``mask-blocks`` on recurrent layers: smaller layers side by side compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphshrink import shrink
from support.onnx_run import agree, outputs_of
from support.pairs import pairs
from support.recurrent import GATES, KINDS, feeds_of, initializers, recurrent_model, weights_of

DIRECTIONS = ("forward", "reverse", "bidirectional")


def in_blocks(
    weights: dict[str, Any], count: int, *, inputs: bool = True, mixed: bool = True, seed: int = 1
) -> dict[str, Any]:
    """The weights with zeros outside blocks; of inputs and hidden units in random order if ``mixed``."""
    rng = np.random.default_rng(seed)
    d, rows, features = weights["w"].shape
    hidden = weights["r"].shape[2]
    gates = rows // hidden
    made = {name: array.copy() for name, array in weights.items()}
    order = rng.permutation(features) if mixed else np.arange(features)
    of_input = np.arange(features)[order] * count // features
    for way in range(d):
        order = rng.permutation(hidden) if mixed else np.arange(hidden)
        block = np.arange(hidden)[order] * count // hidden
        of_row = np.tile(block, gates)
        made["r"][way] *= of_row[:, None] == block[None]
        if inputs:
            made["w"][way] *= of_row[:, None] == of_input[None]
    return made


def what(result: Any, place: int = 0) -> list[str]:
    return [r.what for r in result.report.passes[place].rewrites]


def why(result: Any, place: int = 0) -> str:
    return " ".join(r.reason for r in result.report.passes[place].refusals if r.node == "layer")


def check(model: Any, result: Any, error: float = 2e-5) -> None:
    agree(model, result.model, feeds_of(model), error)


@pytest.mark.parametrize(
    ("kind", "direction", "state", "inputs"),
    pairs(KINDS, DIRECTIONS, ["none", "constant", "given"], [True, False]),
)
def test_exact_blocks(kind: str, direction: str, state: str, inputs: bool) -> None:
    d = 1 + (direction == "bidirectional")
    weights = in_blocks(weights_of(kind, 8, 12, d), 2, inputs=inputs)
    # States that are given, and not made by a layer, keep their order; so do the hidden units.
    if state == "given":
        weights = in_blocks(weights_of(kind, 8, 12, d), 2, inputs=inputs, mixed=False)
    model = recurrent_model(kind, weights, direction=direction, state=state)
    result = shrink(model, "pivot{blocks=2,method=zeros,force=true,layers=layer}")
    end = "" if inputs else " that read all inputs"
    assert what(result)[-1] == f"pivot into 2 recurrent layers side by side{end}"
    made = initializers(result.model, KINDS[kind][0])
    assert [w.shape for w, _ in made] == [(d, GATES[KINDS[kind][0]] * 4, 6 if inputs else 12)] * 2
    assert [r.shape for _, r in made] == [(d, GATES[KINDS[kind][0]] * 4, 4)] * 2
    assert {n.op_type for n in result.model.graph.node} <= {
        "MatMul", "Gemm", "Split", "Concat", "Transpose", "Reshape", KINDS[kind][0],
    }  # fmt: skip
    check(model, result)


PASS = "pivot{blocks=2,method=zeros,force=true,layers=layer}"


@pytest.mark.parametrize("tied", [True, False])
def test_directions_in_one_order(tied: bool) -> None:
    weights = weights_of("gru", 8, 6, 2)
    one = {n: a[:1] for n, a in weights.items()}
    one = in_blocks(one, 2, inputs=False)
    zeros = np.repeat(one["r"] != 0, 2, 0)
    weights["r"] = weights["r"] * zeros
    model = recurrent_model("gru", weights, direction="bidirectional", tied=tied)
    result = shrink(model, PASS)
    assert "side by side" in what(result)[-1]
    check(model, result)
    # With other blocks in the second direction, the directions must be apart.
    model = recurrent_model(
        "gru", in_blocks(weights_of("gru", 8, 6, 2), 2), direction="bidirectional", tied=tied
    )
    result = shrink(model, PASS)
    assert bool(what(result)) is not tied
    check(model, result)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("state", ["none", "constant"])
def test_peepholes(direction: str, state: str) -> None:
    d = 1 + (direction == "bidirectional")
    weights = in_blocks(weights_of("lstm", 8, 6, d), 2)
    model = recurrent_model("lstm", weights, direction=direction, state=state, peepholes=True)
    result = shrink(model, PASS)
    assert "side by side" in what(result)[-1]
    check(model, result)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_sequences_of_different_lengths(kind: str) -> None:
    model = recurrent_model(kind, in_blocks(weights_of(kind, 8, 6), 2), lengths=True)
    result = shrink(model, PASS)
    assert "side by side" in what(result)[-1]
    check(model, result)


def test_without_bias_and_with_any_batch() -> None:
    weights = in_blocks(weights_of("lstm", 8, 6), 2)
    del weights["b"]
    model = recurrent_model("lstm", weights, batch=None)
    result = shrink(model, PASS)
    check(model, result)
    assert len(initializers(result.model, "LSTM")) == 2


@pytest.mark.parametrize(("attrs", "found"), [
    ({"clip": 2.0}, "neither a dense layer nor a convolution"),
    ({"activations": ["Relu", "Tanh", "Tanh"]}, "neither a dense layer nor a convolution"),
    ({"input_forget": 1}, "neither a dense layer nor a convolution"),
])  # fmt: skip
def test_forms_that_are_not_understood_stay(attrs: dict[str, Any], found: str) -> None:
    model = recurrent_model("lstm", in_blocks(weights_of("lstm", 8, 6), 2), **attrs)
    result = shrink(model, PASS)
    assert found in why(result)
    assert not what(result)
    check(model, result)


def test_hidden_units_that_do_not_divide() -> None:
    weights = weights_of("gru-after", 7, 6)
    block = np.array([0, 1, 0, 1, 0, 1, 0])
    weights["r"] *= np.tile(block, 3)[:, None] == block[None]
    model = recurrent_model("gru-after", weights)
    result = shrink(model, PASS)
    assert "its 7 hidden units do not divide into 2 blocks" in why(result)
    result = shrink(model, "pivot{blocks=2,method=zeros,force=true,layers=layer,divide=pad}")
    assert [r.shape[2] for _, r in initializers(result.model, "GRU")] == [4, 3]
    check(model, result)
    result = shrink(model, "pivot{blocks=8,method=zeros,force=true,layers=layer,divide=pad}")
    assert "its 7 hidden units are too few for 8 blocks" in why(result)


def test_inputs_that_do_not_divide_are_read_whole() -> None:
    weights = in_blocks(weights_of("lstm", 8, 7), 2, inputs=False)
    model = recurrent_model("lstm", weights)
    result = shrink(model, PASS)
    assert what(result)[-1].endswith("read all inputs")
    check(model, result)


@pytest.mark.parametrize("part", ["w", "r", "all"])
def test_zero_weights(part: str) -> None:
    weights = weights_of("lstm", 8, 6)
    for name in ("w", "r") if part == "all" else (part,):
        weights[name][:] = 0
    model = recurrent_model("lstm", weights)
    result = shrink(model, PASS)
    if part == "w":
        assert "do not form 2 blocks" in why(result)
    else:
        assert "side by side" in what(result)[-1]
        assert what(result)[-1].endswith("read all inputs") is (part == "r")
    check(model, result)


def test_channels_that_cannot_move() -> None:
    """Without layers around it, the results of the layer are those of the model."""
    mixed = in_blocks(weights_of("lstm", 8, 6), 2)
    result = shrink(recurrent_model("lstm", mixed, dense=False), PASS)
    assert "its hidden units cannot be reordered" in why(result)
    weights = in_blocks(weights_of("lstm", 8, 6), 2, mixed=False)
    model = recurrent_model("lstm", weights, dense=False, state="given")
    result = shrink(model, PASS)
    assert what(result)[-1].endswith("side by side")
    check(model, result)
    # Hidden units in order, inputs not: they are gathered, or all of them are read.
    block = np.array([0, 1, 0, 1, 0, 1])
    weights = in_blocks(weights_of("lstm", 8, 6), 2, inputs=False, mixed=False)
    weights["w"] *= np.tile(np.repeat([0, 1], 4), 4)[:, None] == block[None]
    model = recurrent_model("lstm", weights, dense=False)
    result = shrink(model, PASS)
    assert what(result)[-1].endswith("read all inputs")
    check(model, result)
    result = shrink(model, PASS.replace("}", ",gather=true}"))
    assert what(result)[-1].endswith("side by side, 1 gather")
    check(model, result)


def test_more_blocks_than_asked_for() -> None:
    model = recurrent_model("gru", in_blocks(weights_of("gru", 16, 16), 4))
    for count in (2, 4):
        result = shrink(model, PASS.replace("blocks=2", f"blocks={count}"))
        assert len(initializers(result.model, "GRU")) == count
        check(model, result)
    result = shrink(model, PASS.replace("blocks=2", "blocks=8"))
    assert "do not form 8 blocks" in why(result)


def test_small_layers_stay_dense() -> None:
    model = recurrent_model("lstm", in_blocks(weights_of("lstm", 8, 6), 2))
    result = shrink(model, "pivot{blocks=2,method=zeros}")
    assert "not expected to run faster" in why(result)
    big = recurrent_model("lstm", in_blocks(weights_of("lstm", 512, 512), 2))
    result = shrink(big, "pivot{blocks=2,method=zeros,layers=layer}")
    assert what(result)[-1].endswith("side by side")
    check(big, result, 1e-4)


@pytest.mark.parametrize(
    ("kind", "direction", "draw"), pairs(KINDS, DIRECTIONS, ["random", "weights"])
)
def test_masks_are_found_again(kind: str, direction: str, draw: str) -> None:
    d = 1 + (direction == "bidirectional")
    model = recurrent_model(kind, weights_of(kind, 8, 12, d), direction=direction)
    masked = shrink(model, f"mask-blocks{{blocks=2,layers=layer,draw={draw}}}")
    ((w, r),) = initializers(masked.model, KINDS[kind][0])
    assert np.count_nonzero(w) * 2 == w.size
    assert np.count_nonzero(r) * 2 == r.size
    assert what(masked)[0].startswith("mask by 2 blocks")
    found = shrink(masked.model, PASS)
    assert what(found)[-1] == "pivot into 2 recurrent layers side by side"
    check(masked.model, found)


def test_masks_by_weights_keep_more() -> None:
    model = recurrent_model("lstm", weights_of("lstm", 16, 16))
    kept = {}
    for draw in ("random", "weights"):
        masked = shrink(model, f"mask-blocks{{blocks=4,layers=layer,draw={draw}}}")
        ((w, r),) = initializers(masked.model, "LSTM")
        kept[draw] = (w**2).sum() + (r**2).sum()
    assert kept["weights"] > 1.15 * kept["random"]


@pytest.mark.parametrize(
    ("kind", "direction", "inputs"), pairs(["lstm", "gru-after", "rnn"], DIRECTIONS, [12, 7])
)
def test_blocks_of_dense_weights(kind: str, direction: str, inputs: int) -> None:
    d = 1 + (direction == "bidirectional")
    model = recurrent_model(kind, weights_of(kind, 8, inputs, d), direction=direction)
    data = [feeds_of(model, seed) for seed in range(40)]
    passes = "pivot{blocks=2,force=true,layers=layer}"
    result = shrink(model, passes, calibration=data)
    (record,) = [r for r in result.report.passes[0].rewrites if "pivot into" in r.what]
    assert "error of the gates" in record.what
    assert record.exactness.name == "APPROXIMATE"
    assert len(initializers(result.model, KINDS[kind][0])) == 2
    error = {}
    for method in ("search", "identity"):
        made = shrink(model, passes.replace("force", f"method={method},force"), calibration=data)
        error[method] = float(what(made)[-1].split("gates ")[1].split("%")[0])
    assert error["search"] <= error["identity"]
    strict = shrink(model, passes.replace("force", "max-error=0.001,force"), calibration=data)
    assert "max-error allows 0.1%" in why(strict)
    assert "without calibration data" in why(shrink(model, passes))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_weights_that_nearly_have_blocks(direction: str) -> None:
    """The search finds the blocks, and what is lost outside them changes little."""
    d = 1 + (direction == "bidirectional")
    dense = weights_of("lstm", 16, 12, d)
    near = in_blocks(dense, 2)
    near = {n: a + (0.03 * dense[n] if n != "b" else 0) for n, a in near.items()}
    model = recurrent_model("lstm", near, direction=direction)
    data = [feeds_of(model, seed) for seed in range(40)]
    error = []
    for refit in ("true", "false"):
        result = shrink(
            model, f"pivot{{blocks=2,force=true,layers=layer,refit={refit}}}", calibration=data
        )
        error.append(float(what(result)[-1].split("gates ")[1].split("%")[0]))
        want, got = (outputs_of(m, feeds_of(model))[0] for m in (model, result.model))
        assert np.abs(got - want).mean() < 0.15 * np.abs(want).mean()
    assert error[0] <= error[1] < 10


def test_blocks_of_dense_weights_that_cannot_be_measured() -> None:
    passes = "pivot{blocks=2,force=true,layers=layer}"
    model = recurrent_model("gru", weights_of("gru", 8, 6))
    result = shrink(model, passes, calibration=[feeds_of(model)])
    assert "reset gate scales the state before the product" in why(result)
    model = recurrent_model("lstm", weights_of("lstm", 8, 6), lengths=True)
    result = shrink(model, passes, calibration=[feeds_of(model)])
    assert "different lengths" in why(result)
