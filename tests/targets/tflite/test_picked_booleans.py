"""Masks that are picked by computed indices, in LiteRT against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from support.litert import compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')


@pytest.mark.parametrize("op", ["GatherND", "GatherElements"])
def test_booleans(op: str) -> None:
    mask = np.array([[True, False, True], [False, False, True]])
    index = np.array([[0, 2], [1, -1]]) if op == "GatherND" else np.array([[1, 1, 0], [0, -1, 1]])
    nodes = [
        helper.make_node(op, ["m", "i"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=1),
    ]
    compared(model_of(nodes, {"m": mask, "i": index}, ["y"]), {"m": mask, "i": index})
