"""Blocks of recurrent layers in torch and LiteRT, among other layers, and the algebra in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphshrink import Pipeline, insert_blocks, shrink
from graphshrink.ir import (
    ArrayTensor,
    DType,
    Graph,
    Gru,
    Lstm,
    MatMul,
    Rnn,
    Select,
    TensorType,
)
from graphshrink.nn import masks
from support.evaluate import evaluate
from support.litert import KERNELS, run_saved
from support.onnx_run import outputs_of
from support.pairs import pairs
from support.recurrent import KINDS, feeds_of, recurrent_model, weights_of

from .test_recurrent_blocks import in_blocks, what


class Tagger(nn.Module):
    """A dense layer, recurrent layers, and a dense layer on their outputs and last states."""

    def __init__(self, make: Any, **options: Any) -> None:
        super().__init__()
        wide = 16 * (2 if options.get("bidirectional") else 1)
        self.first = nn.Linear(6, 8)
        self.rnn = make(8, 16, batch_first=True, **options)
        self.head = nn.Linear(wide, 4)
        self.end = nn.Linear(16, 4)
        self.is_lstm = make is nn.LSTM

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, last = self.rnn(torch.relu(self.first(x)))
        h = last[0] if self.is_lstm else last
        return self.head(y), self.end(h)


OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"num_layers": 2}, {"bidirectional": True, "bias": False}, {"num_layers": 2, "bidirectional": True},
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "options", "draw"), pairs([nn.LSTM, nn.GRU, nn.RNN], OPTIONS, ["random", "weights"])
)
def test_trained_in_blocks(make: Any, options: dict[str, Any], draw: str) -> None:
    torch.manual_seed(0)
    model, x = Tagger(make, **options).eval(), torch.randn(3, 5, 6)
    masked = insert_blocks(model, 2, example_inputs=(x,), layers="rnn*", draw=draw)  # type: ignore[arg-type]
    layers = options.get("num_layers", 1)
    directions = 2 if options.get("bidirectional") else 1
    # Behind a bidirectional layer, inputs are in two channel groups, and all of them are read.
    whole = layers > 1 and directions > 1
    assert len(dict(masks(masked))) == 2 * layers * directions - 2 * whole
    masked.train()
    step = torch.optim.AdamW(masked.parameters(), 0.01)
    for _ in range(3):
        step.zero_grad()
        sum(y.square().mean() for y in masked(x)).backward()  # type: ignore[union-attr]
        step.step()
    masked.eval()
    passes = "pivot{blocks=2,method=zeros,force=true,layers=rnn*},prune-dead"
    result = shrink(masked, passes, example_inputs=(x,))
    made = [w for w in what(result) if "pivot into" in w]
    assert len(made) == layers
    assert sum("read all" in w for w in made) == whole
    other = torch.randn(4, 7, 6)
    for given_x in (x, other):
        for got, want in zip(result.model(given_x), masked(given_x), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    sizes = [m.hidden_size for m in result.model.modules() if isinstance(m, nn.RNNBase)]
    assert sizes == [8] * 2 * layers


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_states_that_are_given(make: Any) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(3, 8)
            self.rnn = make(6, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            h = self.start(s)[None]
            y, _ = self.rnn(x, (h, h) if make is nn.LSTM else h)
            return self.head(y)

    torch.manual_seed(0)
    model, given_ = Step().eval(), (torch.randn(4, 2, 6), torch.randn(2, 3))
    masked = insert_blocks(model, 2, example_inputs=given_, layers="rnn*")
    passes = "pivot{blocks=2,method=zeros,force=true,layers=rnn*},prune-dead"
    result = shrink(masked, passes, example_inputs=given_)
    assert [w for w in what(result) if w.startswith("pivot into 2")]
    torch.testing.assert_close(result.model(*given_), masked(*given_), rtol=0, atol=1e-5)


def test_layers_around_in_blocks_too() -> None:
    """All layers are masked in one call, so that their blocks fit together, with shuffles between them."""
    torch.manual_seed(0)
    model, x = Tagger(nn.LSTM, num_layers=2).eval(), torch.randn(3, 5, 6)
    layers = ["first", "rnn*", "head"]
    masked = insert_blocks(model, 2, example_inputs=(x,), layers=layers)
    passes = "pivot{blocks=2,method=zeros,force=true},prune-dead"
    result = shrink(masked, passes, example_inputs=(x,))
    made = [w for w in what(result) if "pivot into" in w]
    assert len(made) == 4
    for got, want in zip(result.model(x), masked(x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_a_residual_stream() -> None:
    """Hidden units of both layers and the channels between them have one order."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.a, self.b = nn.GRU(8, 8), nn.GRU(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.a(x)[0]
            return self.head(x + self.b(x)[0])

    torch.manual_seed(0)
    model, x = Deep().eval(), torch.randn(5, 2, 6)
    masked = insert_blocks(model, 2, example_inputs=(x,), layers=["a*", "b*"])
    result = shrink(
        masked, "pivot{blocks=2,method=zeros,force=true},prune-dead", example_inputs=(x,)
    )
    made = [w for w in what(result) if "pivot into" in w]
    assert len(made) == 2
    torch.testing.assert_close(result.model(x), masked(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "direction", "inputs"), pairs(KINDS, ["forward", "bidirectional"], [True, False])
)
def test_in_litert(kind: str, direction: str, inputs: bool, tmp_path: Path) -> None:
    d = 1 + (direction == "bidirectional")
    weights = in_blocks(weights_of(kind, 8, 12, d), 2, inputs=inputs)
    model = recurrent_model(kind, weights, direction=direction, state="constant")
    result = shrink(model, "pivot{blocks=2,method=zeros,force=true,layers=layer}", target="tflite")
    assert "side by side" in what(result)[-1]
    path = tmp_path / "m.tflite"
    done = result.save(path)
    feeds = feeds_of(model)
    for kernels in KERNELS:
        for got, want in zip(
            run_saved(done, feeds, kernels), outputs_of(model, feeds), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


OPS: dict[str, Any] = {
    "lstm": lambda n, way: Lstm(n, way, 3),
    "gru": lambda n, way: Gru(n, way, 2),
    "gru-after": lambda n, way: Gru(n, way, 2, True),
    "rnn": lambda n, way: Rnn(n, way, 2),
}


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(OPS)),
    way=st.sampled_from(["forward", "reverse", "bidirectional"]),
    count=st.integers(2, 4),
    each=st.integers(1, 3),
    features=st.integers(1, 9),
    divided=st.booleans(),
    start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_algebra_in_float64(
    kind: str, way: str, count: int, each: int, features: int, divided: bool, start: bool, seed: int
) -> None:
    d, n = 1 + (way == "bidirectional"), count * each
    op = OPS[kind](n, way)
    rng = np.random.default_rng(seed)
    rows = op.gates * n
    made = in_blocks(
        {"w": rng.normal(size=(d, rows, features)), "r": rng.normal(size=(d, rows, n))},
        count, inputs=divided, seed=seed,
    )  # fmt: skip
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F64, (4, 2, features)))

    def constant(array: Any, name: str) -> Any:
        return graph.add_constant(ArrayTensor(np.asarray(array, np.float64)), name)

    mixed = graph.append(
        MatMul(), [x, constant(rng.normal(size=(features, features)), "m")], name="in"
    ).output
    operands = [mixed, constant(made["w"], "w"), constant(made["r"], "r")]
    operands.append(constant(rng.normal(size=(d, 2 * rows)), "b"))
    if start:
        operands.append(None)
        operands += [constant(rng.normal(size=(d, 2, n)), f"s{i}") for i in range(op.states)]
    node = graph.append(op, operands, name="layer")
    for value in node.outputs:
        size = n
        w = constant(rng.normal(size=(size, 3)), f"out{value.name}")
        picked = [
            graph.append(Select(1 if value is node.outputs[0] else 0, way_), [value]).output
            for way_ in range(d)
        ]
        for place, one in enumerate(picked):
            own = w if not place else constant(rng.normal(size=(size, 3)), f"o{value.name}{place}")
            graph.add_output(graph.append(MatMul(), [one, own]).output)
    graph.verify()
    data = rng.normal(size=(4, 2, features))
    want = evaluate(graph, [data])
    text = f"pivot{{blocks={count},method=zeros,force=true,layers=layer}}"
    Pipeline.parse(text).run(graph)
    assert len([v for v in graph.nodes if isinstance(v.op, type(op))]) == count
    for got, expected in zip(evaluate(graph, [data]), want, strict=True):
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max())
        )
