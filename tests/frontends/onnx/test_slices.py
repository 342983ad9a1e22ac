"""Slices whose bounds a model computes: from sizes, from other values, or from an input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from graphshrink import ir
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Graph, Opaque, Rewriter
from graphshrink.targets.onnx.emitter import to_onnx
from support.litert import model_of
from support.onnx_run import outputs_of

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 5, 6)).astype(np.float32)
END, START = 2**63 - 1, -(2**63)


def sliced(
    constants: dict[str, Any],
    feeds: dict[str, Any],
    shape: list[Any] | None = None,
    opset: int = 17,
) -> tuple[ModelProto, dict[str, Any]]:
    """A Slice of ``x`` whose other inputs are constants or further inputs."""
    names = [n if n in constants or n in feeds else "" for n in ("s", "e", "a", "t")]
    while not names[-1]:
        names.pop()
    given = {"x": X, **feeds}
    node = helper.make_node("Slice", ["x", *names], ["y"])
    made = model_of([node], given, ["y"], constants, {"x": shape} if shape else None)
    made.opset_import[0].version = opset
    return made, given


def respelled(graph: Graph) -> ModelProto:
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            Rewriter(graph).replace(node, node.op, node.inputs)
    return to_onnx(graph)


def ints(*found: int) -> Any:
    return np.array(found, np.int64)


COMPUTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "both": ({"a": ints(1, -1)}, {"s": ints(1, 0), "e": ints(4, -1)}),
    "end": ({"s": ints(0), "a": ints(1)}, {"e": ints(3)}),
    "start": ({"e": ints(END), "a": ints(2)}, {"s": ints(-2)}),
    "steps": ({"a": ints(2, 1), "t": ints(2, 3)}, {"s": ints(1, 0), "e": ints(END, 5)}),
    "nothing": ({"a": ints(1)}, {"s": ints(3), "e": ints(2)}),
    "far": ({"a": ints(1)}, {"s": ints(START), "e": ints(END)}),
    "first-axes": ({}, {"s": ints(1, 0, 2), "e": ints(2, 5, 6)}),
    "narrow": ({"a": np.int32([1])}, {"s": np.int32([1]), "e": np.int32([2**31 - 1])}),
}


@pytest.mark.parametrize("opset", [10, 11, 17])
@pytest.mark.parametrize("shape", [None, ["n", "c", "w"]], ids=["known", "open"])
@pytest.mark.parametrize("name", COMPUTED)
def test_bounds_that_are_inputs(name: str, shape: Any, opset: int) -> None:
    before, feeds = sliced(*COMPUTED[name], shape, opset)
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    (node,) = graph.nodes
    assert isinstance(node.op, ir.DynamicSlice)
    want, got = (outputs_of(m, feeds, plain=True)[0] for m in (before, respelled(graph)))
    np.testing.assert_array_equal(got, want)
    assert node.output.type.accepts(ir.TensorType(ir.DType.F32, want.shape))


def test_computed_bounds_that_go_backwards() -> None:
    before, _ = sliced({"a": ints(1), "t": ints(-1)}, {"s": ints(4), "e": ints(0)})
    (node,) = from_onnx(before).nodes
    assert isinstance(node.op, Opaque)
    assert "backwards" in node.op.reason


def test_unknown_steps_stay_opaque() -> None:
    before, _ = sliced({"s": ints(0), "e": ints(4), "a": ints(1)}, {"t": ints(2)})
    (node,) = from_onnx(before).nodes
    assert isinstance(node.op, Opaque)


def cropped(axis: int, source: str) -> tuple[ModelProto, dict[str, Any]]:
    """``x`` is cut to the size of an axis of ``source``."""
    z = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Shape", [source], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["size"]),
        helper.make_node("Slice", ["x", "zero", "size", "axis"], ["y"]),
    ]
    feeds = {"x": X, "z": z}
    constants = {"axis": ints(axis), "zero": ints(0)}
    shapes: dict[str, list[int | str]] = {"x": ["n", 5, "w"], "z": ["n", 3, "v"]}
    return model_of(nodes, feeds, ["y"], constants, shapes), feeds


@pytest.mark.parametrize(
    ("axis", "source", "becomes"),
    [(1, "x", ir.Identity), (2, "x", ir.Identity), (1, "z", ir.Slice), (2, "z", ir.DynamicSlice)],
)
def test_bounds_that_are_sizes(axis: int, source: str, becomes: type[ir.Op]) -> None:
    before, feeds = cropped(axis, source)
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    node = list(graph.nodes)[-1]
    assert type(node.op) is becomes
    want, got = (outputs_of(m, feeds, plain=True)[0] for m in (before, respelled(graph)))
    np.testing.assert_array_equal(got, want)
