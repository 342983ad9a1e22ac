"""Padding that repeats the edge or wraps, in LiteRT against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from support.litert import compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mode", ["edge", "wrap"])
@pytest.mark.parametrize(
    ("shape", "pads"),
    [
        ((1, 3, 4, 5), (0, 0, 1, 2, 0, 0, 3, 0)),
        ((1, 3, 4, 5), (0, 1, 0, -1, 0, 2, 0, 2)),
        ((2, 4), (1, 0, 0, 3)),
        ((1,), (2, 2)),
    ],
)
def test_edge_and_wrap(mode: str, shape: tuple[int, ...], pads: tuple[int, ...]) -> None:
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    nodes = [helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)]
    compared(model_of(nodes, feeds, ["y"], {"p": np.array(pads)}), feeds)


@pytest.mark.parametrize("mode", ["edge", "wrap"])
def test_between_convolutions(mode: str) -> None:
    feeds = {"x": RNG.standard_normal((1, 3, 6, 5)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Pad", ["a", "p"], ["b"], mode=mode),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    weights = {
        "w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "v": RNG.standard_normal((2, 4, 3, 3)).astype(np.float32),
        "p": np.array((0, 0, 1, 1, 0, 0, 1, 2)),
    }
    compared(model_of(nodes, feeds, ["y"], weights), feeds)
