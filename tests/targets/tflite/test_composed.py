"""ONNX operators that are several ops, in LiteRT, against onnxruntime: on inputs, and on values stored channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque
from graphshrink.targets.onnx.emitter import to_onnx
from support.litert import compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = numbers(2, 4, 6, 5)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Any]] = {
    "logsumexp": ("ReduceLogSumExp", {"keepdims": 0}, {"axes": np.array([1, -1])}, 60 * IMAGE),
    "logsumexp-all": ("ReduceLogSumExp", {}, {}, IMAGE),
    "hardmax": ("Hardmax", {}, {}, IMAGE),
    "hardmax-channels": ("Hardmax", {"axis": 1}, {}, np.round(IMAGE)),
    "lp-1": ("LpNormalization", {"axis": 1, "p": 1}, {}, IMAGE),
    "lp-2": ("LpNormalization", {}, {}, np.where(IMAGE[..., :1] > 0, IMAGE, 0)),
    "mean-variance": ("MeanVarianceNormalization", {}, {}, IMAGE),
    "prelu-pixels": ("PRelu", {}, {"slope": numbers(6, 5)}, IMAGE),
    "prelu-all": ("PRelu", {}, {"slope": numbers(4, 6, 5)}, IMAGE),
}


@pytest.mark.parametrize("layered", [False, True], ids=["plain", "channels-last"])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str, layered: bool) -> None:
    kind, attributes, constants, x = CASES[name]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])] if layered else []
    held = constants | ({"w": numbers(4, 4, 1, 1)} if layered else {})
    source = "c" if layered else "x"
    nodes.append(helper.make_node(kind, [source, *constants], ["y"], **attributes))
    made = model_of(nodes, {"x": x}, ["y"], held)
    made.opset_import[0].version = 18
    flat = compared(made, {"x": x})
    assert not [o for o in flat.operations if o.code == "TRANSPOSE"]


@pytest.mark.parametrize("held", [(), ("variance",), ("scale", "bias")])
def test_a_batch_norm_with_computed_vectors(held: tuple[str, ...]) -> None:
    vectors = {n: numbers(4) for n in ("scale", "bias", "mean")} | {"variance": numbers(4) ** 2}
    constants = {n: v for n, v in vectors.items() if n in held}
    feeds = {"x": IMAGE} | {n: v for n, v in vectors.items() if n not in held}
    node = helper.make_node("BatchNormalization", ["x", *vectors], ["y"], epsilon=0.1)
    made = model_of([node], feeds, ["y"], constants)
    compared(made, feeds)
    assert to_onnx(from_onnx(made)) == made


def test_a_reduction_of_no_axes_is_left_alone_with_the_reason() -> None:
    node = helper.make_node("ReduceLogSumExp", ["x"], ["y"], noop_with_empty_axes=1)
    (made,) = from_onnx(model_of([node], {"x": IMAGE}, ["y"])).nodes
    assert isinstance(made.op, Opaque)
    assert "reduces nothing" in made.op.reason
