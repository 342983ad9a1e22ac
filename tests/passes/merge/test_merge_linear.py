"""What merge-linear does to graphs: structure as text, numbers against torch, and a reason for every refusal."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from graphshrink.ir import (
    Activation,
    ArrayTensor,
    Conv,
    DType,
    Exactness,
    Graph,
    Rewriter,
    Scale,
    TensorType,
    parse,
)
from graphshrink.passes import Context, Pipeline
from graphshrink.passes.merge.merge_linear import MergeLinear
from support.evaluate import evaluate
from support.work import work

ONE = "strides=[1, 1], dilations=[1, 1]"
P0, P1 = f"{{{ONE}, pads=[0, 0, 0, 0]}}", f"{{{ONE}, pads=[1, 1, 1, 1]}}"


def constants(**shapes: str) -> str:
    """Random constants: ``w="8x3x3x3"``."""
    return "\n".join(
        f"%{name}: f64[{shape.replace('x', ', ')}] = random {i + 1}"
        for i, (name, shape) in enumerate(shapes.items())
    )


def merged(text: str, dtype: str = "f64", **options: Any) -> tuple[Graph, Rewriter]:
    """The graph after the pass; outputs are compared where the numbers are there."""
    text = re.sub(r"(%[\w.]+(?:, )?) = ", r"\1: ?[*] = ", text).replace("f64", dtype)
    graph = parse(text)
    shown = "elided" not in text
    before = evaluate(graph) if shown else []
    rw = Rewriter(graph)
    MergeLinear(**options).run(graph, rw, Context())
    graph.verify()
    if shown and not options.get("allow_border"):
        limit = {"f64": 1e-10, "f32": 1e-4, "f16": 1e-2, "bf16": 1e-1}[dtype]
        for want, got in zip(before, evaluate(graph), strict=True):
            assert want.shape == got.shape
            scale = np.abs(want).max()
            assert scale > 1e-6
            assert np.abs(want - got).max() < limit * scale
    if rw.rewrites and not options.get("allow_border"):
        assert rw.worst is Exactness.EXACT
    return graph, rw


def ops(graph: Graph) -> list[str]:
    """The ops in order, with the kernel sizes of convolutions."""
    found = []
    for node in graph.nodes:
        taps = ""
        if node.op.name in ("Conv", "ConvTranspose"):
            assert node.inputs[1] is not None
            assert node.inputs[1].data is not None
            taps = " " + "x".join(map(str, node.inputs[1].data.shape[2:]))
        found.append(node.op.name + taps)
    return found


def reason(rw: Rewriter) -> str:
    """The only refusal."""
    assert len(rw.refusals) == 1, rw.refusals
    return rw.refusals[0].reason


# Chains.


def test_text_before_and_after() -> None:
    graph, rw = merged(
        """graph g(%x: f64[n, 1, 2, 2]) {
          %w: f64[1, 1, 1, 1] = dense [2.0]
          %b: f64[1] = dense [1.0]
          %s: f64[1] = dense [3.0]
          %t: f64[1] = dense [0.5]
          %c: f64[n, 1, 2, 2] = Conv(%x, %w, %b) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "stem.conv"
          %y: f64[n, 1, 2, 2] = Scale(%c, %s, %t) as "stem.bn"
          return out=%y
        }"""
    )
    assert graph.text(full=True) == (
        """graph g(%x: f64[n, 1, 2, 2]) {
  %w: f64[1, 1, 1, 1] = dense [2.0]
  %b: f64[1] = dense [1.0]
  %s: f64[1] = dense [3.0]
  %t: f64[1] = dense [0.5]
  %stem.conv.weight: f64[1, 1, 1, 1] = dense [6.0]
  %stem.conv.bias: f64[1] = dense [3.5]
  %y: f64[n, 1, 2, 2] = Conv(%x, %stem.conv.weight, %stem.conv.bias) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} as "stem.conv"
  return out=%y
}
"""
    )
    assert [(r.what, r.nodes) for r in rw.rewrites] == [
        ("merge Conv, Scale into one Conv", ("stem.conv", "stem.bn"))
    ]


def test_batch_norms_on_both_sides_of_a_convolution() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[2, 4, 7, 7]) {{
          {constants(w="6x2x3x3", a="4", b="6", c="6")}
          %y = Scale(%x, %a, none)
          %z = Conv(%y, %w, %b) {{strides=[2, 2], dilations=[1, 1], pads=[1, 0, 1, 2], groups=2}}
          %s = Scale(%z, %c, %b)
          %t = Scale(%s, none, %c)
          return y=%t
        }}"""
    )
    assert ops(graph) == ["Conv 3x3"]


