"""The pivot pass on graphs: exact blocks, shared orders, forms, and every reason to leave a layer alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, ElidedTensor, Exactness, Graph, TensorType, Value
from graphshrink.passes import Context, PassError, PassRecord, Pipeline
from graphshrink.passes.blocks import pivot
from graphshrink.passes.blocks.blocks import capacities, contiguous_labels
from graphshrink.passes.blocks.form_cost import LayerSize, choose_form
from support.calibration import Oracle
from support.evaluate import evaluate


class Net:
    """Builds a float64 network with random weights."""

    def __init__(self, *shape: int | str, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net")
        self.value = self.graph.add_input("x", TensorType(DType.F64, shape))

    def constant(self, array: Any, name: str = "w") -> Value:
        return self.graph.add_constant(ArrayTensor(np.asarray(array, np.float64)), name)

    def weight(
        self, *shape: int, blocks: int = 0, rows: Any = None, columns: Any = None
    ) -> np.ndarray:
        """Random, or planted blocks: with these labels, or random ones."""
        found = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        if blocks:
            labels = [
                self.rng.permutation(contiguous_labels(capacities(n, blocks)))
                if given is None
                else given
                for n, given in zip(shape[:2], (rows, columns), strict=True)
            ]
            mask = labels[0][:, None] == labels[1][None, :]
            found *= mask.reshape(*shape[:2], *[1] * (len(shape) - 2))
        return found

    def linear(self, weight: np.ndarray, name: str, bias: bool = True) -> Net:
        inputs = [self.value, self.constant(weight)]
        if bias:
            inputs.append(self.constant(self.rng.standard_normal(len(weight)), "b"))
        self.value = self.graph.append(ir.Linear(), inputs, name=name).output
        return self

    def conv(self, weight: np.ndarray, name: str, bias: bool = True) -> Net:
        k = weight.shape[2]
        inputs = [self.value, self.constant(weight)]
        if bias:
            inputs.append(self.constant(self.rng.standard_normal(len(weight)), "b"))
        op = ir.Conv((1, 1), (k // 2,) * 4, (1, 1))
        self.value = self.graph.append(op, inputs, name=name).output
        return self

    def then(self, op: ir.Op, *rest: Value) -> Net:
        self.value = self.graph.append(op, [self.value, *rest]).output
        return self

    def relu(self) -> Net:
        return self.then(ir.Activation("relu"))

    def done(self) -> Graph:
        self.graph.add_output(self.value)
        return self.graph


def mlp(*middles: np.ndarray, batch: int | str = 3, wide: int = 16) -> Graph:
    """Dense layers, the first and the last of which are too small to be pivoted."""
    net = Net(batch, 5)
    net.linear(net.weight(middles[0].shape[1], 5), "first").relu()
    for number, weight in enumerate(middles):
        net.linear(weight, f"mid{number}").relu()
    return net.linear(net.weight(3, middles[-1].shape[0]), "last").done()


def run(graph: Graph, text: str = "pivot{force=true}", **context: Any) -> PassRecord:
    record = Pipeline(text).run(graph, Context(**context))[0]
    graph.verify()
    return record


def reasons(record: PassRecord, name: str) -> str:
    return " ".join(r.reason for r in record.refusals if r.node == name)


def what(record: PassRecord) -> list[str]:
    return [r.what for r in record.rewrites if r.what.startswith("pivot")]


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def same(graph: Graph, want: Sequence[np.ndarray], error: float = 1e-12) -> None:
    for a, b in zip(evaluate(graph), want, strict=True):
        assert np.abs(a).max() > 0.01
        assert np.abs(a - b).max() <= error * np.abs(b).max()


def data(graph: Graph, count: int = 200) -> Oracle:
    rng = np.random.default_rng(5)
    shape = graph.inputs[0].type.static_shape
    assert shape is not None
    return Oracle(*([rng.standard_normal(shape)] for _ in range(count)))


# Exact blocks.


@pytest.mark.parametrize("target", ["onnx", "fx", "tflite", "tensorrt"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_planted_blocks_become_dense_ones(blocks: int, batch: int, target: str) -> None:
    net = Net(1)
    graph = mlp(net.weight(32, 16, blocks=blocks), batch=batch)
    want = evaluate(graph)
    record = run(graph, f"pivot{{blocks={blocks},force=true}}", target=target)
    assert len(what(record)) == 1
    assert record.exactness is Exactness.EXACT
    same(graph, want)
    if target == "fx" or (target in ("onnx", "tflite") and batch == 1):
        form = "batched" if target == "fx" else "grouped"
        assert what(record) == [f"pivot into {blocks} blocks ({form})"]
    if target == "tflite" and batch > 1:
        assert ops(graph).count("Linear") == blocks + 2
    sizes = [v.data.size for v in graph.constants if v.data is not None and v.use_count]
    assert sum(sizes) <= 32 * 16 // blocks + 32 + (5 * 16 + 16) + (3 * 32 + 3)


def test_text_before_and_after() -> None:
    weight = np.zeros((4, 4))
    weight[np.ix_([0, 2], [1, 2])] = [[1, 2], [3, 4]]
    weight[np.ix_([1, 3], [0, 3])] = [[5, 6], [7, 8]]
    net = Net(2, 3)
    net.linear(net.weight(4, 3), "first", bias=False).relu().linear(weight, "mid", bias=False)
    graph = net.relu().linear(net.weight(1, 4), "last", bias=False).done()
    record = run(graph, "pivot{blocks=2,force=true}", target="tflite")
    assert what(record) == ["pivot into 2 blocks (split)"]
    text = [
        line.strip()
        for line in str(graph).splitlines()
        if "f64[2, " in line and "dense" not in line
    ]
    assert text == [
        "graph net(%x: f64[2, 3]) {",
        "%first: f64[2, 4] = Linear(%x, %w_3)",
        '%activation: f64[2, 4] = Activation(%first) {kind="relu"}',
        "%mid.split: f64[2, 2], %mid.split_1: f64[2, 2] = Split(%activation) {sizes=[2, 2], axis=1}",
        "%mid.block0: f64[2, 2] = Linear(%mid.split, %mid.block0.weight)",
        "%mid.block1: f64[2, 2] = Linear(%mid.split_1, %mid.block1.weight)",
        "%mid: f64[2, 4] = Concat(%mid.block0, %mid.block1)",
        '%activation_1: f64[2, 4] = Activation(%mid) {kind="relu"}',
        "%last: f64[2, 1] = Linear(%activation_1, %w_2_1)",
    ]
    blocks = {n.name: n.inputs[1].data.numpy() for n in graph.nodes if ".block" in n.name}  # type: ignore[union-attr]
    assert sorted(map(np.ndarray.tolist, blocks.values())) == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_get_groups(size: int, bias: bool) -> None:
    net = Net(2, 3, 6, 6)
    net.conv(net.weight(16, 3, 3, 3), "first").relu()
    net.conv(net.weight(32, 16, size, size, blocks=4), "mid", bias)
    scale = net.constant(net.rng.random(32) + 0.5), net.constant(net.rng.standard_normal(32))
    graph = net.then(ir.Scale(1), *scale).relu().conv(net.weight(5, 32, 1, 1), "last").done()
    want = evaluate(graph)
    assert what(run(graph)) == ["pivot into 4 blocks (grouped)"]
    assert [n.op.groups for n in graph.nodes if isinstance(n.op, ir.Conv)] == [1, 4, 1]
    same(graph, want)


def test_a_channel_is_a_run_of_inputs_behind_a_flatten() -> None:
    net = Net(2, 3, 4, 4)
    net.conv(net.weight(8, 3, 3, 3), "first").relu().then(ir.Flatten(1))
    rows = net.rng.permutation(contiguous_labels(capacities(12, 4)))
    columns = np.repeat(net.rng.permutation(contiguous_labels(capacities(8, 4))), 16)
    weight = net.weight(12, 128, blocks=4, rows=rows, columns=columns)
    graph = net.linear(weight, "mid").relu().linear(net.weight(3, 12), "last").done()
    want = evaluate(graph)
    assert len(what(run(graph, target="fx"))) == 1
    same(graph, want)


def test_tokens_and_sizes_that_are_not_known() -> None:
    for shape in ((2, 5, 7), ("batch", 5, 7), ("batch", "tokens", 7), (1, 7), ("batch", 7)):
        for target in ("onnx", "fx", "tflite", "tensorrt"):
            net = Net(*shape)
            net.linear(net.weight(32, 7), "first").relu()
            net.linear(net.weight(64, 32, blocks=4), "mid").relu()
            graph = net.linear(net.weight(3, 64), "last").done()
            want = evaluate(graph)
            assert len(what(run(graph, target=target))) == 1
            same(graph, want)


def test_a_block_may_be_smaller() -> None:
    for build in ("linear", "conv"):
        net = Net(2, 3, 5, 5) if build == "conv" else Net(2, 3)
        tail = (1, 1) if build == "conv" else ()
        add = getattr(net, build)
        add(net.weight(14, 3, *tail), "first").relu()
        add(net.weight(10, 14, *tail, blocks=4), "mid")
        net.relu()
        graph = add(net.weight(3, 10, *tail), "last").done()
        want = evaluate(graph)
        refused = run(graph)
        assert "its 10 outputs do not divide into 4 blocks; divide=pad lets" in reasons(
            refused, "mid"
        )
        assert what(run(graph, "pivot{divide=pad,force=true}")) == ["pivot into 4 blocks (split)"]
        same(graph, want)


# Orders that layers share.


def two(first: np.ndarray, second: np.ndarray) -> tuple[Graph, list[np.ndarray]]:
    graph = mlp(first, second)
    return graph, evaluate(graph)


def test_the_same_blocks_on_both_sides_need_nothing() -> None:
    net = Net(1)
    labels = net.rng.permutation(contiguous_labels(capacities(16, 4)))
    # The same sets under other names.
    graph, want = two(
        net.weight(16, 8, blocks=4, rows=labels), net.weight(8, 16, blocks=4, columns=3 - labels)
    )
    assert what(run(graph, target="tflite")) == ["pivot into 4 blocks (split)"] * 2
    same(graph, want)
    assert "Transpose" not in ops(graph)


def test_dead_channels_belong_to_the_blocks_that_they_lie_in() -> None:
    """As a refit leaves them: what is zero in one layer is not in the next, and both have their blocks in order."""
    labels = contiguous_labels(capacities(16, 4))
    net = Net(3, 5)
    first, second = (net.weight(16, 16, blocks=4, rows=labels, columns=labels) for _ in range(2))
    first[[1, 2, 9]] = 0
    second[:, [5, 15]] = 0
    graph = mlp(first, second)
    want = evaluate(graph)
    assert what(run(graph)) == ["pivot into 4 blocks (split)"] * 2
    same(graph, want)


@pytest.mark.parametrize("tokens", [False, True])
def test_blocks_that_cut_across_evenly_take_a_shuffle(tokens: bool) -> None:
    net = Net(1)
    order = net.rng.permutation(32)
    rows, columns = np.empty(32, int), np.empty(32, int)
    rows[order], columns[order] = np.arange(32) // 8, np.arange(32) % 4
    weights = net.weight(32, 8, blocks=4, rows=rows), net.weight(8, 32, blocks=4, columns=columns)
    net = Net("n", 6, 5) if tokens else Net("n", 5)
    net.linear(net.weight(8, 5), "first").relu().linear(weights[0], "mid0").relu()
    graph = net.linear(weights[1], "mid1").relu().linear(net.weight(3, 8), "last").done()
    want = evaluate(graph)
    record = run(graph, target="tflite")
    assert sorted(what(record)) == [
        "pivot into 4 blocks (split)",
        "pivot into 4 blocks (split), 1 shuffle",
    ]
    assert ops(graph).count("Transpose") == 1
    same(graph, want)


@pytest.mark.parametrize("kernels", [(1, 3), (3, 1)])
@pytest.mark.parametrize("size", [5, "h"])
def test_convolutions_shuffle_too_whether_their_size_is_known_or_not(
    size: Any, kernels: Any
) -> None:
    net = Net(2, 3, size, size)
    order = net.rng.permutation(32)
    rows, columns = np.empty(32, int), np.empty(32, int)
    rows[order], columns[order] = np.arange(32) // 8, np.arange(32) % 4
    net.conv(net.weight(16, 3, 1, 1), "first").relu()
    first, second = ((k, k) for k in kernels)
    net.conv(net.weight(32, 16, *first, blocks=4, rows=rows), "mid0").relu()
    net.conv(net.weight(16, 32, *second, blocks=4, columns=columns), "mid1").relu()
    graph = net.conv(net.weight(3, 16, 1, 1), "last").done()
    want = evaluate(graph)
    record = run(graph)
    assert sorted(what(record)) == [
        "pivot into 4 blocks (grouped)",
        "pivot into 4 blocks (grouped), 1 shuffle",
    ]
    assert ("Transpose" in ops(graph), "Split" in ops(graph)) == (size == 5, size == "h")
    same(graph, want)


def test_names_that_two_neighbours_gave_are_brought_together() -> None:
    """The layer in the middle comes last, between two that have named its blocks already."""
    for seed in range(3):
        net = Net(2, 5, seed=seed)
        inner = [net.rng.permutation(contiguous_labels(capacities(8, 4))) for _ in range(2)]
        weights = [
            net.weight(8, 32, blocks=4, rows=inner[0]),
            net.weight(8, 8, blocks=4, rows=inner[1], columns=inner[0]),
            net.weight(32, 8, blocks=4, columns=inner[1]),
        ]
        graph = mlp(*weights)
        want = evaluate(graph)
        record = run(graph, target="tflite")
        assert what(record) == ["pivot into 4 blocks (split)"] * 3
        assert [r.nodes for r in record.rewrites if "pivot" in r.what][-1] == ("mid1",)
        same(graph, want)


@pytest.mark.parametrize("gather", ["false", "true"])
def test_names_that_cannot_be_brought_together(gather: str) -> None:
    """Around a skip, one layer pairs the blocks of the stream and of the branch otherwise than the other one."""
    net = Net(2, 6)
    stream, inner = (net.rng.permutation(contiguous_labels(capacities(n, 4))) for n in (16, 32))
    net.linear(net.weight(16, 6), "in")
    skip = net.value
    net.linear(net.weight(32, 16, blocks=4, rows=inner, columns=stream), "up").relu()
    down = net.weight(16, 32, blocks=4, rows=(stream + 1) % 4, columns=inner)
    graph = net.linear(down, "down").then(ir.Add(), skip).linear(net.weight(3, 16), "out").done()
    want = evaluate(graph)
    record = run(graph, f"pivot{{force=true,gather={gather}}}")
    assert len(what(record)) == 1 + (gather == "true")
    if gather == "false":
        assert "in the order of the blocks of up" in reasons(record, "down")
    same(graph, want)


def test_blocks_across_several_groups_of_channels_hold_them_in_place() -> None:
    def build() -> Graph:
        net = Net(2, 5)
        x = net.value
        left = (
            net.linear(net.weight(16, 5), "in0")
            .relu()
            .linear(net.weight(8, 16, blocks=2), "left")
            .relu()
            .value
        )
        net.value = x
        right = net.linear(net.weight(8, 5), "in1").then(ir.Activation("sigmoid")).value
        net.value = net.graph.append(ir.Concat(1), [left, right]).output
        wide = contiguous_labels(capacities(16, 2))
        net.linear(net.weight(32, 16, blocks=2, columns=wide), "mid").relu()
        return net.linear(net.weight(3, 32), "last").done()

    graph = build()
    want = evaluate(graph)
    # The larger layer comes first.
    record = run(graph, "pivot{blocks=2,force=true}")
    assert len(what(record)) == 1
    assert "cannot be reordered (mid has blocks across them)" in reasons(record, "left")
    same(graph, want)
    graph = build()
    run(graph, "pivot{blocks=2,layers=left,force=true}")
    same(graph, want)
    graph = build()
    record = run(graph, "mask-blocks{blocks=2,layers=[left,mid]}")
    assert "some of its input channels are in the order of the blocks of left" in reasons(
        record, "mid"
    )


def test_other_blocks_are_refused_or_gathered() -> None:
    net = Net(1)
    first, second = net.weight(16, 16, blocks=4), net.weight(16, 16, blocks=4)
    graph, want = two(first, second)
    record = run(graph)
    assert len(what(record)) == 1
    assert "in the order of the blocks of mid0, which its own blocks do not cut evenly" in reasons(
        record, "mid1"
    )
    assert "gather=true gathers them" in reasons(record, "mid1")
    same(graph, want)
    graph, want = two(first, second)
    record = run(graph, "pivot{force=true,gather=true}")
    assert sorted(what(record), key=len)[1].endswith(", 1 gather")
    assert ops(graph).count("Gather") == 1
    same(graph, want)


def test_neighbours_that_cannot_absorb() -> None:
    net = Net(3, 16)
    weight = net.weight(16, 16, blocks=4)
    graph = net.linear(weight, "only").done()
    want = evaluate(graph)
    record = run(graph)
    assert "its output channels cannot be reordered (%only is an output" in reasons(record, "only")
    assert "its input channels cannot be reordered (%x is an input" in reasons(record, "only")
    assert not record.rewrites
    assert what(run(graph, "pivot{force=true,gather=true}"))[0].endswith(", 2 gathers")
    same(graph, want)


def test_blocks_in_one_piece_need_no_neighbours() -> None:
    net = Net(3, 16)
    labels = contiguous_labels(capacities(16, 4))
    weight = net.weight(16, 16, blocks=4, rows=labels, columns=labels)
    graph = net.linear(weight, "only").done()
    want = evaluate(graph)
    assert what(run(graph, target="tflite")) == ["pivot into 4 blocks (split)"]
    same(graph, want)


def test_a_residual_stream_has_one_order() -> None:
    """Both layers of each branch stand on the stream, which the blocks of all of them share."""
    net = Net(2, 6)
    stream = net.rng.permutation(contiguous_labels(capacities(16, 4)))
    net.linear(net.weight(16, 6), "in")
    for number in range(2):
        skip = net.value
        net.linear(net.weight(32, 16, blocks=4, columns=stream), f"up{number}").relu()
        inner = net.graph.value(f"up{number}").producer
        assert inner is not None
        up = inner.inputs[1]
        assert up is not None
        assert up.data is not None
        rows = (up.data.numpy() != 0) @ np.eye(16)[
            :, [int(np.flatnonzero(stream == b)[0]) for b in range(4)]
        ]
        net.linear(
            net.weight(16, 32, blocks=4, rows=stream, columns=rows.argmax(1)), f"down{number}"
        )
        net.then(ir.Add(), skip)
    graph = net.linear(net.weight(3, 16), "out").done()
    want = evaluate(graph)
    record = run(graph, target="tflite")
    assert what(record) == ["pivot into 4 blocks (split)"] * 4
    same(graph, want)


# Blocks for dense weights.


def test_the_stated_error_is_the_one_on_the_data() -> None:
    for middle in (Net(1).weight(32, 16), Net(1).weight(16, 64)):
        for refit in ("true", "false"):
            for method in ("search", "identity"):
                graph = mlp(middle, batch=8)
                before = graph.clone()
                calibration = data(graph, 40)
                text = f"pivot{{blocks=2,layers=mid0,method={method},refit={refit},force=true}}"
                record = run(graph, text, calibration=calibration, target="tflite")
                assert record.exactness is Exactness.APPROXIMATE
                stated = float(what(record)[0].split("output error ")[1].split("%")[0]) / 100
                outs = []
                for g in (before, graph):
                    node = next(n for n in g.nodes if n.name == "mid0")
                    outs.append(
                        np.concatenate([a[0] for a in calibration.stream(g, [node.output])])
                    )
                # Channels changed places, as the columns of the last weight did.
                first, second = (last_weight(g) for g in (before, graph))
                places = [int(np.flatnonzero((second == c[:, None]).all(0))[0]) for c in first.T]
                off = outs[1][:, places] - outs[0]
                got = np.sqrt((off**2).mean(0).sum() / outs[0].var(0).sum())
                assert got == pytest.approx(stated, abs=1e-3)


def last_weight(graph: Graph) -> np.ndarray:
    node = next(n for n in graph.nodes if n.name == "last")
    assert node.inputs[1] is not None
    assert node.inputs[1].data is not None
    return node.inputs[1].data.float64()


def test_search_does_no_worse_than_the_present_order_and_refit_no_worse_than_none() -> None:
    graph = mlp(Net(1).weight(32, 32), batch=8)
    errors = {}
    for method in ("search", "identity"):
        for refit in ("true", "false"):
            text = f"pivot{{layers=mid0,method={method},refit={refit},force=true}}"
            record = run(graph.clone(), text, calibration=data(graph, 40))
            errors[method, refit] = float(what(record)[0].split("output error ")[1].split("%")[0])
    assert errors["search", "true"] < errors["identity", "true"] < errors["identity", "false"]
    assert errors["search", "false"] <= errors["identity", "false"]


def test_noisy_blocks_are_found_again() -> None:
    """Blocks that training only nearly made: the search finds them, and the error is what the noise was."""
    net = Net(1)
    weight = net.weight(32, 32, blocks=4) + 1e-3 * net.rng.standard_normal((32, 32))
    graph = mlp(weight, batch=8)
    record = run(graph, "pivot{layers=mid0,force=true}", calibration=data(graph, 40))
    assert float(what(record)[0].split("output error ")[1].split("%")[0]) < 2


def test_convolutions_are_searched() -> None:
    net = Net(2, 3, 6, 6)
    net.conv(net.weight(16, 3, 3, 3), "first").relu()
    net.conv(net.weight(16, 16, 3, 3, blocks=4) + 1e-3 * net.weight(16, 16, 3, 3), "mid").relu()
    graph = net.conv(net.weight(5, 16, 1, 1), "last").done()
    want = evaluate(graph)
    record = run(graph, "pivot{layers=mid,force=true}", calibration=data(graph, 20))
    assert len(what(record)) == 1
    same(graph, want, 0.05)


def test_neighbours_share_orders_when_both_are_searched() -> None:
    graph = mlp(Net(1).weight(32, 16), Net(2).weight(16, 32), batch=8)
    record = run(graph, "pivot{blocks=2,layers=mid*,force=true}", calibration=data(graph, 30))
    assert len(what(record)) == 2
    assert "Gather" not in ops(graph)
    # A layer on one stream, with rows and columns in one order.
    net = Net(8, 5)
    net.linear(net.weight(16, 5), "first")
    skip = net.value
    net.linear(net.weight(16, 16), "mid").relu().then(ir.Add(), skip)
    graph = net.linear(net.weight(3, 16), "last").done()
    record = run(graph, "pivot{blocks=2,layers=mid,force=true}", calibration=data(graph, 30))
    assert len(what(record)) == 1


def test_layers_are_read_in_as_few_runs_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    middles = [Net(k).weight(16, 16) for k in range(4)]
    text = "pivot{blocks=2,method=identity,layers=mid*,force=true}"
    outs = []
    for limit, runs in ((1 << 29, 1), (2 * 8 * 16 * 16, 2), (10, 4)):
        monkeypatch.setattr(pivot, "GRAMS_BYTES", limit)
        graph = mlp(*middles, batch=8)
        calibration = data(graph, 2)
        assert len(what(run(graph, text, calibration=calibration))) == 4
        assert calibration.runs == runs
        outs.append(evaluate(graph)[0])
    assert (outs[0] == outs[1]).all()
    assert (outs[0] == outs[2]).all()


def test_layers_without_a_bias_get_one_from_the_refit() -> None:
    net = Net(8, 5)
    net.linear(net.weight(16, 5), "first").relu().linear(
        net.weight(16, 16), "mid", bias=False
    ).relu()
    graph = net.linear(net.weight(3, 16), "last").done()
    run(
        graph, "pivot{blocks=2,layers=mid,force=true}", calibration=data(graph, 30), target="tflite"
    )
    made = [n for n in graph.nodes if ".block" in n.name]
    assert len(made) == 2
    assert all(len(n.inputs) == 3 for n in made)


# Reasons.


def test_max_error_refuses_with_the_figure() -> None:
    graph = mlp(Net(1).weight(16, 16), batch=8)
    text = "pivot{layers=mid0,max-error=0.01,force=true}"
    record = run(graph, text, calibration=data(graph, 20))
    assert not record.rewrites
    assert "%, max-error allows 1.0%" in reasons(record, "mid0")


def test_no_calibration_data() -> None:
    graph = mlp(Net(1).weight(16, 16))
    assert "without calibration data the error of other blocks is not known" in reasons(
        run(graph), "mid0"
    )
    record = run(graph, "pivot{method=search,force=true}")
    assert "give calibration data" in reasons(record, "mid0")
    record = run(graph, "pivot{method=zeros,force=true}")
    assert "its zeros do not form 4 blocks of equal size" in reasons(record, "mid0")


def test_a_dense_layer_is_not_slower() -> None:
    graph = mlp(Net(1).weight(16, 16, blocks=4), batch=8)
    want = evaluate(graph)
    record = run(graph, "pivot")
    assert "16 x 16 weights, used 8 times, are not expected to run faster for onnx" in reasons(
        record, "mid0"
    )
    assert "used an unknown number of times" in reasons(
        run(mlp(Net(1).weight(16, 16), batch="n"), "pivot"), "mid0"
    )
    same(graph, want)


def test_sparse_weights_stay_sparse() -> None:
    net = Net(2, 3, 6, 6)
    weight = net.weight(16, 16, 3, 3)
    weight[:, np.arange(16) % 4 > 1] = 0
    weight[::2] = np.roll(weight[::2], 1, axis=1)
    net.conv(net.weight(16, 3, 3, 3), "first").relu().conv(weight, "mid").relu()
    graph = net.conv(net.weight(5, 16, 1, 1), "last").done()
    text = "pivot{layers=mid,blocks=2,force=true}"
    record = run(graph, text, calibration=data(graph, 5))
    assert "it is 2:4 sparse, and blocks would break the pattern" in reasons(record, "mid")
    # A dense layer too; but blocks that are there already are taken, whatever else they are.
    graph = mlp(weight[:, :, 0, 0], batch=8)
    record = run(graph, "pivot{layers=mid0,blocks=2,force=true}", calibration=data(graph, 5))
    assert "it is 2:4 sparse" in reasons(record, "mid0")
    graph = mlp(Net(1).weight(32, 32, blocks=16), batch=8)
    assert len(what(run(graph, "pivot{blocks=16,force=true}"))) == 1


def test_layers_that_cannot_be_read() -> None:
    net = Net(2, 8, 4, 4)
    half = net.graph.add_constant(ArrayTensor(np.ones(1, np.int64)), "unused")
    assert half.use_count == 0
    grouped = net.constant(net.weight(8, 2, 1, 1))
    net.value = net.graph.append(
        ir.Conv((1, 1), (0,) * 4, (1, 1), 4), [net.value, grouped], name="grouped"
    ).output
    net.relu()
    computed = net.graph.append(ir.Identity(), [net.constant(net.weight(8, 8, 1, 1))]).output
    net.value = net.graph.append(
        ir.Conv((1, 1), (0,) * 4, (1, 1)), [net.value, computed], name="computed"
    ).output
    graph = net.done()
    record = run(graph, "pivot{layers=*,force=true}")
    assert "it has groups already" in reasons(record, "grouped")
    assert "its weight or bias is not a constant" in reasons(record, "computed")
    assert "it is neither a dense layer nor a convolution" in reasons(record, "activation")

    net = Net(2, 8)
    numbers = net.graph.add_constant(ArrayTensor(np.ones((8, 8), np.int8)), "q")
    scale = net.constant(0.5, "scale")
    made = net.graph.append(ir.Dequantize(), [numbers, scale]).output
    made.data = ArrayTensor(np.full((8, 8), 0.5))
    net.value = net.graph.append(ir.Linear(), [net.value, made], name="quantised").output
    record = run(net.done(), "pivot{layers=quantised,force=true}")
    assert "its weight is quantised: pivot before quantising" in reasons(record, "quantised")

    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.F64))
    weight = graph.add_constant(ArrayTensor(np.ones((8, 8))), "w")
    graph.add_output(graph.append(ir.Linear(), [x, weight], name="unranked").output)
    assert "the rank of its input is not known" in reasons(run(graph), "unranked")

    graph = mlp(Net(1).weight(16, 16))
    for value in graph.constants:
        if value.data is not None and value.data.shape == (16, 16):
            value.data = ElidedTensor((16, 16), DType.F64)
    assert "numbers of this f64[16, 16] constant were left out" in reasons(run(graph), "mid0")


def test_too_few_channels_and_several_groups_of_them() -> None:
    graph = mlp(Net(1).weight(9, 16))
    record = run(graph, "pivot{blocks=8,divide=pad,force=true}")
    assert "its 9 outputs are too few for 8 blocks" in reasons(record, "mid0")

    net = Net(2, 5)
    x = net.value
    left = net.linear(net.weight(8, 5), "left").relu().value
    net.value = x
    net.linear(net.weight(8, 5), "right").then(ir.Activation("sigmoid"))
    net.value = net.graph.append(ir.Concat(1), [left, net.value]).output
    net.linear(net.weight(16, 16, blocks=4), "mid").relu()
    graph = net.linear(net.weight(3, 16), "last").done()
    record = run(graph)
    assert "they belong to several channel groups, which cannot be mixed" in reasons(record, "mid")


def test_a_gram_matrix_that_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphshrink.passes.statistics import gram as statistics

    monkeypatch.setattr(statistics, "GRAM_BYTES", 100)
    graph = mlp(Net(1).weight(16, 16), batch=8)
    record = run(graph, calibration=data(graph, 2))
    assert "the Gram matrix of its 16 inputs would take" in reasons(record, "mid0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("blocks=1", "option 'blocks' must be at least 2 and at most 4096, not 1"),
        ("max-error=-1", "option 'max-error' must be at least 0, not -1"),
        ("method=magic", "option 'method' is one of"),
        ("divide=never", "option 'divide' is one of"),
        ("layers=nothing", "no node is named 'nothing'"),
    ],
)
def test_wrong_options(options: str, message: str) -> None:
    graph = mlp(Net(1).weight(16, 16))
    with pytest.raises(PassError, match=message.replace("(", "\\(")):
        run(graph, f"pivot{{{options}}}")


# Forms.


@pytest.mark.parametrize("lead", [(1,), (1, 1)])
def test_layers_of_one_row_are_one_convolution_each(lead: tuple[int, ...]) -> None:
    net = Net(*lead, 5)
    net.linear(net.weight(16, 5), "first").relu()
    inner = [net.rng.permutation(contiguous_labels(capacities(16, 4))) for _ in range(4)]
    for i in range(3):
        weight = net.weight(16, 16, blocks=4, rows=inner[i + 1], columns=inner[i])
        net.linear(weight, f"mid{i}", bias=i != 1).relu()
    graph = net.linear(net.weight(3, 16), "last").done()
    want = evaluate(graph)
    record = run(graph)
    assert what(record) == ["pivot into 4 blocks (grouped)"] * 3
    assert record.exactness is Exactness.EXACT
    same(graph, want)
    inside = ["Conv", "Activation", "Conv", "Activation", "Conv"]
    ends = ["Linear", "Activation", "Reshape"], ["Reshape", "Activation", "Linear"]
    assert ops(graph) == [*ends[0], *inside, *ends[1]]


def test_a_shuffle_between_layers_of_one_row_takes_two_reshapes() -> None:
    net = Net(1, 5)
    order = net.rng.permutation(32)
    rows, columns = np.empty(32, int), np.empty(32, int)
    rows[order], columns[order] = np.arange(32) // 8, np.arange(32) % 4
    weights = net.weight(32, 8, blocks=4, rows=rows), net.weight(8, 32, blocks=4, columns=columns)
    graph = mlp(*weights, batch=1)
    want = evaluate(graph)
    record = run(graph)
    assert sorted(what(record))[1] == "pivot into 4 blocks (grouped), 1 shuffle"
    same(graph, want)
    first, second = (i for i, op in enumerate(ops(graph)) if op == "Conv")
    between = [op for op in ops(graph)[first + 1 : second] if op != "Activation"]
    assert between == ["Reshape", "Transpose", "Reshape"]


def test_a_dense_layer_of_one_row_behind_a_flatten_reads_the_pixels_in_place() -> None:
    net = Net(1, 3, 4, 4)
    net.conv(net.weight(8, 3, 3, 3), "first").relu().then(ir.Flatten(1))
    columns = np.repeat(net.rng.permutation(contiguous_labels(capacities(8, 4))), 16)
    weight = net.weight(12, 128, blocks=4, columns=columns)
    graph = net.linear(weight, "mid").relu().linear(net.weight(3, 12), "last").done()
    want = evaluate(graph)
    assert what(run(graph)) == ["pivot into 4 blocks (grouped)"]
    same(graph, want)
    assert "Flatten" not in ops(graph)


def test_forms_follow_what_was_measured() -> None:
    def form(n: int, batch: int | None, k: int, target: str = "onnx", **rest: Any) -> str | None:
        return choose_form(LayerSize(False, n, n, batch), k, target, **{"even": True, **rest})

    assert form(1024, 1, 8) == form(1024, 1, 8, "tflite") == "grouped"
    assert form(1024, None, 8) in ("split", "batched")
    assert form(1024, 128, 4) == "split"
    assert form(4096, 8, 2) == "split"
    assert form(512, 128, 16) in ("split", "batched")
    assert form(1024, 128, 8, "tflite") == "split"
    assert form(1024, 1, 8, "fx") == form(1024, 128, 8, "fx") == "batched"
    assert form(1024, 8, 4, even=False) == form(1024, 1, 4, even=False) == "split"
    assert form(64, 1, 4) is None
    assert form(64, 1, 4, force=True) is not None
    assert form(128, 1, 2, moves=2) is None
    assert choose_form(LayerSize(True, 256, 256, 196, 9), 4, "onnx", even=True) == "grouped"
    assert choose_form(LayerSize(True, 256, 256, 196, 9), 4, "onnx", even=False) == "split"
    # Groups of four channels.
    assert choose_form(LayerSize(True, 64, 64, 196, 9), 16, "onnx", even=True) is None


# Masks for training.


def masked(graph: Graph, text: str, **context: Any) -> tuple[PassRecord, list[str]]:
    """Mask, and pivot exactly what came of it."""
    record = run(graph, text, **context)
    want = evaluate(graph)
    blocks = text.split("blocks=")[1].split(",")[0].rstrip("}")
    rest = ",divide=pad" if "divide=pad" in text else ""
    pivoted = run(graph, f"pivot{{blocks={blocks},method=zeros,force=true{rest}}}", target="tflite")
    assert pivoted.exactness is Exactness.EXACT
    same(graph, want)
    return record, what(pivoted)


@pytest.mark.parametrize("draw", ["random", "weights"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_masked_layers_become_blocks_and_their_neighbours_mix_them(blocks: int, draw: str) -> None:
    graph = mlp(Net(1).weight(32, 16), Net(2).weight(16, 32), Net(3).weight(32, 16))
    record, made = masked(graph, f"mask-blocks{{blocks={blocks},draw={draw},layers=mid*}}")
    assert len(record.rewrites) == len(made) == 3
    # One order serves both layers beside it; never a gather.
    assert sum("1 shuffle" in text for text in made) >= 2
    assert "Gather" not in ops(graph)


def test_masks_that_follow_the_weights_keep_more() -> None:
    kept = {}
    for draw in ("random", "weights"):
        graph = mlp(Net(1).weight(32, 32))
        record, _ = masked(graph, f"mask-blocks{{blocks=8,draw={draw},layers=mid0}}")
        kept[draw] = float(record.rewrites[0].what.split("blocks, ")[1].split("%")[0])
    assert kept["weights"] > 1.5 * kept["random"]


def test_masks_differ_by_seed_only() -> None:
    texts = []
    for seed in (0, 0, 1):
        graph = mlp(Net(1).weight(16, 16))
        run(graph, "mask-blocks{layers=mid0}", seed=seed)
        texts.append(graph.text(full=True))
    assert texts[0] == texts[1] != texts[2]


def test_masks_on_a_residual_stream_and_beside_inputs_and_outputs() -> None:
    net = Net(2, 8)
    for number in range(3):
        skip = net.value
        net.linear(net.weight(32, 8), f"up{number}").relu()
        net.linear(net.weight(8, 32), f"down{number}").then(ir.Add(), skip)
    graph = net.linear(net.weight(4, 8), "head").done()
    record, made = masked(graph, "mask-blocks{blocks=4}")
    assert len(record.rewrites) == len(made) == 7
    net = Net(2, 5)
    net.linear(net.weight(16, 5), "first")
    skip = net.value
    net.linear(net.weight(16, 16), "mid").relu().then(ir.Add(), skip)
    graph = net.linear(net.weight(3, 16), "last").done()
    record, made = masked(graph, "mask-blocks{blocks=4}")
    assert len(made) == 1
    assert "its 3 outputs do not divide" in reasons(record, "last")


def test_masks_with_a_smaller_last_block() -> None:
    graph = mlp(Net(1).weight(14, 10), Net(2).weight(10, 14))
    record, made = masked(graph, "mask-blocks{blocks=4,divide=pad,layers=mid*}")
    assert len(record.rewrites) == len(made) == 2


def test_shared_weights_are_not_masked() -> None:
    net = Net(2, 5)
    net.linear(net.weight(16, 5), "first").relu()
    weight = net.constant(net.weight(16, 16))
    for name in ("one", "two"):
        net.value = net.graph.append(ir.Linear(), [net.value, weight], name=name).output
        net.relu()
    graph = net.linear(net.weight(3, 16), "last").done()
    record = run(graph, "mask-blocks{layers=[one,two]}")
    assert not record.rewrites
    assert "its weight is shared with two, which would get a copy" in reasons(record, "one")


def test_wrong_options_of_masks() -> None:
    for options, message in (
        ("blocks=0", "at least 2"),
        ("draw=lots", "is one of random, weights"),
        ("layers=x*y", "no node"),
    ):
        with pytest.raises(PassError, match=message):
            run(mlp(Net(1).weight(16, 16)), f"mask-blocks{{{options}}}")


# At random.


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_random_chains_of_blocks(data: st.DataObject) -> None:
    """Layers with blocks of any relation to their neighbours', with anything between them that channels pass."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    convs = data.draw(st.booleans())
    blocks = data.draw(st.sampled_from([2, 3, 4]))
    sizes = [blocks**2 * data.draw(st.integers(1, 2)) for _ in range(data.draw(st.integers(2, 4)))]
    net = (
        Net(2, 3, 4, 4) if convs else Net(*data.draw(st.sampled_from([(2, 3), (1, 3), (2, 5, 3)])))
    )
    add = net.conv if convs else net.linear
    tail = (data.draw(st.sampled_from([1, 3])),) * 2 if convs else ()
    labels = rng.permutation(contiguous_labels(capacities(sizes[0], blocks)))
    add(net.weight(sizes[0], 3, *tail), "first")
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        for between in data.draw(st.lists(st.sampled_from(["relu", "scale", "skip"]), max_size=2)):
            if between == "relu":
                net.relu()
            elif between == "scale":
                net.then(ir.Scale(1 if convs else -1), net.constant(rng.random(fan_in) + 0.5))
            else:
                net.then(ir.Add(), net.value)
        kind = data.draw(st.sampled_from(["same", "across", "any"]))
        columns = {"same": labels, "any": rng.permutation(labels)}.get(kind)
        if columns is None:
            columns = np.empty_like(labels)
            for block in range(blocks):
                inside = np.flatnonzero(labels == block)
                columns[rng.permutation(inside)] = np.arange(inside.size) % blocks
        labels = rng.permutation(contiguous_labels(capacities(fan_out, blocks)))
        weight = net.weight(fan_out, fan_in, *tail, blocks=blocks, rows=labels, columns=columns)
        add(weight, f"mid{number}", data.draw(st.booleans()))
    graph = add(net.weight(3, sizes[-1], *tail), "last").done()
    want = evaluate(graph)
    target = data.draw(st.sampled_from(["onnx", "fx", "tensorrt"]))
    record = run(graph, f"pivot{{blocks={blocks},gather=true,force=true}}", target=target)
    assert len(what(record)) == len(sizes) - 1
    same(graph, want)
