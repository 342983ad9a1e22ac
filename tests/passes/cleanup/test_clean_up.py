"""fold-constants and prune-dead: what goes, what stays, and how far a file may grow."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from graphshrink import shrink
from graphshrink.ir import Rewriter, parse, verify
from graphshrink.passes import Context, Pipeline
from graphshrink.passes.cleanup.fold_constants import FoldConstants
from graphshrink.passes.cleanup.prune_dead import PruneDead
from support.onnx_run import agree

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def model(body: str, shape: str = "1,4,6,6", **constants: object) -> ModelProto:
    made = parser.parse_model(
        f"{HEAD} agraph (float[{shape}] x) => (float[{shape}] y) {{ {body} }}"
    )
    for name, array in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return made


def feeds(*shape: int) -> dict[str, object]:
    return {"x": np.random.default_rng(3).normal(size=shape).astype(np.float32)}


def pruned(text: str) -> str:
    graph = parse(text)
    PruneDead().run(graph, Rewriter(graph), Context())
    verify(graph)
    return graph.text()


def test_unused_nodes_go_with_all_that_only_they_need() -> None:
    before = """
    graph g(%x: f32[2, 3], %unused: f32[5]) {
      %w: f32[4, 3] = splat 0.5
      %a: f32[2, 4] = Linear(%x, %w)
      %b: f32[2, 4] = Activation(%a) {kind="relu"}
      %y: f32[2, 3] = Activation(%x) {kind="relu"}
      return %y
    }
    """
    after = """
    graph g(%x: f32[2, 3], %unused: f32[5]) {
      %y: f32[2, 3] = Activation(%x) {kind="relu"}
      return %y
    }
    """
    assert pruned(before) == parse(after).text()


def test_nodes_with_effects_stay() -> None:
    text = """
    graph g(%x: f32[2]) {
      %a: f32[2] = Opaque(%x) {kind="onnx:RandomNormalLike", pure=false}
      %b: f32[2] = Opaque(%x) {kind="onnx:Neg"}
      %y: f32[2] = Activation(%x) {kind="relu"}
      return %y
    }
    """
    left = pruned(text)
    assert "RandomNormalLike" in left
    assert "Neg" not in left


def test_identities_go_unless_an_output_needs_them() -> None:
    text = """
    graph g(%x: f32[2]) {
      %a: f32[2] = Identity(%x)
      %b: f32[2] = Activation(%a) {kind="relu"}
      %c: f32[2] = Identity(%b)
      %d: f32[2] = Activation(%c) {kind="tanh"}
      %same: f32[2] = Identity(%x)
      return %d, %same
    }
    """
    left = parse(pruned(text))
    # An output that is the input itself keeps a node of its own.
    assert [n.op.name for n in left.nodes] == ["Activation", "Activation", "Identity"]


@pytest.mark.parametrize("known", ["", "unk__7", "n"])
@pytest.mark.parametrize("opset", [11, 17])
def test_what_is_inferred_behind_an_input_does_not_narrow_it(opset: int, known: str) -> None:
    """onnx names sizes that a model leaves unnamed, and files state such names for inner values."""
    axes = "q = Unsqueeze(n, z1)" if opset > 11 else "q = Unsqueeze <axes = [0]> (n)"
    before = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[?,2,H,W] x) => (float[A,B] r, float[C,2,H,W] y)
        <int64 z = {{0}}, int64[1] z1 = {{0}}, int64[1] m = {{-1}}> {{
            t = Shape(x)
            n = Gather(t, z)
            {axes}
            s = Concat <axis = 0> (q, m)
            r = Reshape(x, s)
            i = Identity(x)
            y = Relu(i)
        }}""")
    if known:
        before.graph.value_info.append(
            helper.make_tensor_value_info("i", TensorProto.FLOAT, [known, 2, "H", "W"])
        )
    after = shrink(before).model
    assert [n.op_type for n in after.graph.node] == ["Reshape", "Relu"]
    assert after.graph.input == before.graph.input
    agree(before, after, feeds(3, 2, 5, 4))