def shifted(inputs: int, outputs: int, conv: str, groups: int = 1) -> str:
    """A scale and shift in front of a convolution."""
    return f"""graph g(%x: f64[2, {inputs}, 7, 7]) {{
      {constants(w=f"{outputs}x{inputs // groups}x3x3", a=f"{inputs}", b=f"{inputs}")}
      %y = Scale(%x, %a, %b)
      %z = Conv(%y, %w) {conv}
      return y=%z
    }}"""


@pytest.mark.parametrize("padded", [False, True])
def test_a_shift_in_front_of_a_padded_convolution_needs_a_map(padded: bool) -> None:
    graph, _ = merged(shifted(24, 2, P1 if padded else P0))
    assert ops(graph) == (["Conv 3x3", "Add"] if padded else ["Conv 3x3"])


def test_a_map_that_saves_little_is_not_added() -> None:
    """It would be as large as the result, in the file and in what a run reads."""
    strided = "{strides=[2, 2], dilations=[1, 1], pads=[1, 1, 1, 1], groups=8}"
    for text, numbers in ((shifted(4, 3, P1), 147), (shifted(8, 8, strided, 8), 128)):
        graph, rw = merged(text)
        assert ops(graph)[0] == "Scale"
        assert {v.type.rank for v in graph.constants} == {1, 4}
        assert all(v.type.shape != graph.outputs[0].type.shape for v in graph.constants)
        why = f"1.00x the MACs, too little saved for a bias map of {numbers} numbers"
        assert reason(rw).endswith(why)
    # One that takes more multiply-accumulates as well says so.
    _, rw = merged(INVERTED.replace("24", "3"))
    assert "and take a bias map of 243 numbers" in "".join(r.reason for r in rw.refusals)


def test_a_shift_in_front_of_a_padded_convolution_of_unknown_size_is_refused() -> None:
    text = f"""graph g(%x: f64[2, 4, h, w]) {{
      {constants(w="6x4x3x3", a="4", b="4")}
      %y = Scale(%x, %a, %b)
      %z = Conv(%y, %w) {P1}
      return y=%z
    }}"""
    graph, rw = merged(text)
    assert ops(graph) == ["Scale", "Conv 3x3"]
    assert "not static" in reason(rw)
    graph, rw = merged(text, allow_border=True)
    assert ops(graph) == ["Conv 3x3"]
    assert rw.worst is Exactness.BORDER


def test_stride_2_3x3_then_3x3_is_a_stride_2_7x7() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 2, 21, 21]) {{
          {constants(w="2x2x3x3", v="2x2x3x3", b="2", c="2")}
          %y = Conv(%x, %w, %b) {{strides=[2, 2], dilations=[1, 1], pads=[1, 1, 1, 1]}}
          %z = Conv(%y, %v, %c) {P0}
          return y=%z
        }}""",
        force=True,
    )
    assert ops(graph) == ["Conv 7x7"]
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert (node.op.strides, node.op.pads) == ((2, 2), (1, 1, 1, 1))


def test_dilated_pair_of_one_dimension_keeps_its_dilation() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 3, 30]) {{
          {constants(w="3x1x2", v="3x1x3")}
          %y = Conv(%x, %w) {{strides=[1], dilations=[2], pads=[0, 0], groups=3}}
          %z = Conv(%y, %v) {{strides=[1], dilations=[4], pads=[0, 0], groups=3}}
          return y=%z
        }}"""
    )
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert (node.op.dilations, node.op.groups) == ((2,), 3)
    assert ops(graph) == ["Conv 6"]


