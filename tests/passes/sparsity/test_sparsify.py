"""``sparsify``: patterns by a checker of its own, errors by torch, order, reasons, both hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import Context, PassError, Pipeline, shrink, shrink_graph
from graphshrink.api import load
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
    Value,
)
from graphshrink.nn import masks
from graphshrink.passes import Sparsify
from graphshrink.passes.statistics import gram as statistics
from support.calibration import Oracle
from support.cli import fails, small_model, succeeds
from support.evaluate import evaluate
from support.onnx_run import outputs_of

RNG = np.random.default_rng(0)
METHODS = ("magnitude", "wanda", "sparsegpt")


def holds(weight: Any, n: int = 2, m: int = 4, axis: int = 1) -> bool:
    """At most n of every m channels in a row, for every output and every tap by itself, in plain loops."""
    weight = np.moveaxis(np.asarray(weight, dtype=np.float64), axis, -1)
    for row in weight.reshape(-1, weight.shape[-1]).tolist():
        for start in range(0, len(row), m):
            if sum(x != 0 for x in row[start : start + m]) > n:
                return False
    return True


class Net:
    """A chain of layers over one input, built by hand in float64 or another type."""

    def __init__(self, *shape: int | None, dtype: DType = DType.F64) -> None:
        self.graph, self.dtype = Graph(), dtype
        self.value = self.graph.add_input("x", TensorType(dtype, (None, *shape)))

    def add(self, name: str, op: Any, *weight: int, value: Value | None = None) -> Node:
        array = np.random.default_rng(len(self.graph)).standard_normal(weight)
        own = ArrayTensor(array.astype(self.dtype.numpy))
        w = value or self.graph.add_constant(own, f"{name}.weight")
        node = self.graph.append(op, [self.value, w], name=name)
        self.value = node.output
        return node

    def done(self) -> Graph:
        self.graph.add_output(self.value)
        return self.graph


def conv(n: int = 2, groups: int = 1, stride: int = 1, pad: int = 1) -> Conv:
    return Conv((stride,) * n, (pad,) * 2 * n, (1,) * n, groups)


def weight(graph: Graph, name: str) -> Any:
    found = next(n for n in graph.nodes if n.name == name).inputs[1]
    assert found is not None
    assert found.data is not None
    return found.data.numpy()


def run(graph: Graph, step: Sparsify, data: Oracle | None = None) -> Rewriter:
    rw = Rewriter(graph, step.exactness)
    step.run(graph, rw, Context(calibration=data))
    graph.verify()
    return rw


def chain() -> tuple[Graph, Oracle]:
    net = Net(8, 7, 6)
    net.add("plain", conv(), 8, 8, 3, 3)
    net.add("grouped", conv(groups=2, stride=2), 8, 4, 3, 3)
    net.add("up", ConvTranspose((2, 1), (1, 0, 0, 1), (1, 1), 2, (1, 0)), 8, 6, 3, 2)
    net.add("last", conv(pad=0), 4, 12, 1, 1)
    # Channels of different sizes, that depend on each other.
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((8, 8)) * rng.lognormal(0, 1, (8, 1))
    x = np.einsum("ab,nbhw->nahw", mixed, rng.standard_normal((12, 8, 7, 6)))
    return net.done(), Oracle([x[:5]], [x[5:]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2])
def test_patterns_run_along_the_channels_of_every_tap(method: Any, n: int) -> None:
    graph, data = chain()
    dense = {name: weight(graph, name) for name in ("plain", "grouped", "up", "last")}
    rw = run(graph, Sparsify(n=n, method=method), data)
    assert len(rw.rewrites) == 4
    for name in ("plain", "grouped", "last"):
        assert holds(weight(graph, name), n)
        assert not holds(dense[name], n)
    up = weight(graph, "up")
    assert holds(up[:4], n, axis=0)
    assert holds(up[4:], n, axis=0)
    for made in rw.rewrites:
        kept = weight(graph, made.nodes[0]) != 0
        assert np.count_nonzero(kept) == kept.size * n // 4
        old = np.abs(dense[made.nodes[0]])
        assert made.measures["magnitude kept"] == pytest.approx(old[kept].sum() / old.sum())


def test_layer_errors_are_those_of_torch_and_fall_with_the_method() -> None:
    """The error told for a layer is what the oracle finds when the dense weight is put back."""
    errors: dict[str, list[float]] = {}
    for method in METHODS:
        graph, data = chain()
        dense, _ = chain()
        rw = run(graph, Sparsify(method=method), data)
        for made in rw.rewrites:
            name = made.nodes[0]
            errors.setdefault(name, []).append(made.measures["output error"])
            sparse = graph.clone()
            node = next(n for n in sparse.nodes if n.name == name)
            sparse._set_output(0, node.output)
            put_back = sparse.clone()
            twin = next(n for n in put_back.nodes if n.name == name)
            old = put_back.add_constant(ArrayTensor(weight(dense, name)), "old")
            put_back._set_input(twin, 1, old)
            moved = size = 0.0
            for batch in data.batches:
                [got], [want] = evaluate(sparse, batch), evaluate(put_back, batch)
                moved += np.square(got - want).sum()
                size += np.square(want).sum()
            want_error = np.sqrt(moved / size)
            assert made.measures["output error"] == pytest.approx(want_error, rel=1e-9)
    magnitude, by_wanda, by_sparsegpt = np.mean(list(errors.values()), axis=0)
    assert magnitude > by_wanda > by_sparsegpt


def test_layers_see_the_sparse_ones_before_them() -> None:
    graph, data = chain()
    run(graph, Sparsify(method="sparsegpt"), data)
    assert data.runs == 4
    once, other = chain()
    run(once, Sparsify(method="sparsegpt", sequential=False), other)
    assert other.runs == 1
    np.testing.assert_array_equal(weight(graph, "plain"), weight(once, "plain"))
    assert not np.array_equal(weight(graph, "last"), weight(once, "last"))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
@pytest.mark.parametrize("method", METHODS)
def test_torch_takes_the_stored_numbers(dtype: DType, method: Any) -> None:
    """torch's own 2:4 format gives back what is stored, after the numbers were rounded to their type."""
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass as compress,
    )
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_to_dense_cutlass as expand,
    )

    net = Net(64, dtype=dtype)
    net.add("dense", Linear(), 32, 64)
    graph = net.done()
    run(graph, Sparsify(method=method), Oracle([RNG.standard_normal((100, 64))]))
    stored = weight(graph, "dense")
    assert stored.dtype == dtype.numpy
    # For float32 that format is 1:2.
    tensor = torch.from_numpy(stored.astype(np.float32)).half()
    torch.testing.assert_close(expand(*compress(tensor)), tensor, rtol=0, atol=0)
    assert np.count_nonzero(stored.astype(np.float32)) == 32 * 32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, 2])
