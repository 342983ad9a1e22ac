"""torch in: the same function out, whatever is shared, viewed, or written in place."""

from __future__ import annotations

import operator
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphshrink import Graph, ModelError, Rewriter, shrink_graph
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Opaque, Scale
from graphshrink.targets.torch.emitter import to_fx


class Mixed(nn.Module):
    """Modules, functions and methods; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.act(self.norm(self.conv(x)))
        y = y + self.depthwise(y).mean((2, 3), keepdim=True)
        y = y * torch.sigmoid(y)
        y = F.adaptive_avg_pool2d(y, 1)
        return {"logits": self.head(self.drop(torch.flatten(y, 1)))}


def prepared(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module.double().eval()


def respell(graph: Graph, rw: Rewriter) -> None:
    for node in graph.nodes:
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def outputs(module: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(module(*(x.clone() for x in inputs))))


def same(first: Any, second: Any, *inputs: torch.Tensor, exact: bool = False) -> None:
    want, got = outputs(first, *inputs), outputs(second, *inputs)
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-12)


@pytest.mark.parametrize("shaped", [True, False])
def test_empty_pipeline_keeps_modules_and_parameters(shaped: bool) -> None:
    model = prepared(Mixed())
    emitted = to_fx(from_fx(fx.symbolic_trace(model), (X,) if shaped else None))
    same(model, emitted, X, exact=True)
    assert {id(p) for p in emitted.parameters()} == {id(p) for p in model.parameters()}
    assert list(emitted(X)) == ["logits"]


def test_every_op_can_be_written_anew() -> None:
    model = prepared(Mixed())
    emitted = shrink_graph(model, [respell], example_inputs=(X,))
    same(model, emitted, X)
    assert isinstance(emitted.get_submodule("conv"), nn.Conv2d)
    assert emitted.get_submodule("conv") is not model.conv
    assert isinstance(emitted.get_submodule("head"), nn.Linear)


def test_result_trains_pickles_and_exports() -> None:
    emitted = shrink_graph(prepared(Mixed()), example_inputs=(X,))
    emitted(X)["logits"].square().sum().backward()
    assert all(p.grad is not None for p in emitted.parameters())
    same(emitted, pickle.loads(pickle.dumps(emitted)), X, exact=True)
    same(emitted, torch.export.export(emitted, (X,)).module(), X)


def test_export_and_trace_give_the_same_graph() -> None:
    model = prepared(Mixed())
    traced = from_fx(fx.symbolic_trace(model), (X,))
    exported = from_export(torch.export.export(model, (X,)))
    ops = [n.op for n in traced.nodes]
    assert ops == [n.op for n in exported.nodes if not isinstance(n.op, Opaque)]
    same(model, to_fx(exported), X, exact=True)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
                                  lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))])  # fmt: skip
def test_training_mode_is_named(make: Any) -> None:
    with pytest.raises(ModelError, match=r"module 1 .* training mode: call model.eval"):
        shrink_graph(fx.symbolic_trace(make().train()))


class SharedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))) + self.conv(x)


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


class TwoUsers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return self.norm(y), y


class InPlaceRead(nn.Module):
    """What was read before and after an in-place call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.next(y)
        F.relu_(y)
        return self.next(y) + z


class InPlaceView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        view = y[:, :1]
        view.add_(1.0)
        return self.norm(y)


class InPlaceInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv, self.norm = (
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.act(x))) + x


class InPlaceBranch(nn.Module):
    """``y += x`` where y is private: may be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return operator.iadd(self.a(x), self.b(x))


class Reader(nn.Module):
    """An in-place activation of a dropout's result, whose input is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.act = nn.Conv2d(3, 3, 1), nn.Dropout(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.act(self.drop(y)) + y


@pytest.mark.parametrize("kind", [
    SharedModule, TiedWeights, TwoUsers, InPlaceRead, InPlaceView, InPlaceInput, InPlaceBranch, Reader,
])  # fmt: skip
@pytest.mark.parametrize("passes", [None, [respell], [respell, "prune-dead"]])
def test_never_wrong(kind: type[nn.Module], passes: Any) -> None:
    model = prepared(kind())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    emitted = shrink_graph(model, passes, example_inputs=(X,))
    same(model, emitted, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    half = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).to(dtype)
    half.load_state_dict(model.state_dict())
    reference = half.double()(X)
    emitted = shrink_graph(half.to(dtype), example_inputs=(X.to(dtype),))
    assert {p.dtype for p in emitted.parameters()} == {dtype}
    got = emitted(X.to(dtype)).double()
    limit = 0.02 if dtype is torch.bfloat16 else 0.003
    assert (got - reference).abs().max() <= limit * reference.abs().max()


def test_scales_that_were_emitted_read_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))

        def forward(self, x: torch.Tensor) -> Any:
            return torch.relu(self.norms(torch.relu(x)))

    model, x = Net().eval(), torch.randn(2, 3, 4, 4)
    for i, norm in enumerate(model.norms):
        norm.running_mean = torch.tensor([0.5, -0.25, 1.0]) * (i + 1)
        norm.running_var = torch.tensor([0.5, 2.0, 3.0])
    small = shrink_graph(model, example_inputs=(x,))
    assert torch.allclose(small(x), model(x), atol=1e-6)
    for inputs in ((x,), None):
        kinds = [n.op.name for n in from_fx(small, inputs).nodes]
        assert kinds == ["Activation", "Scale", "Activation"]
    graph = from_fx(small, (x,))
    assert torch.equal(to_fx(graph)(x), small(x))
    [scale] = [n for n in graph.nodes if n.op.name == "Scale"]
    assert scale.op == Scale(1)
    Rewriter(graph).replace(scale, scale.op, scale.inputs)  # Spelled anew.
    assert torch.allclose(to_fx(graph)(x), small(x), atol=1e-6)
