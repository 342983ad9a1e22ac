"""Equalisation: the same function by onnxruntime, ranges that are equal, and what may not be crossed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from graphshrink import shrink
from graphshrink.api import load
from graphshrink.ir import Graph, Rewriter
from graphshrink.passes.quantize.equalize import Equalizer, equalize, segments
from support.onnx_run import outputs_of
from support.quantized import IMAGES, Net, error

MAKERS, READERS = ("first", "a.project", "b.project"), ("a.expand", "b.expand", "head")
"""The layers that compute the residual stream, and those that read it."""


def unequal(model: ModelProto) -> ModelProto:
    """The model with channels of the stream that are up to 400 times as large as others, and readers that undo it."""
    factors = np.exp(np.random.default_rng(7).uniform(-3, 3, 8))
    for tensor in model.graph.initializer:
        array, layer = numpy_helper.to_array(tensor).copy(), tensor.name[:-2]
        if layer in MAKERS:
            array *= factors.reshape(-1, *[1] * (array.ndim - 1))
        if layer in READERS and array.ndim > 1:
            array /= factors[:, None, None]
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return model


def residual(act: str = "Relu") -> ModelProto:
    """A stream that two blocks add to, between linear bottlenecks."""
    net = Net("n", 3, 12, 12)

    def activation(x: str) -> str:
        more = [net.constant(f"{x}.low", 0), net.constant(f"{x}.high", 6)] if act == "Clip" else []
        return net.add(act, [x, *more], f"{x}.act")

    stream = net.conv(activation(net.conv("x", "stem", 3, 16)), "first", 16, 8, 1)
    for name in ("a", "b"):
        inner = activation(net.conv(stream, f"{name}.expand", 8, 24, 1))
        inner = activation(net.conv(inner, f"{name}.depthwise", 24, 24, groups=24))
        out = net.conv(inner, f"{name}.project", 24, 8, 1)
        stream = net.add("Add", [stream, out], f"{name}.sum")
    return net.model(net.conv(activation(net.conv(stream, "head", 8, 12)), "last", 12, 4, 1))


def loaded(model: ModelProto) -> Graph:
    return load(model, None, None)[0]


def run(graph: Graph) -> Any:
    from graphshrink.targets.onnx.emitter import to_onnx

    return outputs_of(to_onnx(graph), IMAGES)[0]


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_the_network_stays_the_same(by: str) -> None:
    from graphshrink.data.calibration import calibrated

    model = unequal(residual())
    graph = loaded(model)
    rw = Rewriter(graph)
    factors = equalize(graph, rw, by, calibrated(graph, "onnx", IMAGES))
    assert max(f.max() / f.min() for f in factors.values()) > 10
    want = outputs_of(model, IMAGES)[0]
    np.testing.assert_allclose(run(graph), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_weights_on_both_sides_become_equal() -> None:
    graph = loaded(unequal(residual()))
    job = Equalizer(graph)
    job.by_weights()
    for segment in job.found:
        made = np.max([job._largest(n, True) for n in segment.makers], axis=0)
        read = np.max([job._largest(n, False) for n in segment.readers], axis=0)
        np.testing.assert_allclose(made, read, rtol=0.1)


def test_segments_are_whole_residual_streams() -> None:
    found = {
        tuple(n.name for n in s.makers): tuple(n.name for n in s.readers)
        for s in segments(loaded(residual()))
    }
    stream = ("first", "a.project", "b.project")
    assert found[stream] == ("a.expand", "b.expand", "head")
    assert found["a.expand",] == ("a.depthwise",)
    assert found["a.depthwise",] == ("a.project",)
    assert found["head",] == ("last",)
    assert len(found) == 7


def test_an_activation_with_an_upper_bound_is_not_crossed() -> None:
    found = [tuple(n.name for n in s.makers) for s in segments(loaded(residual("Clip")))]
    assert found == [("first", "a.project", "b.project")]


def test_outputs_and_other_readers_are_not_scaled() -> None:
    net = Net("n", 3, 12, 12)
    net.conv("x", "a", 3, 8)
    net.conv("a", "b", 8, 8)
    net.conv("b", "c", 8, 8)
    net.add("Exp", ["b"], "e")
    assert list(segments(loaded(net.model("c", "e", "a")))) == []


def test_unequal_channels_cost_less() -> None:
    model = unequal(residual())
    losses = {
        by: error(
            model,
            shrink(model, f"default,quantize{{equalize={by}}}", calibration=IMAGES).model,
            IMAGES,
        )
        for by in ("none", "weights", "activations")
    }
    assert losses["weights"] < 0.5 * losses["none"]
    assert losses["activations"] < 0.5 * losses["none"]
