"""Tensors that LiteRT's kernels overwrite in place, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper

from support.litert import codes, compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(3)

WRITERS = {
    "Mul": [helper.make_node("Mul", ["flat", "c"], ["z"])],
    "Sub": [helper.make_node("Sub", ["c", "flat"], ["z"])],
    "Div": [helper.make_node("Div", ["flat", "c"], ["z"])],
    "Softmax": [helper.make_node("Softmax", ["flat"], ["z"], axis=-1)],
    "Sigmoid": [helper.make_node("Sigmoid", ["flat"], ["z"])],
    "twice": [
        helper.make_node("Add", ["flat", "c"], ["a"]),
        helper.make_node("Mul", ["a", "c"], ["z"]),
    ],
}


def residual(writer: list[NodeProto], late: bool) -> list[NodeProto]:
    """A tensor that is reshaped and changed, and read again behind that, or returned."""
    end = helper.make_node("Add", ["last", "y"], ["sum"]) if late else None
    return [
        helper.make_node("Mul", ["x", "c"], ["x1"]),
        helper.make_node("Add", ["x1", "c"], ["y"]),
        helper.make_node("Reshape", ["y", "wide"], ["flat"]),
        *writer,
        helper.make_node("Mul", ["z", "c"], ["z1"]),
        helper.make_node("Reshape", ["z1", "back"], ["last"]),
        *([end] if end else []),
    ]


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_reshaped_tensor_is_not_overwritten(kind: str, late: bool) -> None:
    feeds = {"x": RNG.standard_normal((2, 6, 4)).astype(np.float32)}
    weights = {"c": np.float32([1.5]), "wide": np.array([2, 24]), "back": np.array([2, 6, 4])}
    outputs = ["sum"] if late else ["last", "y"]
    compared(model_of(residual(WRITERS[kind], late), feeds, outputs, weights), feeds)


def test_more_axes_than_a_transpose_has() -> None:
    feeds = {"x": RNG.standard_normal((2, 6, 4)).astype(np.float32)}
    weights = {"c": np.float32([1.5]), "wide": np.array([1, 2, 1, 6, 1, 4, 1]), "back": np.array([2, 6, 4])}  # fmt: skip
    compared(model_of(residual(WRITERS["Mul"], True), feeds, ["sum"], weights), feeds)


def test_nothing_is_copied_without_need() -> None:
    """The reshaped tensor has other readers, but all of them come first."""
    feeds = {"x": RNG.standard_normal((2, 6, 4)).astype(np.float32)}
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["y"]),
        helper.make_node("Exp", ["y"], ["first"]),
        helper.make_node("Reshape", ["y", "wide"], ["flat"]),
        *WRITERS["Mul"],
        helper.make_node("Tanh", ["z"], ["last"]),
    ]
    weights = {"c": np.float32([1.5]), "wide": np.array([2, 24])}
    flat = compared(model_of(nodes, feeds, ["first", "last"], weights), feeds)
    assert "TRANSPOSE" not in codes(flat)
