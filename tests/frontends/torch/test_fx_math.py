"""Functions, comparisons, picks and interpolations of torch: read as ops, copied as they were, spelled anew the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import PREDICATES, UNARY, Opaque
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate
from support.fx_calls import Call, body, ops, respelled, traced

torch.manual_seed(0)
X = torch.rand(2, 4, 6, 8) + 0.1
INDEX = torch.tensor([[2, 0], [-1, 1]])
FUNCTIONS = [k for k in UNARY if k not in (*PREDICATES, "reciprocal")]


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", INDEX)


CASES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    **{kind: (getattr(torch, kind), ["Unary"]) for kind in FUNCTIONS},
    "sqrt-method": (lambda x: x.sqrt(), ["Unary"]),
    "neg-operator": (lambda x: -x, ["Unary"]),
    "reciprocal": (lambda x: 1 / x, ["Unary"]),
    "divided": (lambda x: 2 / x, ["Div"]),
    "one-minus": (lambda x: 1 - x, ["Scale"]),
    "pow": (lambda x: x**2, ["Pow"]),
    "pow-of-two": (lambda x: torch.pow(x, x), ["Pow"]),
    "pow-of-number": (lambda x: 2.0**x, ["Pow"]),
    "square": (lambda x: x.square(), ["Pow"]),
    "maximum": (lambda x: torch.maximum(x, x + 1), ["Max", "Scale"]),
    "max-of-two": (lambda x: torch.max(x, x + 1), ["Max", "Scale"]),
    "max-of-all": (lambda x: x.max(), ["Reduce"]),
    "min-of-all": (lambda x: torch.min(x), ["Reduce"]),
    "minimum": (lambda x: torch.minimum(x, x * 2), ["Min", "Scale"]),
    "greater": (lambda x: (x > 0.5).float(), ["Compare", "Cast"]),
    "compare": (lambda x: (x < x.mean(1, keepdim=True)).float(), ["Compare", "Reduce", "Cast"]),
    "not-equal": (lambda x: torch.ne(x, 0.5).to(torch.float32), ["Compare", "Cast"]),
    "and": (lambda x: ((x >= 0.3) & (x <= 0.7)).float(), ["Cast", "Compare", "Compare", "Logical"]),
    "or": (lambda x: torch.logical_or(x < 0.3, x > 0.7).float(),
           ["Cast", "Compare", "Compare", "Logical"]),
    "not": (lambda x: (~(x < 0.3)).float(), ["Cast", "Compare", "Unary"]),
    "isnan": (lambda x: torch.isnan(x).float(), ["Cast", "Unary"]),
    "remainder": (lambda x: x % 0.3, ["Mod"]),
    "where": (lambda x: torch.where(x > 0.5, x, x * 2), ["Compare", "Scale", "Where"]),
    "where-number": (lambda x: torch.where(x > 0.5, x, 0.0), ["Compare", "Where"]),
    "masked": (lambda x: x.masked_fill(x > 0.5, -1.0), ["Compare", "Where"]),
    "expand": (lambda x: x[:, :1].expand(-1, 4, -1, -1), ["Expand", "Slice"]),
    "expand-new": (lambda x: x.expand(3, 2, 4, 6, 8), ["Expand"]),
    "argmax": (lambda x: x.argmax(1), ["ArgReduce"]),
    "argmin": (lambda x: torch.argmin(x, -1, keepdim=True), ["ArgReduce"]),
    "cumsum": (lambda x: x.cumsum(2), ["CumSum"]),
    "log-softmax": (lambda x: F.log_softmax(x, -1), ["LogSoftmax"]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2.0), ["Resize"]),
    "nearest-exact": (lambda x: F.interpolate(x, (9, 9), mode="nearest-exact"), ["Resize"]),
    "bilinear": (lambda x: F.interpolate(x, (9, 4), mode="bilinear"), ["Resize"]),
    "bilinear-factor": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), ["Resize"]),
    "corners": (lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True),
                ["Resize"]),
    "bicubic": (lambda x: F.interpolate(x, (12, 12), mode="bicubic"), ["Resize"]),
    "linear": (lambda x: F.interpolate(x[0], 12, mode="linear"), ["Resize", "Select"]),
    "shuffle": (lambda x: F.pixel_shuffle(x, 2), ["DepthToSpace"]),
    "unshuffle": (lambda x: F.pixel_unshuffle(x, 2), ["SpaceToDepth"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_ops_from_fx(name: str) -> None:
    function, wanted = CASES[name]
    module = traced(function)
    graph = from_fx(module, (X,))
    assert sorted(ops(graph)) == sorted(wanted)
    copied = to_fx(graph)
    assert body(copied) == body(module)
    want = function(X)
    torch.testing.assert_close(copied(X), want, rtol=0, atol=0, equal_nan=True)
    (by_oracle,) = evaluate(graph, [X.double().numpy()])
    torch.testing.assert_close(torch.from_numpy(by_oracle).to(want.dtype), want, rtol=1e-5, atol=1e-5, equal_nan=True)  # fmt: skip
    torch.testing.assert_close(respelled(graph)(X), want, rtol=0, atol=1e-6, equal_nan=True)


EXPORTED_OTHERWISE = {"reciprocal", "isnan", "shuffle", "unshuffle", "divided"}
"""What torch.export writes with several calls of its own."""


@pytest.mark.parametrize("name", [n for n in CASES if n not in EXPORTED_OTHERWISE])
def test_ops_from_torch_export(name: str) -> None:
    function, wanted = CASES[name]
    graph = from_export(torch.export.export(Call(function).eval(), (X,)))
    # torch 2.8 writes slices of everything in front of others.
    assert sorted(k for k in ops(graph) if k != "Identity") == sorted(wanted)
    torch.testing.assert_close(to_fx(graph)(X), function(X), rtol=0, atol=0, equal_nan=True)


MODULES: dict[str, tuple[nn.Module, str]] = {
    "upsample": (nn.Upsample(scale_factor=2), "Resize"),
    "upsample-bilinear": (nn.Upsample((5, 9), mode="bilinear", align_corners=False), "Resize"),
    "upsample-corners": (nn.UpsamplingBilinear2d(scale_factor=2), "Resize"),
    "upsample-nearest": (nn.UpsamplingNearest2d((12, 8)), "Resize"),
    "shuffle": (nn.PixelShuffle(2), "DepthToSpace"),
    "unshuffle": (nn.PixelUnshuffle(2), "SpaceToDepth"),
    "log-softmax": (nn.LogSoftmax(1), "LogSoftmax"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module, kind = MODULES[name]
    graph = from_fx(traced(module), (X,))
    assert ops(graph) == [kind]
    want = module(X)
    assert torch.equal(to_fx(graph)(X), want)
    torch.testing.assert_close(respelled(graph)(X), want, rtol=0, atol=1e-6)


def test_picks_along_any_axis() -> None:
    class Pick(Picks):
        def forward(self, x: Any) -> Any:
            return torch.index_select(x, 2, self.index[0])

    graph = from_fx(traced(Pick()), (X,))
    assert ops(graph) == ["Gather"]
    assert torch.equal(respelled(graph)(X), Pick()(X))


@pytest.mark.parametrize("function", [
    lambda x: x.max(1)[0],  # The places come as well.
    lambda x: (x > 0.5) + x,  # Two element types.
    lambda x: x.argmax(),  # Of the flattened tensor.
    lambda x: x.to(torch.int64) ** 2,  # Integers.
    lambda x: torch.exp(x.to(torch.int64)),  # Integers that become floats.
    lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
])  # fmt: skip
def test_what_is_not_sure_stays_opaque(function: Callable[[Any], Any]) -> None:
    module = traced(function)
    graph = from_fx(module, (X,))
    assert any(isinstance(n.op, Opaque) for n in graph.nodes)
    copied = to_fx(graph)
    assert body(copied) == body(module)
    want, got = function(X), copied(X)
    for a, b in zip(want if isinstance(want, tuple) else (want,),
                    got if isinstance(got, tuple) else (got,), strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_in_place_functions_are_followed() -> None:
    def function(x: Any) -> Any:
        y = x * 2
        return y.sqrt_().masked_fill_(y > 1, 0.0)

    module = traced(function)
    graph = from_fx(module, (X,))
    assert torch.equal(to_fx(graph)(X.clone()), function(X.clone()))
