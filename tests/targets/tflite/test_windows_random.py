"""Convolutions and pools of any shape, LiteRT against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from graphshrink import ModelError
from support.litert import codes, compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])


def window(draw: Any, rank: int, dilated: bool = True) -> tuple[dict[str, Any], list[int]]:
    """Attributes of a window, and the sizes of an image that it fits."""
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    dilations = [draw(st.sampled_from([1, 1, 2])) if dilated else 1 for _ in range(rank)]
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "dilations": dilations,
        "pads": pads,
    }
    sizes = [draw(st.integers(1, 9)) for _ in range(rank)]
    for size, k, d, b, e in zip(sizes, kernel, dilations, pads, pads[rank:], strict=False):
        assume(size + b + e >= 1 + (k - 1) * d)
    return attributes, sizes


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@FEW
@given(st.data(), st.integers(1, 2), st.sampled_from([None, "Relu", "Clip"]))
def test_conv(data: st.DataObject, rank: int, act: str | None) -> None:
    attributes, sizes = window(data.draw, rank)
    groups, per_in, per_out = data.draw(
        st.sampled_from([(1, 1, 1), (1, 3, 4), (3, 1, 1), (3, 1, 2), (2, 3, 2)])
    )
    x = numbers(data.draw(st.integers(1, 2)), groups * per_in, *sizes)
    weights = {"w": numbers(groups * per_out, per_in, *attributes["kernel_shape"])}
    if data.draw(st.booleans()):
        weights["b"] = numbers(groups * per_out)
    nodes = [helper.make_node("Conv", ["x", *weights], ["y"], group=groups, **attributes)]
    if act:
        weights |= {"low": np.float32(0), "high": np.float32(6)} if act == "Clip" else {}
        nodes.append(
            helper.make_node(act, ["y", *(["low", "high"] if act == "Clip" else [])], ["z"])
        )
    model = compared(model_of(nodes, {"x": x}, ["z" if act else "y"], weights), {"x": x})
    found = codes(model)
    assert "TRANSPOSE" not in found
    assert not {"RELU", "RELU6"} & set(found)
    depthwise = groups > 1 and per_in == 1
    assert ("DEPTHWISE_CONV_2D" in found) == depthwise


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1, 1, 1]},
        {"strides": [2, 2, 1], "pads": [0, 1, 2, 1, 0, 1]},
        {"dilations": [1, 2, 1], "pads": [0, 1, 0, 0, 1, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [1, 2, 2]},
    ],
)
def test_conv_of_volumes(attributes: dict[str, Any]) -> None:
    x = numbers(2, 3, 4, 7, 6)
    weights = {"w": numbers(4, 3, 2, 3, 3), "b": numbers(4)}
    nodes = [
        helper.make_node("Conv", ["x", *weights], ["y"], **attributes),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    found = codes(compared(model_of(nodes, {"x": x}, ["z"], weights), {"x": x}))
    assert "CONV_3D" in found
    assert not {"TRANSPOSE", "RELU"} & set(found)


def test_grouped_conv_of_volumes_is_refused() -> None:
    x, w = numbers(1, 4, 3, 3, 3), numbers(4, 2, 2, 2, 2)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    with pytest.raises(ModelError, match="3-D with groups"):
        compared(model_of([node], {"x": x}, ["y"], {"w": w}), {"x": x})


@FEW
@given(st.data(), st.integers(1, 2))
def test_conv_transpose(data: st.DataObject, rank: int) -> None:
    attributes, sizes = window(data.draw, rank)
    groups, per_in, per_out = data.draw(st.sampled_from([(1, 3, 4), (3, 1, 2), (2, 2, 3)]))
    extra = [data.draw(st.integers(0, s - 1)) for s in attributes["strides"]]
    attributes["output_padding"] = extra
    for i, size in enumerate(sizes):
        full = (size - 1) * attributes["strides"][i] + 1 + extra[i]
        full += (attributes["kernel_shape"][i] - 1) * attributes["dilations"][i]
        assume(full > attributes["pads"][i] + attributes["pads"][rank + i])
    x = numbers(data.draw(st.integers(1, 2)), groups * per_in, *sizes)
    weights = {"w": numbers(groups * per_in, per_out, *attributes["kernel_shape"])}
    if data.draw(st.booleans()):
        weights["b"] = numbers(groups * per_out)
    node = helper.make_node("ConvTranspose", ["x", *weights], ["y"], group=groups, **attributes)
    compared(model_of([node], {"x": x}, ["y"], weights), {"x": x})


@FEW
@given(st.data(), st.integers(1, 2), st.booleans(), st.booleans())
def test_average_pool(data: st.DataObject, rank: int, ceil: bool, counted: bool) -> None:
    attributes, sizes = window(data.draw, rank, dilated=False)
    attributes |= {"ceil_mode": int(ceil), "count_include_pad": int(counted)}
    x = numbers(2, 3, *sizes) + 1
    node = helper.make_node("AveragePool", ["x"], ["y"], **attributes)
    compared(model_of([node], {"x": x}, ["y"]), {"x": x})


@FEW
@given(st.data(), st.integers(1, 2), st.booleans(), st.booleans())
def test_max_pool(data: st.DataObject, rank: int, ceil: bool, relu: bool) -> None:
    attributes, sizes = window(data.draw, rank, dilated=False)
    attributes |= {"ceil_mode": int(ceil)}
    x = numbers(2, 3, *sizes) - 1.5
    nodes = [helper.make_node("MaxPool", ["r" if relu else "x"], ["y"], **attributes)]
    if relu:
        x += 2
        nodes.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    found = codes(compared(model_of(nodes, {"x": x}, ["y"]), {"x": x}))
    assert not (relu and "PADV2" in found)


def test_stride_two_needs_a_pad_and_stride_one_does_not() -> None:
    """A symmetric pad of 1 on an even size: SAME would put it behind, the model has it in front."""
    x, weights = numbers(1, 3, 8, 8), {"w": numbers(4, 3, 3, 3)}
    for stride, wanted in ((1, ["CONV_2D"]), (2, ["PAD", "CONV_2D"])):
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, strides=[stride] * 2)
        assert codes(compared(model_of([node], {"x": x}, ["y"], weights), {"x": x})) == wanted
    x = numbers(1, 3, 9, 9)  # On an odd size the two are the same.
    assert codes(compared(model_of([node], {"x": x}, ["y"], weights), {"x": x})) == ["CONV_2D"]


def test_grouped_convolutions_have_their_version_and_a_note() -> None:
    from graphshrink.frontends.onnx.importer import from_onnx
    from graphshrink.targets.tflite import Options
    from graphshrink.targets.tflite.convert import flat_model
    from graphshrink.targets.tflite.versions import version_of

    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    made = model_of([node], {"x": numbers(1, 6, 5, 5)}, ["y"], {"w": numbers(4, 3, 3, 3)})
    model, notes, _ = flat_model(from_onnx(made), Options())
    assert [version_of(operation) for operation in model.operations] == [6]
    assert any("XNNPACK only" in note for note in notes)