def test_three_dimensions() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 2, 6, 6, 6]) {{
          {constants(w="4x2x3x3x3", v="2x4x1x1x1", b="4")}
          %y = Conv(%x, %w, %b) {{strides=[1, 2, 1], dilations=[1, 1, 1], pads=[1, 1, 1, 1, 1, 1]}}
          %z = Conv(%y, %v) {{strides=[1, 1, 2], dilations=[1, 1, 1], pads=[0, 0, 0, 0, 0, 0]}}
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Conv 3x3x3"]


INVERTED = f"""graph g(%x: f64[1, 4, 9, 9]) {{
  {constants(w="24x4x1x1", b="24", d="24x1x3x3", c="24", p="4x24x1x1", q="4", s="4")}
  %e = Conv(%x, %w, %b) {P0} as "block.expand"
  %f = Conv(%e, %d, %c) {{{ONE}, pads=[1, 1, 1, 1], groups=24}} as "block.depthwise"
  %g = Conv(%f, %p, %q) {P0} as "block.project"
  %h = Scale(%g, %s, %s)
  return y=%h
}}"""


def test_pw_dw_pw_is_one_convolution_and_one_bias_map() -> None:
    graph, rw = merged(INVERTED)
    assert ops(graph) == ["Conv 3x3", "Add"]
    assert [n.name for n in graph.nodes] == ["block.expand", "block.expand.bias_map"]
    assert rw.rewrites[0].exactness is Exactness.EXACT
    add = list(graph.nodes)[1]
    assert add.inputs[1] is not None
    assert add.inputs[1].type.static_shape == (1, 4, 9, 9)


def test_bias_maps_can_be_turned_off() -> None:
    graph, rw = merged(INVERTED, bias_maps=False)
    assert "Add" not in ops(graph)
    assert any("bias map (turned off)" in r.reason for r in rw.refusals)


def test_an_inverted_residual_without_activations_is_one_convolution() -> None:
    graph, _ = merged(
        INVERTED.replace("%h = Scale(%g, %s, %s)", "%h = Add(%g, %x)").replace('b="24", ', "")
    )
    assert ops(graph) == ["Conv 3x3", "Add"]


def test_an_inverted_residual_without_the_first_bias_needs_no_map() -> None:
    text = INVERTED.replace("Conv(%x, %w, %b)", "Conv(%x, %w)").replace("9, 9]", "h, h]")
    graph, _ = merged(text)
    assert ops(graph) == ["Conv 3x3"]


def test_a_bias_of_zeros_is_none() -> None:
    text = re.sub(r"%b: f64\[24\] = random \d+", "%b: f64[24] = splat 0.0", INVERTED)
    graph, _ = merged(text)
    assert ops(graph) == ["Conv 3x3"]


def test_two_padded_3x3_stay_and_say_why() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 4, 9, 9]) {{
          {constants(w="4x4x3x3", v="4x4x3x3")}
          %y = Conv(%x, %w) {P1} as "first"
          %z = Conv(%y, %v) {P1} as "second"
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Conv 3x3", "Conv 3x3"]
    assert rw.refusals[0].node == "second"
    assert reason(rw).startswith("not merged with first: the padding of the second map")
    assert not rw.changed


def test_a_merge_that_costs_more_gives_the_number() -> None:
    text = f"""graph g(%x: f64[1, 16, 99, 99]) {{
      {constants(w="16x16x3x3", v="16x16x3x3")}
      %y = Conv(%x, %w) {P1}
      %z = Conv(%y, %v) {P0}
      return y=%z
    }}"""
    graph, rw = merged(text)
    assert ops(graph) == ["Conv 3x3", "Conv 3x3"]
    found = re.search(r"one 5x5 kernel would cost (\d\.\d+)x the MACs", reason(rw))
    assert found
    # 25/18, a little less for the border.
    assert 1.3 < float(found[1]) < 25 / 18
    assert ops(merged(text, force=True)[0]) == ["Conv 5x5"]
    assert ops(merged(text, max_mac_growth=1.5)[0]) == ["Conv 5x5"]
    graph, rw = merged(text, force=True, max_kernel=4)
    assert ops(graph) == ["Conv 3x3", "Conv 3x3"]
    graph, rw = merged(text.replace("99, 99", "n, n"))
    assert "1.39x" in reason(rw)


def test_max_kernel_does_not_stop_large_kernels_that_do_not_grow() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 2, 19, 19]) {{
          {constants(w="8x2x11x11", v="4x8x1x1")}
          %y = Conv(%x, %w) {P0}
          %z = Conv(%y, %v) {P0}
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Conv 11x11"]


def test_dense_layers() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[2, 5, 8]) {{
          {constants(w="16x8", b="16", v="4x16", c="4")}
          %y = Linear(%x, %w, %b)
          %s = Scale(%y, %b, none) {{axis=-1}}
          %z = Linear(%s, %v, %c)
          %t = Scale(%z, %c, %c) {{axis=2}}
          return y=%t
        }}"""
    )
    assert ops(graph) == ["Linear"]


def test_a_bottleneck_of_dense_layers_stays() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[2, 64]) {{
          {constants(w="4x64", v="64x4")}
          %y = Linear(%x, %w)
          %z = Linear(%y, %v)
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Linear", "Linear"]
    assert "one dense layer would cost 8.00x the MACs" in reason(rw)


def test_a_one_dimensional_batch_norm_follows_a_dense_layer() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[n, 8]) {{
          {constants(w="16x8", s="16")}
          %y = Linear(%x, %w)
          %z = Scale(%y, %s, %s)
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Linear"]


def test_a_scale_along_another_axis_stays() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[2, 8, 8]) {{
          {constants(w="8x8", s="8")}
          %y = Linear(%x, %w)
          %z = Scale(%y, %s, %s) {{axis=1}}
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Linear", "Scale"]
    assert "different axes" in reason(rw)


def test_scales_and_numbers_join() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[2, 4, 3]) {{
          {constants(s="4", t="4")}
          %k: f64[1] = dense [2.5]
          %a = Scale(%x, %k, none)
          %b = Scale(%a, %s, %t)
          %c = Scale(%b, none, %k)
          return y=%c
        }}"""
    )
    assert ops(graph) == ["Scale"]


