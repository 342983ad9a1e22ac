"""Class tokens that are expanded to the batch size, for any batch size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn
from zoo.exports import example, small

from graphshrink import Pipeline
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Graph, Opaque
from graphshrink.ir.analysis import channel_groups
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate
from support.fx_calls import body, ops, respelled, traced
from support.permutations import freedom, permute_all


@cache
def vit(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """The zoo's vision transformer, whose class token is expanded to the batch, and a batch of three."""
    x = example("vit", dtype)
    return small("vit", dtype).eval(), torch.cat([x, x.flip(-1), x / 2])


@cache
def program(dtype: torch.dtype) -> Any:
    module, x = vit(dtype)
    free = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(module, (x,), dynamic_shapes=({0: free},))


@cache
def exported(dtype: torch.dtype) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program(dtype), dynamo=True, verbose=False, optimize=False)
    assert made is not None
    return made.model_proto


@pytest.mark.parametrize("way", ["trace", "export", "onnx"])
def test_a_class_token_is_permuted_with_the_rest(way: str) -> None:
    module, x = vit(torch.float64)
    graph: Graph = {
        "trace": lambda: from_fx(fx.symbolic_trace(module), (x[:1],)),
        "export": lambda: from_export(program(torch.float64)),
        "onnx": lambda: from_onnx(exported(torch.float64)),
    }[way]()
    Pipeline("fold-constants{max-growth=10000000},prune-dead").run(graph)
    found = channel_groups(graph)
    assert freedom(graph, found) >= 0.94
    (expand,) = (n for n in graph.nodes if n.op.name == "Expand")
    token = expand.inputs[0]
    assert token is not None
    assert token.data is not None
    ((group, place),) = found.along(token, 2)
    assert place.positions.size == 48
    assert {"place", "norm.weight"} <= {v.name for v in group.values}
    permute_all(graph)
    moved = expand.inputs[0]
    assert moved is not None
    assert moved.data is not None
    assert not np.array_equal(moved.data.float64(), token.data.float64())
    with torch.no_grad():
        want = module(x).numpy()
        if way == "onnx":
            (got,) = evaluate(graph, [x.numpy()])
        else:
            got = to_fx(graph)(x).numpy()
    assert np.abs(got - want).max() < 1e-10 * np.abs(want).max()


@pytest.mark.parametrize("way", ["copied", "spelled"])
def test_a_trace_runs_on_batches_of_any_size(way: str) -> None:
    module, x = vit()
    host = fx.symbolic_trace(module)
    graph = from_fx(host, (x[:1],))
    made = to_fx(graph) if way == "copied" else respelled(graph)
    # A parameter is fetched where it is read.
    lines = [sorted(body(m).splitlines()) for m in (made, host)]
    assert (lines[0] == lines[1]) == (way == "copied")
    with torch.no_grad():
        for rows in (x[:1], x, torch.cat([x, x])):
            torch.testing.assert_close(made(rows), module(rows), rtol=1e-5, atol=1e-6)


X = torch.randn(2, 3, 4, 5)


class Row(nn.Module):
    """A function of an input and of one row."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.row = nn.Parameter(torch.arange(15.0).reshape(1, 3, 1, 5))

    def forward(self, x: Any) -> Any:
        return self.function(x, self.row)


EXPANDS: dict[str, tuple[Callable[[Any, Any], Any], list[str]]] = {
    "method": (lambda x, row: x + row.expand(x.shape[0], 3, 4, 5), ["Add", "Expand"]),
    "tuple": (lambda x, row: x + row.expand((x.size(0), -1, x.shape[2], -1)), ["Add", "Expand"]),
    "as": (lambda x, row: x + row.expand_as(x), ["Add", "Expand"]),
    "in-front": (lambda x, row: row[0].expand(x.shape[0], 3, 4, 5) * x, ["Expand", "Mul"]),
    # An expand to the present size keeps it.
    "own": (lambda x, row: torch.relu(x.mean(2, keepdim=True)).expand(x.shape[0], 3, 7, 5),
            ["Activation", "Expand", "Reduce"]),
    # A product of sizes is not the size of any axis.
    "product": (lambda x, row: row.expand(x.shape[0] * 2, 3, 1, 5).sum(0) * x, []),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPANDS)
def test_expands_of_traced_modules(name: str) -> None:
    function, wanted = EXPANDS[name]
    model = Row(function).eval()
    host = fx.symbolic_trace(model)
    graph = from_fx(host, (X,))
    if wanted:
        assert [k for k in sorted(ops(graph)) if k != "Select"] == wanted
    else:
        assert any(isinstance(n.op, Opaque) for n in graph.nodes)
    expand = [n.op for n in graph.nodes if n.op.name == "Expand"]
    assert all(2 not in op.shape for op in expand)
    assert all(bool(op.like) == (name != "own") for op in expand)
    # A call that is not understood is copied, or refused.
    for made in (to_fx(graph), respelled(from_fx(host, (X,))) if wanted else to_fx(graph)):
        for x in (X, X[:1], torch.cat([X, X])):
            torch.testing.assert_close(made(x), model(x))


def test_what_is_written_in_place_is_not_expanded_past() -> None:
    """``expand`` returns a view of the same memory."""

    def function(x: Any) -> Any:
        wide = x.mean(0, keepdim=True).expand(x.shape[0], -1, -1, -1)
        return x.relu_() + wide

    graph = from_fx(traced(function), (X,))
    torch.testing.assert_close(to_fx(graph)(X.clone()), function(X.clone()))
