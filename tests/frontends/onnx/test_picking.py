"""TopK, GatherElements, GatherND and Range in their forms: read, spelled again, and the same by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import ir
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque, Rewriter
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import outputs_of

RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)
TIES = np.float32([[1, 3, 3, 2], [5, -1, 5, 5], [0, 0, 0, 0]])


def ints(*found: int) -> Any:
    return np.array(found, np.int64)


def places(high: int, *shape: int) -> Any:
    return RNG.integers(-high, high, shape)


Case = tuple[str, tuple[Any, ...], dict[str, Any], int, int]
"""Operator, operands (the first ``inputs`` of them are inputs of the graph), attributes, opset, inputs."""

READ: dict[str, Case] = {
    "topk": ("TopK", (TIES, ints(2)), {}, 17, 1),
    "topk-first-axis": ("TopK", (TIES, ints(2)), {"axis": 0}, 17, 1),
    "topk-back": ("TopK", (IMAGE, ints(3)), {"axis": -2}, 11, 1),
    "topk-smallest": ("TopK", (TIES, ints(3)), {"largest": 0}, 17, 1),
    "topk-all": ("TopK", (TIES, ints(4)), {}, 17, 1),
    "topk-none": ("TopK", (TIES, ints(0)), {}, 17, 1),
    "topk-of-nothing": ("TopK", (TIES[:, :0], ints(0)), {}, 17, 1),
    "topk-of-no-rows": ("TopK", (TIES[:0], ints(2)), {}, 17, 1),
    "topk-vector": ("TopK", (TIES[0], ints(2)), {"axis": 0}, 17, 1),
    "topk-integers": ("TopK", (TIES.astype(np.int64), ints(2)), {"axis": 1}, 17, 1),
    "topk-10": ("TopK", (TIES, ints(2)), {"axis": 1}, 10, 1),
    "topk-9": ("TopK", (TIES,), {"k": 2}, 9, 1),
    "topk-24": ("TopK", (TIES, ints(2)), {}, 23, 1),
    "elements": ("GatherElements", (IMAGE, places(2, 2, 4, 6, 5)), {}, 17, 2),
    "elements-back": ("GatherElements", (IMAGE, places(6, 2, 4, 3, 5)), {"axis": -2}, 11, 2),
    "elements-constant": ("GatherElements", (IMAGE, places(4, 2, 9, 6, 5)), {"axis": 1}, 17, 1),
    "elements-shorter": ("GatherElements", (IMAGE, places(5, 1, 3, 2, 7)), {"axis": 3}, 17, 2),
    "elements-none": ("GatherElements", (IMAGE, places(5, 2, 4, 6, 0)), {"axis": 3}, 17, 2),
    "elements-vector": ("GatherElements", (IMAGE[0, 0, 0], places(5, 8)), {}, 17, 2),
    "elements-narrow": ("GatherElements", (IMAGE, places(2, 2, 4, 6, 5).astype(np.int32)), {}, 13, 2),
    "nd": ("GatherND", (IMAGE, places(2, 3, 2)), {}, 17, 2),
    "nd-one": ("GatherND", (IMAGE, places(2, 3, 1)), {}, 11, 2),
    "nd-all": ("GatherND", (IMAGE, places(2, 7, 4)), {}, 17, 1),
    "nd-one-vector": ("GatherND", (IMAGE, places(2, 2)), {}, 17, 2),
    "nd-deep": ("GatherND", (IMAGE, places(2, 2, 3, 1, 2)), {}, 17, 1),
    "nd-batch": ("GatherND", (IMAGE, places(4, 2, 3, 2)), {"batch_dims": 1}, 12, 2),
    "nd-batches": ("GatherND", (IMAGE, places(5, 2, 4, 2)), {"batch_dims": 2}, 17, 2),
    "nd-none": ("GatherND", (IMAGE, places(2, 0, 2)), {}, 17, 2),
    "range": ("Range", (np.array(2), np.array(9), np.array(3)), {}, 17, 3),
    "range-down": ("Range", (np.array(2), np.array(-9), np.array(-3)), {}, 11, 1),
    "range-empty": ("Range", (np.array(2), np.array(-9), np.array(3)), {}, 17, 2),
    "range-floats": ("Range", (np.float32(2), np.float32(3), np.float32(0.3)), {}, 17, 3),
    "range-narrow": ("Range", tuple(np.int32([0, 4, 1])), {}, 17, 2),
}  # fmt: skip
OPS = {"TopK": ir.TopK, "GatherElements": ir.GatherElements, "GatherND": ir.GatherNd, "Range": ir.Range}  # fmt: skip


def model(case: Case, open_sizes: bool = False) -> tuple[ModelProto, dict[str, Any]]:
    kind, operands, attributes, opset, inputs = case
    feeds = {f"x{i}": np.asarray(x) for i, x in enumerate(operands[:inputs])}
    rest = {f"x{i + inputs}": np.asarray(x) for i, x in enumerate(operands[inputs:])}
    outputs = ["y", "z"] if kind == "TopK" else ["y"]
    graph = helper.make_graph(
        [helper.make_node(kind, [*feeds, *rest], outputs, name="n", **attributes)],
        "g",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(x.dtype),
                [f"d{a}" for a in range(x.ndim)] if open_sizes else x.shape,
            )
            for name, x in feeds.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(x, name) for name, x in rest.items()],
    )
    for output in graph.output:
        output.ClearField("type")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), feeds  # fmt: skip


@pytest.mark.parametrize("open_sizes", [False, True], ids=["known", "open"])
@pytest.mark.parametrize("name", READ)
def test_read_and_spelled_again(name: str, open_sizes: bool) -> None:
    before, feeds = model(READ[name], open_sizes)
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    (node,) = graph.nodes
    if open_sizes and READ[name][0] == "GatherND" and READ[name][-1] == 2:
        assert isinstance(node.op, Opaque)
        assert "index vectors" in node.op.reason
        return
    assert isinstance(node.op, OPS[READ[name][0]])
    Rewriter(graph).replace(node, node.op, node.inputs)
    for want, got in zip(*(outputs_of(m, feeds, plain=True) for m in (before, to_onnx(graph))), strict=True):  # fmt: skip
        assert want.dtype == got.dtype
        np.testing.assert_array_equal(got, want)
    for value, array in zip(graph.outputs, outputs_of(before, feeds, plain=True), strict=True):
        assert value.type.accepts(ir.TensorType(ir.DType.of(array.dtype), array.shape))


LEFT: dict[str, tuple[Case, str]] = {
    "unsorted": (("TopK", (TIES, ints(2)), {"sorted": 0}, 17, 1), "no defined order"),
    "computed": (("TopK", (TIES, ints(2)), {}, 17, 2), "is computed"),
    "too-many": (("TopK", (TIES, ints(5)), {}, 17, 1), "the first 5 of 4 numbers"),
    "no-integers": (("GatherElements", (TIES, TIES), {}, 17, 2), "not integers"),
    "ranks": (
        ("GatherElements", (IMAGE, places(2, 3)), {}, 17, 2),
        "GatherElements of f32[2, 4, 6, 5]",
    ),
    "long-vectors": (("GatherND", (TIES, places(2, 2, 3)), {}, 17, 2), "GatherNd of f32[3, 4]"),
    "vector-bounds": (
        ("Range", (ints(0), ints(4), ints(1)), {}, 17, 2),
        "does not read these arguments",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    case, reason = LEFT[name]
    before, _ = model(case)
    graph = from_onnx(before)
    assert to_onnx(graph) == before
    (node,) = graph.nodes
    assert isinstance(node.op, Opaque)
    assert reason in node.op.reason
