"""``sparsify`` on LSTM, GRU and RNN layers, from ONNX and from torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from graphshrink import PassError, shrink
from graphshrink.ir import Gru, Lstm
from graphshrink.nn import fold_masks, masks
from graphshrink.passes.statistics.gram import GramMatrix
from graphshrink.passes.statistics.im2col import weight_rows
from support.onnx_run import outputs_of
from support.pairs import pairs
from support.recurrent import (
    GATES,
    KINDS,
    STEPS,
    feeds_of,
    initializers,
    recurrent_model,
    weights_of,
)

DIRECTIONS = ("forward", "reverse", "bidirectional")
METHODS = ("magnitude", "wanda", "sparsegpt")


def is_2_4(weight: Any) -> bool:
    """At most two of four numbers in a row along the last axis, in plain loops."""
    rows = np.asarray(weight).reshape(-1, weight.shape[-1]).tolist()
    return all(
        sum(x != 0 for x in row[i : i + 4]) <= 2 for row in rows for i in range(0, len(row), 4)
    )


def reasons(result: Any) -> list[str]:
    return [r.reason for r in result.report.passes[0].refusals]


def data_for(model: Any, count: int = 6) -> list[dict[str, Any]]:
    return [feeds_of(model, seed) for seed in range(count)]


@pytest.mark.parametrize(("kind", "direction", "method"), pairs(KINDS, DIRECTIONS, METHODS))
def test_both_matrices_of_onnx_layers(kind: str, direction: str, method: str) -> None:
    d = 1 + (direction == "bidirectional")
    model = recurrent_model(kind, weights_of(kind, 8, 12, d), direction=direction, state="given")
    calibration = None if method == "magnitude" else data_for(model)
    result = shrink(model, f"sparsify{{method={method},ops=recurrent}}", calibration=calibration)
    ((w, r),) = initializers(result.model, KINDS[kind][0])
    assert is_2_4(w)
    assert is_2_4(r)
    made = result.report.passes[0].rewrites
    assert [m.nodes for m in made] == [("layer",)] * 2
    assert [m.what for m in made] == [
        f"make the input matrix 2:4 by {method}", f"make the recurrent matrix 2:4 by {method}",
    ]  # fmt: skip
    assert all(("output error" in m.measures) == (method != "magnitude") for m in made)
    for got in outputs_of(result.model, feeds_of(model)):
        assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("kind", "direction", "state"),
    pairs(["lstm", "gru", "gru-after"], DIRECTIONS, ["none", "constant", "given"]),
)
def test_statistics_of_the_hidden_states(kind: str, direction: str, state: str) -> None:
    """Compare with a run step by step of one-step sequences, whose initial state is the hidden state before."""
    d, n = 1 + (direction == "bidirectional"), 4
    weights = weights_of(kind, n, 3, d)
    model = recurrent_model(kind, weights, direction=direction, state=state, dense=False)
    from graphshrink.api import load
    from graphshrink.data.calibration import calibrated

    graph, _ = load(model)
    node = next(v for v in graph.nodes if isinstance(v.op, Lstm | Gru))
    feeds = feeds_of(model)
    request = GramMatrix(node, 2)
    gram = calibrated(graph, "onnx", [feeds]).collect(graph, [request])[request].matrix
    y = outputs_of(model, feeds)[0].astype(np.float64)  # (time, directions, batch, hidden)
    first = np.zeros((d, 2, n))
    if state == "constant":
        first = next(
            np.frombuffer(t.raw_data, np.float32).reshape(d, 2, n)
            for t in model.graph.initializer
            if t.name == "start0"
        ).astype(np.float64)
    elif state == "given":
        first = feeds["start0"].astype(np.float64)
    w, r, b = (weights[k].astype(np.float64) for k in ("w", "r", "b"))
    for way in range(d):
        backwards = direction == "reverse" or way == 1
        columns = []
        for step in range(STEPS):
            before = step + 1 if backwards else step - 1
            inside = 0 <= before < STEPS
            columns.append(y[before, way] if inside else first[way])
        h = np.concatenate(columns)
        if kind == "gru":
            x = feeds["x"].reshape(-1, 3)
            bias = b[way, n : 2 * n] + b[way, 4 * n : 5 * n]
            gate = 1 / (1 + np.exp(-(x @ w[way, n : 2 * n].T + h @ r[way, n : 2 * n].T + bias)))
            for number, read in enumerate((h, h, h * gate)):
                np.testing.assert_allclose(gram[3 * way + number], read.T @ read, atol=1e-4)
        else:
            np.testing.assert_allclose(gram[way], h.T @ h, atol=1e-4)
    rows = weight_rows(node, r, 2)
    assert rows.shape == (len(gram), d * GATES[KINDS[kind][0]] * n // len(gram), n)


def test_sparsegpt_changes_outputs_less_than_magnitude() -> None:
    weights = weights_of("lstm", 16, 16)
    model = recurrent_model("lstm", weights)
    data = data_for(model, 30)
    error = {}
    for method in METHODS:
        result = shrink(model, f"sparsify{{method={method},ops=recurrent}}", calibration=data)
        error[method] = [m.measures["output error"] for m in result.report.passes[0].rewrites]
    for i in range(2):
        assert error["sparsegpt"][i] < error["magnitude"][i]
        assert error["wanda"][i] <= error["magnitude"][i] * 1.02


def test_unstructured_sparsity() -> None:
    model = recurrent_model("gru", weights_of("gru", 8, 6))
    result = shrink(model, "sparsify{sparsity=0.75,layers=layer}")
    ((w, r),) = initializers(result.model, "GRU")
    assert np.count_nonzero(w) * 4 == w.size
    assert np.count_nonzero(r) * 4 == r.size


def test_sequences_of_different_lengths() -> None:
    model = recurrent_model("lstm", weights_of("lstm", 8, 8), lengths=True)
    result = shrink(model, "sparsify{layers=layer}")
    assert len(result.report.passes[0].rewrites) == 2
    result = shrink(model, "sparsify{method=wanda}", calibration=data_for(model))
    assert [r for r in reasons(result) if "different lengths" in r and "method=magnitude" in r]
    ((w, _),) = initializers(result.model, "LSTM")
    assert not is_2_4(w)


def test_sizes_that_do_not_fit() -> None:
    model = recurrent_model("lstm", weights_of("lstm", 6, 8))
    result = shrink(model, "sparsify{layers=layer}")
    assert reasons(result) == ["it sums over 6 channels, which is no multiple of 4"]
    with pytest.raises(PassError, match="no sparse kernels"):
        shrink(model, "sparsify{layers=layer,dense-fallback=true}")


def test_layers_that_are_not_understood_stay() -> None:
    model = recurrent_model("lstm", weights_of("lstm", 8, 8), clip=3.0)
    with pytest.raises(PassError, match="no layer can be made 2:4"):
        shrink(model, "sparsify{ops=recurrent}")


def test_one_constant_as_both_matrices() -> None:
    weights = weights_of("lstm", 8, 8)
    model = recurrent_model("lstm", weights)
    node = next(n for n in model.graph.node if n.op_type == "LSTM")
    node.input[2] = "w"
    result = shrink(model, "sparsify{ops=recurrent}")
    (made,) = result.report.passes[0].rewrites
    assert "input and recurrent matrix" in made.what
    result = shrink(model, "sparsify{method=sparsegpt}", calibration=data_for(model))
    assert len(result.report.passes[0].rewrites) >= 1


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_permuted_channels_keep_more(kind: str, direction: str) -> None:
    """Inputs and hidden units are ordered; the rows of all gates follow, and the function stays the same."""
    weights = weights_of(kind, 16, 16, 1 + (direction == "bidirectional"))
    weights["r"] *= np.random.default_rng(3).lognormal(0, 2, 16).astype(np.float32) * 0.2
    model = recurrent_model(kind, weights, direction=direction, state="constant")
    only = shrink(model, "permute-channels")
    made = only.report.passes[0].rewrites
    assert len([m for m in made if "inputs of layer" in m.what]) >= 2
    assert all(m.measures["magnitude kept"] > m.measures["kept before"] for m in made)
    for got, want in zip(
        outputs_of(only.model, feeds_of(model)), outputs_of(model, feeds_of(model)), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


class Tagger(nn.Module):
    def __init__(self, make: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = make(8, 12, batch_first=True, **options)
        self.head = nn.Linear(12 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(x)
        return self.head(y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "bias": False}])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_torch_layers_with_lasting_masks(make: Any, options: dict[str, Any], method: str) -> None:
    torch.manual_seed(0)
    model, x = Tagger(make, **options).eval(), torch.randn(16, 5, 8)
    text = f"sparsify{{method={method},ops=recurrent,lasting=true}},prune-dead"
    calibration = None if method == "magnitude" else x
    result = shrink(model, text, example_inputs=(x[:2],), calibration=calibration)
    count = 2 * options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert len(result.report.passes[0].rewrites) == 2 * options.get("num_layers", 1)
    small = result.model
    found = dict(masks(small))
    assert len(found) == count
    assert all(m.holds() and m.density == 0.5 for m in found.values())
    small.train()
    step = torch.optim.AdamW(small.parameters(), 0.05)
    for _ in range(3):
        step.zero_grad()
        small(x).square().mean().backward()
        step.step()
    small.eval()
    want = small(x)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.allclose(twin(x), want, atol=1e-6)
    # Read again, the masks are still there, and folding them keeps the zeros.
    again = shrink(small, "fold-masks", example_inputs=(x[:2],))
    assert torch.allclose(again.model(x), want, atol=1e-5)
    assert not dict(masks(again.model))
    dead = fold_masks(small)
    assert torch.allclose(dead(x), want, atol=1e-6)
    layers = [m for m in dead.modules() if isinstance(m, nn.RNNBase)]
    for layer in layers:
        for name, weight in layer.named_parameters():
            assert not name.startswith("weight") or is_2_4(weight.detach().numpy())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["lstm", "gru-after", "rnn"])
def test_biases_take_up_the_mean_errors_of_both_matrices(kind: str, direction: str) -> None:
    d = 1 + (direction == "bidirectional")
    weights = weights_of(kind, 8, 12, d)
    model = recurrent_model(kind, weights, direction=direction, dense=False)
    data = data_for(model)
    for sample in data:
        sample["x"] += 1.0
    result = shrink(model, "sparsify{ops=recurrent}", calibration=data)
    (node,) = [n for n in result.model.graph.node if n.op_type == KINDS[kind][0]]
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    w, r, b = (stored[name].astype(np.float64) for name in node.input[1:4])
    x = np.concatenate([sample["x"] for sample in data], axis=1)
    y = np.concatenate([outputs_of(model, sample)[0] for sample in data], axis=2)
    states = []
    for i in range(d):
        own, none = y[:, i], np.zeros_like(y[:1, i])
        backwards = direction == "reverse" or i == 1
        states.append(np.concatenate([own[1:], none] if backwards else [none, own[:-1]]))
    shifts = [
        np.concatenate([(w - weights["w"])[i] @ x.mean((0, 1)), (r - weights["r"])[i] @ states[i].mean((0, 1))])
        for i in range(d)
    ]  # fmt: skip
    np.testing.assert_allclose(b, weights["b"] - np.array(shifts), rtol=1e-4, atol=1e-5)

    same = shrink(model, "sparsify{ops=recurrent,refit-bias=false}", calibration=data).model
    wanted, refitted, plain = (
        np.concatenate([outputs_of(m, sample)[0].ravel() for sample in data])
        for m in (model, result.model, same)
    )
    if kind == "lstm":
        assert np.square(refitted - wanted).mean() < np.square(plain - wanted).mean()
