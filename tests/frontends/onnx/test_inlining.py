"""Ifs with a known condition and functions with linear layers are replaced by what is in them, by onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree, outputs_of

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(3)


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape or None)


def model(nodes: list[Any], tensors: list[Any], outputs: list[str]) -> ModelProto:
    inputs = [info("x", 2, 4)]
    made = helper.make_graph(nodes, "g", inputs, [info(o) for o in outputs], tensors)
    for value in made.output:
        value.type.tensor_type.elem_type = FLOAT
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def branch(
    nodes: list[Any], outputs: list[str], tensors: list[Any] | None = None
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "b", [], [info(o) for o in outputs], tensors or [])


def choice(
    condition: str, then: onnx.GraphProto, other: onnx.GraphProto, outputs: list[str]
) -> Any:
    return helper.make_node("If", [condition], outputs, then_branch=then, else_branch=other)


def kinds(found: ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in found.graph.node)


def feeds() -> dict[str, Any]:
    return {"x": RNG.standard_normal((2, 4)).astype(np.float32)}


def both(node: Any, result: str) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    other = f"{result}_not"
    return branch([node], [result]), branch([helper.make_node("Neg", ["x"], [other])], [other])


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_merges_with_what_is_around_it(taken: bool) -> None:
    inner = helper.make_node("MatMul", ["a", "w"], ["t"])
    bodies = [branch([inner], ["t"], [tensor("w", 4, 4)]) for _ in range(2)]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        choice("yes", *bodies, ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    given = model(
        nodes, [tensor("v", 4, 4), numpy_helper.from_array(np.array(taken), "yes")], ["y"]
    )
    result = shrink(given)
    agree(given, result.model, feeds())
    assert kinds(result.model) == {"MatMul": 1} or kinds(result.model) == {"Gemm": 1}
    assert any("known condition" in note for note in result.report.notes)
    assert kinds(given)["If"] == 1


def test_conditions_that_are_computed_from_sizes_are_known() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node("Equal", ["n", "four"], ["yes"]),
        choice("yes", *both(helper.make_node("Relu", ["x"], ["r"]), "r"), ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.array(i), n) for n, i in (("one", 1), ("four", 4))]
    given = model(nodes, tensors, ["y"])
    result = shrink(given).model
    agree(given, result, feeds())
    assert kinds(result) == {"Relu": 1}


def test_results_that_are_not_made_in_the_branch() -> None:
    """A constant of the branch, and a name that both branches use."""
    then = branch([helper.make_node("Relu", ["x"], ["r"])], ["k", "r"], [tensor("k", 2, 4)])
    other = branch([helper.make_node("Neg", ["x"], ["r"])], ["r", "k"], [tensor("k", 2, 4)])
    names = ["p", "q"]
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [choice("yes", then, other, names), helper.make_node("Sum", names, ["y"])]
    given = model(nodes, [yes], ["y", *names])
    result = shrink(given).model
    x = feeds()
    for want, got in zip(outputs_of(given, x), outputs_of(result, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not kinds(result)["If"]
    assert [o.name for o in result.graph.output] == ["y", *names]


def test_ifs_in_ifs() -> None:
    deep = choice("yes", *both(helper.make_node("Tanh", ["x"], ["h"]), "h"), ["d"])
    nodes = [choice("yes", *both(helper.make_node("Relu", ["x"], ["r"]), "r"), ["y"])]
    (then,) = (a.g for a in nodes[0].attribute if a.name == "then_branch")
    then.node.append(deep)
    then.output[0].name = "d"
    given = model(nodes, [numpy_helper.from_array(np.array(True), "yes")], ["y"])
    result = shrink(given).model
    agree(given, result, feeds())
    assert kinds(result) == {"Tanh": 1}


def test_what_is_not_known_or_not_wanted_stays() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["yes"]),
        choice("yes", *both(helper.make_node("Relu", ["x"], ["r"]), "r"), ["y"]),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    given = model(nodes, [zero], ["y"])
    assert kinds(shrink(given).model)["If"] == 1
    known = model(nodes[2:], [numpy_helper.from_array(np.array(True), "yes")], ["y"])
    assert shrink(known, []).model == known


def with_function(*body: Any) -> ModelProto:
    function = helper.make_function(
        "own", "Block", ["a", "v"], ["o"], list(body), [helper.make_opsetid("", 13)]
    )
    nodes = [
        helper.make_node("Block", ["x", "v"], ["h"], domain="own"),
        helper.make_node("Block", ["h", "v"], ["y"], domain="own"),
    ]
    given = model(nodes, [tensor("v", 4, 4)], ["y"])
    given.functions.append(function)
    given.opset_import.append(helper.make_opsetid("own", 1))
    return given


def test_functions_with_linear_layers_are_inlined(tmp_path: Path) -> None:
    given = with_function(helper.make_node("MatMul", ["a", "v"], ["o"]))
    result = shrink(given)
    agree(given, result.model, feeds())
    assert sum(kinds(result.model).values()) == 1
    assert any("Block" in note for note in result.report.notes)
    path = tmp_path / "given.onnx"
    onnx.save(given, path)
    assert shrink(path).model == result.model
    assert shrink(given, []).model == given


def test_other_functions_stay() -> None:
    given = with_function(
        helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Mul", ["t", "v"], ["o"])
    )
    given.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), "v"))
    result = shrink(given)
    agree(given, result.model, feeds())
    assert kinds(result.model) == {"Block": 2}


def test_nodes_and_types_inside_and_outside_may_have_one_name() -> None:
    inner = helper.make_node("Softmax", ["x"], ["t"], name="n")
    inside = branch([inner], ["t"])
    inside.value_info.append(info("t", 2, 4))
    other = branch([helper.make_node("Neg", ["x"], ["e"])], ["e"])
    nodes = [
        choice("yes", inside, other, ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"], name="n"),
        helper.make_node("Softmax", ["d"], ["y"], name="m"),
    ]
    given = model(nodes, [numpy_helper.from_array(np.array(True), "yes")], ["y"])
    given.graph.value_info.append(info("c", 2, 4))
    result = shrink(given).model
    agree(given, result, feeds())
    assert max(Counter(n.name for n in result.graph.node).values()) == 1
    assert max(Counter(v.name for v in result.graph.value_info).values()) == 1


def test_defaults_of_functions_are_kept() -> None:
    slope = helper.make_node("LeakyRelu", ["t"], ["o"])
    slope.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    given = with_function(helper.make_node("MatMul", ["a", "v"], ["t"]), slope)
    given.ir_version = 9
    given.functions[0].attribute_proto.append(helper.make_attribute("alpha", 0.3))
    given.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.9))
    before = given.SerializeToString()
    result = shrink(given).model
    agree(given, result, feeds())
    assert kinds(result)["LeakyRelu"] == 2
    assert given.SerializeToString() == before


def test_opsets_that_only_a_function_imports_are_imported() -> None:
    given = with_function(
        helper.make_node("FusedMatMul", ["a", "v"], ["t"], domain="com.microsoft"),
        helper.make_node("MatMul", ["t", "v"], ["o"]),
    )
    given.functions[0].opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = shrink(given).model
    agree(given, result, feeds())
    assert {o.domain for o in result.opset_import} >= {"", "com.microsoft"}


def test_functions_with_other_opsets_or_overloads_stay() -> None:
    product = helper.make_node("MatMul", ["a", "v"], ["o"])
    newer = with_function(product)
    newer.functions[0].opset_import[0].version = 14
    overloaded = with_function(product)
    overloaded.ir_version = 10
    overloaded.functions[0].overload = "one"
    for node in overloaded.graph.node:
        node.overload = "one"
    for given, why in ((newer, "other opsets"), (overloaded, "overloaded")):
        before = given.SerializeToString()
        result = shrink(given)
        agree(given, result.model, feeds())
        assert kinds(result.model) == {"Block": 2}
        assert any(why in note for note in result.report.notes)
        assert given.SerializeToString() == before
