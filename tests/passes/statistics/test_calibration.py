"""Statistics of values, against torch and NumPy on all the data at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import (
    ArrayTensor,
    Conv,
    ConvTranspose,
    DType,
    Graph,
    Linear,
    MatMul,
    Node,
    Rewriter,
    TensorType,
    UsageError,
)
from graphshrink.passes import ActivationMoments, ChannelMoments, GramMatrix, InputMoments
from graphshrink.passes.statistics import gram as statistics
from graphshrink.passes.statistics import requests as calibration
from graphshrink.passes.statistics.im2col import (
    columns,
    columns_size,
    tap_major,
    weight_from_rows,
    weight_rows,
)
from graphshrink.passes.statistics.moments import channel_axis
from support.calibration import Oracle

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def layer(op: Any, x: Any, weight: Any) -> tuple[Graph, Node]:
    """A graph of one layer for inputs like ``x``."""
    graph = Graph()
    value = graph.add_input("x", TensorType(DType.F64, (None, *x.shape[1:])))
    node = graph.append(op, [value, graph.add_constant(ArrayTensor(weight), "w")], name="layer")
    graph.add_output(node.output)
    return graph, node


@st.composite
def windows(draw: Any) -> tuple[int, tuple[int, ...], dict[str, tuple[int, ...]], int, int, int]:
    n = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(n))
    rest = {
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(n)),
        "dilations": tuple(draw(st.integers(1, 2)) for _ in range(n)),
        "pads": tuple(draw(st.integers(0, 2)) for _ in range(2 * n)),
    }
    groups = draw(st.sampled_from([1, 2, 3]))
    return n, kernel, rest, groups, draw(st.integers(1, 3)), draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from([1, 800, 1 << 26]))
def test_columns_of_a_convolution_are_what_it_reads(made: Any, limit: int) -> None:
    """Convolution by torch, with its own padding, equals weight rows times columns, for any chunk size."""
    n, kernel, rest, groups, fan, seed = made
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, groups * fan, *rng.integers(5, 8, n)))
    w = rng.standard_normal((groups * 2, fan, *kernel))
    _, node = layer(Conv(**rest, groups=groups), x, w)
    pads = [p for i in reversed(range(n)) for p in (rest["pads"][i], rest["pads"][n + i])]
    padded = F.pad(torch.from_numpy(x), pads)
    want = _CONV[n](
        padded, torch.from_numpy(w), None, rest["strides"], 0, rest["dilations"], groups
    )
    got = np.concatenate([weight_rows(node, w) @ c for c in columns(node, x, limit)], 2)
    assert columns_size(node) == (groups, w[0].size)
    flat = want.movedim(1, 0).reshape(len(w), -1).numpy()
    np.testing.assert_array_equal(weight_from_rows(node, weight_rows(node, w)), w)
    taps = w.reshape(len(w), fan, -1).swapaxes(1, 2).reshape(len(w), -1)
    np.testing.assert_array_equal(w.reshape(len(w), -1)[:, tap_major(node)], taps)
    if limit == 1:
        # Chunks of rows stay in order only within a sample.
        assert all(c.shape[2] <= np.prod(want.shape[3:]) for c in columns(node, x, limit))
    np.testing.assert_allclose(got.reshape(len(w), -1), flat, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(windows(), st.booleans())
def test_columns_of_a_transposed_convolution(made: Any, extra: bool) -> None:
    n, kernel, rest, groups, fan, seed = made
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, groups * fan, *rng.integers(2, 5, n)))
    w = rng.standard_normal((groups * fan, 2, *kernel))
    more = tuple(int(extra and s > 1) for s in rest["strides"])
    pads = tuple(
        min(p, rest["dilations"][i % n] * (kernel[i % n] - 1)) for i, p in enumerate(rest["pads"])
    )
    op = ConvTranspose(rest["strides"], pads, rest["dilations"], groups, more)
    _, node = layer(op, x, w)
    whole = _TRANSPOSED[n](
        torch.from_numpy(x), torch.from_numpy(w), None, rest["strides"], 0, 0, groups, rest["dilations"]
    )  # fmt: skip
    grow = [v for i in reversed(range(n)) for v in (-pads[i], more[i] - pads[n + i])]
    sizes = zip(whole.shape[:1:-1], grow[::2], grow[1::2], strict=True)
    if min(size + before + after for size, before, after in sizes) < 1:
        return
    want = F.pad(whole, grow)
    got = np.concatenate([weight_rows(node, w) @ c for c in columns(node, x)], 2)
    flat = want.movedim(1, 0).reshape(2 * groups, -1).numpy()
    np.testing.assert_array_equal(weight_from_rows(node, weight_rows(node, w)), w)
    np.testing.assert_allclose(got.reshape(2 * groups, -1), flat, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [((1, 1), (1, 1), (1, 1)), ((2, 1), (1, 2), (2, 0))]
)
def test_gram_matrices_are_those_of_unfold(
    groups: int, stride: Any, dilation: Any, padding: Any
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((7, 6, 9, 8)), rng.standard_normal((4, 6 // groups, 3, 2))
    graph, node = layer(Conv(stride, (*padding, *padding), dilation, groups), x, w)
    found = Oracle([x[:3]], [x[3:4]], [x[4:]]).collect(
        graph, [GramMatrix(node), InputMoments(node)]
    )
    unfolded = F.unfold(torch.from_numpy(x), (3, 2), dilation, padding, stride)
    cols = unfolded.movedim(1, 0).reshape(groups, 36 // groups, -1).numpy()
    gram, stats = found[GramMatrix(node)], found[InputMoments(node)]
    np.testing.assert_allclose(gram.matrix, cols @ cols.swapaxes(1, 2), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(gram.mean, cols.mean(2), atol=1e-12)
    assert gram.count == stats.count == cols.shape[2]
    np.testing.assert_allclose(stats.squares, np.square(cols).sum(2), rtol=1e-12)
    np.testing.assert_allclose(stats.mean, gram.mean)


@pytest.mark.parametrize("op", [Linear(), MatMul()])
def test_gram_matrix_of_a_dense_layer_over_tokens(op: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 7, 6)), rng.standard_normal((3, 6))
    w = w.T if isinstance(op, MatMul) else w
    graph, node = layer(op, x, w)
    np.testing.assert_array_equal(weight_from_rows(node, weight_rows(node, w)), w)
    gram = Oracle([x[:2]], [x[2:]]).collect(graph, [GramMatrix(node)])[GramMatrix(node)]
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(gram.matrix[0], rows.T @ rows, rtol=1e-12)
    assert gram.count == 35


def test_channel_moments_are_accurate_beside_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3, 5, 4)) * [[[1.0]], [[1e-3]], [[0]]] + [[[0]], [[1e6]], [[2.0]]]
    graph, _ = layer(Conv((1, 1), (0,) * 4, (1, 1)), x, np.ones((2, 3, 1, 1)))
    request = ChannelMoments(graph.inputs[0], 1)
    stats = Oracle(*([part] for part in np.array_split(x, 7))).collect(graph, [request])[request]
    rows = x.swapaxes(0, 1).reshape(3, -1)
    assert stats.count == rows.shape[1]
    np.testing.assert_allclose(stats.mean, rows.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(1), rtol=1e-8, atol=0)
    np.testing.assert_allclose(stats.second, np.square(rows).mean(1), rtol=1e-12)
    np.testing.assert_array_equal(stats.min, rows.min(1))
    np.testing.assert_array_equal(stats.max, rows.max(1))
    last = ChannelMoments(graph.inputs[0], -1)
    assert Oracle([x]).collect(graph, [last])[last].mean.shape == (4,)


def activated(kind: str, gate: float | None = None) -> tuple[Graph, Node]:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F64, (None, 3, 4, 4)))
    w = graph.add_constant(ArrayTensor(np.random.default_rng(1).standard_normal((3, 3, 1, 1))), "w")
    conv = graph.append(Conv((1, 1), (0,) * 4, (1, 1)), [x, w], name="conv")
    if gate is None:
        act = graph.append(ir.Activation(kind), [conv.output], name="act")
    else:
        g = graph.add_constant(ArrayTensor(np.array([gate])), "g")
        act = graph.append(ir.Gate(kind), [conv.output, g], name="act")
    graph.add_output(act.output)
    return graph, act


@pytest.mark.parametrize("gate", [None, 1.0, 0.3, 1e-3])
def test_moments_of_an_activation_are_those_of_numpy(gate: float | None) -> None:
    graph, act = activated("relu", gate)
    x = np.random.default_rng(2).standard_normal((9, 3, 4, 4))
    request = ActivationMoments(act)
    found = Oracle([x[:4]], [x[4:]]).collect(graph, [request])[request]
    weight = graph.value("w").data
    assert weight is not None
    rows = np.einsum("oi,nihw->onhw", weight.float64()[:, :, 0, 0], x).reshape(3, -1)
    out = np.maximum(rows, 0)
    for channel in range(3):
        cov = np.cov(rows[channel], out[channel], bias=True)
        assert found.var_x[channel] == pytest.approx(cov[0, 0], rel=1e-9)
        assert found.cov_xy[channel] == pytest.approx(cov[0, 1], rel=1e-9)
        assert found.mean_y[channel] == pytest.approx(out[channel].mean(), rel=1e-9)


def test_a_closed_gate_shows_no_activation() -> None:
    graph, act = activated("relu", 0.0)
    with pytest.raises(UsageError, match="gate act is 0 or not a constant"):
        Oracle([np.ones((1, 3, 4, 4))]).collect(graph, [ActivationMoments(act)])


@pytest.mark.parametrize(
    ("before", "after", "axis"),
    [
        ("Conv", "", 1), ("", "Conv", 1), ("Linear", "", 2), ("", "Linear", 2), ("", "", 1),
    ],
)  # fmt: skip
def test_the_axis_of_an_activation_is_that_of_its_layers(
    before: str, after: str, axis: int
) -> None:
    rng = np.random.default_rng(0)
    graph = Graph()
    value = graph.add_input("x", TensorType(DType.F64, (None, 4, 4)))

    def add(kind: str, value: Any) -> Any:
        shape = (4, 4, 1) if kind == "Conv" else (4, 4)
        op = Conv((1,), (0, 0), (1,)) if kind == "Conv" else Linear()
        w = graph.add_constant(ArrayTensor(rng.standard_normal(shape)), "w")
        return graph.append(op, [value, w]).output

    value = add(before, value) if before else value
    value = graph.append(ir.Identity(), [value]).output
    act = graph.append(ir.Activation("gelu"), [value], name="act")
    graph.add_output(add(after, act.output) if after else act.output)
    assert channel_axis(act) == axis


# Collecting.


def test_nothing_is_computed_twice_while_the_graph_is_the_same() -> None:
    graph, act = activated("relu")
    x = np.random.default_rng(2).standard_normal((9, 3, 4, 4))
    data = Oracle([x])
    conv = act.inputs[0].producer
    first = data.collect(graph, [ActivationMoments(act)])[ActivationMoments(act)]
    assert data.runs == 1
    both = data.collect(graph, [ActivationMoments(act), GramMatrix(conv)])
    assert data.runs == 2
    assert both[ActivationMoments(act)] is first
    data.collect(graph, [GramMatrix(conv)])
    assert data.runs == 2
    rw = Rewriter(graph)
    w = graph.value("w").data.float64()
    rw.set_input(conv, 1, rw.constant(ArrayTensor(2 * w), "w2"))
    again = data.collect(graph, [ActivationMoments(act)])[ActivationMoments(act)]
    assert data.runs == 3
    np.testing.assert_allclose(again.mean_x, 2 * first.mean_x)
    assert data.collect(graph, []) is not None
    assert data.runs == 3


def test_a_run_takes_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, act = activated("relu")
    conv = act.inputs[0].producer
    data = Oracle([np.ones((1, 3, 4, 4))])
    monkeypatch.setattr(calibration, "RUN_BYTES", 100)
    extra = graph.append(Conv((1, 1), (0,) * 4, (1, 1)), [act.output, graph.value("w")], name="c2")
    data.collect(graph, [GramMatrix(conv), GramMatrix(extra)])
    assert data.runs == 2
    monkeypatch.setattr(statistics, "GRAM_BYTES", 71)
    assert "allowed are" in GramMatrix(conv).problem()
    with pytest.raises(UsageError, match=r"conv: the Gram matrix of its 3 inputs would take"):
        Oracle([np.ones((1, 3, 4, 4))]).collect(graph, [GramMatrix(conv)])


def test_values_must_be_finite() -> None:
    graph, act = activated("relu")
    x = np.ones((1, 3, 4, 4))
    x[0, 0, 0, 0] = np.inf
    with pytest.raises(UsageError, match="is not finite everywhere on the calibration data"):
        Oracle([x]).collect(graph, [ActivationMoments(act)])


def test_columns_need_a_layer_with_a_weight_of_known_shape() -> None:
    graph, act = activated("relu")
    with pytest.raises(ValueError, match="Activation is neither a convolution"):
        columns_size(act)
    graph = Graph()
    x, w = (graph.add_input(n, TensorType(DType.F64, s)) for n, s in (("x", (2, 3)), ("w", None)))
    node = graph.append(Linear(), [x, w], name="dense")
    with pytest.raises(ValueError, match="dense: the shape of its weight is not known"):
        columns_size(node)
