"""expand-linear: blocks that are the convolution they came from, before training and, merged, after it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo.models import make

from graphshrink import gates, shrink, shrink_graph
from graphshrink.ir import (
    ArrayTensor,
    Conv,
    DType,
    Exactness,
    Gate,
    Graph,
    Node,
    Rewriter,
    TensorType,
)
from graphshrink.passes import Context, ExpandLinear, PassError, Pipeline
from support.evaluate import evaluate, random_inputs
from support.onnx_run import agree

LIMIT = 1e-10
BACK = "remove-activations{threshold=1},merge-linear,prune-dead"


def conv_graph(
    weight: tuple[int, ...], op: Conv, *, bias: bool = True, side: int = 9, dtype: type = np.float64
) -> Graph:
    rng = np.random.default_rng(0)
    graph = Graph()
    size = (side,) * op.spatial_rank
    x = graph.add_input(
        "x", TensorType(DType.of(np.dtype(dtype)), (2, weight[1] * op.groups, *size))
    )
    inputs = [x, graph.add_constant(ArrayTensor(rng.standard_normal(weight).astype(dtype)), "w")]
    if bias:
        vector = rng.standard_normal(weight[0]).astype(dtype)
        inputs.append(graph.add_constant(ArrayTensor(vector), "b"))
    graph.add_output(graph.append(op, inputs, name="conv").output, "y")
    return graph


def expanded(graph: Graph, **options: Any) -> tuple[Graph, Rewriter]:
    after = graph.clone()
    rw = Rewriter(after)
    ExpandLinear(**options).run(after, rw, Context(seed=3))
    after.verify()
    return after, rw


def trained(graph: Graph) -> Graph:
    """Every weight and bias of every convolution moved, gates left alone."""
    after = graph.clone()
    rw, rng = Rewriter(after), np.random.default_rng(5)
    for node in after.nodes:
        if isinstance(node.op, Conv):
            for index in (1, 2):
                value = node.inputs[index]
                assert value is not None
                assert value.data is not None
                moved = value.data.float64() + 0.3 * rng.standard_normal(value.data.shape)
                rw.set_input(node, index, rw.constant(ArrayTensor(moved), "moved"))
    after.verify()
    return after


def error(want: np.ndarray, got: np.ndarray) -> float:
    assert want.shape == got.shape
    return float(np.abs(want - got).max() / np.abs(want).max())


def conv_of(graph: Graph) -> tuple[Node, Conv]:
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    return node, node.op


def shape_of(node: Node) -> tuple[int, ...]:
    assert node.inputs[1] is not None
    assert node.inputs[1].data is not None
    return node.inputs[1].data.shape


@st.composite
def convolutions(draw: Any) -> Graph:
    rank = draw(st.sampled_from([1, 1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (draw(st.integers(1, 4)) for _ in range(2))
    taps = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    numbers = lambda lo, hi, n: tuple(draw(st.integers(lo, hi)) for _ in range(n))  # noqa: E731
    # The dilation of a single tap means nothing.
    dilations = tuple(draw(st.integers(1, 2)) if t > 1 else 1 for t in taps)
    op = Conv(numbers(1, 2, rank), numbers(0, 2, 2 * rank), dilations, groups)
    return conv_graph((groups * outputs, inputs, *taps), op, bias=draw(st.booleans()), side=8)


@given(
    convolutions(),
    st.sampled_from(["kxk-pw", "pw-dw-pw"]),
    st.floats(1, 3),
    st.sampled_from(["relu6", "silu"]),
)
@settings(max_examples=30, deadline=None)
def test_the_function_stays_and_the_shape_comes_back(
    graph: Graph, form: str, factor: float, activation: str
) -> None:
    node, op = conv_of(graph)
    weight = shape_of(node)
    taps = math.prod(weight[2:])
    expansion = factor * taps if form == "pw-dw-pw" else factor
    after, rw = expanded(graph, form=form, expansion=expansion, activation=activation)
    assert rw.worst is Exactness.EXACT
    assert [type(n.op) for n in after.nodes].count(Gate) == (1 if form == "kxk-pw" else 2)
    inputs = random_inputs(graph, 2)
    (want,), (got,) = evaluate(graph, inputs), evaluate(after, inputs)
    assert error(want, got) < LIMIT
    # Whatever training made of the numbers, the block is one convolution of the old shape.
    moved = trained(after)
    (want,) = evaluate(moved, inputs)
    assert error(want, got) > 1e-3
    records = Pipeline(BACK).run(moved)
    assert records[1].exactness is Exactness.EXACT
    merged, back = conv_of(moved)
    (got,) = evaluate(moved, inputs)
    assert error(want, got) < LIMIT
    assert (back, shape_of(merged)) == (op, weight)


@pytest.mark.parametrize(
    ("form", "expansion", "widths"),
    [("kxk-pw", 1.0, [6]), ("kxk-pw", 2.5, [15]), ("pw-dw-pw", 9.0, [36, 36]),
     ("pw-dw-pw", 10.6, [43, 43])],
)  # fmt: skip
def test_widths(form: str, expansion: float, widths: list[int]) -> None:
    graph = conv_graph((6, 4, 3, 3), Conv((2, 2), (1, 1, 1, 1), (1, 1)))
    after, _ = expanded(graph, form=form, expansion=expansion)
    found = [shape_of(n)[0] for n in after.nodes if isinstance(n.op, Conv)]
    assert found == [*widths, 6]


def test_hidden_channels_are_alive_and_differ() -> None:
    graph = conv_graph((4, 4, 3, 3), Conv((1, 1), (1, 1, 1, 1), (1, 1)))
    for form, expansion in (("kxk-pw", 3.0), ("pw-dw-pw", 12.0)):
        after, _ = expanded(graph, form=form, expansion=expansion)
        for node in after.nodes:
            if isinstance(node.op, Conv):
                assert node.inputs[1] is not None
                assert node.inputs[1].data is not None
                rows = node.inputs[1].data.float64().reshape(shape_of(node)[0], -1)
                size = np.linalg.norm(rows, axis=1)
                assert size.min() > 0.1 * size.max()
        first = next(after.nodes.__iter__())
        assert first.inputs[1] is not None
        assert first.inputs[1].data is not None
        rows = first.inputs[1].data.float64().reshape(shape_of(first)[0], -1)
        assert np.linalg.matrix_rank(rows) == min(rows.shape)


def test_the_seed_decides() -> None:
    graph = conv_graph((4, 4, 3, 3), Conv((1, 1), (1, 1, 1, 1), (1, 1)))
    texts = []
    for seed in (0, 0, 1):
        after = graph.clone()
        ExpandLinear().run(after, Rewriter(after), Context(seed=seed))
        texts.append(after.text(full=True))
    assert texts[0] == texts[1] != texts[2]


def test_text_before_and_after() -> None:
    graph = conv_graph((4, 2, 3, 3), Conv((2, 2), (1, 1, 1, 1), (1, 1)), bias=False)
    after, rw = expanded(graph, form="pw-dw-pw", expansion=9, mode="top-k", names="con*")
    assert after.text() == (
        """graph graph(%x: f64[2, 2, 9, 9]) {
  %w: f64[4, 2, 3, 3] = elided
  %conv.gate: f64[1] = dense [0.0]
  %conv.expand.weight: f64[18, 2, 1, 1] = elided
  %conv.expand.bias: f64[18] = splat 0.0
  %conv.filter.weight: f64[18, 1, 3, 3] = elided
  %conv.filter.bias: f64[18] = splat 0.0
  %conv.project.weight: f64[4, 18, 1, 1] = elided
  %conv.project.bias: f64[4] = splat 0.0
  %conv.expand: f64[2, 18, 11, 11] = Conv(%x, %conv.expand.weight, %conv.expand.bias) {strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}
  %conv.act: f64[2, 18, 11, 11] = Gate(%conv.expand, %conv.gate) {kind="relu6", mode="top-k"}
  %conv.filter: f64[2, 18, 5, 5] = Conv(%conv.act, %conv.filter.weight, %conv.filter.bias) {strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1], groups=18}
  %conv.filter_act: f64[2, 18, 5, 5] = Gate(%conv.filter, %conv.gate) {kind="relu6", mode="top-k"}
  %conv: f64[2, 4, 5, 5] = Conv(%conv.filter_act, %conv.project.weight, %conv.project.bias) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "conv.project"
  return y=%conv
}
"""
    )
    assert [(r.what, r.nodes) for r in rw.rewrites] == [("expand Conv to pw-dw-pw", ("conv",))]


# What is refused.


def test_too_narrow_for_every_tap() -> None:
    graph = conv_graph((4, 2, 3, 3), Conv((1, 1), (0, 0, 0, 0), (1, 1)))
    after, rw = expanded(graph, form="pw-dw-pw", expansion=8.9)
    assert not rw.changed
    assert [(r.node, r.reason) for r in rw.refusals] == [
        ("conv", "not expanded: as pw-dw-pw, a kernel of 9 taps needs an expansion of at least 9, not 8.9; "
                 "or use form=kxk-pw")
    ]  # fmt: skip
    assert after.text(full=True) == graph.text(full=True)


def test_what_is_named_must_be_there_and_be_a_convolution() -> None:
    graph = conv_graph((4, 2, 3, 3), Conv((1, 1), (0, 0, 0, 0), (1, 1)))
    with pytest.raises(PassError, match="expand-linear: no node is named 'convs'; did you mean"):
        expanded(graph, names="convs")
    gated, _ = expanded(graph)
    _, rw = expanded(gated, names=("conv.act", "conv.project"))
    assert [r.reason for r in rw.refusals] == ["not expanded: it is not a convolution"]
    assert len(rw.rewrites) == 1


def test_computed_weights_stay() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 2, 8)))
    w = graph.add_input("w", TensorType(DType.F32, (4, 2, 3)))
    graph.add_output(graph.append(Conv((1,), (0, 0), (1,)), [x, w], name="conv").output)
    _, rw = expanded(graph)
    assert not rw.changed
    assert "its weight %w is not a constant" in rw.refusals[0].reason


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("form=pw-pw", "form"), ("expansion=0.5", "at least 1"), ("expansion=inf", "finite"),
        ("activation=leaky_relu", "activation must be one of"), ("mode=hard", "mode"), ("value=2", "between 0 and 1"),
        ("mode=top-k,value=0.5", "0 or 1"),
    ],
)  # fmt: skip
def test_bad_options(options: str, why: str) -> None:
    with pytest.raises(PassError, match=why):
        Pipeline(f"expand-linear{{{options}}}")


def test_open_gates_are_approximate() -> None:
    graph = conv_graph((4, 2, 3, 3), Conv((1, 1), (0, 0, 0, 0), (1, 1)))
    after, rw = expanded(graph, value=1.0)
    assert rw.worst is Exactness.APPROXIMATE
    inputs = random_inputs(graph, 2)
    (want,), (got,) = evaluate(graph, inputs), evaluate(after, inputs)
    assert error(want, got) > 1e-2


# In torch.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.twice = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.stem(x))
        x = self.twice(torch.relu(self.twice(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("names", ["stem.0", "body.0", "twice"])
@pytest.mark.parametrize("form", ["kxk-pw", "pw-dw-pw"])
def test_expand_train_shrink(names: str, form: str) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    before = set(model.state_dict())
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    step = ExpandLinear(names=names, form=form, expansion=9)
    result = shrink(model, step, example_inputs=(x,), check=True, on_failure="raise")
    wide = result.model
    with torch.no_grad():
        assert error(model(x).numpy(), wide(x).numpy()) < 1e-5
    found = gates(wide)
    assert found
    assert all(gate.value == 0 for gate in found.values())
    wide.train()
    optimiser = torch.optim.Adam(wide.parameters(), 1e-2)
    for _ in range(6):
        optimiser.zero_grad()
        loss = F.cross_entropy(wide(x), y) - sum(g.switch() for g in found.values())
        loss.backward()
        optimiser.step()
    # Gates that start closed can open, and close again.
    assert all(gate.value > 0.01 for gate in found.values())
    with torch.no_grad():
        for gate in found.values():
            gate.switch.score.zero_()
    wide.eval()
    small = shrink_graph(wide, BACK, example_inputs=(x,))
    with torch.no_grad():
        assert error(model(x).numpy(), wide(x).numpy()) > 1e-2
        assert error(wide(x).numpy(), small(x).numpy()) < 1e-5
    plain = shrink_graph(model, example_inputs=(x,))

    def convs(module: nn.Module) -> list[Any]:
        return [
            (tuple(m.weight.shape), m.stride, m.padding, m.groups)
            for m in module.modules()
            if isinstance(m, nn.Conv2d)
        ]

    called = [n.target for n in small.graph.nodes if n.op == "call_module"]
    shapes = convs(small)
    if names == "twice":
        # The two calls of one module were trained apart.
        assert len(shapes) == len(convs(plain)) + 1
    else:
        assert shapes == convs(plain)
    assert len(called) == len(set(called)) or names != "twice"
    # What was given has no new parts (its parameters it shares, where nothing was expanded).
    assert model.state_dict().keys() == before
    assert not any(isinstance(m, nn.Conv2d) and list(m.children()) for m in model.modules())


def test_onnx() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(1, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    host = program.model_proto
    steps = "fold-constants,prune-dead,expand-linear"
    wide = shrink_graph(host, steps, check=True)
    assert sum(n.op_type == "Conv" for n in wide.graph.node) == 8
    agree(host, wide, {"x": x.numpy()})
    # A gate in a file is plain arithmetic; the way back starts from the graph.
    small = shrink_graph(host, f"{steps},{BACK}", check=True)
    agree(host, small, {"x": x.numpy()})
    kernels = [t.dims for t in small.graph.initializer if len(t.dims) == 4]
    assert [list(k) for k in kernels] == [
        [8, 3, 3, 3],
        [12, 8, 3, 3],
        [12, 12, 1, 1],
        [12, 12, 1, 1],
    ]


@pytest.mark.parametrize("form", ["kxk-pw", "pw-dw-pw"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_networks(name: str, form: str) -> None:
    """Every convolution of a network, grouped ones too, and the way back."""
    model = make(name, small=True)
    x = torch.randn(1, 3, 40, 40)
    # The stem of ResNet has 49 taps.
    step = ExpandLinear(form=form, expansion=9)
    result = shrink(model, step, example_inputs=(x,), check=True, on_failure="raise")
    refused = 1 if (name, form) == ("resnet18", "pw-dw-pw") else 0
    assert len(result.report.passes[0].refusals) == refused
    assert len(result.report.passes[0].rewrites) == result.report.before.ops["Conv"] - refused
    small = shrink(result.model, BACK, example_inputs=(x,))
    plain = shrink(model, example_inputs=(x,))
    assert small.report.after.macs == plain.report.after.macs
    assert small.report.after.ops == plain.report.after.ops
    with torch.no_grad():
        assert error(model(x).numpy(), small.model(x).numpy()) < 1e-5
