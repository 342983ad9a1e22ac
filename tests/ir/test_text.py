"""The text form: printing and parsing are inverse, whatever the names, numbers and types."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import (
    Activation,
    ArrayTensor,
    DerivedTensor,
    DType,
    Graph,
    Identity,
    LazyTensor,
    Op,
    Opaque,
    SplatTensor,
    TensorType,
    TextError,
    parse,
)
from support.evaluate import evaluate
from support.graphs import NAMES, networks, odd_graphs
from support.op_samples import SAMPLES


def same(a: Graph, b: Graph) -> None:
    """Equal in structure, names, types, ops and the bits of constants."""
    assert [(v.name, v.type) for v in a.values()] == [(v.name, v.type) for v in b.values()]
    assert a.name == b.name
    assert a.output_names == b.output_names
    assert [v.name for v in a.outputs] == [v.name for v in b.outputs]
    for m, n in zip(a.nodes, b.nodes, strict=True):
        assert (m.op, m.name) == (n.op, n.name)
        assert [v and v.name for v in m.inputs] == [v and v.name for v in n.inputs]
    for v, w in zip(a.constants, b.constants, strict=True):
        assert v.data is not None
        assert w.data is not None
        first, second = v.data.numpy(), w.data.numpy()
        if first.dtype == object:
            assert first.tolist() == second.tolist()
        else:
            assert first.dtype == second.dtype
            nan = first != first
            np.testing.assert_array_equal(nan, second != second)
            assert first[~nan].tobytes() == second[~nan].tobytes()


@settings(max_examples=100)
@given(odd_graphs())
def test_round_trip(graph: Graph) -> None:
    text = graph.text(full=True)
    read = parse(text)
    assert read.text(full=True) == text
    read.verify()
    same(graph, read)


@settings(max_examples=40)
@given(odd_graphs())
def test_text_without_names_reads_back(graph: Graph) -> None:
    text = graph.text(full=True, names=False)
    assert parse(text).text(full=True, names=False) == text


@settings(max_examples=40)
@given(networks())
def test_what_is_read_back_computes_the_same(graph: Graph) -> None:
    read = parse(graph.text(full=True))
    for want, got in zip(evaluate(graph), evaluate(read), strict=True):
        np.testing.assert_array_equal(want, got)


@given(networks(), st.randoms())
def test_without_names_renamed_graphs_print_alike(graph: Graph, random: object) -> None:
    other = parse(graph.text(full=True))
    for i, value in enumerate(other.values()):
        value.name = f"other{i}"
    other.output_names = [f"o{i}" for i in range(len(other.outputs))]
    assert other.text(names=False, full=True) == graph.text(names=False, full=True)
    assert other.text() != graph.text()


@given(NAMES, NAMES, NAMES)
@example("a:", "inf", "output:0")
def test_any_name_anywhere(name: str, symbol: str, title: str) -> None:
    graph = Graph(title)
    x = graph.add_input(name, TensorType(DType.F32, (symbol, 2)))
    node = graph.append(Opaque(name), [x], name=symbol or "n", types=[x.type], output_names=[title])
    graph.add_output(node.output, name)
    same(parse(graph.text()), graph)


def _op_examples() -> list[Op]:
    window = {"strides": (2, 1), "pads": (0, 1, 1, 0), "dilations": (1, 2)}
    return [
        ir.Conv(**window, groups=2), ir.ConvTranspose(**window, output_padding=(1, 0)),
        ir.Linear(), ir.Embedding(), ir.Lstm(8, "reverse", 2), ir.Gru(8, "bidirectional", 2, True), ir.Rnn(8, kind="relu"), ir.TopK(3, -2, False), ir.GatherElements(-1), ir.GatherNd(2), ir.DynamicSlice((1, -1), (1, 2)), ir.Range(), ir.LocalResponseNorm(5, 0.5), ir.GroupNorm(2, 1e-3), ir.Scale(-1), ir.AveragePool(**window, kernel=(2, 2), count_include_pad=True),
        ir.MaxPool(**window, kernel=(2, 2), ceil_mode=True), ir.GlobalAveragePool(),
        ir.Pad((0, 1, 0, -1), "constant", float("-inf")), ir.Pad((0, 0), "reflect"),
        ir.Activation("clip", (float("-inf"), 1e-45)), ir.PRelu(2), ir.Add(), ir.Sub(), ir.Mul(),
        ir.Div(), ir.Identity(), ir.Cast("bf16"), ir.Softmax(1), ir.LayerNorm(-2, 1e-6), ir.MatMul(),
        ir.Reshape((None, -1, 0)), ir.Flatten(2), ir.Transpose((1, 0)), ir.Squeeze((-1,)),
        ir.Unsqueeze((0, 2)), ir.Concat(-1), ir.Split((1, 2), 1), ir.Select(0, -1),
        ir.Slice((0, -1), (2**63 - 1, 4), (0, 1), (1, 2)), ir.Reduce("l2", (1,), False),
        ir.LogSoftmax(0), ir.Unary("rsqrt"), ir.Pow(), ir.Max(), ir.Min(), ir.Compare("less"), ir.Logical("xor"),
        ir.Where(), ir.Gather(1), ir.Expand((2, 1)), ir.ArgReduce("min", 1, False, True), ir.CumSum(1, True),
        ir.Resize("cubic", "half_pixel", sizes=(None, 3)), ir.Resize("linear", "asymmetric", (1.0, 1.5)),
        ir.DepthToSpace(2, "CRD"), ir.SpaceToDepth(3), ir.Quantize("i8", 0), ir.Dequantize(2),
        ir.Opaque("onnx:Loop", False), ir.Gate("prelu", axis=-1, mode="top-k"), ir.Gate("elu", (0.5,)),
    ]  # fmt: skip


def test_every_op_reads_back() -> None:
    examples = [*_op_examples(), *(sample.op for sample in SAMPLES.values())]
    assert {type(op) for op in examples} >= set(Op.names.values()) - {
        cls for name, cls in Op.names.items() if not cls.__module__.startswith("graphshrink.ir")
    }
    for op in examples:
        shown = ", ".join(f"{f.name}={ir.text._literal(getattr(op, f.name))}" for f in fields(op))
        text = f"graph g() {{\n  {op.name}() {{{shown}}}\n  return\n}}"
        tokens = ir.text._Parser(text, {})
        tokens.at = next(i for i, t in enumerate(tokens.tokens) if t[1] == op.name) + 3
        assert tokens.peek() == "{"
        tokens.take("{")
        read = {}
        while not tokens.accept("}"):
            key = tokens.take("word")
            tokens.take("=")
            read[key] = tokens.literal()
            if tokens.peek() != "}":
                tokens.take(",")
        assert type(op)(**read) == op


def test_numpy_numbers_print_as_numbers() -> None:
    graph = Graph("g")
    x = graph.add_input("x")
    slope = np.float64(0.5)
    graph.append(Activation("leaky_relu", (slope,)), [x])
    assert "params=[0.5]" in graph.text()
    graph.append(ir.Softmax(np.int64(2)), [x])  # type: ignore[arg-type]
    assert parse(graph.text()).text() == graph.text()


def test_which_constants_are_printed() -> None:
    graph = Graph("g")
    graph.add_constant(ArrayTensor(np.arange(16.0)), "small")
    graph.add_constant(ArrayTensor(np.arange(17.0)), "large")
    graph.add_constant(SplatTensor((5, 5), DType.F16, 0.5), "even")
    graph.add_constant(DerivedTensor((2,), DType.F32, lambda: np.array([1 / 3, 1.0])), "derived")
    loads = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.zeros((100, 100), np.float32)

    graph.add_constant(LazyTensor((100, 100), DType.F32, load), "lazy")
    text = graph.text()
    assert "%large: f64[17] = elided" in text
    assert "%even: f16[5, 5] = splat 0.5" in text
    assert "%derived: f32[2] = dense [0.3333333432674408, 1.0]" in text
    assert not loads
    elided = parse(text).value("large").data
    assert elided is not None
    with pytest.raises(ValueError, match="full=True"):
        elided.numpy()
    assert "%large: f64[17] = dense [0.0" in graph.text(full=True)
    assert loads


def test_constants_may_be_given_beside_the_text() -> None:
    text = "graph g() {\n  %w: f32[2, 2] = elided\n  return w=%w\n}"
    data = parse(text, {"w": [[1, 2], [3, 4]]}).value("w").data
    assert data is not None
    assert data.numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert data.dtype is DType.F32


def test_random_constants_are_repeatable() -> None:
    text = "graph g() {\n  %w: f16[3] = random 7\n  return w=%w\n}"
    first, second = (parse(text).value("w").data for _ in range(2))
    assert first is not None
    assert second is not None
    want = np.random.default_rng(7).standard_normal(3).astype(np.float16)
    assert first.numpy().tolist() == second.numpy().tolist() == want.tolist()


def test_comments_and_layout_do_not_matter() -> None:
    text = """// a comment
    graph g(%x: f32[2]) { // another
      %y = Identity(%x)
      return %y }"""
    with pytest.raises(TextError, match="line 3"):
        parse(text)
    graph = parse(text.replace("%y =", "%y: ?[*] ="))
    assert graph.value("y").type == TensorType(DType.F32, (2,))


GOOD = """graph g(%x: f32[1, 3, 8, 8]) {
  %w: f32[4, 3, 3, 3] = random 1
  %y: f32[1, 4, 6, 6] = Conv(%x, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "conv"
  %z: f32[1, 4, 6, 6] = Activation(%y) {kind="relu"}
  return out=%z
}
"""


@pytest.mark.parametrize(("old", "new", "message"), [
    ("graph g", "graf g", "line 1: expected graph, found 'graf'"),
    ("f32[1, 3, 8, 8]", "f33[1, 3, 8, 8]", "line 1: expected an element type, found 'f33'"),
    ("8, 8]", "8, 8.5]", "line 1: expected a dimension, found '8.5'"),
    ("8, 8]", "8, -8]", "line 1: expected a dimension, found '-8'"),
    ("Conv(%x, %w)", "Conv(%x, %v)", "line 3: %v is not defined"),
    ("Conv(%x, %w)", "Conf(%x, %w)", "line 3: there is no op Conf"),
    ("Conv(%x, %w)", "Conv(%x)", "line 3: Conv takes 2 to 3 inputs"),
    ("Conv(%x, %w)", "Conv(none, %w)", "line 3: input 0 is missing"),
    ("dilations=[1, 1]", "dilations=[1, 1], color=3", "line 3: .*color"),
    ("dilations=[1, 1]", "dilations=[0, 1]", "line 3: .*sizes start at 1"),
    ("dilations=[1, 1]", "dilations=3", "line 3"),
    ("strides=[1, 1]", "strides=[0, 1]", "line 3: .*sizes start at 1"),
    ("dilations=[1, 1]", "dilations=[1, 1], groups=0", "line 3: Conv with 0 groups"),
    ("f32[1, 4, 6, 6] = Conv", "f32[1, 4, 7, 6] = Conv", r"line 3: Conv gives f32\[1, 4, 6, 6\], not"),
    ("f32[1, 4, 6, 6] = Conv", "f16[1, 4, 6, 6] = Conv", "line 3: Conv gives"),
    ('kind="relu"', 'kind="rely"', "line 4: unknown activation 'rely'"),
    ("%z: f32", "%y: f32", "line 4: %y is defined twice"),
    ("return out=%z", "return out=%q", "line 5: %q is not defined"),
    ("random 1", "random -1", "line 2: constant %w"),
    ("random 1", "dense [1.0]", "line 2: constant %w"),
    ("random 1", 'dense ["a"]', "line 2: constant %w"),
    ("random 1", 'splat "a"', "line 2: constant %w"),
    ("random 1", "splat", "line 3: expected a literal"),
    ("f32[4, 3, 3, 3] = random", "f32[4, 3, 3, N] = random", "a shape without unknowns for the constant %w"),
    ("f32[4, 3, 3, 3] = random 1", "u8[1] = dense [300]", "line 2: constant %w"),
    ("%w: f32[4, 3, 3, 3] =", "", "line 2"),
    ('as "conv"', "as conv", "line 3: expected string"),
    ("}\n", "", "expected"),
    ("return", "§ return", "line 5: cannot read"),
])  # fmt: skip
def test_errors_name_the_line(old: str, new: str, message: str) -> None:
    parse(GOOD)
    assert old in GOOD
    broken = GOOD.replace(old, new) if old != "}\n" else GOOD.removesuffix(old)
    with pytest.raises(TextError, match=message):
        parse(broken)


@settings(max_examples=100)
@given(st.data())
def test_damaged_text_raises_text_errors_only(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        piece = data.draw(
            st.one_of(
                st.text("[](){}=,:*?%\"'0123456789.-einfax \\\n", max_size=4),
                st.just(GOOD[start:end]),
            )
        )
        text = text[:start] + piece + text[end:]
    try:
        graph = parse(text)
    except TextError:
        return
    graph.verify()
    assert parse(graph.text(full=True)).text(full=True) == graph.text(full=True)


def test_long_texts_take_linear_time() -> None:
    graph = Graph("g")
    value = graph.add_input("x", TensorType(DType.F32, (2,)))
    for _ in range(8_000):
        value = graph.append(Identity(), [value], name="n").output
    graph.add_output(value)
    assert parse(graph.text()).text() == graph.text()