def test_biases_take_the_mean_of_what_is_lost(method: Any, groups: int) -> None:
    """Of all biases the new one gives the least squares, and the rest of the error is what is told."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 8, 5, 5)) * rng.lognormal(0, 1, (8, 1, 1)) + 2
    means: dict[bool, Any] = {}
    for refit in (True, False):
        net = Net(8, 5, 5)
        node = net.add("conv", conv(groups=groups), 6, 8 // groups, 3, 3)
        bias = net.graph.add_constant(ArrayTensor(rng.standard_normal(6)), "bias")
        net.graph._set_inputs(node, (*node.inputs, bias))
        graph = net.done()
        [want] = evaluate(graph, [x])
        plain = want - bias.data.numpy()[:, None, None]
        rw = run(graph, Sparsify(method=method, refit_bias=refit), Oracle([x[:7]], [x[7:]]))
        [got] = evaluate(graph, [x])
        assert holds(weight(graph, "conv"))
        lost = got - want
        means[refit] = np.abs(lost.mean((0, 2, 3)))
        told = rw.rewrites[0].measures["output error"]
        assert told == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(plain), rel=1e-9)
        stays = next(iter(graph.nodes)).inputs[2] is bias
        assert stays != refit
    assert means[True].max() < 1e-10 < 1e-3 < means[False].max()


def test_tied_weights_get_one_mask_from_all_their_inputs() -> None:
    def built() -> tuple[Graph, list[Node]]:
        net = Net(8)
        first = net.add("first", Linear(), 8, 8)
        net.add("between", Linear(), 8, 8)
        second = net.add("second", Linear(), value=first.inputs[1])
        return net.done(), [first, second]

    graph, nodes = built()
    x = RNG.standard_normal((50, 8)) * RNG.lognormal(0, 1, 8)
    data = Oracle([x])
    rw = run(graph, Sparsify(method="wanda", layers=("second",)), data)
    assert nodes[0].inputs[1] is nodes[1].inputs[1]
    assert rw.rewrites[0].nodes == ("first", "second")
    dense, _ = built()
    w, between = weight(dense, "first"), weight(dense, "between")
    both = np.concatenate([x, x @ w.T @ between.T])
    scores = np.abs(w) * np.linalg.norm(both, axis=0)
    for row, kept in zip(scores, weight(graph, "first") != 0, strict=True):
        for lo in (0, 4):
            assert set(np.flatnonzero(kept[lo : lo + 4])) == set(np.argsort(row[lo : lo + 4])[2:])


@pytest.mark.parametrize("method", METHODS)
def test_unstructured_sparsity(method: Any) -> None:
    graph, data = chain()
    rw = run(graph, Sparsify(sparsity=0.8, method=method), data)
    assert "make 80% sparse by" in rw.rewrites[0].what
    for made in rw.rewrites:
        kept = weight(graph, made.nodes[0]) != 0
        assert kept.mean() == pytest.approx(0.2, abs=0.05)
    if method == "magnitude":
        dense, _ = chain()
        w = np.abs(weight(dense, "plain"))
        assert w[weight(graph, "plain") == 0].max() < w[weight(graph, "plain") != 0].min()


def test_constants_that_no_gram_matrix_fits_take_magnitude_only() -> None:
    def built() -> Graph:
        graph = Graph()
        x = graph.add_input("x", TensorType(DType.F64, (2, 8, 3)))
        left = graph.add_constant(ArrayTensor(RNG.standard_normal((5, 8))), "left")
        node = graph.append(MatMul(), [left, x], name="product")
        graph.add_output(node.output)
        return graph

    data = Oracle([RNG.standard_normal((2, 8, 3))])
    graph = built()
    rw = run(graph, Sparsify(method="wanda"), data)
    assert not rw.changed
    assert "only method=magnitude supports it" in rw.refusals[0].reason
    rw = run(graph, Sparsify(), data)
    assert set(rw.rewrites[0].measures) == {"magnitude kept"}
    left = next(iter(graph.nodes)).inputs[0]
    assert holds(left.data.numpy())


def test_large_layers_take_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "GRAM_BYTES", 8 * 8 * 8)
    net = Net(16)
    net.add("large", Linear(), 8, 16)
    net.add("small", Linear(), 8, 8)
    graph = net.done()
    data = Oracle([RNG.standard_normal((50, 16))])
    rw = run(graph, Sparsify(method="sparsegpt"), data)
    assert [r.nodes for r in rw.rewrites] == [("small",)]
    assert "Gram matrix of its 16 inputs would take" in rw.refusals[0].reason
    rw = run(graph, Sparsify(method="wanda"), data)
    large = next(r for r in rw.rewrites if r.nodes == ("large",))
    assert "output error" not in large.measures
    assert holds(weight(graph, "large"))


def test_updates_beyond_the_range_of_the_type_are_refused() -> None:
    net = Net(4, dtype=DType.F16)
    net.add("dense", Linear(), 1, 4)
    graph = net.done()
    node = next(iter(graph.nodes))
    large = graph.add_constant(ArrayTensor(np.full((1, 4), 6e4, np.float16)), "large")
    graph._set_input(node, 1, large)
    # Four copies of one input: what two lose, the other two take.
    x = RNG.standard_normal((50, 1)) + 1e-3 * RNG.standard_normal((50, 4))
    rw = run(graph, Sparsify(method="sparsegpt"), Oracle([x]))
    assert not rw.changed
    assert rw.refusals[0].reason == "an updated number is beyond the range of f16"


def test_a_matrix_that_has_no_inverse_is_told() -> None:
    net = Net(8)
    net.add("dense", Linear(), 8, 8)
    graph = net.done()
    x = RNG.standard_normal((3, 8))
    x[:, :5] = 0
    rw = run(graph, Sparsify(method="sparsegpt", damping=0.0), Oracle([x]))
    assert "(damping raised to" in rw.rewrites[0].what
    assert np.isfinite(weight(graph, "dense")).all()


# What stays dense, and what is an error.


def test_reasons_for_staying_dense() -> None:
    net = Net(3, 8, 8)
    net.add("stem", conv(), 8, 3, 3, 3)
    net.add("depthwise", conv(groups=8), 8, 1, 3, 3)
    net.add("small", conv(pad=0), 4, 8, 1, 1)
    net.add("next", conv(), 8, 4, 3, 3)
    net.add("bad", conv(), 8, 8, 3, 3)
    net.add("other", conv(), 8, 8, 3, 3)
    net.add("up", ConvTranspose((1, 1), (0,) * 4, (1, 1)), 8, 8, 1, 1)
    graph = net.done()
    broken = weight(graph, "bad").copy()
    broken[0, 0, 0, 0] = np.nan
    bad = next(n for n in graph.nodes if n.name == "bad")
    graph._set_input(bad, 1, graph.add_constant(ArrayTensor(broken), "nan"))
    rw = run(graph, Sparsify(min_size=40, skip="other", ops="conv"))
    said = {r.node: r.reason for r in rw.refusals}
    assert [r.nodes[0] for r in rw.rewrites] == ["next"]
    assert said == {
        "stem": "it sums over 3 channels, which is no multiple of 4",
        "depthwise": "each of its 8 groups sums over 1 channel, which is no multiple of 4",
        "small": "it has 32 numbers, fewer than 40",
        "bad": "its weight is not finite everywhere",
        "other": "the option skip names it",
        "up": "the option ops names only conv",
    }
    rw = run(graph, Sparsify(sparsity=0.5, min_size=73))
    assert {r.nodes[0] for r in rw.rewrites} == {"stem", "next", "other"}
    assert "it has 72 numbers, fewer than 73" in {r.reason for r in rw.refusals}


def test_layers_that_would_not_gain_stay_dense() -> None:
    net = Net(256)
    net.add("wide", Linear(), 256, 256)
    net.add("narrow", Linear(), 64, 256)
    rw = run(net.done(), Sparsify(dense_fallback=True))
    assert [r.nodes[0] for r in rw.rewrites] == ["wide"]
    assert "a sparse kernel is not likely to be faster" in rw.refusals[0].reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n=4", "4:4 is not a pattern"),
        ("method=random", "is one of magnitude, wanda, sparsegpt, not 'random'"),
        ("sparsity=1.5", "'sparsity' must be above 0 and below 1, not 1.5"),
        ("ops=[gemm]", "one of conv, conv-transpose, linear, matmul"),
        ("min-size=-1", "'min-size' must be at least 0, not -1"),
        ("block=0", "'block' must be at least 1, not 0"),
    ],
)
def test_wrong_options(text: str, said: str) -> None:
    with pytest.raises(PassError, match=said):
        Pipeline(f"sparsify{{{text}}}")


def test_errors_of_the_pass() -> None:
    for method in ("wanda", "sparsegpt"):
        with pytest.raises(PassError, match=f"method={method}}} needs calibration data"):
            Pipeline(Sparsify(method=method)).run(chain()[0])
    with pytest.raises(PassError, match=r"sparsify: layers: no node is named 'plane'.*'plain'"):
        run(chain()[0], Sparsify(layers="plane"))
    with pytest.raises(PassError, match="sparsify: skip: no node is named"):
        run(chain()[0], Sparsify(skip="nothing*"))
    net = Net(3, 8, 8)
    for i in range(5):
        net.add(f"c{i}", conv(), 3, 3, 3, 3)
    graph = net.done()
    with pytest.raises(PassError, match=r"no layer can be made 2:4 \(c0: it sums .*; and 2 more\)"):
        run(graph, Sparsify())
    with pytest.raises(PassError, match="there are no convolutions, dense or recurrent layers"):
        run(Net(3).done(), Sparsify())
    text = str(Sparsify(method="wanda", layers=("a", "b*"), sparsity=0.25))
    assert text == "sparsify{sparsity=0.25,method=wanda,layers=[a,b*]}"
    assert Pipeline(text).passes[0] == Sparsify(method="wanda", layers=("a", "b*"), sparsity=0.25)


# Both hosts, end to end.


class Attention(nn.Module):
    """Branches that share a run, a tied layer, a parameter that is multiplied as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 4, -1) @ self.v(x)
        return self.v(self.norm(x + y @ self.mix))


