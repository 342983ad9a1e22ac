"""Nodes whose results change their sizes, and what the targets make of what the host said about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from graphshrink.api import load
from graphshrink.ir import (
    Activation,
    Add,
    ArrayTensor,
    Conv,
    Graph,
    GraphError,
    Pad,
    Rewriter,
    Scale,
)
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate
from support.onnx_run import outputs_of


def model(**window: Any) -> onnx.ModelProto:
    """Conv, batch norm and a global pool, with the types of all values stated."""
    rng = np.random.default_rng(0)
    tensors = {"w": (4, 3, 2, 2), "a": (4,), "b": (4,), "m": (4,)}
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in tensors.items()}
    weights["v"] = np.full(4, 2.0, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", **window),
            helper.make_node("BatchNormalization", ["c", "a", "b", "m", "v"], ["n"], name="norm"),
            helper.make_node("GlobalAveragePool", ["n"], ["y"], name="pool"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 1, 1])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def cropped(graph: Graph) -> Rewriter:
    """Cut one row and one column off the input, so that everything up to the pool gets smaller."""
    conv, norm, _ = graph.nodes
    rw = Rewriter(graph)
    crop = rw.insert(Pad((0, 0, -1, -1, 0, 0, 0, 0)), [graph.inputs[0]], before=conv)
    rw.resize(conv, conv.op, [crop.output, *conv.inputs[1:]])
    rw.resize(norm, norm.op, norm.inputs)
    graph.verify()
    return rw


@pytest.mark.parametrize("window", [{"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {}], ids=str)
def test_onnx(window: dict[str, Any]) -> None:
    host = model(**window)
    graph, _ = load(host)
    cropped(graph)
    emitted = to_onnx(graph)
    # onnx finds the same sizes everywhere, and none that was stated before is left.
    onnx.checker.check_model(emitted, full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (got,), (want,) = outputs_of(emitted, {"x": x}, plain=True), evaluate(graph, [x])
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    # What auto_pad stands for depends on the size: at the old one it added nothing.
    (conv,) = (n for n in emitted.graph.node if n.op_type == "Conv")
    assert not any(a.name == "auto_pad" for a in conv.attribute)
    # The norm is still the host's own.
    assert sum(n.op_type == "BatchNormalization" for n in emitted.graph.node) == 1


def test_fx_keeps_the_module_and_forgets_the_sizes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(1, 3, 8, 8)
    traced = fx.symbolic_trace(module)
    fx.passes.shape_prop.ShapeProp(traced).propagate(x)
    graph, _ = load(traced, (x,))
    cropped(graph)
    emitted = to_fx(graph)
    assert emitted.get_submodule("0") is module[0]
    assert emitted.get_submodule("1") is module[1]
    assert torch.equal(emitted(x), module(x[:, :, 1:, 1:]))
    stated = [n.name for n in emitted.graph.nodes if "tensor_meta" in n.meta]
    assert stated == ["input_1", "_2", "output"]


def test_resize_refuses() -> None:
    graph, _ = load(model())
    pool = list(graph.nodes)[-1]
    rw = Rewriter(graph)
    with pytest.raises(GraphError, match="output of the graph"):
        rw.resize(pool, pool.op, pool.inputs)
    assert not rw.changed


def test_another_op_drops_the_origin() -> None:
    graph, _ = load(model())
    conv, norm, _ = graph.nodes
    rw = Rewriter(graph)
    assert isinstance(conv.op, Conv)
    rw.resize(conv, Conv((1, 1), (1, 1, 1, 1), (1, 1)), conv.inputs)
    rw.resize(norm, norm.op, norm.inputs)
    assert conv.origin is None
    assert isinstance(norm.op, Scale)
    assert norm.origin is not None
    assert [v.type.static_shape for v in (conv.output, norm.output)] == [(1, 4, 9, 9)] * 2
    graph.verify()


def test_new_nodes_have_names_of_their_own() -> None:
    graph, _ = load(model())
    _, norm, pool = graph.nodes
    rw = Rewriter(graph)
    first = rw.insert(Activation("relu"), [norm.output], after=norm, name="norm")
    second = rw.insert(Activation("tanh"), [norm.output], after=first, name="norm")
    both = rw.insert(Add(), [first.output, second.output], after=second, name="sum")
    rw.set_input(pool, 0, both.output)
    emitted = to_onnx(graph)
    names = [n.name for n in emitted.graph.node]
    assert names == ["conv", "norm", "norm_1", "norm_2", "sum", "pool"]
    outputs_of(emitted, {"x": np.zeros((1, 3, 8, 8), np.float32)}, plain=True)


def test_new_modules_stay_outside_of_the_hosts_own() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU()).eval()
    graph, _ = load(fx.symbolic_trace(module), (torch.randn(1, 3, 8, 8),))
    conv, relu = graph.nodes
    rw = Rewriter(graph)
    weight = rw.constant(ArrayTensor(np.ones((4, 4, 1, 1), np.float32)))
    op = Conv((1, 1), (0, 0, 0, 0), (1, 1))
    made = rw.insert(op, [conv.output, weight], after=conv, name="0.more")
    rw.set_input(relu, 0, made.output)
    emitted = to_fx(graph)
    assert emitted.get_submodule("0") is module[0]
    assert isinstance(emitted.get_submodule("0_more"), nn.Conv2d)
    torch.testing.assert_close(
        emitted(torch.ones(1, 3, 2, 2)),
        module[0](torch.ones(1, 3, 2, 2)).sum(1, True).relu().expand(-1, 4, -1, -1),
    )
    assert not list(module[0].children())
