"""ONNX models in: scopes, functions, defaults, left-out inputs, computed weights, raised patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from graphshrink import shrink, shrink_graph
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Activation, Conv, Graph, Linear, Opaque, Rewriter, Scale, Select
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import agree, outputs_of

RNG = np.random.default_rng(7)


def image(channels: int = 4, size: int = 6) -> Any:
    return RNG.normal(size=(1, channels, size, size)).astype(np.float32)


def weight(*shape: int) -> Any:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def model(text: str, **constants: Any) -> ModelProto:
    """A model from onnx's own text, with initializers."""
    made = parser.parse_model(text)
    for name, array in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(made, full_check=True)
    return made


def ops(graph: Graph) -> list[str]:
    return [n.op.kind if isinstance(n.op, Opaque) else n.op.name for n in graph.nodes]


def kinds(made: ModelProto) -> list[str]:
    return [n.op_type for n in made.graph.node]


HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

BRANCH = (
    HEAD
    + """
agraph (float[1,4,6,6] x, bool c) => (float[1,4,6,6] y) {
    h = Conv(x, w1)
    k = Conv(h, w2)
    y = If (c) <
        then_branch = yes () => (float[1,4,6,6] r) { r = Add(h, k) },
        else_branch = no () => (float[1,4,6,6] r) { r = Relu(k) }
    >
}
"""
)