def test_numbers_that_cancel_are_an_identity() -> None:
    graph, _ = merged(
        """graph g(%x: f64[2, 4]) {
          %k: f64[1] = dense [2.0]
          %h: f64[1] = dense [0.5]
          %a = Scale(%x, %k, none)
          %b = Scale(%a, %h, none)
          return y=%b
        }"""
    )
    assert ops(graph) == ["Identity"]


def test_dropout_left_over_does_not_stand_in_the_way() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[2, 8]) {{
          {constants(w="16x8", v="4x16")}
          %i = Identity(%x)
          %y = Linear(%i, %w)
          %d = Identity(%y)
          %z = Linear(%d, %v)
          %o = Identity(%z)
          return y=%o
        }}"""
    )
    assert ops(graph) == ["Identity", "Linear", "Identity"]


# Pads and pools.


def test_pads_fold_into_the_convolution() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 3, 8, 8]) {{
          {constants(w="4x3x3x3", b="4")}
          %p = Pad(%x) {{pads=[0, 0, 0, 1, 0, 0, 2, 1]}}
          %q = Pad(%p) {{pads=[0, 0, 1, 0, 0, 0, 0, 0]}}
          %y = Conv(%q, %w, %b) {{strides=[2, 2], dilations=[1, 1], pads=[0, 1, 0, 0]}}
          return y=%y
        }}"""
    )
    assert ops(graph) == ["Conv 3x3"]
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert node.op.pads == (1, 2, 2, 1)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ("pads=[0, 0, 1, 1, 0, 0, 1, 1], value=1.0", "constant zeros"),
        ('pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"', "constant zeros"),
        ("pads=[0, 0, -1, 0, 0, 0, 0, 0]", "crop"),
        ("pads=[0, 1, 0, 0, 0, 0, 0, 0]", "spatial axes"),
    ],
)
def test_other_pads_stay(attributes: str, why: str) -> None:
    channels = 4 if "spatial" in why else 3
    graph, rw = merged(
        f"""graph g(%x: f64[1, 3, 8, 8]) {{
          {constants(w=f"4x{channels}x3x3")}
          %p = Pad(%x) {{{attributes}}}
          %y = Conv(%p, %w) {P0}
          return y=%y
        }}"""
    )
    assert ops(graph) == ["Pad", "Conv 3x3"]
    assert why in reason(rw)


def test_an_average_pool_joins_when_it_pays() -> None:
    text = f"""graph g(%x: f64[1, 8, 16, 16]) {{
      {constants(w="8x8x3x3", v="8x8x1x1", b="8")}
      %y = Conv(%x, %w, %b) {P1}
      %p = AveragePool(%y) {{kernel=[2, 2], strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0]}}
      return y=%p
    }}"""
    graph, _ = merged(text)
    assert ops(graph) == ["Conv 4x4"]
    graph, rw = merged(
        text.replace("Conv(%x, %w, %b)", "Identity(%x)")
        .replace(P1, "")
        .replace("return y=%p", f"%z = Conv(%p, %v) {P0}\n return y=%z")
    )
    assert ops(graph) == ["Identity", "AveragePool", "Conv 1x1"]
    assert "x the MACs" in reason(rw)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ("pads=[1, 1, 1, 1]", "does not count its padding"),
        ("pads=[0, 0, 0, 0], ceil_mode=true", "ceil mode"),
    ],
)
def test_pools_that_divide_unevenly_stay(attributes: str, why: str) -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 2, 7, 7]) {{
          {constants(w="8x2x3x3")}
          %y = Conv(%x, %w) {P1}
          %p = AveragePool(%y) {{kernel=[2, 2], strides=[2, 2], dilations=[1, 1], {attributes}}}
          return y=%p
        }}"""
    )
    assert ops(graph) == ["Conv 3x3", "AveragePool"]
    assert why in reason(rw)


def test_a_pool_in_ceil_mode_that_fits_is_a_plain_one() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 2, 8, 8]) {{
          {constants(w="8x2x3x3")}
          %y = Conv(%x, %w) {P1}
          %p = AveragePool(%y) {{kernel=[2, 2], strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0], ceil_mode=true}}
          return y=%p
        }}"""
    )
    assert ops(graph) == ["Conv 4x4"]


