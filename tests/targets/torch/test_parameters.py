"""What learns in a module that is written back, what is a buffer, and how weights lie in memory."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphshrink import shrink_graph
from graphshrink.frontends.torch.importer import from_fx
from support.fx_calls import respelled, traced


class Normalised(nn.Module):
    """Buffers, of which one is in no state_dict, a frozen and a learned layer, and plain numbers."""

    def __init__(self, freeze: tuple[str, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 1, persistent=False)
        self.register_buffer("blur", torch.rand(3, 1, 3, 3))
        self.gain = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3)
        for name in freeze:
            self.get_parameter(name).requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = (torch.sigmoid(x - self.mean) / self.std) ** 2
        y = torch.tanh(F.conv2d(y, self.blur, groups=3) * 0.5 / 3.0)
        y = torch.tanh(y * self.gain)
        y = torch.relu(self.norm(self.first(y)))
        q = self.second(y).flatten(2)
        return (q @ q.transpose(1, 2) * 0.5 / 3.0).softmax(-1)


def learned(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def frozen(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if not p.requires_grad}


def shrunk(model: nn.Module, x: Tensor, way: str) -> fx.GraphModule:
    if way == "export":
        return shrink_graph(torch.export.export(model, (x,)))
    given = traced(model) if way == "traced" else model
    return shrink_graph(given, example_inputs=(x,))


@pytest.mark.parametrize("way", ["module", "traced", "export"])
def test_buffers_and_numbers_do_not_learn(way: str) -> None:
    model, x = Normalised(), torch.randn(1, 3, 12, 12)
    small = shrunk(model, x, way)
    torch.testing.assert_close(small(x), model(x))
    assert not frozen(small)
    # One layer and its norm are one now; a gain is a parameter as it was.
    assert len(list(small.parameters())) == 5
    buffers = dict(small.named_buffers())
    assert buffers, "what was made of buffers and numbers is a buffer"
    for name, tensor in small.state_dict().items():
        assert tensor.is_floating_point(), name
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    # Nothing of it is the optimizer's to move.
    before = {name: b.clone() for name, b in buffers.items()}
    torch.optim.AdamW(small.parameters(), lr=0.1, weight_decay=0.5).step()
    assert all(torch.equal(b, before[name]) for name, b in small.named_buffers())


MERGED = ("first.weight", "first.bias", "norm.weight", "norm.bias")


@pytest.mark.parametrize("way", ["module", "traced", "export"])
@pytest.mark.parametrize(
    ("freeze", "weight", "bias"),
    [
        (MERGED, False, False),
        (("first.weight", "first.bias"), True, True),
        (("norm.weight", "norm.bias"), True, True),
        (("first.weight", "norm.weight"), False, True),
        ((), True, True),
    ],
)
def test_merged_weights_learn_if_a_part_did(
    freeze: tuple[str, ...], weight: bool, bias: bool, way: str
) -> None:
    model, x = Normalised((*freeze, "gain")), torch.randn(1, 3, 12, 12)
    if way == "export" and freeze != MERGED:
        pytest.skip("one case is enough")
    small = shrunk(model, x, way)
    grads = {tuple(p.shape): p.requires_grad for p in small.parameters()}
    assert grads[8, 3, 3, 3] is weight
    assert grads[8,] is bias
    assert grads[4, 8, 3, 3] is True
    assert not any(p.requires_grad for p in small.parameters() if p.numel() == 3)


def test_everything_frozen_stays_frozen() -> None:
    model, x = Normalised(), torch.randn(1, 3, 12, 12)
    model.requires_grad_(False)
    for way in ("module", "traced", "export"):
        assert not learned(shrunk(model, x, way))
    graph = fx.symbolic_trace(model)
    again = respelled(from_fx(graph, (x,)))
    torch.testing.assert_close(again(x), model(x))
    assert not learned(again)


def test_state_dicts_keep_their_names() -> None:
    model, x = Normalised(), torch.randn(1, 3, 12, 12)
    for passes in ([], ["prune-dead"]):
        small = shrink_graph(model, passes, example_inputs=(x,))
        want = {k for k in model.state_dict() if k not in ("norm.num_batches_tracked",)}
        assert {k for k in small.state_dict() if "num_batches" not in k} == want
        assert "std" not in small.state_dict()
        assert "std" in dict(small.named_buffers())
        assert small.get_parameter("first.weight") is model.first.weight
        assert small.get_buffer("mean") is model.mean
    loaded = io.BytesIO()
    torch.save(small.state_dict(), loaded)
    loaded.seek(0)
    small.load_state_dict(torch.load(loaded))


def test_weights_that_are_spelled_anew_stay_the_hosts_own() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4)).eval(), torch.randn(1, 3, 8, 8)
    model[0].weight.requires_grad_(False)
    again = respelled(from_fx(fx.symbolic_trace(model), (x,)))
    torch.testing.assert_close(again(x), model(x))
    assert {id(p) for p in again.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("rank", [2, 3])
def test_channels_stay_last(kernel: int, rank: int) -> None:
    conv: Any = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    norm: Any = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    layers = [conv(3, 8, kernel), norm(8), nn.ReLU(), conv(8, 8, kernel), conv(8, 6, 1)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 3, *[6] * rank).to(memory_format=form)
    plain = shrink_graph(copy.deepcopy(model), example_inputs=(x,))
    model = model.to(memory_format=form)
    small = shrink_graph(model, example_inputs=(x,))
    weights = [p for p in small.parameters() if p.ndim > 2]
    assert len(weights) == 2
    for weight, other in zip(weights, [p for p in plain.parameters() if p.ndim > 2], strict=True):
        last = torch.empty(weight.shape, memory_format=form).stride()
        assert weight.stride() == last
        assert other.is_contiguous()
    # What comes of rows in order has its channels last too, as the weights ask for it.
    rows = x.contiguous()
    if rank == 2:
        assert small(rows).stride() == model(rows).stride()
    torch.testing.assert_close(small(rows), model(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_element_types_stay(dtype: torch.dtype) -> None:
    model = Normalised().to(dtype)
    x = torch.randn(1, 3, 12, 12, dtype=dtype)
    small = shrink_graph(model, example_inputs=(x,))
    assert {t.dtype for t in (*small.parameters(), *small.buffers())} == {dtype}


def test_a_module_of_buffers_alone() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.rand(3, 1, 3, 3))
            self.register_buffer("rows", torch.tensor([2, 0, 1]))

        def forward(self, x: Tensor) -> Tensor:
            return (F.conv2d(x, self.kernel, groups=3) * 2.0)[:, self.rows]

    model, x = Filter().eval(), torch.randn(1, 3, 8, 8)
    small = shrink_graph(model, example_inputs=(x,))
    torch.testing.assert_close(small(x), model(x))
    assert not list(small.parameters())
    assert len([n for n in small.graph.nodes if n.op == "call_module"]) == 1
    copied = copy.deepcopy(small)
    torch.testing.assert_close(copied(x), model(x))
    # What was written once is read again.
    torch.testing.assert_close(shrink_graph(small, example_inputs=(x,))(x), model(x))
