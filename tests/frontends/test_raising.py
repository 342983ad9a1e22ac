"""Patterns of several host nodes that are one op, in every way in; what only looks like one is left alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from graphshrink import Pipeline, shrink_graph
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Graph
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.emitter import to_fx
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


ROOT = math.sqrt(2 / math.pi)
GELUS: dict[str, Callable[[Any], Any]] = {
    "pow": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "onnx": lambda x: 0.5 * (x * (torch.tanh(ROOT * (x + 0.044715 * x**3)) + 1.0)),
    "products": lambda x: x * (0.5 * (1.0 + torch.tanh((x * x * x * 0.044715 + x) * 0.7978845608))),
    "square": lambda x: x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * (x * x**2)))) * 0.5,
}


@pytest.mark.parametrize("name", GELUS)
def test_gelu_with_tanh_written_out(name: str) -> None:
    module = Call(GELUS[name]).eval()
    want = nn.functional.gelu(X, approximate="tanh")
    for graph in every_way_in(module, X):
        assert ops(graph) == ["Activation"]
        (node,) = (n for n in graph.nodes if n.op.name == "Activation")
        assert node.op.kind == "gelu_tanh"
    traced = fx.symbolic_trace(module)
    assert body(to_fx(from_fx(traced, (X,)))) == body(traced)
    torch.testing.assert_close(respelled(from_fx(traced, (X,)))(X), want, rtol=1e-5, atol=1e-6)


def kept_inside(x: Any) -> Any:
    t = torch.tanh(ROOT * (x + 0.044715 * x**3))
    return 0.5 * x * (1.0 + t) + t


@pytest.mark.parametrize("function", [
    lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.04472 * x**3))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(0.7979 * (x + 0.044715 * x**3))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x**2))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * (x * x) * (x * x)))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x - 0.044715 * x**3))),
    lambda x: 0.5 * x * (1.001 + torch.tanh(ROOT * (x + 0.044715 * x**3))),
    lambda x: 0.25 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x**3))),
    lambda x: 0.5 * x.abs() * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x**3))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x.abs() ** 3))),
    lambda x: 0.5 * x * (1.0 + torch.sin(ROOT * (x + 0.044715 * x**3))),
    lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(0.5) * x)),
    kept_inside,
])  # fmt: skip
def test_what_is_no_gelu(function: Callable[[Any], Any]) -> None:
    module = Call(function).eval()
    for graph in every_way_in(module, X):
        kinds = {getattr(n.op, "kind", "") for n in graph.nodes}
        assert not kinds & {"gelu", "gelu_tanh"}
    traced = fx.symbolic_trace(module)
    assert body(to_fx(from_fx(traced, (X,)))) == body(traced)


def test_gelu_of_doubles_has_all_their_digits() -> None:
    """The constant of GPT-2's paper code, cut to ten digits, is another one in float64."""
    for function, wanted in ((GELUS["pow"], ["Activation"]), (GELUS["products"], None)):
        found = ops(from_fx(fx.symbolic_trace(Call(function)), (X.double(),)))
        assert (found == ["Activation"]) == (wanted is not None)


def test_sums_of_what_has_no_inputs_are_no_pattern() -> None:
    class Offset(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * (torch.arange(8.0) + 1) + (torch.ones(3, 1, 1) + 1) * x

    x = torch.randn(2, 3, 8, 8)
    small = shrink_graph(torch.export.export(Offset(), (x,)), check=True)
    assert torch.allclose(small(x), Offset()(x), atol=1e-6)
