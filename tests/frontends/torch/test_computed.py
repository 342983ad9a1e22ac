"""Weights that a module computes from its own tensors are constants for the passes, and keep its names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphshrink import shrink, shrink_graph

WEIGHTS: dict[str, Callable[[Any], torch.Tensor]] = {
    "batch norm": lambda m: F.batch_norm(
        m.weight.reshape(1, m.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
    ).reshape_as(m.weight),
    "product and sum": lambda m: m.weight * m.gain + m.more,
    "standardised": lambda m: _standardised(m.weight),
    "random": lambda m: m.weight * F.dropout(m.gain, training=True),
}


def _standardised(weight: torch.Tensor) -> torch.Tensor:
    std, mean = torch.std_mean(weight, dim=[1, 2, 3], keepdim=True, correction=0)
    return (weight - mean) / (std + 1e-6)


class Computing(nn.Conv2d):
    """A convolution whose weight is computed at every call."""

    def __init__(self, kind: str) -> None:
        super().__init__(3, 4, 3)
        self.kind = kind
        self.gain, self.more = (
            nn.Parameter(torch.rand(4, 1, 1, 1)),
            nn.Parameter(torch.randn(4, 3, 3, 3)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return F.conv2d(x, WEIGHTS[self.kind](self), self.bias, self.stride, self.padding)


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(Computing(kind), nn.BatchNorm2d(4), nn.ReLU())
    made[1].running_mean.normal_()
    made[1].running_var.uniform_(0.5, 2)
    return made.eval()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("route", ["trace", "inputs", "export"])
@pytest.mark.parametrize("kind", ["batch norm", "product and sum", "standardised"])
def test_norms_merge_into_computed_weights(kind: str, route: str) -> None:
    model: Any = network(kind)
    given = torch.export.export(model, (X,)) if route == "export" else model
    result = shrink(
        given,
        example_inputs=(X,) if route == "inputs" else None,
        check=route == "inputs",
        on_failure="raise",
    )
    assert any("computed from parameters at every call" in n for n in result.report.notes)
    assert result.report.after.ops["Conv"] == 1
    assert not {"Scale", "Mul", "Add", "Sub"} & result.report.after.ops.keys()
    assert [name for name, _ in result.model.named_parameters()] == ["0.weight", "0.bias"]
    torch.testing.assert_close(result.model(X), model(X), rtol=1e-4, atol=1e-5)


def test_without_passes_the_calls_stay() -> None:
    model = network("product and sum")
    same = shrink_graph(model, "", example_inputs=(X,))
    assert {n for n, _ in same.named_parameters()} == {n for n, _ in model.named_parameters()}
    with torch.no_grad():
        model[0].gain.mul_(2)
        assert torch.equal(same(X), model(X))


def test_training_and_random_numbers_are_left_alone() -> None:
    layer = nn.Sequential(Computing("product and sum")).train()
    assert "Mul" in shrink(layer, example_inputs=(X,)).report.after.ops
    traced = torch.fx.symbolic_trace(network("product and sum"))
    mul = next(n for n in traced.graph.nodes if "mul" in n.name)
    with traced.graph.inserting_after(mul):
        drawn = traced.graph.call_function(torch.rand_like, (mul,))
    mul.replace_all_uses_with(drawn, lambda user: user is not drawn)
    traced.recompile()
    assert "Scale" in shrink(traced, example_inputs=(X,)).report.after.ops


class Twice(nn.Module):
    """Reads a piece of a split twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Join what is made of the pieces."""
        p = self.conv(x).chunk(2, 1)
        return self.last(torch.cat([p[0].relu() + p[1], p[1] * p[-1]], 1))


@pytest.mark.parametrize("traced", [False, True])
def test_pieces_that_are_taken_twice(traced: bool) -> None:
    model: Any = Twice().eval()
    given = torch.fx.symbolic_trace(model) if traced else model
    before = given.code if traced else ""
    result = shrink(given, "permute-channels", example_inputs=(X,), check=True, on_failure="raise")
    assert result.report.before.ops["Split"] == 1
    assert not [k for k in result.report.before.ops if k.startswith("fx:")]
    torch.testing.assert_close(result.model(X), model(X), rtol=1e-4, atol=1e-5)
    assert not traced or given.code == before
