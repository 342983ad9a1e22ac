"""Shapes that an ONNX model computes from shapes are read; each model is run on batches of several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from graphshrink import Pipeline
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Expand, InferenceError, Opaque, Reshape, Resize, Rewriter, parse
from graphshrink.ir.analysis.sizes import SizeRoots
from graphshrink.targets.onnx.emitter import to_onnx
from support.evaluate import evaluate
from support.onnx_run import outputs_of

SIZES = {"zero": 0, "first": [0], "one": [1], "two": [2], "three": [3], "four": [4], "minus": -1,
         "rest": [-1, -1], "flat": [-1], "twelve": [12], "head": [2, 2], "none": [0], "tail": [3, 4],
         "pair": [2, 6], "more": [8, 8]}  # fmt: skip
TOKEN = np.arange(4, dtype=np.float32).reshape(1, 1, 4)


def model(text: str, opset: int = 17) -> ModelProto:
    """A model of one input with a free batch; what it reads besides is a constant."""
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"g (float[batch, 3, 4] x, float[batch, 2, 4, 4] i, float[rows, 2] j) => (float[] y) {{ {text} }}"
    )
    made.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in made.graph.node for name in node.input}
    for name, numbers in SIZES.items():
        if name in read:
            array = np.array(numbers, np.int64)
            made.graph.initializer.append(numpy_helper.from_array(array, name))
    if "token" in read:
        made.graph.initializer.append(numpy_helper.from_array(TOKEN, "token"))
    return made


def feeds(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    shapes = {"x": (rows, 3, 4), "i": (rows, 2, 4, 4), "j": (rows + 1, 2)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def run(made: ModelProto, folder: Path, rows: int) -> Any:
    onnx.save(made, folder / "m.onnx")
    known = {v.name for v in made.graph.input}
    return outputs_of(folder / "m.onnx", {n: a for n, a in feeds(rows).items() if n in known})[0]


BATCH = "s = Shape(x) b = Slice(s, first, one, first) "
CASES = {
    # As torch.onnx writes it by tracing: sizes of -1 are replaced by 1.
    "where": ("s = Shape(x) b = Gather<axis=0>(s, zero) u = Unsqueeze(b, first) c = Concat<axis=0>(u, rest) "
              "r = Reshape(c, flat) n = Shape(r) o = ConstantOfShape<value: tensor = int64[1] {1}>(n) "
              "m = Mul(o, minus) e = Equal(r, m) w = Where(e, o, r) y = Expand(token, w)",
              Expand((None, 1, 1), (0,))),
    # And by torch.export.
    "start": ("s = Shape<start=0, end=1>(x) q = Squeeze(s) r = Reshape(q, flat) c = Concat<axis=0>(r, one, four) "
              "y = Expand(token, c)", Expand((None, 1, 1), (0,))),
    "cast": (BATCH + "k = Cast<to=6>(b) l = Cast<to=7>(k) c = Concat<axis=0>(head, l, four) y = Expand(token, c)",
             Expand((2, 2, None, 1), (0,))),
    # The size of what comes from x is that of x.
    "behind": ("a = Relu(x) t = Transpose<perm=[1, 0, 2]>(a) s = Shape(t) b = Slice(s, one, two, first) "
               "c = Concat<axis=0>(b, one, one) y = Expand(token, c)", Expand((None, 1, 1), (0,))),
    # What it has anyway stays.
    "own": (BATCH + "p = ReduceMax<axes=[1]>(x) c = Concat<axis=0>(b, two, four) y = Expand(p, c)",
            Expand((1, 2, 1))),
    "flatten": (BATCH + "c = Concat<axis=0>(b, twelve) y = Reshape(x, c)", "Flatten"),
    "reshape": (BATCH + "c = Concat<axis=0>(b, two, two, three) y = Reshape(x, c)", Reshape((None, 2, 2, 3))),
    # What is computed of sizes is what is left.
    "left": (BATCH + "m = Mul(b, three) c = Concat<axis=0>(m, two, two) y = Reshape(x, c)", Reshape((-1, 2, 2))),
    "moved": (BATCH + "c = Concat<axis=0>(three, b, four) y = Reshape(x, c)", Reshape((3, -1, 4))),
    "resize": ("s = Shape<start=0, end=2>(i) c = Concat<axis=0>(s, more) y = Resize(i, , , c)", Resize),
    "twice": (BATCH + "c = Concat<axis=0>(b, two, b, four) y = Expand(token, c)", Expand((None, 2, None, 1), (0, 0))),
    # Sizes of two values; a product of sizes.
    "others": (BATCH + "t = Shape(j) d = Slice(t, first, one, first) c = Concat<axis=0>(d, b, four) y = Expand(token, c)",
               None),
    "product": (BATCH + "m = Mul(b, two) c = Concat<axis=0>(m, one, one) y = Expand(token, c)", None),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", CASES)
def test_computed_shapes(name: str, opset: int, tmp_path: Path) -> None:
    text, wanted = CASES[name]
    if opset < 15 and "start" in text:
        pytest.skip("Shape gives all sizes before opset 15")
    made = model(text, opset)
    graph = from_onnx(made)
    node = graph.outputs[0].producer
    assert node is not None
    if wanted is None:
        assert isinstance(node.op, Opaque)
    elif isinstance(wanted, str):
        assert node.op.name == wanted
    else:
        assert node.op == wanted or type(node.op) is wanted
    assert to_onnx(graph) == made
    Pipeline("fold-constants,prune-dead").run(graph)
    assert (len(graph) < len(made.graph.node)) or wanted is None
    for rows in (1, 2, 5):
        np.testing.assert_array_equal(
            run(to_onnx(graph), tmp_path, rows), run(made, tmp_path, rows)
        )


def test_a_shape_that_became_known_is_a_constant() -> None:
    made = model("s = Shape(x) w = Gather<axis=0>(s, two) h = Div(w, two) c = Concat<axis=0>(flat, h) y = Reshape(x, c)")  # fmt: skip
    graph = from_onnx(made)
    assert [n.op for n in graph.nodes if n.op.name == "Reshape"] == [Reshape((-1, 2))]
    assert to_onnx(graph) == made


def test_the_size_of_one_of_two_is_nobodys() -> None:
    """One of them may be 1, and be repeated."""
    graph = parse(
        "graph g(%x: f32[a, 4], %z: f32[b, 4], %c: f32[a, 4]) {\n"
        "  %one: f32[1, 4] = splat 1.0\n  %many: f32[5, 4] = splat 1.0\n"
        '  %r: f32[a, 4] = Activation(%x) {kind="relu"}\n  %s: f32[a, 4] = Add(%r, %x)\n'
        "  %t: f32[a, 4] = Add(%s, %one)\n  %v: f32[a, 4] = Sub(%t, %x)\n  %u: f32[a, 4] = Add(%x, %c)\n"
        "  %p: f32[?, 4] = Add(%x, %z)\n  %q: f32[5, 4] = Add(%x, %many)\n  return %v, %u, %p, %q\n}"
    )  # fmt: skip
    roots, x = SizeRoots(), graph.value("x")
    assert roots.root(graph.value("v"), 0) == (x, 0)
    for name in "upq":
        assert roots.root(graph.value(name), 0) == (graph.value(name), 0)


def test_an_expand_says_which_axes_it_is_like() -> None:
    text = (
        "graph g(%x: f32[n, 2, m]) {\n  %w: f32[1, 3] = dense [1.0, 2.0, 3.0]\n"
        "  %y: f32[m, 2, n, 3] = Expand(%w, %x) {shape=[none, 2, none, 3], like=[2, 0]}\n  return y=%y\n}\n"
    )
    graph = parse(text)
    assert str(graph) == text
    x = np.zeros((4, 2, 5), np.float32)
    (want,) = evaluate(graph, [x])
    assert want.shape == (5, 2, 4, 3)
    np.testing.assert_array_equal(outputs_of(to_onnx(graph), x)[0], want)
    (node,) = graph.nodes
    for op, inputs in (
        (Expand((None, 2, None, 3), (0,)), node.inputs),
        (Expand((2, 3)), node.inputs),
        (Expand((None, 3), (0,)), node.inputs[:1]),
        (Expand((None, 3), (3,)), node.inputs),
    ):
        with pytest.raises(InferenceError, match=r"Expand to|out of range"):
            Rewriter(graph).replace(node, op, inputs)
    with pytest.raises(ValueError, match="not counted from the front"):
        Expand((None,), (-1,))
