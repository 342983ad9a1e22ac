"""What a merged map becomes in the graph: within the range of its element type, along the right axis, under the right names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphshrink.ir import Conv, Graph, Rewriter, parse
from graphshrink.passes import Context
from graphshrink.passes.merge.merge_linear import MergeLinear
from support.evaluate import evaluate


def merged(text: str, *, compare: bool = True, **options: Any) -> tuple[Graph, Rewriter]:
    """The graph after the pass, with the same results as before."""
    graph = parse(text)
    before = evaluate(graph) if compare else []
    rw = Rewriter(graph)
    MergeLinear(**options).run(graph, rw, Context())
    graph.verify()
    if compare:
        for want, got in zip(before, evaluate(graph), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    return graph, rw


def ops(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes]


TWO_SCALES = """graph g(%x: {0}[1, 4]) {{
  %s: {0}[1] = splat {1!r}
  %t: {0}[1] = splat {2!r}
  %y: {0}[1, 4] = Scale(%x, %s, none)
  %z: {0}[1, 4] = Scale(%y, %t, none)
  return a=%z
}}"""


@pytest.mark.parametrize(
    ("dtype", "first", "second", "why"),
    [
        ("f16", 2.0**-7, 2.0**-7, None),
        ("f16", 2.0**-7, 2.0**-8, "underflow f16"),
        ("f16", 32.0, 2047.0, None),
        ("f16", 32.0, 2048.0, "overflow f16"),
        ("bf16", 2.0**-63, 2.0**-63, None),
        ("bf16", 2.0**-63, 2.0**-64, "underflow bf16"),
        ("f32", 2.0**-63, 2.0**-63, None),
        ("f32", 2.0**-63, 2.0**-64, "underflow f32"),
        ("f32", 2.0**64, 2.0**63, None),
        ("f32", 2.0**64, 2.0**64, "overflow f32"),
        ("f64", 2.0**-100, 2.0**-100, None),
        ("f64", 2.0**100, 2.0**100, None),
        ("f64", 0.0, 2.0, None),
    ],
)
def test_both_sides_of_the_range(dtype: str, first: float, second: float, why: str | None) -> None:
    graph, rw = merged(TWO_SCALES.format(dtype, first, second), compare=False)
    assert len(graph) == (1 if why is None else 2)
    assert [r.reason.partition("would ")[2] for r in rw.refusals] == ([why] if why else [])


@pytest.mark.parametrize(
    ("weight", "factor", "why"),
    [(2.0**-30, 2.0**-51, "underflow f32"), (2.0**30, 2.0**51, "overflow f32"), (1.0, 2.0**-51, None)],
)  # fmt: skip
def test_scales_that_leave_the_range_together(
    weight: float, factor: float, why: str | None
) -> None:
    """Each of them is harmless; a weight is read only where all of them are not."""
    graph, rw = merged(
        f"""graph g(%x: f32[1, 4]) {{
          %w: f32[3, 4] = splat {weight!r}
          %s: f32[3] = splat {factor!r}
          %a: f32[1, 3] = Linear(%x, %w)
          %b: f32[1, 3] = Scale(%a, %s, none) {{axis=-1}}
          %c: f32[1, 3] = Scale(%b, %s, none) {{axis=-1}}
          return a=%c
        }}""",
        compare=False,
    )
    assert ops(graph)[0] == "Linear"
    assert (len(graph) == 1) is (why is None)
    assert all(why is not None and r.reason.endswith(why) for r in rw.refusals)


def test_one_small_row_is_enough_to_refuse() -> None:
    graph, rw = merged(
        """graph g(%x: f16[1, 2]) {
          %w: f16[2, 2] = dense [1.0, 0.0, 0.001, 0.0005]
          %s: f16[2] = dense [1.0, 0.01]
          %a: f16[1, 2] = Linear(%x, %w)
          %b: f16[1, 2] = Scale(%a, %s, none) {axis=-1}
          return a=%b
        }""",
        compare=False,
    )
    assert len(graph) == 2
    assert rw.refusals[0].reason.endswith("underflow f16")


def test_a_scale_takes_the_axis_of_its_vector() -> None:
    """Numbers have no axis of their own, whatever they say."""
    graph, _ = merged(
        """graph g(%x: f64[2, 3, 4]) {
          %k: f64[1] = dense [2.5]
          %s: f64[4] = random 1
          %a: f64[2, 3, 4] = Scale(%x, %k, none)
          %b: f64[2, 3, 4] = Scale(%a, none, %s) {axis=2}
          %c: f64[2, 3, 4] = Scale(%b, none, %k) {axis=0}
          return a=%c
        }"""
    )
    assert ops(graph) == ["Scale"]


def test_pads_that_cancel_are_an_identity_in_one_order_alone() -> None:
    pad, crop = "[0, 0, 1, 1, 0, 0, 1, 1]", "[0, 0, -1, -1, 0, 0, -1, -1]"
    text = """graph g(%x: f64[1, 2, 5, 5]) {{
      %a: f64[1, 2, {2}, {2}] = Pad(%x) {{pads={0}}}
      %b: f64[1, 2, 5, 5] = Pad(%a) {{pads={1}}}
      return a=%b
    }}"""
    graph, _ = merged(text.format(pad, crop, 7))
    assert ops(graph) == ["Identity"]
    graph, rw = merged(text.format(crop, pad, 3))
    assert ops(graph) == ["Pad", "Pad"]
    assert len(rw.refusals) == 1


def test_pads_of_one_axis_each_are_one_pad() -> None:
    graph, rw = merged(
        """graph g(%x: f64[1, 2, 5, 5]) {
          %a: f64[1, 2, 6, 5] = Pad(%x) {pads=[0, 0, 1, 0, 0, 0, 0, 0]}
          %b: f64[1, 2, 6, 8] = Pad(%a) {pads=[0, 0, 0, 0, 0, 0, 0, 3]}
          return a=%b
        }"""
    )
    (node,) = graph.nodes
    assert node.op.pads == (0, 0, 1, 0, 0, 0, 0, 3)  # type: ignore[attr-defined]
    assert [r.what for r in rw.rewrites] == ["merge Pad, Pad into one Pad"]


def test_a_kernel_that_stays_keeps_its_weight() -> None:
    """A pad in front changes the op alone: the constant that the graph has is read on."""
    graph, _ = merged(
        """graph g(%x: f64[1, 2, 5, 5]) {
          %w: f64[3, 2, 3, 3] = random 1
          %c: f64[3] = random 2
          %a: f64[1, 2, 7, 7] = Pad(%x) {pads=[0, 0, 1, 1, 0, 0, 1, 1]}
          %b: f64[1, 3, 5, 5] = Conv(%a, %w, %c) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
          return a=%b
        }"""
    )
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert [v.name for v in node.inputs[:2] if v is not None] == ["x", "w"]


def test_the_kernel_gives_the_name() -> None:
    graph, rw = merged(
        """graph g(%x: f64[1, 2, 5, 5]) {
          %w: f64[3, 2, 3, 3] = random 1
          %s: f64[2] = random 2
          %a: f64[1, 2, 5, 5] = Scale(%x, %s, none) as "norm"
          %b: f64[1, 3, 3, 3] = Conv(%a, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "body"
          return a=%b
        }"""
    )
    (node,) = graph.nodes
    assert node.name == "body"
    assert [v.name for v in graph.constants if v.use_count] == ["body.weight"]
    assert [r.what for r in rw.rewrites] == ["merge Scale, Conv into one Conv"]


def test_constants_of_merges_that_merge_again_do_not_stay() -> None:
    graph, _ = merged(
        """graph g(%x: f64[1, 2, 6, 6]) {
          %w: f64[2, 2, 1, 1] = random 1
          %v: f64[2, 2, 3, 3] = random 2
          %s: f64[2] = random 3
          %a: f64[1, 2, 6, 6] = Conv(%x, %w, %s) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "one"
          %b: f64[1, 2, 6, 6] = Conv(%a, %v, %s) {strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]} as "two"
          %c: f64[1, 2, 6, 6] = Add(%x, %b)
          return a=%c
        }""",
        force=True,
    )
    read = {v for n in graph.nodes for v in n.inputs}
    assert {v.name for v in graph.constants if v not in read} <= {"w", "v", "s"}


@pytest.mark.parametrize(("size", "why"), [(2.0**70, "overflow f32"), (2.0**-70, "underflow f32"), (2.0**60, None)])  # fmt: skip
def test_two_layers_that_leave_the_range_together(size: float, why: str | None) -> None:
    graph, rw = merged(
        f"""graph g(%x: f32[1, 4]) {{
          %w: f32[4, 4] = splat {size!r}
          %a: f32[1, 4] = Linear(%x, %w)
          %b: f32[1, 4] = Linear(%a, %w)
          return a=%b
        }}""",
        compare=False,
    )
    assert len(graph) == (1 if why is None else 2)
    assert [r.reason.partition("would ")[2] for r in rw.refusals] == ([why] if why else [])
