"""Which nodes are affine maps, along which axes, where ranks and sizes are not known, and which are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphshrink.ir import (
    Add,
    ArrayTensor,
    Conv,
    Dequantize,
    DType,
    Graph,
    Identity,
    Linear,
    Rewriter,
    Scale,
    TensorType,
    Value,
    parse,
)
from graphshrink.passes import Context
from graphshrink.passes.merge.merge_linear import MergeLinear
from support.evaluate import evaluate

POINTWISE = "{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}"


def ran(text: str, **options: Any) -> tuple[Graph, Rewriter]:
    graph = parse(text)
    rw = Rewriter(graph)
    MergeLinear(**options).run(graph, rw, Context())
    graph.verify()
    return graph, rw


def ops(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes]


def agree(text: str, x: Any, **options: Any) -> Graph:
    """The graph after the pass, which gives the same for ``x``."""
    graph, _ = ran(text, **options)
    (want,), (got,) = evaluate(parse(text), [x]), evaluate(graph, [x])
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    return graph


X = np.random.default_rng(0).standard_normal((2, 2, 3, 2))

SCALES = """graph g(%x: f64[*]) {{
  %s: f64[{0}] = random 1
  %t: f64[{0}] = random 2
  %a: f64[*] = Scale(%x, %s, %t) {{axis={1}}}
  %b: f64[*] = Scale(%a, %t, %s) {{axis={2}}}
  return y=%b
}}"""


@pytest.mark.parametrize(
    ("axes", "left"),
    [((1, 1), ["Scale"]), ((-1, -1), ["Scale"]), ((1, -1), ["Scale"] * 2), ((2, 2), ["Scale"] * 2)],
)
def test_scales_of_a_value_of_unknown_rank(axes: tuple[int, int], left: list[str]) -> None:
    """Axis 1 and the last one are known for what they are; the first axis of two and the last may be the same."""
    x = X[..., :2]
    text = SCALES.format(3 if axes == (2, 2) else 2, *axes)
    assert ops(agree(text, x)) == left


def test_a_convolution_takes_scales_of_unknown_rank() -> None:
    text = f"""graph g(%x: f64[*]) {{
      %s: f64[2] = random 1
      %w: f64[3, 2, 1, 1] = random 2
      %t: f64[3] = random 3
      %a: f64[*] = Scale(%x, %s, %s)
      %b: f64[*] = Conv(%a, %w) {POINTWISE}
      %c: f64[*] = Scale(%b, %t, %t)
      return y=%c
    }}"""
    assert ops(agree(text, X)) == ["Conv"]


@pytest.mark.parametrize("front", [False, True])
def test_a_dense_layer_and_a_scale_of_channels_of_unknown_rank_stay(front: bool) -> None:
    scale, dense = "Scale({}, %s, %t)", "Linear({}, %w)"
    first, second = (scale, dense) if front else (dense, scale)
    text = f"""graph g(%x: f64[*]) {{
      %s: f64[2] = random 1
      %t: f64[2] = random 2
      %w: f64[2, 2] = random 3
      %a: f64[*] = {first.format("%x")}
      %b: f64[*] = {second.format("%a")}
      return y=%b
    }}"""
    graph, rw = ran(text)
    assert len(graph) == 2
    first_node, second_node = graph.nodes
    why = f"not merged with {first_node.name}: they work along different axes"
    assert [(r.node, r.reason) for r in rw.refusals] == [(second_node.name, why)]
    agree(text, X)


def test_a_dense_layer_takes_a_scale_of_the_last_axis_of_unknown_rank() -> None:
    text = """graph g(%x: f64[*]) {
      %s: f64[2] = random 1
      %w: f64[3, 2] = random 3
      %a: f64[*] = Scale(%x, %s, %s) {axis=-1}
      %b: f64[*] = Linear(%a, %w)
      return y=%b
    }"""
    assert ops(agree(text, X)) == ["Linear"]


@pytest.mark.parametrize(("axis", "size"), [(0, 2), (1, 2), (2, 3), (-2, 3), (-1, 2)])
def test_scales_along_any_axis_join(axis: int, size: int) -> None:
    text = f"""graph g(%x: f64[2, 2, 3, 2]) {{
      %s: f64[{size}] = random 1
      %t: f64[{size}] = random 2
      %k: f64[1] = dense [3.0]
      %a: f64[2, 2, 3, 2] = Scale(%x, %s, %t) {{axis={axis}}}
      %b: f64[2, 2, 3, 2] = Scale(%a, none, %k) {{axis=3}}
      %c: f64[2, 2, 3, 2] = Scale(%b, %t, %s) {{axis={axis % 4}}}
      return y=%c
    }}"""
    assert ops(agree(text, X)) == ["Scale"]


def test_scales_along_neighbouring_axes_stay() -> None:
    text = """graph g(%x: f64[2, 2, 3, 2]) {
      %s: f64[2] = random 1
      %a: f64[2, 2, 3, 2] = Scale(%x, %s, none) {axis=0}
      %b: f64[2, 2, 3, 2] = Scale(%a, %s, none) {axis=1}
      %c: f64[2, 2, 3, 2] = Scale(%b, %s, none) {axis=3}
      return y=%c
    }"""
    assert ops(agree(text, X)) == ["Scale"] * 3


def test_a_map_is_subtracted_and_never_subtracted_from() -> None:
    text = f"""graph g(%x: f64[1, 2, 3, 2]) {{
      %w: f64[2, 2, 1, 1] = random 1
      %m: f64[1, 2, 3, 2] = random 2
      %a: f64[1, 2, 3, 2] = Conv(%x, %w) {POINTWISE}
      %b: f64[1, 2, 3, 2] = SPELLED
      %c: f64[1, 2, 3, 2] = Conv(%b, %w) {POINTWISE}
      return y=%c
    }}"""
    left = ["Conv", "Add"]
    for spelled, want in (
        ("Add(%a, %m)", left),
        ("Add(%m, %a)", left),
        ("Sub(%a, %m)", left),
        ("Sub(%m, %a)", ["Conv", "Sub", "Conv"]),
    ):
        assert ops(agree(text.replace("SPELLED", spelled), X[:1])) == want, spelled


def test_a_constant_that_is_no_map_of_its_value_is_not_taken_for_one() -> None:
    """It is broadcast along an axis, or has a size in place of the batch."""
    for shape, data in (("1, 2, 1, 2", (1, 2, 1, 2)), ("2, 2, 3, 2", (2, 2, 3, 2))):
        text = f"""graph g(%x: f64[2, 2, 3, 2]) {{
          %w: f64[2, 2, 1, 1] = random 1
          %m: f64[{shape}] = random 2
          %a: f64[2, 2, 3, 2] = Conv(%x, %w) {POINTWISE}
          %b: f64[2, 2, 3, 2] = Add(%a, %m)
          %c: f64[2, 2, 3, 2] = Conv(%b, %w) {POINTWISE}
          return y=%c
        }}"""
        assert ops(agree(text, X)) == ["Conv", "Add", "Conv"], data


@pytest.mark.parametrize("value", [0.5, 1.0, 2.0])
def test_a_kernel_of_one_number_is_an_identity_where_that_is_one(value: float) -> None:
    for order in ("%a, %x", "%x, %b"):
        first, second = ("w", "v") if order == "%a, %x" else ("v", "w")
        groups = {"w": 1, "v": 2}
        text = f"""graph g(%x: f64[2, 2, 3, 2]) {{
          %w: f64[2, 2, 1, 1] = random 1
          %v: f64[2, 1, 1, 1] = splat {value!r}
          %a: f64[2, 2, 3, 2] = Conv(%x, %{first}) {POINTWISE[:-1]}, groups={groups[first]}}}
          %b: f64[2, 2, 3, 2] = Conv(%a, %{second}) {POINTWISE[:-1]}, groups={groups[second]}}}
          return y=%b
        }}"""
        assert ops(agree(text, X)) == ["Conv"]


@pytest.mark.parametrize("dtype", [None, DType.I32])
def test_computed_weights_of_what_is_no_float_are_not_reported(dtype: DType | None) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(dtype))
    w, v = (graph.add_input(n, TensorType(dtype)) for n in ("w", "v"))
    first = graph.append(Identity(), [x])
    second = graph.append(Linear(), [first.output, w])
    third = graph.append(Linear(), [second.output, v])
    graph.add_output(third.output, "y")
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert not rw.changed
    assert rw.refusals == []


def test_a_vector_that_is_too_large_to_read_is_used_unread() -> None:
    """Scales of very many channels stay lazy, and come out right."""
    size = 140_000
    numbers = [np.random.default_rng(i).standard_normal(size) for i in range(3)]
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F64, (1, size)))
    s, t, u = (graph.add_constant(ArrayTensor(n), f"c{i}") for i, n in enumerate(numbers))
    first = graph.append(Scale(1), [x, s, t])
    second = graph.append(Scale(1), [first.output, u, s])
    graph.add_output(second.output, "y")
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    graph.verify()
    (node,) = graph.nodes
    x_ = numbers[0][None]
    s_, t_, u_ = numbers
    (got,) = evaluate(graph, [x_])
    np.testing.assert_allclose(got, (x_ * s_ + t_) * u_ + s_, rtol=1e-12, atol=1e-14)
    assert isinstance(node.op, Scale)


def test_a_bias_of_one_number_is_one_for_every_channel() -> None:
    text = f"""graph g(%x: f64[2, 2, 3, 2]) {{
      %w: f64[4, 2, 1, 1] = random 1
      %c: f64[1] = dense [0.75]
      %v: f64[3, 4, 1, 1] = random 2
      %a: f64[2, 4, 3, 2] = Conv(%x, %w) {POINTWISE}
      %b: f64[2, 4, 3, 2] = Scale(%a, none, %c)
      %d: f64[2, 3, 3, 2] = Conv(%b, %v) {POINTWISE}
      return y=%d
    }}"""
    assert ops(agree(text, X)) == ["Conv"]


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_negative_padding_is_refused(kind: str) -> None:
    graph, rw = ran(
        f"""graph g(%x: f64[1, 2, 5, 5]) {{
          %w: f64[2, 2, 3, 3] = elided
          %s: f64[2] = random 1
          %a: f64[*] = {kind}(%x, %w) {{strides=[1, 1], dilations=[1, 1], pads=[0, 0, -1, 0]}}
          %b: f64[*] = Scale(%a, %s, none)
          return y=%b
        }}"""
    )
    assert ops(graph) == [kind, "Scale"]
    assert "negative padding" in rw.refusals[0].reason


@pytest.mark.parametrize("pads", ["0, 0, 0, 0, 0, 1, 0, 0", "0, 0, 0, 0, 1, 0, 0, 0", "1, 0, 0, 0, 0, 0, 0, 0"])  # fmt: skip
def test_padding_of_batches_and_channels_stays_on_either_side(pads: str) -> None:
    channels = 3 if pads.split(", ")[5] == "1" else 2
    text = f"""graph g(%x: f64[2, 2, 3, 2]) {{
      %w: f64[4, {channels}, 1, 1] = random 1
      %a: f64[*] = Pad(%x) {{pads=[{pads}]}}
      %b: f64[*] = Conv(%a, %w) {POINTWISE}
      return y=%b
    }}"""
    assert ops(agree(text, X)) == ["Pad", "Conv"]


@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose", "Linear"])
def test_a_number_in_front_of_a_layer_of_unknown_input(layer: str) -> None:
    """The layer alone tells how many channels there are."""
    shape = {"Conv": "3, 2, 1, 2", "ConvTranspose": "2, 3, 1, 1", "Linear": "3, 2"}[layer]
    window = "" if layer == "Linear" else POINTWISE
    text = f"""graph g(%x: f64[*]) {{
      %k: f64[1] = dense [2.5]
      %w: f64[{shape}] = random 1
      %a: f64[*] = Scale(%x, %k, none)
      %b: f64[*] = {layer}(%a, %w) {window}
      %c: f64[*] = Scale(%b, %k, none)
      return y=%c
    }}"""
    assert ops(agree(text, X)) == [layer]


def test_what_a_value_says_in_between_counts() -> None:
    """The input has no known size; what the second layer reads has."""
    text = f"""graph g(%x: f64[*]) {{
      %w: f64[2, 24, 3, 3] = random 1
      %s: f64[24] = random 2
      %a: f64[2, 24, 5, 5] = Scale(%x, %s, %s)
      %b: f64[2, 2, 5, 5] = Conv(%a, %w) {POINTWISE.replace("0, 0, 0, 0", "1, 1, 1, 1")}
      return y=%b
    }}"""
    x = np.random.default_rng(3).standard_normal((2, 24, 5, 5))
    assert ops(agree(text, x)) == ["Conv", "Add"]


def test_computed_scales_stay_and_say_why() -> None:
    graph, rw = ran(
        f"""graph g(%x: f64[2, 2, 3, 2], %s: f64[2]) {{
          %w: f64[4, 2, 1, 1] = random 1
          %v: f64[2, 2, 1, 1] = random 2
          %z: f64[2, 2, 3, 2] = Conv(%x, %v) {POINTWISE} as "first"
          %a: f64[2, 2, 3, 2] = Scale(%z, none, %s) as "second"
          %b: f64[2, 4, 3, 2] = Conv(%a, %w) {POINTWISE} as "third"
          return y=%b
        }}"""
    )
    assert ops(graph) == ["Conv", "Scale", "Conv"]
    assert [(r.node, r.reason) for r in rw.refusals] == [
        ("second", "not merged with first: its weight %s is not a constant")
    ]


def quantised(place: str) -> Graph:
    """Two layers; one number or weight of the second stands for integers."""
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 2, 3, 3)))
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Value:
        return graph.add_constant(ArrayTensor(rng.standard_normal(shape).astype(np.float32)))

    def integers(*shape: int) -> Value:
        numbers = graph.add_constant(ArrayTensor(rng.integers(-9, 9, shape, dtype=np.int8)))
        step = graph.add_constant(ArrayTensor(np.array(0.5, np.float32)))
        made = graph.append(Dequantize(), [numbers, step]).output
        made.data = ArrayTensor(numbers.data.numpy() * np.float32(0.5))  # type: ignore[union-attr]
        return made

    conv = Conv((1, 1), (0, 0, 0, 0), (1, 1))
    value = graph.append(conv, [x, floats(2, 2, 1, 1)]).output
    match place:
        case "weight":
            value = graph.append(conv, [value, integers(2, 2, 1, 1)]).output
        case "bias":
            value = graph.append(conv, [value, floats(2, 2, 1, 1), integers(2)]).output
        case "factor":
            value = graph.append(Scale(1), [value, integers(2), None]).output
        case "shift":
            value = graph.append(Scale(1), [value, None, integers(2)]).output
        case "map":
            value = graph.append(Add(), [value, integers(1, 2, 3, 3)]).output
            value = graph.append(conv, [value, floats(2, 2, 1, 1)]).output
        case _:
            value = graph.append(Scale(1), [value, floats(2), None]).output
    graph.add_output(value, "y")
    return graph


@pytest.mark.parametrize("place", ["weight", "bias", "factor", "shift", "map", "none"])
def test_numbers_that_stand_for_integers_are_not_merged(place: str) -> None:
    graph = quantised(place)
    before = ops(graph)
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert ops(graph) == (["Conv"] if place == "none" else before)
    if place not in ("none", "map"):
        assert "is quantised" in rw.refusals[-1].reason
