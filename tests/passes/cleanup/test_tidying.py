"""deduplicate, remove-noops and fuse-moves: what goes, what stays, and that onnxruntime computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper, parser

from graphshrink import shrink, shrink_graph
from graphshrink.ir import Rewriter, parse, verify
from graphshrink.passes import Context, Deduplicate, FuseMoves, Pass, PushPads, RemoveNoops
from support.evaluate import evaluate
from support.onnx_run import agree, outputs_of


def tidied(step: Pass, body: str, head: str = "%x: f32[2, 3, 4]", target: str = "onnx") -> str:
    """The body of a graph after a pass, one op a word."""
    graph = parse(f"graph g({head}) {{\n{body}\n}}")
    step.run(graph, Rewriter(graph), Context(target=target))
    verify(graph)
    return " ".join(n.op.name for n in graph.nodes)


SAME = """
  %a: f32[2, 3, 4] = Activation(%x) {kind="relu"}
  %b: f32[2, 3, 4] = Activation(%x) {kind="relu"}
  %y: f32[2, 3, 4] = Add(%a, %b)
  return %y
"""


def test_equal_nodes_are_computed_once() -> None:
    assert tidied(Deduplicate(), SAME) == "Activation Add"
    # Modules of torch may have hooks.
    assert tidied(Deduplicate(), SAME, target="fx") == "Activation Activation Add"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('Activation(%x) {kind="relu"}', 'Activation(%x) {kind="tanh"}'),
        ('Activation(%x) {kind="clip", params=[0.0, 1.0]}', 'Activation(%x) {kind="clip", params=[-0.0, 1.0]}'),
        ('Opaque(%x) {kind="onnx:RandomNormalLike", pure=false}',) * 2,
        ('Opaque(%x) {kind="onnx:Shrink"}',) * 2,
    ],
)  # fmt: skip
def test_what_is_not_certainly_equal_stays(one: str, other: str) -> None:
    body = f"  %a: f32[2, 3, 4] = {one}\n  %b: f32[2, 3, 4] = {other}\n  %y: f32[2, 3, 4] = Sub(%a, %b)\n  return %y"
    assert len(tidied(Deduplicate(), body).split()) == 3


def test_two_outputs_that_are_equal_keep_their_nodes() -> None:
    assert tidied(Deduplicate(), SAME.replace("return %y", "return %a, %b")) == "Activation Activation Add"  # fmt: skip
    assert tidied(Deduplicate(), SAME.replace("return %y", "return %b")) == "Activation Add"


@pytest.mark.parametrize(
    ("operation", "goes"),
    [
        ('Cast(%a) {to="f32"}', True),
        ("Concat(%a) {axis=1}", True),
        ("Split(%a) {sizes=[3], axis=1}", True),
        ("Pad(%a) {pads=[0, 0, 0, 0, 0, 0]}", True),
        ("Transpose(%a) {perm=[0, 1, 2]}", True),
        ("Reshape(%a) {shape=[2, 3, 4]}", True),
        ("Reshape(%a) {shape=[none, -1, 4]}", True),
        ("Expand(%a) {shape=[1, 3, 1]}", True),
        ("Slice(%a) {starts=[-9, 0], ends=[3, 99], axes=[1, 2], steps=[1, 1]}", True),
        ("Mul(%a, %one)", True),
        ("Mul(%one, %a)", True),
        ("Div(%a, %one)", True),
        ("Sub(%a, %zero)", True),
        ("Scale(%a, %ones, none)", True),
        ("Scale(%a, none, %minus)", True),
        ("Scale(%a, %ones, %zeros)", False),
        ("Scale(%a, %twos, none)", False),
        ("Div(%one, %a)", False),
        ("Sub(%zero, %a)", False),
        # -0.0 + 0.0 is 0.0.
        ("Add(%a, %zero)", False),
        ("Transpose(%a) {perm=[0, 2, 1]}", False),
        ("Slice(%a) {starts=[0], ends=[2], axes=[1], steps=[1]}", False),
        ("Slice(%a) {starts=[-2], ends=[3], axes=[1], steps=[1]}", False),
        ("Pad(%a) {pads=[0, 0, 1, 0, 0, 0]}", False),
        ('Cast(%a) {to="f64"}', False),
        ("Mul(%a, %two)", False),
        ("Mul(%a, %wide)", False),
    ],
)  # fmt: skip
def test_needless_nodes_go(operation: str, goes: bool) -> None:
    body = f"""
  %one: f32[1] = splat 1.0
  %two: f32[1] = splat 2.0
  %ones: f32[3] = splat 1.0
  %twos: f32[3] = splat 2.0
  %zeros: f32[3] = splat 0.0
  %minus: f32[3] = splat -0.0
  %zero: f32[1] = splat 0.0
  %wide: f32[5, 1, 1, 1] = splat 1.0
  %a: f32[2, 3, 4] = Activation(%x) {{kind="relu"}}
  %b: ?[*] = {operation}
  %y: ?[*] = Activation(%b) {{kind="tanh"}}
  return %y"""
    assert (len(tidied(RemoveNoops(), body).split()) == 2) is goes


def test_sizes_that_are_not_known_are_not_taken_for_equal() -> None:
    head = "%x: f32[n, m]"
    body = "  %a: f32[?, ?] = Activation(%x) {{kind=\"relu\"}}\n  %b: ?[*] = {}\n  %y: ?[*] = Activation(%b) {{kind=\"tanh\"}}\n  return %y"  # fmt: skip
    assert tidied(RemoveNoops(), body.format("Reshape(%a) {shape=[none, -1]}"), head) == "Activation Activation"  # fmt: skip
    for stays in (
        # Without rows, a matrix of eight columns may come from one of five.
        "Reshape(%a) {shape=[none, 8]}",
        "Reshape(%a) {shape=[-1, 4]}",
        "Expand(%a) {shape=[1, 4]}",
        "Slice(%a) {starts=[0], ends=[7], axes=[1], steps=[1]}",
    ):
        assert len(tidied(RemoveNoops(), body.format(stays), head).split()) == 3, stays


def test_an_output_that_is_an_input_keeps_its_node() -> None:
    body = '  %y: f32[2, 3, 4] = Cast(%x) {to="f32"}\n  return %y'
    assert tidied(RemoveNoops(), body) == "Cast"


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("Transpose(%a) {perm=[1, 2, 0]}", "Transpose(%b) {perm=[2, 0, 1]}", ""),
        ("Transpose(%a) {perm=[1, 2, 0]}", "Transpose(%b) {perm=[1, 2, 0]}", "Transpose"),
        ("Reshape(%a) {shape=[6, 4]}", "Reshape(%b) {shape=[3, 8]}", "Reshape"),
        ("Reshape(%a) {shape=[6, 4]}", "Reshape(%b) {shape=[2, 3, 4]}", ""),
        ("Unsqueeze(%a) {axes=[0]}", "Squeeze(%b) {axes=[0]}", ""),
        ("Unsqueeze(%a) {axes=[0]}", "Unsqueeze(%b) {axes=[2]}", "Unsqueeze"),
        ("Flatten(%a) {axis=1}", "Unsqueeze(%b) {axes=[2]}", "Reshape"),
        ("Slice(%a) {starts=[1], ends=[3], axes=[1], steps=[1]}", "Slice(%b) {starts=[0], ends=[4], axes=[2], steps=[2]}", "Slice"),
        ("Slice(%a) {starts=[1], ends=[3], axes=[1], steps=[1]}", "Slice(%b) {starts=[1], ends=[2], axes=[1], steps=[1]}", "Slice Slice"),
        ("Concat(%a, %x) {axis=1}", "Concat(%b, %a) {axis=1}", "Concat"),
        ("Concat(%a, %a) {axis=1}", "Concat(%b, %b) {axis=2}", "Concat Concat"),
        ("Reshape(%a) {shape=[2, 1, 12]}", "Transpose(%b) {perm=[1, 0, 2]}", "Reshape"),
        ("Reshape(%a) {shape=[2, 2, 6]}", "Transpose(%b) {perm=[1, 0, 2]}", "Reshape Transpose"),
        ('Cast(%a) {to="f64"}', 'Cast(%b) {to="f32"}', ""),
        ('Cast(%a) {to="f64"}', 'Cast(%b) {to="f16"}', "Cast"),
        ('Cast(%a) {to="f16"}', 'Cast(%b) {to="f32"}', "Cast Cast"),
        ('Cast(%a) {to="f64"}', 'Cast(%b) {to="i64"}', "Cast Cast"),
    ],
)  # fmt: skip
def test_two_in_a_row(first: str, second: str, left: str) -> None:
    body = f"""
  %a: f32[2, 3, 4] = Activation(%x) {{kind="relu"}}
  %b: ?[*] = {first}
  %c: ?[*] = {second}
  %y: ?[*] = Identity(%c)
  return %y"""
    assert tidied(FuseMoves(), body).split()[1:-1] == left.split()


@pytest.mark.parametrize(("also", "left"), [("Slice(%b) {starts=[1], ends=[3], axes=[2], steps=[1]}", 3), ("Activation(%b) {kind=\"relu\"}", 4)])  # fmt: skip
def test_a_value_with_several_readers_goes_if_all_can_do_without(also: str, left: int) -> None:
    body = f"""
  %b: ?[*] = Slice(%x) {{starts=[1], ends=[3], axes=[1], steps=[1]}}
  %c: ?[*] = Slice(%b) {{starts=[0], ends=[2], axes=[2], steps=[1]}}
  %d: ?[*] = {also}
  %y: ?[*] = Concat(%c, %d) {{axis=2}}
  return %y"""
    assert len(tidied(FuseMoves(), body).split()) == left


MODELS = {
    "casts": "a = Relu(x) b = Cast<to = 11>(a) c = Cast<to = 1>(b) d = Cast<to = 1>(c) y = Tanh(d)",
    "views": "a = Relu(x) b = Unsqueeze(a, u) c = Squeeze(b, u) d = Flatten(c) e = Unsqueeze(d, u) y = Tanh(e)",
    "moves": "a = Transpose<perm = [0,2,1]>(x) b = Relu(a) c = Transpose<perm = [2,0,1]>(b) y = Transpose<perm = [0,2,1]>(c)",
    "twice": "a = Softplus(x) b = Softplus(x) c = Mul(a, w) d = Mul(b, v) e = Shape(a) f = Shape(b) g = Expand(c, f) y = Concat<axis = 1>(g, d)",
    "hidden": "a = ThresholdedRelu<alpha = 0.5>(x) b = ThresholdedRelu<alpha = 0.5>(x) c = GlobalLpPool<p = 1>(a) d = GlobalLpPool<p = 1>(b) e = GlobalLpPool<p = 2>(b) f = Add(c, d) y = Sub(f, e)",
    "joins": "a = Concat<axis = -1>(x, x) b = Concat<axis = 2>(a, x) c = Concat<axis = 2>(b) s = Shape(c) y = Reshape(c, s)",
}  # fmt: skip


@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize(("name", "most"), [("casts", 2), ("views", 3), ("moves", 3), ("twice", 3), ("hidden", 5), ("joins", 1)])  # fmt: skip
def test_onnxruntime_computes_the_same(name: str, most: int, open_batch: bool) -> None:
    before = model(MODELS[name], "N,3,4" if open_batch else "2,3,4")
    result = shrink(before, check=True)
    assert len(result.model.graph.node) <= most + (open_batch and name == "twice")
    assert result.model.ByteSize() <= before.ByteSize()
    given = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    given[0, 0, :3] = np.nan, np.inf, -0.0
    for feed in (given, given[:0] if open_batch else given):
        for want, got in zip(
            outputs_of(before, feed, plain=True), outputs_of(result.model, feed, plain=True), strict=True
        ):  # fmt: skip
            np.testing.assert_array_equal(got, want)


def model(body: str, shape: str) -> ModelProto:
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[] y) {{ {body} }}'
    )
    made.graph.output[0].type.tensor_type.ClearField("shape")
    same = np.linspace(0.5, 2, 4, dtype=np.float32)
    for name, array in {"w": same, "v": same, "u": np.int64([1])}.items():
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def test_a_traced_module_serves_other_batches() -> None:
    class Views(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(x).flatten(1).unsqueeze(2).float()
            return torch.tanh(y) + torch.relu(x).reshape(1, -1, 12).reshape(-1, 12, 1)

    made = shrink_graph(Views(), example_inputs=(torch.randn(1, 3, 4),))
    x = torch.randn(5, 3, 4)
    assert torch.equal(made(x), Views()(x))


PADDED = """
  %w: f64[2, 3, 3] = splat 0.5
  %p: f64[2, 3, 6] = Pad(%x) {pads=[0, 0, 1, 0, 0, 1]}
  %a: ?[*] = Conv(%p, %w) {strides=[1], pads=[0, 1], dilations=[1], groups=1}
  %b: ?[*] = OTHER
  %y: ?[*] = Concat(%a, %b) {axis=2}
  return %y"""


@pytest.mark.parametrize(
    ("other", "goes"),
    [
        ("Conv(%p, %w) {strides=[2], pads=[0, 0], dilations=[1], groups=1}", True),
        ("Conv(%p, %w) {strides=[1], pads=[0, -1], dilations=[1], groups=1}", False),
        ("MaxPool(%p) {kernel=[2], strides=[1], pads=[0, 0], dilations=[1]}", False),
    ],
)
def test_convolutions_pad_by_themselves(other: str, goes: bool) -> None:
    text = PADDED.replace("OTHER", other)
    if not goes:
        text = text.replace("Concat(%a, %b) {axis=2}", "Identity(%a)").replace("return %y", "return %y, %b")  # fmt: skip
    head = "%x: f64[2, 3, 4]"
    graph = parse(f"graph g({head}) {{{text}\n}}")
    want = evaluate(graph)
    PushPads().run(graph, Rewriter(graph), Context())
    verify(graph)
    assert any(n.op.name == "Pad" for n in graph.nodes) is not goes
    for a, b in zip(evaluate(graph), want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("f = Flatten(x) p = MatMul(f, m) y = Add(p, b)", ["Flatten", "Gemm"]),
        # The weight is read as it is by another node: it would be stored twice.
        ("f = Flatten(x) p = MatMul(f, m) a = Add(p, b) r = Relu(a) y = MatMul(r, m)", ["Flatten", "MatMul", "Add", "Relu", "MatMul"]),
        # Not a matrix.
        ("p = MatMul(x, m4) y = Add(p, b4)", ["MatMul", "Add"]),
        ("a = Neg(x) p = MatMul(a, m4) q = Neg(p) y = Tanh(q)", ["MatMul", "Tanh"]),
        ("f = Flatten(x) p = MatMul(f, m) y = Sum(p, b)", ["Flatten", "Gemm"]),
    ],
)  # fmt: skip
def test_dense_layers_are_one_node(body: str, left: list[str]) -> None:
    before = model(body, "2,3,4")
    rng = np.random.default_rng(1)
    for name, shape in {"m": (12, 12), "b": (12,), "m4": (4, 4), "b4": (4,)}.items():
        numbers = rng.normal(size=shape).astype(np.float32)
        before.graph.initializer.append(numpy_helper.from_array(numbers, name))
    after = shrink(before, check=True).model
    assert [n.op_type for n in after.graph.node] == left
    assert after.ByteSize() <= before.ByteSize()
    agree(before, after, {"x": rng.normal(size=(2, 3, 4)).astype(np.float32)})


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Conv(x, w) b = Conv(x, v) c = Concat<axis = 1>(a, b) y = BatchNormalization(c, s8, s8, s8, s8)", ["Conv", "Conv", "Concat"]),
        # A part that absorbs nothing.
        ("a = Conv(x, w) b = Relu(a) c = Concat<axis = 1>(b, a) y = BatchNormalization(c, s8, s8, s8, s8)", ["Conv", "Relu", "Concat", "BatchNormalization"]),
        # Another reader.
        ("a = Conv(x, w) b = Conv(x, v) c = Concat<axis = 1>(a, b) d = BatchNormalization(c, s8, s8, s8, s8) e = Sin(c) y = Mul(d, e)",
         ["Conv", "Conv", "Concat", "BatchNormalization", "Sin", "Mul"]),
        ("a = GlobalAveragePool(x) b = BatchNormalization(a, s4, s4, s4, s4) c = Flatten(b) y = Gemm(c, m)", ["GlobalAveragePool", "Flatten", "Gemm"]),
        ("a = GlobalAveragePool(x) b = BatchNormalization(a, s4, s4, s4, s4) c = Squeeze(b, ax) y = Gemm(c, m, s5)", ["GlobalAveragePool", "Squeeze", "Gemm"]),
        # The channels and the pixels are flattened together.
        ("b = BatchNormalization(x, s4, s4, s4, s4) c = Flatten(b) y = Gemm(c, n)", ["BatchNormalization", "Flatten", "Gemm"]),
        ("p = Pad(x, pads) a = Conv(p, w) b = Conv(p, v) c = Relu(b) y = Add(a, c)", ["Conv", "Conv", "Relu", "Add"]),
    ],
)  # fmt: skip
def test_scales_come_to_the_layers_that_absorb_them(body: str, left: list[str]) -> None:
    before = model(body, "2,4,6,6")
    del before.graph.initializer[:]
    rng = np.random.default_rng(2)
    shapes = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "m": (4, 5), "n": (144, 5), "s4": (4,), "s5": (5,), "s8": (8,)}  # fmt: skip
    for name, shape in shapes.items():
        numbers = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        before.graph.initializer.append(numpy_helper.from_array(numbers, name))
    for name, sizes in {"ax": [2, 3], "pads": [0, 0, 1, 1, 0, 0, 1, 1]}.items():
        before.graph.initializer.append(numpy_helper.from_array(np.int64(sizes), name))
    after = shrink(before, check=True).model
    assert sorted(n.op_type for n in after.graph.node) == sorted(left)
    agree(before, after, {"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)})


@pytest.mark.parametrize(
    ("kind", "left"), [("neg", 0), ("abs", 1), ("floor", 1), ("round", 1), ("exp", 2), ("sin", 2)]
)
def test_functions_that_undo_or_repeat_themselves(kind: str, left: int) -> None:
    body = f"""
  %a: f32[2, 3, 4] = Activation(%x) {{kind="tanh"}}
  %b: f32[2, 3, 4] = Unary(%a) {{kind="{kind}"}}
  %c: f32[2, 3, 4] = Unary(%b) {{kind="{kind}"}}
  %y: f32[2, 3, 4] = Activation(%c) {{kind="tanh"}}
  return %y"""
    assert tidied(FuseMoves(), body).split().count("Unary") == left