# Transposed convolutions.


def test_a_transposed_convolution_takes_scales_and_1x1() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 4, 5, 5]) {{
          {constants(a="6x4x1x1", w="6x2x3x3", b="4", v="4x4x1x1", s="4")}
          %y = Conv(%x, %a) {P0}
          %z = ConvTranspose(%y, %w, %b) {{strides=[2, 2], dilations=[1, 1], pads=[1, 0, 1, 1], groups=2, output_padding=[1, 0]}}
          %t = Scale(%z, %s, %b)
          return y=%t
        }}""",
        force=True,
    )
    assert ops(graph) == ["ConvTranspose 3x3"]
    (node,) = graph.nodes
    assert node.op.attributes()["output_padding"] == (1, 0)


def test_a_shift_in_front_of_a_transposed_convolution_stays() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 4, 5, 5]) {{
          {constants(w="4x2x2x2", s="4")}
          %y = Scale(%x, %s, %s)
          %z = ConvTranspose(%y, %w) {{strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0]}}
          return y=%z
        }}"""
    )
    assert ops(graph) == ["Scale", "ConvTranspose 2x2"]
    assert "unevenly" in reason(rw)


# Branches.


def repvgg(size: str, identity: bool = True) -> str:
    shapes = constants(w="4x4x3x3", v="4x4x1x1", a="4", b="4", c="4")
    skip = "%i = Scale(%x, %c, %a)\n %m = Add(%l, %i)" if identity else "%m = Identity(%l)"
    return f"""graph g(%x: f64[1, 4, {size}]) {{
      {shapes}
      %y = Conv(%x, %w) {P1} as "dense.conv"
      %z = Scale(%y, %a, %b)
      %j = Conv(%x, %v) {P0} as "point.conv"
      %k = Scale(%j, %b, %c)
      %l = Add(%z, %k)
      {skip}
      %r = Activation(%m) {{kind="relu"}}
      return y=%r
    }}"""


@pytest.mark.parametrize("size", ["6, 6", "h, h"])
def test_a_repvgg_block_is_one_convolution(size: str) -> None:
    graph, rw = merged(repvgg(size))
    assert ops(graph) == ["Conv 3x3", "Activation"]
    assert next(graph.nodes).name == "dense.conv"
    assert rw.refusals == []
    # Constants of merges that merged again are gone; those of the model stay for others to judge.
    assert {c.name for c in graph.constants if not c.use_count} == {"w", "v", "a", "b", "c"}


def test_a_strided_block_with_a_downsample_is_one_convolution() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 4, 9, 9]) {{
          {constants(w="8x4x3x3", v="8x4x1x1", b="8")}
          %y = Conv(%x, %w, %b) {{strides=[2, 2], dilations=[1, 1], pads=[1, 1, 1, 1]}}
          %z = Conv(%x, %v, %b) {{strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0]}}
          %a = Sub(%y, %z)
          return y=%a
        }}"""
    )
    assert ops(graph) == ["Conv 3x3"]


def test_an_identity_goes_to_the_tap_of_the_padding_and_the_channel_of_the_group() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 6, 9, 9]) {{
          {constants(w="6x2x3x4", b="6")}
          %y = Conv(%x, %w, %b) {{{ONE}, pads=[0, 3, 2, 0], groups=3}}
          %a = Add(%x, %y)
          return y=%a
        }}"""
    )
    assert ops(graph) == ["Conv 3x4"]
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert node.op.groups == 3


