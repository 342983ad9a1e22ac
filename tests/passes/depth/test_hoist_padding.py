"""hoist-padding: what it moves where, and that merging is exact afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink.ir import (
    Add,
    ArrayTensor,
    Conv,
    DType,
    Exactness,
    Graph,
    Pad,
    Rewriter,
    Scale,
    Sub,
    TensorType,
    Value,
    parse,
)
from graphshrink.passes import Context, HoistPadding, Pipeline
from graphshrink.passes.infra.contract import PassError
from graphshrink.passes.merge.merge_linear import MergeLinear
from graphshrink.passes.merge.preview import preview
from support.evaluate import evaluate, random_inputs

LIMIT = 1e-10


def window(pads: str, stride: int = 1, groups: int = 1, rank: int = 2) -> str:
    """The attributes of a window; ``pads`` is one number for all, or all of them."""
    all_pads = pads if "," in pads else ", ".join([pads] * (2 * rank))
    extra = f", groups={groups}" if groups > 1 else ""
    strides, ones = ", ".join([str(stride)] * rank), ", ".join(["1"] * rank)
    return f"{{strides=[{strides}], pads=[{all_pads}], dilations=[{ones}]{extra}}}"


def constants(**shapes: str) -> str:
    """Random constants: ``w="8x3x3x3"``."""
    return "\n".join(
        f"%{name}: f64[{shape.replace('x', ', ')}] = random {i + 1}"
        for i, (name, shape) in enumerate(shapes.items())
    )


def graph_of(body: str, source: str = "2, 4, 20, 23") -> Graph:
    """A graph from the lines of its nodes; the last one's result ``%y`` is returned."""
    text = f"graph g(%x: f64[{source}]) {{\n{body}\nreturn y=%y\n}}"
    return parse(re.sub(r"(%[\w.]+) = ", r"\1: ?[*] = ", text))


def hoisted(graph: Graph, **options: Any) -> tuple[Graph, Rewriter]:
    """A copy of the graph after the pass."""
    after = graph.clone()
    rw = Rewriter(after, exactness=HoistPadding.exactness)
    HoistPadding(**options).run(after, rw, Context())
    after.verify()
    return after, rw


def merged(graph: Graph, **options: Any) -> Graph:
    """A copy of the graph after an exact merge without bias maps."""
    after = graph.clone()
    rw = Rewriter(after)
    MergeLinear(bias_maps=False, **options).run(after, rw, Context())
    assert rw.worst is Exactness.EXACT
    Pipeline("prune-dead").run(after)
    return after


def same(want: np.ndarray, got: np.ndarray) -> bool:
    assert want.shape == got.shape
    assert np.abs(want).max() > 1e-6
    return bool(np.abs(want - got).max() < LIMIT * np.abs(want).max())


def only_conv(graph: Graph) -> Conv:
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    return node.op