@pytest.mark.parametrize(("bound", "folded"), [(63 * 4, True), (63 * 4 - 1, False)])
def test_a_folded_tensor_grows_the_file_by_no_more_than_the_bound(bound: int, folded: bool) -> None:
    # 64 numbers take the place of one.
    body = "s = Shape(x) w = Expand(c, s) y = Add(x, w)"
    before = model(body, "4,16", c=np.float32([2.0]))
    result = shrink(before, passes=f"fold-constants{{max-growth={bound}}},prune-dead")
    kinds = [n.op_type for n in result.model.graph.node]
    assert ("Expand" in kinds) is not folded
    reasons = [r.reason for p in result.report.passes for r in p.refusals]
    assert any("more than max-growth" in r for r in reasons) is not folded
    grown = result.model.ByteSize() - before.ByteSize()
    assert grown <= bound
    agree(before, result.model, feeds(4, 16))


def test_what_the_fold_frees_counts() -> None:
    """A transposed weight is as large as the weight: nothing grows, whatever the bound."""
    weight = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    before = model(
        "t = Transpose <perm = [1, 0]> (w) z = Gemm(x, t) y = Gemm(z, w)", "2,512", w=weight
    )
    shared = shrink(before, passes="fold-constants{max-growth=0},prune-dead")
    # The weight itself is still read: to store both would grow the file.
    assert [n.op_type for n in shared.model.graph.node] == ["Transpose", "Gemm", "Gemm"]
    alone = model(
        "t = Transpose <perm = [1, 0]> (w) y = Gemm(x, t)", "2,64", w=weight[:64, :64].copy()
    )
    done = shrink(alone, passes="fold-constants{max-growth=0},prune-dead")
    assert [n.op_type for n in done.model.graph.node] == ["Gemm"]
    agree(alone, done.model, feeds(2, 64))


def test_tied_embeddings_are_stored_once() -> None:
    """As language models are exported: the table is read by rows, and transposed by the last layer."""
    table = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    body = (
        "i = Cast <to = 7> (x) h = Gather(e, i) t = Transpose <perm = [1, 0]> (e) y = MatMul(h, t)"
    )
    before = model(body, "3", e=table)
    before.graph.output[0].type.tensor_type.shape.Clear()
    result = shrink(before)
    assert result.model.ByteSize() <= before.ByteSize()
    assert "Transpose" in [n.op_type for n in result.model.graph.node]
    agree(before, result.model, {"x": np.float32([5, 0, 511])})
    grown = shrink(before, passes=f"fold-constants{{max-growth={table.nbytes}}},prune-dead").model
    assert [n.op_type for n in grown.graph.node] == ["Cast", "Gather", "MatMul"]
    agree(before, grown, {"x": np.float32([5, 0, 511])})


def test_random_numbers_are_no_constants() -> None:
    body = """r = RandomNormal <shape = [1,4,6,6], seed = 3.0> () d = RandomNormalLike(c) e = Add(r, d)
    z = Mul(e, zero) y = Add(x, z)"""
    before = model(body, c=np.ones((1, 4, 6, 6), np.float32), zero=np.float32(0))
    after = shrink(before, passes="fold-constants,prune-dead").model
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]


def test_a_constant_output_stays_an_output() -> None:
    before = model("a = Add(c, c) y = Expand(a, s)", "2,2", c=np.ones((2, 2), np.float32),
                   s=np.array([2, 2]))  # fmt: skip
    after = shrink(before).model
    assert [v.name for v in after.graph.output] == ["y"]
    agree(before, after, feeds(2, 2))


def test_option_errors() -> None:
    with pytest.raises(ValueError, match="'max-growth' must be at least 0"):
        FoldConstants(-1)
    assert str(Pipeline("fold-constants{max-growth=5}")) == "fold-constants{max-growth=5}"
