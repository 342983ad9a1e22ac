"""Parts of a graph as models: values within one host node can be fed and computed, by onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.targets.onnx.emitter import part_model, to_onnx
from support.onnx_run import outputs_of

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("cut", [0, 1])
def test_values_within_a_host_node(cut: int) -> None:
    """A sum of three is two nodes of the IR and one of the host."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "w", "x"], ["s"]), helper.make_node("Relu", ["s"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, [2, 3])],
        [info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(RNG.standard_normal((2, 3)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    read = from_onnx(model)
    value = list(read.nodes)[cut].output
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    front, feeds, names = part_model(read, read.inputs, [value])
    (between,) = outputs_of(front, {feeds[0]: x})
    assert [o.name for o in front.graph.output] == names
    behind, feeds, _ = part_model(read, [value, *read.inputs], read.outputs)
    (made,) = outputs_of(behind, dict(zip(feeds, (between, x), strict=True)))
    np.testing.assert_allclose(made, outputs_of(model, {"x": x})[0], rtol=1e-6)
    # What is behind the value follows it, not the inputs in front of it.
    assert value.name not in {n for node in behind.graph.node for n in node.output}
    assert to_onnx(read) == model