def check(graph: Graph, **options: Any) -> Graph:
    """Hoists and merges; everything must be true of the result that the pass promises.

    Returns:
        The merged graph, which is one convolution.
    """
    options = options or {"force": True, "max_kernel": 99}
    before, rw = hoisted(graph, **options)
    assert rw.worst is Exactness.BORDER
    after = merged(before, **options)
    conv = only_conv(after)
    inputs = random_inputs(graph, 3)
    (old,), (new,), (one,) = (evaluate(g, inputs) for g in (graph, before, after))
    assert same(new, one)
    # Where no padding is read at all, nothing changed; at the border something did.
    n = conv.spatial_rank
    inside: list[slice] = [slice(None), slice(None)]
    for axis in range(n):
        begin, end = (-(-p // conv.strides[axis]) for p in (conv.pads[axis], conv.pads[n + axis]))
        assert old.shape[2 + axis] > begin + end
        inside.append(slice(begin, old.shape[2 + axis] - end))
    assert same(old[tuple(inside)], new[tuple(inside)])
    assert not same(old, new)
    _, second = hoisted(before, **options)
    assert not second.changed
    return after


def block(n: str, x: str, y: str) -> str:
    """An inverted residual block."""
    return f"""
      %{n}.e = Conv(%{x}, %w1, %b1) {window("0")} as "{n}.expand"
      %{n}.s = Scale(%{n}.e, %a, %c) as "{n}.bn"
      %{n}.d = Conv(%{n}.s, %w2, %b2) {window("1", groups=12)} as "{n}.depthwise"
      %{n}.p = Conv(%{n}.d, %w3, %b3) {window("0")} as "{n}.project"
      %{y} = Add(%{x}, %{n}.p) as "{n}.add"
    """


INVERTED = constants(
    w1="12x4x1x1", b1="12", a="12", c="12", w2="12x1x3x3", b2="12", w3="4x12x1x1", b3="4"
)

REGIONS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # Nodes; then taps, strides and pads of the one convolution.
    "conv-conv": (
        f"""{constants(w="5x4x3x3", b="5", v="3x5x3x3", c="3")}
        %m = Conv(%x, %w, %b) {window("1")}
        %y = Conv(%m, %v, %c) {window("1")}""",
        (5, 5), (1, 1), (2, 2, 2, 2),
    ),
    "stride 2, then 3": (
        f"""{constants(w="5x4x3x3", b="5", v="3x5x3x3")}
        %m = Conv(%x, %w, %b) {window("1", 2)}
        %y = Conv(%m, %v) {window("1", 3)}""",
        (7, 7), (6, 6), (3, 3, 3, 3),
    ),
    "uneven": (
        f"""{constants(w="5x4x2x3", b="5", v="3x5x3x2")}
        %m = Conv(%x, %w, %b) {window("0, 1, 2, 0", 2)}
        %y = Conv(%m, %v) {window("2, 0, 0, 1")}""",
        (6, 5), (2, 2), (4, 1, 2, 2),
    ),
    "pw-dw-pw, stride 2": (
        f"""{constants(w="12x4x1x1", b="12", v="12x1x3x3", c="12", u="6x12x1x1")}
        %e = Conv(%x, %w, %b) {window("0")}
        %d = Conv(%e, %v, %c) {window("1", 2, 12)}
        %y = Conv(%d, %u) {window("0")}""",
        (3, 3), (2, 2), (1, 1, 1, 1),
    ),
    "inverted residual": (
        INVERTED + block("one", "x", "y"),
        (3, 3), (1, 1), (1, 1, 1, 1),
    ),
    "two inverted residuals": (
        INVERTED + block("one", "x", "m") + block("two", "m", "y"),
        (5, 5), (1, 1), (2, 2, 2, 2),
    ),
    "residual with a strided 1x1 skip": (
        f"""{constants(w="6x4x3x3", b="6", a="6", v="6x6x3x3", u="6x4x1x1", c="6")}
        %l = Conv(%x, %w, %b) {window("1", 2)}
        %s = Scale(%l, %a, %b)
        %r = Conv(%s, %v) {window("1")}
        %d = Conv(%x, %u, %c) {window("0", 2)}
        %y = Add(%r, %d)""",
        (7, 7), (2, 2), (3, 3, 3, 3),
    ),
    "a convolution, then such a residual": (
        f"""{constants(z="4x4x3x3", w="6x4x3x3", b="6", v="6x6x3x3", u="6x4x1x1", c="6")}
        %t = Conv(%x, %z) {window("1")}
        %l = Conv(%t, %w, %b) {window("1", 2)}
        %r = Conv(%l, %v) {window("1")}
        %d = Conv(%t, %u, %c) {window("0", 2)}
        %y = Sub(%d, %r)""",
        (9, 9), (2, 2), (4, 4, 4, 4),
    ),
    "two RepVGG blocks": (
        f"""{constants(w="4x4x3x3", b="4", v="4x4x1x1", c="4", a="4")}
        %l = Conv(%x, %w, %b) {window("1")}
        %p = Conv(%x, %v, %c) {window("0")}
        %i = Scale(%x, %a, %b)
        %s = Add(%l, %p)
        %m = Add(%s, %i)
        %l2 = Conv(%m, %w, %c) {window("1")}
        %p2 = Conv(%m, %v, %b) {window("0")}
        %i2 = Scale(%m, %a, %c)
        %s2 = Add(%l2, %p2)
        %y = Add(%s2, %i2)""",
        (5, 5), (1, 1), (2, 2, 2, 2),
    ),
    "batch norm first": (
        f"""{constants(a="4", b="4", w="5x4x3x3")}
        %s = Scale(%x, %a, %b)
        %y = Conv(%s, %w) {window("1")}""",
        (3, 3), (1, 1), (1, 1, 1, 1),
    ),
    "explicit pads": (
        f"""{constants(w="5x4x3x3", b="5", v="3x5x3x3")}
        %o = Pad(%x) {{pads=[0, 0, 1, 0, 0, 0, 1, 2]}}
        %m = Conv(%o, %w, %b) {window("0", 2)}
        %p = Pad(%m) {{pads=[0, 0, 1, 1, 0, 0, 1, 1]}}
        %z = Conv(%p, %v) {window("0")}
        %y = Pad(%z) {{pads=[0, 0, 0, 1, 0, 0, 0, 0]}}""",
        (7, 7), (2, 2), (3, 4, 3, 4),
    ),
    "a crop": (
        f"""{constants(w="5x4x3x3", b="5", v="3x5x3x3")}
        %m = Conv(%x, %w, %b) {window("2")}
        %p = Pad(%m) {{pads=[0, 0, -1, 0, 0, 0, 0, -1]}}
        %y = Conv(%p, %v) {window("1")}""",
        (5, 5), (1, 1), (2, 3, 3, 2),
    ),
    "average pools": (
        f"""{constants(w="4x4x3x3", b="4")}
        %m = AveragePool(%x) {{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], kernel=[3, 3], count_include_pad=true}}
        %t = Conv(%m, %w, %b) {window("1", 2)}
        %y = AveragePool(%t) {{strides=[2, 2], pads=[1, 1, 0, 0], dilations=[1, 1], kernel=[2, 2], count_include_pad=true}}""",
        (7, 7), (4, 4), (4, 4, 2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_becomes_one_convolution(name: str) -> None:
    body, taps, strides, pads = REGIONS[name]
    after = check(graph_of(body))
    (node,) = after.nodes
    conv = only_conv(after)
    assert node.inputs[1] is not None
    assert node.inputs[1].type.static_shape is not None
    assert node.inputs[1].type.static_shape[2:] == taps
    assert (conv.strides, conv.pads) == (strides, pads)


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("source", ["n, 4, h, w", "n, 4, h, 23"])
def test_sizes_that_are_not_known(name: str, source: str) -> None:
    graph = graph_of(REGIONS[name][0], source)
    before, rw = hoisted(graph, force=True, max_kernel=99)
    assert rw.changed
    after = merged(before, force=True, max_kernel=99)
    only_conv(after)
    for sizes in ({"h": 13, "w": 14}, {"h": 16, "w": 11}):
        inputs = random_inputs(graph, 1, sizes)
        (old,), (new,), (one,) = (evaluate(g, inputs) for g in (graph, before, after))
        assert old.shape == new.shape
        assert same(new, one)


@pytest.mark.parametrize("name", REGIONS)
def test_no_size_changes_whatever_strides_leave_over(name: str) -> None:
    for side in range(7, 20):
        graph = graph_of(REGIONS[name][0], f"1, 4, {side}, {26 - side}")
        before, _ = hoisted(graph, force=True, max_kernel=99)
        assert before.outputs[0].type == graph.outputs[0].type
        (old,), (new,) = evaluate(graph), evaluate(before)
        assert old.shape == new.shape


def test_text_before_and_after() -> None:
    graph = graph_of(
        f"""%w: f64[4, 4, 3, 3] = random 1
        %v: f64[5, 4, 3, 3] = random 2
        %u: f64[5, 4, 1, 1] = random 3
        %m = Conv(%x, %w) {window("1")} as "stem"
        %n = Conv(%m, %v) {window("1", 2)} as "main"
        %d = Conv(%m, %u) {window("0", 2)} as "down"
        %y = Add(%n, %d) as "add"
        """,
        "1, 4, 8, 8",
    )
    after, rw = hoisted(graph, force=True)
    assert after.text() == (
        """graph g(%x: f64[1, 4, 8, 8]) {
  %w: f64[4, 4, 3, 3] = elided
  %v: f64[5, 4, 3, 3] = elided
  %u: f64[5, 4, 1, 1] = elided
  %m: f64[1, 4, 10, 10] = Conv(%x, %w) {strides=[1, 1], pads=[2, 2, 2, 2], dilations=[1, 1]} as "stem"
  %n: f64[1, 5, 4, 4] = Conv(%m, %v) {strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]} as "main"
  %down.crop: f64[1, 4, 8, 8] = Pad(%m) {pads=[0, 0, -1, -1, 0, 0, -1, -1]}
  %d: f64[1, 5, 4, 4] = Conv(%down.crop, %u) {strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]} as "down"
  %y: f64[1, 5, 4, 4] = Add(%n, %d) as "add"
  return y=%y
}
"""
    )
    assert [(r.what, r.nodes, r.exactness) for r in rw.rewrites] == [
        (
            "move the padding of stem, main in front of a 5x5 kernel",
            ("stem", "main", "down", "add"),
            Exactness.BORDER,
        )
    ]


def test_a_pool_whose_last_window_would_start_in_its_padding() -> None:
    """Rounding up makes no difference at size 5 with padding, and would at size 7 without."""
    body = f"""{constants(w="4x4x3x3", b="4")}
        %m = Conv(%x, %w, %b) {window("1")}
        %y = AveragePool(%m) {{strides=[3, 3], pads=[1, 1, 1, 1], dilations=[1, 1], kernel=[3, 3], ceil_mode=true, count_include_pad=true}}"""
    graph = graph_of(body, "1, 4, 5, 5")
    before, rw = hoisted(graph, force=True)
    assert rw.changed
    (new,), (one,) = evaluate(before), evaluate(merged(before, force=True))
    assert new.shape == (1, 4, 2, 2)
    assert same(new, one)


# What is left alone.


def refusals(graph: Graph, **options: Any) -> dict[str, str]:
    """The reasons by node, of a pass that must not change anything."""
    after, rw = hoisted(graph, **options)
    assert not rw.changed
    assert after.text(full=True) == graph.text(full=True)
    return {r.node: r.reason for r in rw.refusals}


PAIR = f"""{constants(w="4x4x3x3", b="4", v="4x4x3x3")}
  %m = Conv(%x, %w, %b) {window("1")} as "first"
  %y = Conv(%m, %v) {window("1")} as "second"
"""


def test_a_merge_that_does_not_pay() -> None:
    graph = graph_of(PAIR)
    assert refusals(graph) == {
        "second": "padding not hoisted: not merged with first: one 5x5 kernel would cost 1.39x the MACs"
    }
    check(graph, force=True)
    check(graph, max_mac_growth=1.5)


def test_a_kernel_that_would_be_too_large() -> None:
    graph = graph_of(REGIONS["stride 2, then 3"][0])
    (reason,) = refusals(graph, force=True, max_kernel=5).values()
    assert "7x7, beyond max-kernel=5" in reason
    check(graph, force=True, max_kernel=7)


def test_what_merges_exactly_stays() -> None:
    body = f"""{constants(w="5x4x3x3", v="5x4x1x1", a="5")}
        %l = Conv(%x, %w) {window("1")}
        %p = Conv(%x, %v) {window("0")}
        %s = Add(%l, %p)
        %y = Scale(%s, %a, %a)"""
    assert refusals(graph_of(body), force=True) == {}


def test_a_bias_map_can_be_preferred() -> None:
    graph = graph_of(REGIONS["pw-dw-pw, stride 2"][0])
    assert refusals(graph, bias_maps=True) == {}
    check(graph)
    # There is no map of a size that is not known.
    assert hoisted(graph_of(REGIONS["pw-dw-pw, stride 2"][0], "1, 4, h, w"), bias_maps=True)[
        1
    ].changed


def test_names_choose_regions() -> None:
    body = INVERTED + block("one", "x", "m") + '%r = Activation(%m) {kind="relu"}\n'
    graph = graph_of(body + block("two", "r", "y"))
    reason = "padding not hoisted: none of its nodes is named in the options"
    for names in ("two.depthwise", "two.*", ("nothing*", "*wo.add")):
        if "nothing*" in names:
            with pytest.raises(PassError, match=r"no node is named 'nothing\*'"):
                hoisted(graph, names=names)
            continue
        after, rw = hoisted(graph, names=names)
        assert [r.nodes[0] for r in rw.rewrites] == ["two.expand"]
        assert [(r.node, r.reason) for r in rw.refusals] == [("one.add", reason)]
        assert len(list(merged(after).nodes)) == len(list(merged(graph).nodes)) - 3
    _, rw = hoisted(graph)
    assert [r.nodes[0] for r in rw.rewrites] == ["one.expand", "two.expand"]


def test_an_activation_parts_regions() -> None:
    graph = graph_of(PAIR.replace("Conv(%m", "Conv(%r").replace(
        "%y =", '%r = Activation(%m) {kind="relu"}\n%y ='))  # fmt: skip
    assert refusals(graph, force=True) == {}


def test_a_value_that_others_read_stays() -> None:
    graph = graph_of(PAIR)
    graph.add_output(graph.value("m"))
    assert list(refusals(graph, force=True).values()) == [
        "padding not hoisted: not merged with first: %m between them is an output of the graph"
    ]


def test_a_constant_map_inside() -> None:
    graph = graph_of(
        f"""{constants(w="4x4x1x1", t="1x4x20x23", v="4x4x3x3", u="4x4x3x3")}
        %m = Conv(%x, %w) {window("0")}
        %s = Add(%m, %t) as "map"
        %p = Conv(%s, %v) {window("1")}
        %y = Conv(%p, %u) {window("1")} as "last"
        """
    )
    assert refusals(graph, force=True, bias_maps=True) == {
        "last": "padding not hoisted: the constant map that map adds ends at the old border"
    }


@pytest.mark.parametrize(
    ("options", "why"), [("max-kernel=0", "at least 1"), ("max-mac-growth=-1", "above 0")]
)
def test_bad_options(options: str, why: str) -> None:
    with pytest.raises(PassError, match=why):
        Pipeline(f"hoist-padding{{{options}}}")


def test_options_have_a_text() -> None:
    text = "hoist-padding{names=[a.*,b],force=true}"
    assert str(Pipeline(text)) == text
    assert Pipeline(text).passes == (HoistPadding(names=("a.*", "b"), force=True),)


# Random regions.


@st.composite
def random_regions(draw: Any) -> Graph:
    """Chains of windows, scales and residual blocks, from one value to one value."""
    rank = draw(st.sampled_from([1, 1, 2]))
    channels = 2
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    graph = Graph()
    static = draw(st.booleans())
    shape = [draw(st.integers(24, 31)) if static else f"s{a}" for a in range(rank)]
    value = graph.add_input("x", TensorType(DType.F64, (1, channels, *shape)))
    zeros = (0,) * (2 * rank)

    def constant(*shape: int) -> Value:
        return graph.add_constant(ArrayTensor(rng.standard_normal(shape)))

    def conv(x: Value, taps: int, pad: Sequence[int], stride: int = 1, dilation: int = 1) -> Value:
        groups = draw(st.sampled_from([1, channels]))
        weight = constant(channels, channels // groups, *[taps] * rank)
        bias = [constant(channels)] if draw(st.booleans()) else []
        op = Conv((stride,) * rank, tuple(pad), (dilation,) * rank, groups)
        return graph.append(op, [x, weight, *bias]).output

    def window(x: Value) -> Value:
        taps, dilation = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
        pads = [draw(st.integers(0, 2)) for _ in zeros]
        return conv(x, taps, pads, draw(st.sampled_from([1, 1, 2])), dilation)

    def scale(x: Value) -> Value:
        return graph.append(Scale(1), [x, constant(channels), constant(channels)]).output

    def pad(x: Value) -> Value:
        pads = [draw(st.sampled_from([-1, 0, 1, 2])) for _ in zeros]
        return graph.append(Pad((0, 0, *pads[:rank], 0, 0, *pads[rank:])), [x]).output

    def residual(x: Value) -> Value:
        stride = draw(st.sampled_from([1, 1, 2]))
        left = conv(x, 3, [1] * (2 * rank), stride)
        for _ in range(draw(st.integers(0, 2))):
            left = draw(st.sampled_from([scale, same]))(left)
        right = x if stride == 1 else conv(x, 1, zeros, stride)
        if draw(st.booleans()):
            right = scale(right)
        return graph.append(draw(st.sampled_from([Add(), Sub()])), [left, right]).output

    def same(x: Value) -> Value:
        return conv(x, 3, [1] * (2 * rank))

    for _ in range(draw(st.integers(1, 4))):
        value = draw(st.sampled_from([window, same, same, scale, pad, residual, residual]))(value)
    graph.add_output(value, "y")
    return graph


@given(random_regions(), st.lists(st.integers(20, 31), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_random_regions_merge_as_if_borders_did_not_matter(graph: Graph, sizes: list[int]) -> None:
    options = {"force": True, "max_kernel": 99}
    inputs = random_inputs(graph, 1, {"s0": sizes[0], "s1": sizes[1]})
    (old,) = evaluate(graph, inputs)
    rough = graph.clone()
    MergeLinear(allow_border=True, bias_maps=False, **options).run(
        rough, Rewriter(rough), Context()
    )
    Pipeline("prune-dead").run(rough)
    before, rw = hoisted(graph, **options)
    assert rw.changed == any(
        m.exactness is Exactness.BORDER
        for m in preview(graph, HoistPadding(**options).merging()).merged
    )
    after = merged(before, **options)
    # Exactly what a merge would give that does not care for the border.
    assert after.text(names=False, full=True) == rough.text(names=False, full=True)
    (new,), (one,) = evaluate(before, inputs), evaluate(after, inputs)
    assert old.shape == new.shape == one.shape
    scale = max(np.abs(new).max(initial=0.0), np.abs(old).max(initial=0.0), 1e-3)
    assert np.abs(new - one).max(initial=0.0) < LIMIT * scale
    if not rw.changed:
        assert np.abs(old - new).max(initial=0.0) == 0