@pytest.mark.parametrize("taken", [True, False])
def test_a_value_that_a_body_captures_is_used(taken: bool) -> None:
    before = model(BRANCH, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    graph = from_onnx(before)
    branch = next(n for n in graph.nodes if isinstance(n.op, Opaque))
    assert [v.name for v in branch.inputs if v is not None] == ["c", "h", "k"]
    result = shrink(before)
    # h has a reader inside the body: the two convolutions must both stay.
    assert kinds(result.model).count("Conv") == 2
    agree(before, result.model, {"x": image(), "c": np.array(taken)})


@pytest.mark.parametrize("taken", [True, False])
def test_captured_names_follow_a_merge(taken: bool) -> None:
    text = BRANCH.replace("Add(h, k)", "Add(k, k)")
    before = model(text, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    after = shrink_graph(before)
    assert kinds(after).count("Conv") == 1
    agree(before, after, {"x": image(), "c": np.array(taken)})


@pytest.mark.parametrize("taken", [True, False])
def test_a_body_may_hide_an_outer_name(taken: bool) -> None:
    """The inner ``h`` is another value than the outer one, which nobody else reads."""
    text = (
        HEAD
        + """
    agraph (float[1,4,6,6] x, bool c) => (float[1,4,6,6] y) {
        h = Conv(x, w1)
        k = Conv(h, w2)
        z = If (c) <
            then_branch = yes () => (float[1,4,6,6] r) { g = Neg(x) r = Mul(g, g) },
            else_branch = no () => (float[1,4,6,6] r) { r = Relu(k) }
        >
        y = Add(z, k)
    }
    """
    )
    before = model(text, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    inner = before.graph.node[2].attribute[0].g
    inner.node[0].output[0] = inner.node[1].input[0] = inner.node[1].input[1] = "h"
    graph = from_onnx(before)
    branch = next(n for n in graph.nodes if isinstance(n.op, Opaque))
    assert "h" not in [v.name for v in branch.inputs if v is not None]
    after = shrink_graph(before)
    assert kinds(after).count("Conv") == 1
    # onnxruntime refuses names that are hidden; the same model with another inner name is the judge.
    for made in (before, after):
        for node in made.graph.node:
            for body in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
                for item in body.node:
                    for names in (item.input, item.output):
                        names[:] = ["inner" if n == "h" else n for n in names]
    agree(before, after, {"x": image(), "c": np.array(taken)})


def test_bodies_in_bodies_capture_across_both() -> None:
    text = (
        HEAD
        + """
    agraph (float[1,4,6,6] x, bool c) => (float[1,4,6,6] y) {
        h = Conv(x, w1)
        k = Relu(h)
        y = If (c) <
            then_branch = yes () => (float[1,4,6,6] r) {
                r = If (c) <
                    then_branch = inner () => (float[1,4,6,6] q) { q = Mul(h, k) },
                    else_branch = other () => (float[1,4,6,6] q) { q = Identity(k) }
                >
            },
            else_branch = no () => (float[1,4,6,6] r) { r = Relu(k) }
        >
    }
    """
    )
    before = model(text, w1=weight(4, 4, 1, 1))
    # The first c is the condition, the second one is captured by the inner If.
    branch = next(n for n in from_onnx(before).nodes if isinstance(n.op, Opaque))
    assert [v.name for v in branch.inputs if v is not None] == ["c", "c", "h", "k"]
    agree(before, shrink_graph(before), {"x": image(), "c": np.array(True)})


def test_a_loop_body_reads_a_computed_weight() -> None:
    """Nobody outside of the body reads it, and it must not be pruned."""
    text = (
        HEAD
        + """
    agraph (float[4] x, int64 n) => (float[4] y) {
        w = Mul(a, b)
        t = Constant <value = bool {1}> ()
        y = Loop (n, t, x) <body = step (int64 i, bool go, float[4] s) => (bool on, float[4] e) {
            on = Identity(go)
            e = Mul(s, w)
        }>
    }
    """
    )
    before = model(text, a=weight(4), b=weight(4))
    after = shrink_graph(before)
    feeds = {"x": 9 * np.ones(4, np.float32), "n": np.array(1, np.int64)}
    agree(before, after, feeds)


FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) {
    a = Conv(x, w1)
    b = local.Twice(a)
    c = Conv(b, w2)
    y = Conv(c, w1)
}
<domain: "local", opset_import: ["" : 17]>
Twice (v) => (r) { r = Add(v, v) }
"""


def test_local_functions_are_barriers_and_survive() -> None:
    before = model(FUNCTION, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    assert ops(from_onnx(before)) == ["Conv", "onnx:local.Twice", "Conv", "Conv"]
    after = shrink_graph(before)
    assert kinds(after) == ["Conv", "Twice", "Conv"]
    assert after.functions == before.functions
    agree(before, after, {"x": image()})


def test_a_function_may_carry_the_name_of_an_operator() -> None:
    """``Conv`` of the default domain as a function of this model is not the operator."""
    before = model(FUNCTION, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    before.functions[0].name = before.graph.node[1].op_type = "Relu"
    graph = from_onnx(before)
    assert ops(graph)[1] == "onnx:local.Relu"
    agree(before, shrink_graph(before), {"x": image()})


def test_an_initializer_that_is_an_input_stays_a_default_if_asked_for() -> None:
    text = (
        HEAD
        + """
    agraph (float[1,4,6,6] x, float[4,4,1,1] w1) => (float[1,4,6,6] y) {
        h = Conv(x, w1)
        y = Conv(h, w2)
    }
    """
    )
    before = model(text, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    after = shrink(before, overridable_initializers=True).model
    assert kinds(after) == ["Conv", "Conv"]
    feeds = {"x": image()}
    agree(before, after, feeds)
    agree(before, after, feeds | {"w1": weight(4, 4, 1, 1)})
    merged = shrink_graph(before)
    assert kinds(merged) == ["Conv"]
    agree(before, merged, feeds)


def test_before_ir_version_4_every_initializer_is_listed() -> None:
    text = (
        HEAD.replace("8", "3", 1)
        + """
    agraph (float[1,4,6,6] x, float[4,4,1,1] w1, float[4,4,1,1] w2) => (float[1,4,6,6] y) {
        h = Conv(x, w1)
        y = Conv(h, w2)
    }
    """
    )
    before = model(text, w1=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1))
    after = shrink_graph(before)
    assert kinds(after) == ["Conv"]
    listed = {v.name for v in after.graph.input}
    assert {t.name for t in after.graph.initializer} <= listed
    onnx.checker.check_model(after)
    agree(before, after, {"x": image()})


def test_left_out_inputs_and_results() -> None:
    """An empty name is no value: in the middle of the inputs, and among the results."""
    text = (
        HEAD
        + """
    agraph (float[5,2,3] x) => (float[5,1,2,4] y) {
        y, , last = LSTM <hidden_size = 4> (x, w, r, "", "", h)
    }
    """
    )
    before = parser.parse_model(text.replace('"", "",', "e1, e2,"))
    before.graph.node[0].input[3:5] = ["", ""]
    for name, array in {"w": weight(1, 16, 3), "r": weight(1, 16, 4), "h": weight(1, 2, 4)}.items():
        before.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(before)
    graph = from_onnx(before)
    (node,) = graph.nodes
    assert [v is None for v in node.inputs] == [False, False, False, True, True, False]
    after = to_onnx(graph)
    assert after == before
    agree(before, after, {"x": RNG.normal(size=(5, 2, 3)).astype(np.float32)})


@pytest.mark.parametrize(
    ("layer", "gates"),
    [("_, last = LSTM", 4), ("y, _, last = LSTM", 4), ("_, last = GRU", 3), ("_, last = RNN", 1)],
)
def test_recurrent_layers_whose_sequence_is_left_out(layer: str, gates: int) -> None:
    text = (
        HEAD
        + f"""
    agraph (float[5,2,3] x) => (float[1,2,4] last) {{
        {layer} <hidden_size = 4> (x, w, r)
    }}
    """
    )
    before = parser.parse_model(text)
    made = before.graph.node[0].output
    made[:] = ["" if name == "_" else name for name in made]
    for name, array in {"w": weight(1, 4 * gates, 3), "r": weight(1, 4 * gates, 4)}.items():
        before.graph.initializer.append(numpy_helper.from_array(array, name))
    graph = from_onnx(before)
    (node,) = graph.nodes
    assert not isinstance(node.op, Opaque)
    assert to_onnx(graph) == before
    Rewriter(graph).replace(node, node.op, node.inputs)
    agree(before, to_onnx(graph), {"x": RNG.normal(size=(5, 2, 3)).astype(np.float32)})


COMPUTED = {
    "reshape": ("w = Reshape(v, s)", {"v": weight(16, 4), "s": np.array([16, 4, 1, 1])}),
    "unsqueeze": ("w = Unsqueeze(v, s)", {"v": weight(4, 4), "s": np.array([2, 3])}),
    "product": ("w = Mul(v, s)", {"v": weight(4, 4, 1, 1), "s": np.float32([2.0])}),
    "filled": ("w = ConstantOfShape <value = float[1] {0.5}> (s)", {"s": np.array([4, 4, 1, 1])}),
    "chain": ("a = Transpose <perm = [1, 0]> (v) b = Unsqueeze(a, s) w = Neg(b)",
              {"v": weight(4, 4), "s": np.array([2, 3])}),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_are_computed_from_constants_are_weights(kind: str) -> None:
    nodes, constants = COMPUTED[kind]
    out = 16 if kind == "reshape" else 4
    text = (
        HEAD
        + f"""
    agraph (float[1,4,6,6] x) => (float[1,{out},6,6] y) {{
        {nodes}
        h = Conv(x, w)
        y = BatchNormalization(h, g, o, m, d)
    }}
    """
    )
    vectors = {n: np.abs(weight(out)) + np.float32(0.5) for n in "gomd"}
    before = model(text, **constants, **vectors)
    assert to_onnx(from_onnx(before)) == before
    after = shrink_graph(before)
    assert kinds(after) == ["Conv"]
    agree(before, after, {"x": image()})


def test_bfloat16_weights_are_computed() -> None:
    """onnxruntime has no bfloat16 convolution; the numbers are compared with float32 arithmetic."""
    made = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["v", "s"], ["w"]),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, 4, 6, 6])],
        [
            helper.make_tensor("v", TensorProto.BFLOAT16, [4, 4], weight(4, 4).ravel().tolist()),
            helper.make_tensor("s", TensorProto.INT64, [2], [2, 3]),
        ],
    )
    before = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    graph = from_onnx(before)
    conv = next(n for n in graph.nodes if isinstance(n.op, Conv))
    data = conv.inputs[1].data if conv.inputs[1] is not None else None
    assert data is not None
    want = numpy_helper.to_array(before.graph.initializer[0]).astype(np.float64)
    np.testing.assert_array_equal(data.float64()[:, :, 0, 0], want)


RAISED = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", Activation("silu")),
    "gelu": ("a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
             Activation("gelu")),
    "relu6": ("y = Clip(x, zero, six)", Activation("relu6")),
    "hard-swish": ("s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, s)",
                   Activation("hard_swish")),
}  # fmt: skip
NUMBERS = {"r2": 2**0.5, "one": 1.0, "half": 0.5, "zero": 0.0, "six": 6.0}


@pytest.mark.parametrize("kind", RAISED)
def test_raised_patterns_stay_as_they_were_spelled(kind: str) -> None:
    nodes, op = RAISED[kind]
    text = HEAD + f"agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) {{ {nodes} }}"
    wanted = {n: np.float32(v) for n, v in NUMBERS.items() if n in nodes.replace("(", " ")}
    before = model(text, **wanted)
    graph = from_onnx(before)
    assert [n.op for n in graph.nodes] == [op]
    assert to_onnx(graph) == before


def test_a_pattern_with_another_reader_is_not_raised() -> None:
    text = (
        HEAD
        + """
    agraph (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] s) { s = Sigmoid(x) y = Mul(x, s) }
    """
    )
    before = model(text)
    assert ops(from_onnx(before)) == ["Activation", "Mul"]
    agree(before, shrink_graph(before), {"x": image()})


def test_caffe_style_scales_fold_into_the_convolution() -> None:
    text = (
        HEAD
        + """
    agraph (float[1,4,6,6] x) => (float[1,8,6,6] y) { a = Conv(x, w) b = Mul(a, s) y = Add(b, t) }
    """
    )
    before = model(text, w=weight(8, 4, 1, 1), s=weight(8, 1, 1), t=weight(1, 8, 1, 1))
    assert [type(n.op) for n in from_onnx(before).nodes] == [Conv, Scale, Scale]
    after = shrink_graph(before)
    assert kinds(after) == ["Conv"]
    agree(before, after, {"x": image()})


def test_a_dense_layer_is_one_op_however_it_is_spelled() -> None:
    spellings = {
        "y = Gemm <transB = 1> (x, w, b)": {"w": weight(3, 5), "b": weight(3)},
        "y = Gemm (x, w, b)": {"w": weight(5, 3), "b": weight(3)},
        "m = MatMul(x, w) y = Add(m, b)": {"w": weight(5, 3), "b": weight(3)},
        "m = MatMul(x, w) y = Add(b, m)": {"w": weight(5, 3), "b": weight(1, 3)},
    }
    for nodes, constants in spellings.items():
        before = model(HEAD + f"agraph (float[2,5] x) => (float[2,3] y) {{ {nodes} }}", **constants)
        graph = from_onnx(before)
        assert [type(n.op) for n in graph.nodes] == [Linear], nodes
        assert to_onnx(graph) == before


@pytest.mark.parametrize(("opset", "axes"), [(11, True), (13, False)])
def test_both_ways_to_give_axes(opset: int, axes: bool) -> None:
    head = HEAD.replace("17", str(opset))
    node = "Squeeze <axes = [2, 3]> (p)" if axes else "Squeeze (p, a)"
    text = (
        head
        + f"""
    agraph (float[1,4,6,6] x) => (float[1,4] y) {{ p = GlobalAveragePool(x) y = {node} }}
    """
    )
    before = model(text, **({} if axes else {"a": np.array([2, 3])}))
    assert ops(from_onnx(before)) == ["GlobalAveragePool", "Squeeze"]


def test_an_attribute_that_nobody_knows_makes_a_barrier() -> None:
    before = model(HEAD + "agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) { y = Relu(x) }")
    before.graph.node[0].attribute.append(helper.make_attribute("threshold", 0.5))
    assert ops(from_onnx(before)) == ["onnx:Relu"]
    assert to_onnx(from_onnx(before)) == before


SPLIT = """
agraph (float[2,3,4] x, float[2,3,4] z) => (float[3,4] y) {
    a, b = Split<axis=0>(x, ones)
    p = Squeeze(a, first)
    q = Squeeze(b, first)
    y = Sub(p, q)
}
"""


@pytest.mark.parametrize("changed", [False, True])
def test_pieces_that_lose_their_axis_are_cut_once(changed: bool) -> None:
    before = model(HEAD + SPLIT, ones=np.array([1, 1]), first=np.array([0]))
    graph = from_onnx(before)
    assert ops(graph) == ["Select", "Select", "Sub"]
    first, second, _ = graph.nodes
    if not changed:
        assert to_onnx(graph) == before
        return
    # One of them reads something else: the other is what the host wrote.
    Rewriter(graph).set_input(second, 0, graph.value("z"))
    made = to_onnx(graph)
    assert kinds(made) == ["Split", "Squeeze", "Gather", "Sub"]
    assert first.op == Select(0, 0)
    x, z = (RNG.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(outputs_of(made, {"x": x, "z": z})[0], x[0] - z[1])


def test_a_weight_that_is_cut_from_another_stays_a_weight() -> None:
    text = (
        HEAD
        + """
agraph (float[1,4,6,6] x) => (float[1,4,4,4] y) {
    s = Slice(all, one, two, zero)
    w = Squeeze(s, zero)
    y = Conv(x, w)
}
"""
    )
    numbers = {n: np.array([i]) for i, n in enumerate(("zero", "one", "two"))}
    graph = from_onnx(model(text, all=weight(3, 4, 4, 3, 3), **numbers))
    conv = next(n for n in graph.nodes if isinstance(n.op, Conv))
    assert conv.inputs[1] is not None
    assert conv.inputs[1].data is not None
