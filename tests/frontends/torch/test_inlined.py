"""Regions of exported programs without gradients, and with autocast disabled, are read as part of the program."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from graphshrink import shrink

REGIONS: dict[str, Callable[[], Any]] = {
    "no gradients": torch.no_grad,
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
    "no autocast on a GPU": lambda: torch.autocast("cuda", enabled=False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


class Net(nn.Module):
    """A norm inside a region, with one more region in it or not."""

    def __init__(self, region: str, nested: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.region = REGIONS[region]
        self.nested = REGIONS[nested] if nested else nullcontext
        self.eval()

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        with self.region():
            y = self.norm(y)
            with self.nested():
                y = y.sigmoid()
            z = y * 2
        return self.last(y), z


def program(model: nn.Module, rows: int = 2) -> Any:
    batch = torch.export.Dim("batch", min=1, max=64)
    x = torch.randn(rows, 3, 4, 4)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},) if rows > 1 else None)


def agrees(model: nn.Module, made: nn.Module, rows: int) -> None:
    x = torch.randn(rows, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nested", ["", "no gradients", "no autocast"])
@pytest.mark.parametrize("region", ["no gradients", "no autocast", "no autocast on a GPU"])
def test_layers_merge_into_a_region(region: str, nested: str) -> None:
    model = Net(region, nested)
    result = shrink(program(model), check=True)
    assert "Scale" in result.report.before.ops
    assert result.report.after.ops["Conv"] == 2
    assert not any("wrap_with" in op for op in result.report.after.ops)
    for rows in (1, 2, 5):
        agrees(model, result.model, rows)
    agrees(model, pickle.loads(pickle.dumps(result.model)), 3)


def test_without_passes_nothing_is_lost() -> None:
    model = Net("no gradients", "no autocast")
    agrees(model, shrink(program(model), "").model, 3)


def test_a_region_under_autocast_stays_a_call() -> None:
    model = Net("autocast", "no gradients")
    result = shrink(program(model), check=True)
    assert any("compute under autocast" in note for note in result.report.notes)
    agrees(model, result.model, 3)


@pytest.mark.parametrize("way", ["trace", "export"])
def test_gradients_that_go_through_are_noted(way: str) -> None:
    model = Net("no gradients")
    if way == "trace":
        with pytest.warns(UserWarning, match="gradients go through"):
            result = shrink(model)
    else:
        result = shrink(program(model))
    assert any("gradients go through" in note for note in result.report.notes)
    result.model(torch.randn(2, 3, 4, 4))[0].sum().backward()


def test_constants_of_a_region_need_no_note() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.register_buffer("table", torch.randn(6, 4))

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                table = self.table * 2
            return self.first(x) + table

    model, x = Positions().eval(), torch.randn(6, 4)
    result = shrink(torch.export.export(model, (x,)))
    assert not any("gradients" in note for note in result.report.notes)
    torch.testing.assert_close(result.model(x), model(x))
