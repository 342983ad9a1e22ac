"""Patterns of several host nodes that are one op, in every way in; what only looks like one is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from graphshrink import Pipeline
from graphshrink.frontends.export import from_export
from graphshrink.frontends.fx import from_fx
from graphshrink.frontends.onnx import from_onnx
from graphshrink.ir import Graph
from graphshrink.targets.fx import to_fx
from graphshrink.targets.onnx import to_onnx
from support.evaluate import evaluate
from support.fx_calls import Call, body, ops, respelled

torch.manual_seed(0)
X = torch.randn(2, 5, 8)


def divided(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d**2).mean(-1, keepdim=True) + 1e-6)


def multiplied(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-6) * d


class Affine(nn.Module):
    """A layer norm written out, with a scale and a shift."""

    def __init__(self, norm: Callable[[Any], Any], shift: bool = True) -> None:
        super().__init__()
        self.norm, self.scale = norm, nn.Parameter(torch.rand(8) + 0.5)
        self.shift = nn.Parameter(torch.randn(8)) if shift else None

    def forward(self, x: Any) -> Any:
        y = self.norm(x) * self.scale
        return y if self.shift is None else y + self.shift


def every_way_in(module: nn.Module, x: torch.Tensor) -> list[Graph]:
    """The graphs of a module as traced, exported and in ONNX, without what is computed for nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = torch.onnx.export(module, (x,), dynamo=True, verbose=False, optimize=False)
    assert proto is not None
    assert to_onnx(from_onnx(proto.model_proto)) == proto.model_proto
    graphs = [
        from_fx(fx.symbolic_trace(module), (x,)),
        from_export(torch.export.export(module, (x,))),
        from_onnx(proto.model_proto),
    ]
    for graph in graphs:
        Pipeline("fold-constants,prune-dead").run(graph)
    return graphs


@pytest.mark.parametrize("module", [
    Affine(divided), Affine(multiplied), Affine(divided, shift=False), Call(multiplied),
])  # fmt: skip
def test_layer_norm_written_out(module: nn.Module) -> None:
    want = module(X).detach()
    graphs = every_way_in(module.eval(), X)
    for graph in graphs:
        assert ops(graph) == ["LayerNorm"]
        (node,) = (n for n in graph.nodes if n.op.name == "LayerNorm")
        assert node.op.epsilon == 1e-6
    (got,) = evaluate(graphs[2], [X.double().numpy()])
    torch.testing.assert_close(torch.from_numpy(got).float(), want, rtol=1e-5, atol=1e-5)
    traced = fx.symbolic_trace(module)
    graph = from_fx(traced, (X,))
    assert body(to_fx(graph)) == body(traced)
    torch.testing.assert_close(respelled(graph)(X), want, rtol=1e-5, atol=1e-5)


def other_mean(x: Any) -> Any:
    d = x - x.mean(1, keepdim=True)
    return d / torch.sqrt((d**2).mean(-1, keepdim=True) + 1e-6)


def other_centre(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)


def cubed(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d**3).mean(-1, keepdim=True) + 1e-6)


def read_inside(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d**2).mean(-1, keepdim=True) + 1e-6) + d


def negative(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d**2).mean(-1, keepdim=True) + -1e-6)


def turned(x: Any) -> Any:
    d = x - x.mean(-1, keepdim=True)
    return torch.sqrt((d**2).mean(-1, keepdim=True) + 1e-6) / d


def rms(x: Any) -> Any:
    return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    "function", [other_mean, other_centre, cubed, read_inside, negative, turned, rms]
)
def test_what_is_no_layer_norm(function: Callable[[Any], Any]) -> None:
    traced = fx.symbolic_trace(Call(function))
    graph = from_fx(traced, (X,))
    assert "LayerNorm" not in ops(graph)
    assert body(to_fx(graph)) == body(traced)


def test_not_equal_and_rsqrt() -> None:
    module = Call(lambda x: torch.where(x != 0.0, torch.rsqrt(x * x + 1.0), x)).eval()
    for graph in every_way_in(module, X):
        assert sorted(ops(graph)) == ["Compare", "Mul", "Scale", "Unary", "Where"]
        assert {"not_equal", "rsqrt"} < {getattr(n.op, "kind", "") for n in graph.nodes}