@pytest.mark.parametrize("method", METHODS)
def test_torch_models_stay_trainable(method: str) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    x = torch.randn(8, 5, 16)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    made = shrink_graph(
        model, f"sparsify{{method={method}}}", example_inputs=(x[:1],), calibration=[x]
    )
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, before[name])
    weights = {n: p for n, p in made.named_parameters() if p.ndim == 2}
    assert len(weights) == 4
    for p in weights.values():
        array = p.detach().numpy()
        assert holds(array) or holds(array, axis=0)
        assert np.count_nonzero(array) == 128
    assert not list(masks(made))
    made(x).square().sum().backward()
    assert all(p.grad is not None for p in weights.values())
    error = (made(x) - model(x)).norm() / model(x).norm()
    assert 0.01 < error < 1


def test_masks_outlast_training_when_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(20, 4, 6, 6)
    passes = "sparsify{method=sparsegpt,lasting=true}"
    made = shrink_graph(model, passes, example_inputs=(x[:1],), calibration=[x])
    plain = shrink_graph(
        model, "sparsify{method=sparsegpt}", example_inputs=(x[:1],), calibration=[x]
    )
    torch.testing.assert_close(made(x), plain(x))
    assert len(list(masks(made))) == 2
    optimizer = torch.optim.SGD(made.train().parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        made(x).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(made(x), plain(x))
    for name in ("0", "2"):
        found = made.get_submodule(name).weight.detach().numpy()
        assert holds(found)
        np.testing.assert_array_equal(found != 0, plain.get_submodule(name).weight.detach() != 0)


def test_onnx_models_from_the_command_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": (8, 4, 3, 3), "v": (32, 12), "b": (12,)}
    made = {n: rng.standard_normal(s).astype(np.float32) for n, s in arrays.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Concat", ["p"] * 4, ["cat"], axis=1),
        helper.make_node("Flatten", ["cat"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], name="gemm"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
             for n, s in (("x", ["n", 4, 6, 6]), ("y", ["n", 12]))]  # fmt: skip
    tensors = [numpy_helper.from_array(a, n) for n, a in made.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    x = rng.standard_normal((40, 4, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    data = ["--calibration", tmp_path / "c.npz", "--report", tmp_path / "r.json"]
    told = succeeds(path, out, "-v", "--passes", "sparsify{method=sparsegpt}", *data)
    assert "make 2:4 by sparsegpt" in told
    assert "output error" in told
    graph, _ = load(out)
    for name in ("conv", "gemm"):
        assert holds(weight(graph, name))
    [report] = json.loads((tmp_path / "r.json").read_text())["passes"]
    for rewrite in report["rewrites"]:
        assert 0 < rewrite["measures"]["output error"] < 1
        assert 0.5 < rewrite["measures"]["magnitude kept"] < 1
    [want], [got] = outputs_of(path, x), outputs_of(out, x)
    assert 1e-3 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.5
    line = fails(path, out, "--passes", "sparsify{method=wanda}")
    assert "needs calibration data: none were given; give --calibration PATH" in line
    small_model(tmp_path / "s.onnx")
    assert "no layer can be made 2:4" in fails(tmp_path / "s.onnx", out, "--passes", "sparsify")


def test_quantized_weights_are_refused() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    tensors = [
        numpy_helper.from_array(RNG.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8), "q"),
        numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(3), "z"),
    ]  # fmt: skip
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4, 6, 6]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(PassError, match="dequantized from i8: make it sparse before"):
        shrink(model, "sparsify")