def test_a_depthwise_skip_stays_depthwise() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[1, 6, 9, 9]) {{
          {constants(w="6x1x3x3", s="6")}
          %y = Conv(%x, %w) {{{ONE}, pads=[1, 1, 1, 1], groups=6}}
          %i = Scale(%x, %s, %s)
          %a = Add(%y, %i)
          return y=%a
        }}"""
    )
    (node,) = graph.nodes
    assert isinstance(node.op, Conv)
    assert node.op.groups == 6


def test_dense_branches_and_a_skip() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[3, 6]) {{
          {constants(w="6x6", v="6x6", b="6")}
          %y = Linear(%x, %w, %b)
          %z = Linear(%x, %v)
          %a = Add(%y, %z)
          %c = Add(%a, %x)
          return y=%c
        }}"""
    )
    assert ops(graph) == ["Linear"]


def test_scaled_skips_without_a_convolution() -> None:
    graph, _ = merged(
        f"""graph g(%x: f64[3, 6, 5]) {{
          {constants(s="6", t="6")}
          %y = Scale(%x, %s, %t)
          %a = Add(%y, %x)
          return y=%a
        }}"""
    )
    assert ops(graph) == ["Scale"]


def test_what_follows_the_addition_joins_too() -> None:
    text = repvgg("7, 7").replace('%r = Activation(%m) {kind="relu"}', f"%r = Conv(%m, %v) {P0}")
    graph, _ = merged(text)
    assert ops(graph) == ["Conv 3x3"]


def test_a_chain_of_linear_residual_blocks() -> None:
    blocks = "\n".join(
        f"%y{i} = Conv(%x{i}, %w, %b) {P0}\n%x{i + 1} = Add(%y{i}, %x{i})" for i in range(20)
    )
    graph, _ = merged(
        f"""graph g(%x0: f64[1, 4, 3, 3]) {{
          {constants(w="4x4x1x1", b="4")}
          {blocks}
          return y=%x20
        }}"""
    )
    assert ops(graph) == ["Conv 1x1"]


def test_branches_of_different_strides_stay() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 4, 1, 1]) {{
          {constants(w="4x4x3x3", v="4x4x1x1")}
          %y = Conv(%x, %w) {{strides=[2, 2], dilations=[1, 1], pads=[1, 1, 1, 1]}}
          %z = Conv(%x, %v) {P0}
          %a = Add(%y, %z)
          return y=%a
        }}"""
    )
    assert ops(graph) == ["Conv 3x3", "Conv 1x1", "Add"]
    assert reason(rw).startswith("branches not merged: the strides")


def test_branches_that_broadcast_stay() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 4, 3, h]) {{
          {constants(w="4x4x3x7", v="4x4x1x1")}
          %y = Conv(%x, %w) {P0}
          %z = Conv(%x, %v) {P0}
          %a = Add(%y, %z)
          return y=%a
        }}"""
    )
    assert ops(graph) == ["Conv 3x7", "Conv 1x1", "Add"]
    assert "not known to agree" in reason(rw)


# Never wrong.


@pytest.mark.parametrize("swapped", [False, True])
def test_branches_along_different_axes_stay(swapped: bool) -> None:
    """Both keep the shape, so that their sizes do not tell them apart."""
    graph, rw = merged(
        f"""graph g(%x: f64[2, 4, 4]) {{
          {constants(w="4x4", s="4")}
          %y = Linear(%x, %w)
          %z = Scale(%x, %s, none) {{axis=1}}
          %r = {"Add(%z, %y)" if swapped else "Add(%y, %z)"}
          return y=%r
        }}"""
    )
    assert sorted(ops(graph)) == ["Add", "Linear", "Scale"]
    assert "different axes" in reason(rw)


def test_a_value_with_two_users_stays() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 2, 5, 5]) {{
          {constants(w="2x2x1x1", s="2")}
          %y = Conv(%x, %w) {P0} as "conv"
          %z = Scale(%y, %s, %s)
          %r = Activation(%y) {{kind="relu"}}
          return a=%z, b=%r
        }}"""
    )
    assert ops(graph) == ["Conv 1x1", "Scale", "Activation"]
    assert reason(rw) == "not merged with conv: %y between them has other users"


def test_a_value_that_is_returned_stays() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 2, 5, 5]) {{
          {constants(w="2x2x1x1", s="2")}
          %y = Conv(%x, %w) {P0} as "conv"
          %z = Scale(%y, %s, %s)
          return a=%z, b=%y
        }}"""
    )
    assert len(graph) == 2
    assert "is an output of the graph" in reason(rw)


def test_a_branch_that_somebody_else_reads_stays() -> None:
    graph, rw = merged(repvgg("6, 6", identity=False).replace("return y=%r", "return y=%r, k=%k"))
    assert ops(graph).count("Conv 1x1") == 1
    assert any("has other users" in r.reason for r in rw.refusals)


