"""Stated types that are wrong, as onnx's own shape inference makes them of some pools, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphshrink import Rewriter, shrink
from graphshrink.ir import Graph, Opaque
from support.onnx_run import outputs_of

X = np.random.default_rng(5).standard_normal((1, 2, 2, 2)).astype(np.float32)


def respell(graph: Graph, rw: Rewriter) -> None:
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


WEIGHTS: dict[str, Any] = {
    "scales": np.float32([1, 1, 1.5, 2]), "tail": np.array([-1]), "one": np.float32([1]),
}  # fmt: skip

READERS = {
    "resize": [helper.make_node("Resize", ["p", "", "scales"], ["y"], mode="linear")],
    "shape": [
        helper.make_node("Shape", ["p"], ["all"]),
        helper.make_node("Reshape", ["flat", "all"], ["y"]),
        helper.make_node("Reshape", ["p", "tail"], ["flat"]),
    ],
    "behind others": [
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Shape", ["r"], ["all"]),
        helper.make_node("ConstantOfShape", ["all"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["y"]),
    ],
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_contradicted_types_are_not_believed(kind: str, fold: bool) -> None:
    """The last window of the pool would begin outside the image: onnx counts it, onnxruntime does not."""
    pool = helper.make_node(
        "AveragePool", ["x"], ["p"],
        kernel_shape=[2, 1], strides=[2, 2], pads=[1, 0, 1, 0], ceil_mode=1,
    )  # fmt: skip
    nodes: list[NodeProto] = [pool, *READERS[kind]]
    graph = helper.make_graph(
        nodes, "doubtful",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in WEIGHTS.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    before = outputs_of(model, {"x": X}, plain=True)[0]
    ordered = shrink(model, []).model
    typed = onnx.shape_inference.infer_shapes(ordered)
    stated = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in typed.graph.value_info}  # fmt: skip
    assert stated["p"] == [1, 2, 2, 2], "onnx infers it rightly now: another wrong type is needed"
    del typed.graph.output[:]
    typed.graph.output.append(helper.make_empty_tensor_value_info("y"))
    passes: list[Any] = ["fold-constants", respell, "prune-dead"] if fold else [respell]
    (got,) = outputs_of(shrink(typed, passes).model, {"x": X}, plain=True)
    np.testing.assert_allclose(got, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stated", [[1, "n"], ["n"], [2, 1, 4]])
def test_a_target_of_known_length_decides_the_rank(stated: list[Any]) -> None:
    """The output states another rank than the target has: the target is right."""
    nodes = [
        helper.make_node("Sin", ["x"], ["s"]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "zero", "one"], ["first"]),
        helper.make_node("Concat", ["first", "one", "tail"], ["target"], axis=0),
        helper.make_node("Reshape", ["s", "target"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "doubtful",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, stated)],
        [numpy_helper.from_array(np.array(a), n) for n, a in (("zero", [0]), ("one", [1]), ("tail", [-1]))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = shrink(model).model
    assert [n.op_type for n in made.graph.node] == ["Sin", "Reshape"]
    x = X.reshape(2, 4)
    for result in (made, shrink(model, [respell, "prune-dead"]).model):
        del result.graph.output[:]
        result.graph.output.append(helper.make_empty_tensor_value_info("y"))
        (got,) = outputs_of(result, {"x": x}, plain=True)
        np.testing.assert_allclose(got, np.sin(x)[:, None], rtol=1e-6)
