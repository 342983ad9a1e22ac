"""Channel groups op by op: what is free, what is fixed and why, and that permuting it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, Graph, Op, TensorType, Value
from graphshrink.ir.analysis import ChannelGroups, channel_groups
from graphshrink.ir.analysis.channels.reshapes import AxisRun, runs_of
from support.evaluate import evaluate
from support.permutations import permute_all
from support.work import work

CONV = ir.Conv((1, 1), (1, 1, 1, 1), (1, 1))
POINT = ir.Conv((1, 1), (0, 0, 0, 0), (1, 1))


class Builder:
    """A graph with random constants."""

    def __init__(self, *shape: int | str) -> None:
        self.graph = Graph()
        self.rng = np.random.default_rng(0)
        self.x = self.graph.add_input("x", TensorType(DType.F64, shape))

    def constant(self, *shape: int, name: str = "c") -> Value:
        return self.graph.add_constant(ArrayTensor(self.rng.standard_normal(shape)), name)

    def integers(self, numbers: object, name: str) -> Value:
        return self.graph.add_constant(ArrayTensor(np.array(numbers)), name)

    def __call__(self, op: Op, *inputs: Value | None, name: str = "") -> Value:
        return self.graph.append(op, inputs, name=name).output

    def point(self, x: Value, out: int, name: str) -> Value:
        """A 1x1 convolution with a bias."""
        fan_in = x.type.dim(1)
        assert fan_in is not None
        weight = self.constant(out, fan_in, 1, 1, name=f"{name}.w")
        return self(POINT, x, weight, self.constant(out, name=f"{name}.b"), name=name)

    def linear(self, x: Value, out: int, name: str) -> Value:
        """A dense layer with a bias."""
        fan_in = x.type.dim(-1)
        assert fan_in is not None
        weight = self.constant(out, fan_in, name=f"{name}.w")
        return self(ir.Linear(), x, weight, self.constant(out, name=f"{name}.b"), name=name)

    def check(self, *outputs: Value) -> ChannelGroups:
        """Return these values; permuting all groups must not change them."""
        for value in outputs:
            self.graph.add_output(value)
        self.graph.verify()
        if any(isinstance(n.op, ir.Opaque) for n in self.graph.nodes):
            return channel_groups(self.graph)
        want = evaluate(self.graph)
        before = channel_groups(self.graph)
        for seed in range(2):
            permute_all(self.graph, seed)
            for a, b in zip(want, evaluate(self.graph), strict=True):
                assert np.abs(a).max() > 1e-6
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-10 * np.abs(a).max())
        return before


def sizes(found: ChannelGroups, value: str, axis: int) -> list[tuple[int, int]]:
    """(units, unit) of the groups along an axis of a constant."""
    return [
        (g.size, p.unit)
        for g in found
        for p in g.placements
        if (p.value.name, p.axis) == (value, axis)
    ]


def reason(found: ChannelGroups, value: str, axis: int = 0) -> str:
    """The only reason why an axis is fixed."""
    (why,) = {f.reason for f in found.fixed if (f.value.name, f.axis) == (value, axis)}
    return why


@pytest.mark.parametrize(("source", "target", "runs"), [
    ((2, 8, 4, 4), (2, 128), [(0, 1, 0, 1), (1, 4, 1, 2)]),
    (("b", 8, 4), ("b", 2, 4, 4), [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]),
    ((2, 3, 4), (6, 4), [(0, 2, 0, 1), (2, 3, 1, 2)]),
    ((1, 3, 5), (3, 5), [(0, 1, 0, 0), (1, 2, 0, 1), (2, 3, 1, 2)]),
    ((2, 6, 2), (4, 6), [(0, 3, 0, 2)]),
    ((None, 6, 12), (None, 6, 3, 4), [(0, 1, 0, 1, False), (1, 2, 1, 2), (2, 3, 2, 4)]),
    (("b", 6, "s", 4), (None, "s", 4), [(0, 2, 0, 1, False), (2, 3, 1, 2), (3, 4, 2, 3)]),
    (("b", "s"), ("s", "b"), [(0, 2, 0, 2, False)]),
    ((), (1,), [(0, 0, 0, 1)]),
])  # fmt: skip
def test_runs_of_a_reshape(source: tuple[ir.Dim, ...], target: tuple[ir.Dim, ...], runs: list[tuple[int, ...]]) -> None:  # fmt: skip
    assert runs_of(source, target) == [AxisRun(*r) for r in runs]


def test_residual_stream() -> None:
    b = Builder(1, 3, 5, 5)
    x = b.point(b.x, 8, "stem")
    y = b.point(b(ir.Activation("relu"), b.point(x, 6, "up")), 8, "down")
    y = b(ir.Scale(1), b(ir.Add(), x, y), b.constant(8, name="scale"), b.constant(8, name="shift"))
    found = b.check(b.point(y, 4, "head"))
    assert len(found) == 2
    for name, axis in (
        ("stem.w", 0),
        ("stem.b", 0),
        ("up.w", 1),
        ("down.w", 0),
        ("scale", 0),
        ("head.w", 1),
    ):
        assert sizes(found, name, axis) == [(8, 1)]
    assert sizes(found, "up.w", 0) == sizes(found, "down.w", 1) == [(6, 1)]
    assert "is an input of the graph" in reason(found, "stem.w", 1)
    assert "is an output of the graph" in reason(found, "head.w")


def test_concat_is_free_segment_by_segment() -> None:
    b = Builder(1, 3, 4, 4)
    p, q = b.point(b.x, 4, "p"), b.point(b.x, 6, "q")
    found = b.check(b.point(b(ir.Concat(1), p, b.x, q), 2, "head"))
    assert sizes(found, "head.w", 1) == [(4, 1), (6, 1)]
    assert [p.offset for g in found for p in g.placements if p.value.name == "head.w"] == [0, 7]
    assert "is an input" in reason(found, "head.w", 1)


def test_a_channel_that_is_joined_twice_moves_twice() -> None:
    b = Builder(1, 3, 4, 4)
    p = b.point(b.x, 4, "p")
    both = b(ir.Concat(1), p, b(ir.Activation("relu"), p))
    found = b.check(b.point(both, 2, "head"))
    assert sizes(found, "head.w", 1) == [(4, 2)]
    (group,) = found
    place = next(p for p in group.placements if p.value.name == "head.w")
    assert place.positions.tolist() == [[i, i + 4] for i in range(4)]


def test_flatten_moves_blocks() -> None:
    b = Builder(2, 3, 4, 4)
    found = b.check(b.linear(b(ir.Flatten(1), b.point(b.x, 5, "p")), 4, "head"))
    assert sizes(found, "p.w", 0) == [(5, 1)]
    assert sizes(found, "head.w", 1) == [(5, 16)]
    (group,) = found
    assert group.unit == 1
    assert all(p.is_contiguous for p in group.placements)


def test_depthwise_and_pools_and_padding() -> None:
    b = Builder(1, 3, 6, 6)
    y = b(
        ir.Conv((1, 1), (1, 1, 1, 1), (1, 1), 6),
        b.point(b.x, 6, "p"),
        b.constant(6, 1, 3, 3, name="dw"),
    )
    y = b(ir.MaxPool((2, 2), (0, 0, 0, 0), (1, 1), (2, 2)), b(ir.Pad((0, 0, 1, 1, 0, 0, 1, 1)), y))
    y = b(ir.PRelu(1), y, b.constant(6, name="slope"))
    found = b.check(b.point(b(ir.GlobalAveragePool(), y), 2, "head"))
    assert (
        sizes(found, "dw", 0) == sizes(found, "slope", 0) == sizes(found, "head.w", 1) == [(6, 1)]
    )


def test_depthwise_with_a_multiplier() -> None:
    b = Builder(1, 3, 6, 6)
    y = b(
        ir.Conv((1, 1), (0,) * 4, (1, 1), 4),
        b.point(b.x, 4, "p"),
        b.constant(8, 1, 3, 3, name="dw"),
    )
    found = b.check(b.point(y, 2, "head"))
    # Filters of one channel among themselves; channels with their filters.
    assert sizes(found, "dw", 0) == [(2, 1)] * 4 + [(4, 2)]
    assert sizes(found, "p.w", 0) == [(4, 1)]


@pytest.mark.parametrize("turned", [False, True])
def test_grouped_convolutions(turned: bool) -> None:
    b = Builder(1, 3, 4, 4)
    if turned:
        op: Op = ir.ConvTranspose((1, 1), (0,) * 4, (1, 1), 2)
        weight = b.constant(6, 4, 2, 2, name="w")
    else:
        op, weight = ir.Conv((1, 1), (1,) * 4, (1, 1), 2), b.constant(8, 3, 3, 3, name="w")
    y = b(op, b.point(b.x, 6, "p"), weight, b.constant(8, name="bias"))
    found = b.check(b.point(y, 2, "head"))
    rows, inner = (1, 0) if turned else (0, 1)
    # Within each group, inputs and outputs by themselves; then the two groups.
    assert sizes(found, "head.w", 1) == [(4, 1), (4, 1), (2, 4)]
    assert sizes(found, "p.w", 0) == [(3, 1), (3, 1), (2, 3)]
    assert sizes(found, "w", inner)[:2] == [(3, 1), (3, 1)]
    assert sizes(found, "w", rows)[:2] == [(4, 1), (4, 1)]
    assert {
        p.blocks for g in found for p in g.placements if p.value.name == "w" and p.axis == 1
    } == {2}


def test_squeeze_and_excitation() -> None:
    b = Builder(1, 3, 4, 4)
    x = b.point(b.x, 8, "p")
    gate = b(ir.Activation("relu"), b.point(b(ir.GlobalAveragePool(), x), 4, "down"))
    x = b(ir.Mul(), x, b(ir.Activation("sigmoid"), b.point(gate, 8, "up")))
    found = b.check(b.point(x, 2, "head"))
    assert sizes(found, "up.w", 0) == sizes(found, "down.w", 1) == [(8, 1)]
    assert sizes(found, "up.w", 1) == [(4, 1)]


def test_gated_mlp_in_one_projection() -> None:
    b = Builder(2, 5, 3)
    up = b.linear(b.x, 12, "up")
    left, right = b.graph.append(ir.Split((6, 6), 2), [up]).outputs
    found = b.check(b.linear(b(ir.Mul(), b(ir.Activation("silu"), left), right), 4, "down"))
    assert sizes(found, "up.w", 0) == [(6, 2)]
    assert sizes(found, "down.w", 1) == [(6, 1)]


def attention(b: Builder, heads: int, shared: int, size: int) -> Value:
    """Hand-written attention; ``shared`` is 1 or ``heads``."""
    tokens, width = 5, heads * size
    q = b(ir.Reshape((2, tokens, heads, size)), b.linear(b.x, width, "q"))
    k = b(ir.Reshape((2, tokens, shared, size)), b.linear(b.x, shared * size, "k"))
    v = b(ir.Reshape((2, tokens, shared, size)), b.linear(b.x, shared * size, "v"))
    q, v = b(ir.Transpose((0, 2, 1, 3)), q), b(ir.Transpose((0, 2, 1, 3)), v)
    scores = b(ir.Softmax(-1), b(ir.MatMul(), q, b(ir.Transpose((0, 2, 3, 1)), k)))
    y = b(ir.Transpose((0, 2, 1, 3)), b(ir.MatMul(), scores, v))
    return b.linear(b(ir.Reshape((2, tokens, width)), y), 3, "out")


def test_attention_within_heads_and_by_heads() -> None:
    b = Builder(2, 5, 3)
    found = b.check(attention(b, 3, 3, 4))
    # In each head the queries with the keys, and the values with the output projection; then the heads.
    assert sizes(found, "q.w", 0) == sizes(found, "k.w", 0) == [(4, 1)] * 3 + [(3, 4)]
    assert sizes(found, "v.w", 0) == sizes(found, "out.w", 1) == [(4, 1)] * 3 + [(3, 4)]
    assert len(found) == 3 + 3 + 1


def test_attention_with_one_key_head() -> None:
    b = Builder(2, 5, 3)
    found = b.check(attention(b, 3, 1, 4))
    # All queries move with the dimensions of the one key; whole query heads move among themselves.
    assert sizes(found, "q.w", 0) == [(4, 3), (3, 4)]
    assert sizes(found, "k.w", 0) == [(4, 1)]
    assert sizes(found, "out.w", 1) == [(4, 3), (3, 4)]


def test_embedding_and_layer_norm() -> None:
    b = Builder(1)
    ids = b.graph.add_input("ids", TensorType(DType.I64, (2, 5)))
    x = b(ir.Embedding(), ids, b.constant(9, 6, name="table"))
    x = b(ir.LayerNorm(-1), x, b.constant(6, name="scale"), b.constant(6, name="shift"))
    x = b(ir.Add(), x, b.constant(1, 5, 6, name="place"))
    found = b.check(b.linear(x, 4, "head"))
    for name, axis in (("table", 1), ("scale", 0), ("shift", 0), ("place", 2), ("head.w", 1)):
        assert sizes(found, name, axis) == [(6, 1)]
    assert sizes(found, "table", 0) == sizes(found, "place", 1) == []


def test_norm_over_the_dimensions_of_each_head() -> None:
    b = Builder(2, 5, 3)
    q = b(ir.Reshape((2, 5, 3, 4)), b.linear(b.x, 12, "q"))
    q = b(ir.LayerNorm(-1), q, b.constant(4, name="scale"), b.constant(4, name="shift"))
    found = b.check(b.linear(b(ir.Reshape((2, 5, 12)), q), 4, "out"))
    # The scale is shared by the heads: a dimension moves in all of them, or whole heads do.
    assert sizes(found, "q.w", 0) == sizes(found, "out.w", 1) == [(4, 3), (3, 4)]
    assert sizes(found, "scale", 0) == [(4, 1)]


def residual_chain(blocks: int) -> Graph:
    b = Builder(1, 3, 2, 2)
    x = b.point(b.x, 4, "stem")
    for _ in range(blocks):
        x = b(ir.Add(), x, b.point(b(ir.Activation("relu"), b.point(x, 4, "up")), 4, "down"))
    b.graph.add_output(x)
    return b.graph


def test_work_grows_with_the_graph() -> None:
    few, many = residual_chain(50), residual_chain(200)
    assert work(lambda: channel_groups(many)) < 4.4 * work(lambda: channel_groups(few))


def test_group_norm() -> None:
    b = Builder(2, 3, 4, 4)
    y = b(
        ir.GroupNorm(2),
        b.point(b.x, 8, "p"),
        b.constant(8, name="scale"),
        b.constant(8, name="shift"),
    )
    found = b.check(b.point(y, 2, "head"))
    # Within a group, and the groups as they are.
    for name, axis in (("p.w", 0), ("scale", 0), ("shift", 0), ("head.w", 1)):
        assert sizes(found, name, axis) == [(4, 1), (4, 1), (2, 4)]


RECURRENT = {
    "lstm": lambda n, way: ir.Lstm(n, way, 3),
    "gru": lambda n, way: ir.Gru(n, way, 2),
    "gru-after": lambda n, way: ir.Gru(n, way, 2, reset_after=True),
    "rnn": lambda n, way: ir.Rnn(n, way, 2),
    "rnn-relu": lambda n, way: ir.Rnn(n, way, 2, "relu"),
}


@pytest.mark.parametrize("layer", RECURRENT)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("start", ["none", "constant", "computed"])
def test_recurrent_layers(layer: str, direction: str, start: str) -> None:
    b = Builder(3, 2, 5)
    d, n = 1 + (direction == "bidirectional"), 4
    op = RECURRENT[layer](n, direction)
    x = b.linear(b.x, 6, "in")
    weights = [
        b.constant(d, op.gates * n, 6, name="w"),
        b.constant(d, op.gates * n, 4, name="r"),
        b.constant(d, 2 * op.gates * n, name="b"),
    ]
    first: list[Value | None] = []
    if start == "constant":
        h = b.constant(d, 2, 4, name="h")
        first = [None, *[h] * op.states]
    elif start == "computed":
        h = b(ir.Reshape((2, d, n)), b.linear(b(ir.Select(0, 0), b.x), d * n, "h"))
        first = [None, b(ir.Transpose((1, 0, 2)), h), b.constant(d, 2, 4, name="h")]
    y, last, *_ = b.graph.append(op, [x, *weights, *first][: 5 + op.states]).outputs
    y = b(ir.Reshape((3, 2, d * n)), b(ir.Transpose((0, 2, 1, 3)), y))
    last = b(ir.Reshape((2, d * n)), b(ir.Transpose((1, 0, 2)), last))
    found = b.check(b.linear(y, 3, "out"), b.linear(last, 3, "end"))
    # What it reads, and the state of each direction by itself.
    assert sizes(found, "w", 2) == [(6, 1)]
    assert sizes(found, "r", 2) == [(n, 1)] * d
    assert sizes(found, "r", 1) == sizes(found, "w", 1) == [(n, op.gates)] * d
    assert sizes(found, "b", 1) == [(n, 2 * op.gates)] * d
    assert sizes(found, "out.w", 1) == sizes(found, "end.w", 1) == [(n, 1)] * d
    if start == "computed":
        assert sizes(found, "h.w", 0) == [(n, 1)] * d


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes_move_with_the_state(direction: str) -> None:
    b = Builder(3, 2, 5)
    d, n = 1 + (direction == "bidirectional"), 4
    weights = [b.constant(d, 4 * n, 5, name="w"), b.constant(d, 4 * n, n, name="r")]
    looks = b.constant(d, 3 * n, name="p")
    inputs = [b.x, *weights, None, None, None, None, looks]
    y = b(ir.Lstm(n, direction), *inputs)
    y = b(ir.Reshape((3, 2, d * n)), b(ir.Transpose((0, 2, 1, 3)), y))
    found = b.check(b.linear(y, 3, "out"))
    assert sizes(found, "r", 2) == [(n, 1)] * d
    assert sizes(found, "p", 1) == [(n, 3)] * d


def test_picks_along_other_axes() -> None:
    """Along pixels, the channels are free; the axis that is indexed, ordered or normalised keeps its order."""
    b = Builder(2, 3, 4, 4)
    x = b.point(b.x, 8, "a")
    best, _ = b.graph.append(ir.TopK(3, 2), [x]).outputs
    y = b(ir.GatherNd(), b(ir.Transpose((2, 3, 1, 0)), best), b.integers([[0, 1], [2, -1]], "at"))
    places = b.graph.append(ir.TopK(2, 3), [b.point(b.x, 8, "b")]).outputs[1]
    z = b(ir.GatherElements(3), x, places)
    w = b(ir.LocalResponseNorm(3), b.point(b.x, 6, "n"))
    found = b.check(
        b.linear(b(ir.Transpose((0, 2, 1)), y), 3, "c"), b.point(z, 2, "d"), b.point(w, 2, "e")
    )
    assert sizes(found, "a.w", 0) == sizes(found, "c.w", 1) == sizes(found, "b.w", 0) == [(8, 1)]
    assert sizes(found, "n.w", 0) == sizes(found, "e.w", 1) == []
    assert "keeps the order of axis 1" in reason(found, "n.w", 0)


def test_slices_with_computed_bounds() -> None:
    b = Builder(2, 3, 4, 4)
    start, end = b.integers([0, 1], "s"), b.integers([9, 3], "e")
    x = b(ir.DynamicSlice((2, 3), (2, 1)), b.point(b.x, 8, "a"), start, end)
    y = b(ir.DynamicSlice((1, 2), (1, 1)), b.point(b.x, 8, "b"), start, end)
    found = b.check(b.point(x, 2, "c"), y)
    assert sizes(found, "a.w", 0) == sizes(found, "c.w", 1) == [(8, 1)]
    assert sizes(found, "b.w", 0) == []


def test_picks_along_channels() -> None:
    b = Builder(2, 3, 4, 4)
    x = b.point(b.x, 8, "a")
    best, places = b.graph.append(ir.TopK(3, 1), [x]).outputs
    z = b(ir.GatherElements(1), b.point(b.x, 8, "b"), places)
    found = b.check(b.point(best, 2, "c"), b.point(z, 2, "d"))
    for name, axis in (("a.w", 0), ("b.w", 0), ("c.w", 1), ("d.w", 1)):
        assert sizes(found, name, axis) == []


def test_lengths_of_sequences_keep_their_order() -> None:
    b = Builder(3, 2, 5)
    lengths = b.graph.add_input("lengths", TensorType(DType.I32, (2,)))
    weights = [b.constant(1, 12, 5, name="w"), b.constant(1, 12, 4, name="r")]
    node = b.graph.append(ir.Gru(4, "forward", 2), [b.x, *weights, None, lengths])
    b.graph.add_output(b.linear(node.outputs[1], 3, "out"))
    found = channel_groups(b.graph)
    assert sizes(found, "r", 2) == sizes(found, "out.w", 1) == [(4, 1)]


def test_unknown_ranks_and_sizes_are_fixed() -> None:
    b = Builder("n", 3, "h", "w")
    x = b.point(b.x, 4, "p")
    (y,) = b.graph.append(ir.Opaque("k"), [b.x], types=[TensorType(DType.F64)]).outputs
    (z,) = b.graph.append(ir.Opaque("k"), [b.x], types=[TensorType(DType.F64, (None,) * 4)]).outputs
    found = b.check(
        b(POINT, y, b.constant(2, 4, 1, 1, name="unranked")),
        b(POINT, b(ir.Add(), x, z), b.constant(2, 4, 1, 1, name="unsized")),
        b(ir.Flatten(1), x),
    )
    assert not found.groups
    assert "fixed order" in reason(found, "unranked", 1)
    assert found.fixed