def test_weights_that_are_shared_are_not_edited() -> None:
    text = f"""graph g(%x: f64[1, 2, 5, 5]) {{
      {constants(w="2x2x3x3", s="2", t="2")}
      %y = Conv(%x, %w) {P1}
      %z = Scale(%y, %s, %t)
      %r = Activation(%z) {{kind="relu"}}
      %u = Conv(%r, %w) {P1}
      %v = Scale(%u, %t, %s)
      return a=%v
    }}"""
    graph, _ = merged(text)
    assert ops(graph) == ["Conv 3x3", "Activation", "Conv 3x3"]
    weights = [n.inputs[1] for n in graph.nodes if isinstance(n.op, Conv)]
    assert weights[0] is not weights[1]
    original = parse(re.sub(r"(%[\w.]+) = ", r"\1: ?[*] = ", text)).value("w")
    assert original.data is not None
    assert graph.value("w").data is not None
    np.testing.assert_array_equal(graph.value("w").data.numpy(), original.data.numpy())


def test_a_computed_weight_is_refused() -> None:
    graph, rw = merged(
        f"""graph g(%x: f64[1, 2, 5, 5], %w: f64[2, 2, 3, 3]) {{
          {constants(v="2x2x1x1")}
          %y = Conv(%x, %v) {P0}
          %z = Conv(%y, %w) {P0}
          return a=%z
        }}"""
    )
    assert len(graph) == 2
    assert "its weight %w is not a constant" in reason(rw)


