"""Reshapes that undo each other."""

from __future__ import annotations

import numpy as np
import pytest

from graphshrink import ir
from graphshrink.ir import DType, Exactness, Graph, Rewriter, TensorType, Value
from graphshrink.passes.cleanup.cancel_reshapes import cancel_reshapes
from support.evaluate import evaluate

RELU = ir.Activation("relu")


def chain(shape: tuple[int | str, ...], *operations: ir.Op) -> tuple[Graph, list[Value]]:
    """A graph of ops in a row, and the value behind each; the last one is its output."""
    graph = Graph("chain")
    values = [graph.add_input("x", TensorType(DType.F64, shape))]
    for op in operations:
        values.append(graph.append(op, [values[-1]]).output)
    graph.add_output(values[-1])
    return graph, values[1:]


def run(graph: Graph) -> list[str]:
    """Cancel in the whole graph; what is left. Its outputs must stay as they are."""
    want = evaluate(graph)
    rw = Rewriter(graph)
    cancel_reshapes(rw, list(graph.nodes))
    graph.verify()
    assert rw.worst is Exactness.EXACT
    for a, b in zip(evaluate(graph), want, strict=True):
        assert a.shape == b.shape
        assert np.array_equal(a, b)
    return [node.op.name for node in graph.nodes]


@pytest.mark.parametrize(
    ("operations", "left"),
    [
        ((ir.Reshape((4, 3)), ir.Reshape((2, 6)), RELU), ["Activation"]),
        ((ir.Reshape((4, 3)), RELU, ir.Reshape((2, 6)), RELU), ["Activation", "Activation"]),
        ((ir.Reshape((4, 3)), RELU, ir.Unary("exp"), ir.Reshape((12,)), RELU), ["Activation", "Unary", "Reshape", "Activation"]),
        ((ir.Unsqueeze((0,)), RELU, ir.Squeeze((0,)), RELU), ["Activation", "Activation"]),
        ((ir.Reshape((2, 3, 2)), ir.Flatten(1), RELU), ["Activation"]),
        ((ir.Reshape((4, 3)), ir.Reshape((3, 4)), ir.Reshape((12,)), RELU, ir.Reshape((2, 6)), RELU), ["Activation", "Activation"]),
        # An output keeps its own node.
        ((ir.Reshape((4, 3)), ir.Reshape((2, 6))), ["Reshape"]),
        ((ir.Reshape((4, 3)), RELU), ["Reshape", "Activation"]),
        # A softmax is no function of single elements.
        ((ir.Reshape((4, 3)), ir.Softmax(1), ir.Reshape((2, 6)), RELU), ["Reshape", "Softmax", "Reshape", "Activation"]),
    ],
)  # fmt: skip
def test_in_a_row(operations: tuple[ir.Op, ...], left: list[str]) -> None:
    graph, _ = chain((2, 6), *operations)
    assert run(graph) == left


def test_sizes_that_are_not_known_stay_as_they_are() -> None:
    graph, _ = chain(("n", 6), ir.Reshape((None, 3, 2)), ir.Reshape((None, 6)), RELU)
    assert run(graph) == ["Reshape", "Reshape", "Activation"]


def test_what_others_read_stays() -> None:
    graph, values = chain((2, 6), ir.Reshape((4, 3)), RELU, ir.Reshape((2, 6)), RELU)
    graph.add_output(values[0])
    assert run(graph) == ["Reshape", "Activation", "Activation"]
    graph, values = chain((2, 6), ir.Reshape((4, 3)), RELU, ir.Reshape((2, 6)), RELU)
    graph.add_output(values[1])
    assert run(graph) == ["Reshape", "Activation", "Reshape", "Activation"]
