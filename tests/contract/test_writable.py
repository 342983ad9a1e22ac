"""No pass makes a node that the host cannot express: our passes refuse or are undone, other passes get an error with their name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import PassError, Pipeline, ir, shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.torch.importer import from_fx, trace
from graphshrink.ir import Graph, Rewriter
from graphshrink.passes import Context, Pass
from graphshrink.targets.onnx.emitter import to_onnx, unwritable
from graphshrink.targets.torch.emitter import problem as fx_problem


def norms(opset: int = 17) -> ModelProto:
    """Two batch norms behind a reshape to a shape that is an input: the rank is unknown."""
    vectors = {"g": [1.5, 0.5, 2], "b": [0.5, 0, 1], "m": [0.1, 1, 2], "v": [2.0, 1, 0.5]}
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Reshape", ["x", "s"], ["i"]),
                helper.make_node("BatchNormalization", ["i", *vectors], ["p"], name="first"),
                helper.make_node("BatchNormalization", ["p", *vectors], ["q"], name="second"),
                helper.make_node("Relu", ["q"], ["y"], name="relu"),
            ],
            "norms",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
                helper.make_tensor_value_info("s", TensorProto.INT64, ["rank"]),
            ],
            [helper.make_empty_tensor_value_info("y")],
            [numpy_helper.from_array(np.array(a, np.float32), n) for n, a in vectors.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


FEEDS = {"x": np.ones((2, 3), np.float32), "s": np.array([2, 3])}


def test_a_merge_that_needs_the_rank_is_left_alone_with_the_reason() -> None:
    model = norms()
    result = shrink(model)
    assert result.model == model
    (merging,) = [r for r in result.report.passes if r.text == "merge-linear"]
    assert not merging.rewrites
    (refusal,) = [r for r in merging.refusals if r.node == "second"]
    assert "Scale of a value of unknown rank" in refusal.reason


def test_weights_that_nodes_compute_stay_computed_where_the_reader_cannot_be_written() -> None:
    model = norms()
    stored = next(t for t in model.graph.initializer if t.name == "b")
    wide = numpy_helper.to_array(stored).astype(np.float64)
    stored.CopyFrom(numpy_helper.from_array(wide, "wide"))
    model.graph.node.insert(0, helper.make_node("Cast", ["wide"], ["b"], to=TensorProto.FLOAT))
    result = shrink(model)
    assert result.model == model
    (folding,) = [r for r in result.report.passes if r.text == "fold-constants"]
    assert {r.node for r in folding.refusals} == {"first", "second"}


def unknown_slope(graph: Graph, rw: Rewriter) -> None:
    """A PReLU with a slope for each channel, of a value whose rank is not known."""
    node = next(n for n in graph.nodes if n.name == "relu")
    slope = rw.constant(ir.ArrayTensor(np.ones(3, np.float32)), "slope")
    rw.replace(node, ir.PRelu(1), [node.inputs[0], slope])


def test_a_pass_of_somebody_else_is_named() -> None:
    with pytest.raises(PassError, match=r"unknown-slope made relu.*PRelu of unknown rank"):
        shrink(norms(), [unknown_slope])
    result = shrink(norms(), [unknown_slope], check=True, example_inputs=FEEDS)
    assert result.report.passes[0].rolled_back
    assert "unknown-slope" in result.report.passes[0].problem


class Careless(Pass):
    """A pass of the package that does not ask first."""

    name = "careless"
    __module__ = "graphshrink.passes.careless"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        with rw.rewrite("make a node that cannot be said"):
            unknown_slope(graph, rw)


def test_a_pass_of_ours_is_undone() -> None:
    model = norms()
    result = shrink(model, [Careless(), "merge-linear,prune-dead"])
    assert result.model == model
    first = result.report.passes[0]
    assert not first.rewrites
    assert [r.reason for r in first.refusals] == ["careless was undone: PRelu of unknown rank"]


def test_a_node_that_could_not_be_said_before_is_nobodys_fault() -> None:
    graph = from_onnx(norms())
    unknown_slope(graph, Rewriter(graph))
    Pipeline("merge-linear,prune-dead").run(graph, Context(unwritable=unwritable(graph)))


OLD = [
    ("LayerNorm of unknown rank", 13, ir.LayerNorm(-1), 1),
    ("Gelu without Erf", 8, ir.Activation("gelu"), 1),
    ("Softmax of unknown rank", 11, ir.Softmax(1), 1),
    ("Expand", 7, ir.Expand((2, 3)), 1),
    ("pool with dilations", 9, ir.MaxPool((1, 1), (0, 0, 0, 0), (2, 2), (2, 2)), 1),
    ("Split", 7, ir.Split((1, 2), 1), 1),
    ("Clip", 13, ir.Activation("clip", (0.0, 1.0)), 1),
    ("Add", 7, ir.Add(), 2),
]


@pytest.mark.parametrize(("what", "opset", "op", "arity"), OLD, ids=lambda v: str(v))
def test_the_answer_is_what_writing_does(what: str, opset: int, op: ir.Op, arity: int) -> None:
    graph = from_onnx(norms(opset=opset))
    node = next(n for n in graph.nodes if n.name == "relu")
    x = node.inputs[0]
    made = graph.append(op, [x] * arity, types=[x.type] * (2 if what == "Split" else 1), name="new")
    graph.add_output(made.output, "z")
    reason = unwritable(graph)(made)
    if reason is None:
        to_onnx(graph)
    else:
        with pytest.raises(ir.ModelError) as error:
            to_onnx(graph)
        assert str(error.value) == f"new: {reason}"


def test_torch_is_asked_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 2, 2)
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.act(self.up(x))

    def lopsided(graph: Graph, rw: Rewriter) -> None:
        node = next(n for n in graph.nodes if isinstance(n.op, ir.Activation))
        rw.replace(node, ir.AveragePool((1, 1), (1, 0, 0, 1), (1, 1), (2, 2), True), node.inputs)

    with pytest.raises(PassError, match=r"lopsided made act.*AveragePool .* has no spelling"):
        shrink(Net().eval(), [lopsided])
    graph = from_fx(trace(Net().eval()), (torch.zeros(1, 2, 4, 4),))
    assert [fx_problem(node) for node in graph.nodes] == [None, None]
