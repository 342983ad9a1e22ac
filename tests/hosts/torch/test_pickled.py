"""Results come back from a pickle as they were: with their buffers, the classes of what they return, and calls that take no proxies."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import register_dataclass

from graphshrink import shrink
from graphshrink.nn import Gate


@dataclass
class Found:
    scores: Any
    hidden: Any = None


register_dataclass(Found, serialized_type_name="graphshrink.tests.Found")


class OfDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return Found(y.softmax(-1), y)


class OfPool(nn.Module):
    """A function that chooses between two others, which pickle cannot find."""

    def forward(self, x: Any) -> Any:
        y = nn.functional.max_pool2d(x, 2)
        return Found(y, y.relu())


class OfBuffer(nn.Module):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.register_buffer(
            "table", torch.arange(5.0)[:, None] * torch.ones(3), persistent=persistent
        )

    def forward(self, x: Any) -> Any:
        return self.first(x) + self.table[: x.shape[0]]


class OfZeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0].relu()


class OfMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, given: Any) -> Any:
        return OrderedDict(y=self.first(given["x"]) * given["scale"])


def exported(model: nn.Module, *inputs: Any) -> Any:
    return shrink(torch.export.export(model.eval(), inputs)).model


def comes_back(made: nn.Module, *inputs: Any) -> nn.Module:
    data = pickle.dumps(made)
    back = pickle.loads(data)
    for found in (back, copy.deepcopy(back), pickle.loads(pickle.dumps(back))):
        assert list(found.state_dict()) == list(made.state_dict())
        want, got = made(*inputs), found(*inputs)
        assert type(got) is type(want)
        torch.testing.assert_close(
            vars(got) if isinstance(got, Found) else got,
            vars(want) if isinstance(want, Found) else want,
        )
    return back


def test_a_dataclass_stays_one() -> None:
    back = comes_back(exported(OfDataclass(), torch.randn(2, 4)), torch.randn(2, 4))
    assert isinstance(back(torch.randn(2, 4)), Found)


def test_functions_that_choose_between_others() -> None:
    x = torch.randn(1, 2, 4, 4)
    comes_back(shrink(OfPool().eval(), example_inputs=(x,)).model, x)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_buffers_stay_buffers(persistent: bool, rows: int) -> None:
    model, x = OfBuffer(persistent).eval(), torch.randn(rows, 4)
    made = shrink(model, example_inputs=(x,)).model
    back = comes_back(made, x)
    assert ("table" in back.state_dict()) is persistent
    torch.testing.assert_close(back(torch.ones(4, 4)), model(torch.ones(4, 4)))


def test_calls_that_take_no_proxies() -> None:
    made = exported(OfZeros(), torch.randn(2, 5, 4))
    back = comes_back(made, torch.randn(2, 5, 4))
    back(torch.randn(2, 5, 4)).sum().backward()


def test_inputs_and_outputs_in_mappings() -> None:
    given = {"x": torch.randn(2, 4), "scale": torch.tensor(2.0)}
    back = comes_back(exported(OfMapping(), given), given)
    assert type(back(given)) is OrderedDict


@pytest.mark.parametrize("way", ["trace", "export"])
def test_plain_modules_load_with_torch_alone(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 4, 4)
    made = shrink(model).model if way == "trace" else exported(model, x)
    assert b"graphshrink" not in pickle.dumps(made)
    comes_back(made, x)


def test_gates_pickled_without_lines_come_back() -> None:
    """What versions wrote whose gates closed to the identity alone."""
    gate = Gate(nn.ReLU(), value=0.25)
    del gate.__dict__["line"]
    read = pickle.loads(pickle.dumps(gate))
    assert read.line is None
    x = torch.linspace(-1, 1, 5)
    assert torch.allclose(read(x), 0.25 * x.relu() + 0.75 * x)