def test_an_opaque_node_is_a_barrier() -> None:
    graph = parse(
        """graph g(%x: f32[1, 2]) {
          %w: f32[2, 2] = random 1
          %y: f32[1, 2] = Linear(%x, %w)
          %o: f32[1, 2] = Opaque(%y) {kind="test:mystery"}
          %z: f32[1, 2] = Linear(%o, %w)
          return a=%z
        }"""
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert not rw.changed
    assert rw.refusals == []


def test_an_opaque_node_is_reported_beside_linear_ops_only() -> None:
    graph = parse(
        """graph g(%x: f32[1, 2]) {
          %w: f32[2, 2] = random 1
          %a: f32[1, 2] = Opaque(%x) {kind="test:first", reason="unknown"}
          %b: f32[1, 2] = Opaque(%a) {kind="test:second", reason="unknown"}
          %y: f32[1, 2] = Linear(%b, %w)
          %c: f32[1, 2] = Opaque(%y) {kind="test:third", reason="unknown"}
          %d: f32[1, 2] = Opaque(%c) {kind="test:fourth", reason="unknown"}
          return a=%d
        }"""
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert [r.reason for r in rw.refusals] == [
        "second is not merged: unknown",
        "third is not merged: unknown",
    ]


def test_integers_are_left_alone() -> None:
    graph = parse(
        """graph g(%x: i32[1, 2]) {
          %s: i32[1] = dense [2]
          %y: i32[1, 2] = Scale(%x, %s)
          %z: i32[1, 2] = Scale(%y, %s)
          return a=%z
        }"""
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert not rw.changed


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    graph, _ = merged(INVERTED, dtype=dtype)
    assert ops(graph) == ["Conv 3x3", "Add"]
    kernel = next(graph.nodes).inputs[1]
    assert kernel is not None
    assert kernel.data is not None
    assert kernel.data.dtype is DType(dtype)
    assert np.array_equal(kernel.data.numpy(), kernel.data.float64().astype(DType(dtype).numpy))


@pytest.mark.parametrize(
    ("factor", "dtype", "why"),
    [
        (60000.0, "f16", "overflow f16"),
        (6e-8, "f16", "underflow f16"),
        (float("inf"), "f32", "not finite"),
        (float("nan"), "f64", "not finite"),
        (1e38, "f32", "overflow f32"),
    ],
)
def test_numbers_beyond_the_range_are_refused(factor: float, dtype: str, why: str) -> None:
    graph = parse(
        f"""graph g(%x: {dtype}[1, 4]) {{
          %w: {dtype}[4, 4] = splat 20.0
          %s: {dtype}[4] = splat {factor!r}
          %y: {dtype}[1, 4] = Linear(%x, %w)
          %z: {dtype}[1, 4] = Scale(%y, %s) {{axis=-1}}
          return a=%z
        }}""".replace("splat 20.0", "splat 0.001" if "under" in why else "splat 20.0")
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert not rw.changed
    assert why in reason(rw)


def test_a_part_is_merged_where_the_whole_does_not_fit_half_precision() -> None:
    graph = parse(
        """graph g(%x: f16[1, 4]) {
          %w: f16[4, 4] = splat 200.0
          %v: f16[4, 4] = splat 200.0
          %s: f16[4] = splat 0.5
          %y: f16[1, 4] = Linear(%x, %w)
          %z: f16[1, 4] = Scale(%y, %s) {axis=-1}
          %t: f16[1, 4] = Linear(%z, %v)
          return a=%t
        }"""
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert ops(graph) == ["Linear", "Linear"]
    assert "overflow f16" in reason(rw)


def test_weights_that_are_not_finite_are_not_spread() -> None:
    graph = parse(
        """graph g(%x: f32[1, 2]) {
          %w: f32[2, 2] = dense [1.0, 0.0, 0.0, inf]
          %v: f32[2, 2] = dense [1.0, 0.0, 0.0, 1.0]
          %y: f32[1, 2] = Linear(%x, %w)
          %z: f32[1, 2] = Linear(%y, %v)
          return a=%z
        }"""
    )
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    assert not rw.changed
    assert "not finite" in reason(rw)


def test_a_large_map_is_not_added_to_the_model() -> None:
    text = INVERTED.replace("9, 9]", "1024, 1024]")
    text = re.sub("random [0-9]+", "elided", text)
    graph, rw = merged(text)
    assert "Add" not in ops(graph)
    assert any("MiB to the model" in r.reason for r in rw.refusals)
    graph, rw = merged(text, max_growth_mb=64.0)
    assert ops(graph) == ["Conv 3x3", "Add"]


def test_weights_are_not_read_to_decide() -> None:
    """A batch norm folds into a weight whose numbers nobody can read yet."""
    graph, _ = merged(
        """graph g(%x: f64[1, 4, 9, 9]) {
          %w: f64[4, 4, 3, 3] = elided
          %s: f64[4] = elided
          %y = Conv(%x, %w) {strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}
          %z = Scale(%y, %s, %s)
          return a=%z
        }"""
    )
    assert ops(graph) == ["Conv 3x3"]


def test_running_again_changes_nothing() -> None:
    for text in (INVERTED, repvgg("6, 6")):
        graph, _ = merged(text)
        rw = Rewriter(graph)
        MergeLinear().run(graph, rw, Context())
        assert not rw.changed


def test_options_round_trip_and_are_checked() -> None:
    text = "merge-linear{max-kernel=5,allow-border=true,max-mac-growth=1.5}"
    assert str(Pipeline(text)) == text
    with pytest.raises(ValueError, match="'max-kernel' must be at least 1"):
        MergeLinear(max_kernel=0)
    with pytest.raises(ValueError, match="max-mac-growth"):
        MergeLinear(max_mac_growth=0.0)


# Size.


def chain(length: int, kind: str) -> Graph:
    graph = Graph()
    value = graph.add_input("x", TensorType(DType.F32, (1, 2, 4, 4)))
    rng = np.random.default_rng(0)
    angle = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32).reshape(2, 2, 1, 1)
    turn = graph.add_constant(ArrayTensor(angle), "w")
    sign = graph.add_constant(ArrayTensor(rng.choice([-1.0, 1.0], 2).astype(np.float32)), "s")
    conv = Conv((1, 1), (0, 0, 0, 0), (1, 1))
    for i in range(length):
        if kind == "scale":
            node = graph.append(Scale(1), [value, sign, None])
        elif kind == "conv" or i % 2 == 0:
            node = graph.append(conv, [value, turn])
        else:
            node = graph.append(Activation("relu"), [value])
        value = node.output
    graph.add_output(value, "y")
    return graph


@pytest.mark.parametrize(("kind", "left"), [("scale", 1), ("conv", 1), ("conv-relu", 0)])
def test_work_is_linear_in_the_length_of_a_chain(kind: str, left: int) -> None:
    def merge(length: int) -> int:
        graph = chain(length, kind)
        rw = Rewriter(graph)
        count = work(lambda: MergeLinear().run(graph, rw, Context()))
        assert len(graph) == (left or length)
        if left:
            (want, got) = (evaluate(chain(length, kind))[0], evaluate(graph)[0])
            np.testing.assert_allclose(got, want, atol=1e-6 * length)
        return count

    small, large = merge(50), merge(400)
    # Eight times the nodes, with room for a logarithm.
    assert large < 12 * small
