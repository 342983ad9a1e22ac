"""Numbers of axes that are known without example inputs: assertions on them do not keep layers from merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphshrink import shrink


def random_norms(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return model.eval()


class Asserting(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        torch._assert(x.ndim == 4, f"expected 4 axes, got {x.ndim}")
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Asking(nn.Module):
    """Computes an axis from the number of axes."""

    def __init__(self, ask: str) -> None:
        super().__init__()
        self.conv, self.norm, self.ask = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), ask

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        rank = y.ndim if self.ask == "ndim" else y.dim()
        return self.norm(y).relu().flatten(rank - 2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), Asserting(3)

    def forward(self, x: Any) -> Any:
        return self.norm(self.b(x + F.gelu(self.a(x))))


def agrees(model: nn.Module, *shape: int) -> Any:
    result = shrink(model)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-5)
    return result.report.after.ops


@pytest.mark.parametrize("batch", [1, 3])
def test_an_assertion_does_not_keep_a_norm(batch: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Asserting(8), nn.ReLU(), nn.Conv2d(8, 4, 3), Asserting(4)
    )
    ops = agrees(random_norms(model), batch, 3, 6, 6)
    assert "Scale" not in ops
    assert ops["Conv"] == 2


@pytest.mark.parametrize("ask", ["ndim", "dim"])
def test_an_axis_computed_from_the_number_of_axes(ask: str) -> None:
    assert "Scale" not in agrees(random_norms(Asking(ask)), 2, 3, 5, 6)


def test_ranks_go_through_sums() -> None:
    assert "Scale" not in agrees(random_norms(Residual()), 2, 3, 6, 6)


def test_an_unknown_number_of_axes_stays_a_call() -> None:
    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.sum(x.ndim - 1)

    model = Sum().eval()
    result = shrink(model).model
    for shape in ((4,), (2, 3), (2, 0, 5)):
        torch.testing.assert_close(result(torch.ones(shape)), model(torch.ones(shape)))


@pytest.mark.parametrize("call", [False, True], ids=["module", "call"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 5, 6)], ids=["batch", "one-sample"])
def test_a_convolution_alone_does_not_tell(call: bool, shape: tuple[int, ...]) -> None:
    """It takes one sample without a batch axis too."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Any) -> Any:
            y = F.conv2d(x, self.conv.weight) if call else self.conv(x)
            return y.relu().flatten(y.dim() - 2), y * x.dim()

    model = Asks().eval()
    made, x = shrink(model).model, torch.randn(shape)
    torch.testing.assert_close(made(x), model(x))


def test_an_assertion_that_fails_still_does() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            torch._assert(y.ndim + 1 == 4, "not 4 axes")
            return y.relu()

    result = shrink(Wrong().eval()).model
    with pytest.raises(AssertionError, match="not 4 axes"):
        result(torch.randn(1, 3, 4, 4))


def test_two_norms_behind_linear_layers_tell() -> None:
    """Of three axes, the second one would have 8 and 4 features."""
    model = random_norms(
        nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
        )
    )
    result = shrink(model)
    assert dict(result.report.after.ops) == {"Linear": 2, "Activation": 1}
    x = torch.randn(5, 3)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [8, 5])
def test_one_norm_behind_a_linear_layer_does_not_tell(features: int) -> None:
    """It may norm the second of three axes too."""
    model = random_norms(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(features), nn.Linear(8, 4)))
    result = shrink(model)
    x = torch.randn(2, features, 3)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-5)
    told = " ".join(map(str, result.report.not_understood))
    assert ("give example_inputs" in told) == (features == 8)
