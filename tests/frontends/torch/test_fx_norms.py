"""Norms and embeddings as torch spells them: what the IR says they compute is what torch computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphshrink.api import load
from graphshrink.ir import Embedding, GroupNorm, Op, Opaque, Rewriter, Scale
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate

Call = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

CALLS: dict[str, tuple[Call, type[Op]]] = {
    "F.group_norm": (lambda x, w, b, m, v: F.group_norm(x, 2, w, b, 0.1), GroupNorm),
    "bare group_norm": (lambda x, w, b, m, v: F.group_norm(x, 2), GroupNorm),
    "shift only": (lambda x, w, b, m, v: F.group_norm(x, 3, bias=b), GroupNorm),
    "torch.group_norm": (lambda x, w, b, m, v: torch.group_norm(x, 2, w, b, 0.1), GroupNorm),
    "F.instance_norm": (lambda x, w, b, m, v: F.instance_norm(x, None, None, w, b, eps=0.1), GroupNorm),
    "bare instance_norm": (lambda x, w, b, m, v: F.instance_norm(x), GroupNorm),
    "torch.instance_norm": (
        lambda x, w, b, m, v: torch.instance_norm(x, w, b, None, None, True, 0.1, 0.2, False), GroupNorm),
    "running": (lambda x, w, b, m, v: F.instance_norm(x, m, v, w, b, False), Opaque),
    "F.batch_norm": (lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, eps=0.1), Scale),
    "torch.batch_norm": (
        lambda x, w, b, m, v: torch.batch_norm(x, w, b, m, v, False, 0.1, 0.2, False), Scale),
    "aten.batch_norm": (
        lambda x, w, b, m, v: torch.ops.aten.batch_norm(x, w, b, m, v, False, 0.1, 0.2, False), Scale),
    "aten.batch_norm.default": (
        lambda x, w, b, m, v: torch.ops.aten.batch_norm.default(x, w, b, m, v, False, 0.1, 0.2, False), Scale),
    "aten.instance_norm": (
        lambda x, w, b, m, v: torch.ops.aten.instance_norm(x, w, b, None, None, True, 0.1, 0.2, False), GroupNorm),
}  # fmt: skip


class Calls(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.w, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.register_buffer("m", torch.randn(6))
        self.register_buffer("v", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.w, self.b, self.m, self.v)


def check(model: nn.Module, x: Tensor, op: type[Op]) -> None:
    graph = load(model, (x,))[0]
    found = {type(n.op) for n in graph.nodes}
    assert op in found
    with torch.no_grad():
        want = model(x).numpy()
    assert want.std() > 0.1
    if Opaque not in found:
        np.testing.assert_allclose(evaluate(graph, [x.numpy()])[0], want, atol=1e-12)
    # Written anew: the nodes forget what they came from.
    rw = Rewriter(graph)
    for node in graph.nodes:
        if isinstance(node.op, (GroupNorm, Embedding)):
            rw.replace(node, node.op, node.inputs)
    with torch.no_grad():
        np.testing.assert_allclose(to_fx(graph)(x).numpy(), want, atol=1e-12)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rank", [3, 4])
def test_calls(name: str, rank: int) -> None:
    torch.manual_seed(0)
    call, op = CALLS[name]
    check(Calls(call).eval().double(), torch.randn((2, 6, 5, 4)[:rank], dtype=torch.float64), op)


@pytest.mark.parametrize(("module", "op"), [
    (nn.GroupNorm(3, 6), GroupNorm), (nn.GroupNorm(3, 6, affine=False), GroupNorm),
    (nn.InstanceNorm2d(6, affine=True), GroupNorm), (nn.InstanceNorm2d(6), GroupNorm),
    (nn.InstanceNorm2d(6, track_running_stats=True), Opaque),
])  # fmt: skip
def test_modules(module: nn.Module, op: type[Op]) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    check(nn.Sequential(module).eval().double(), torch.randn(2, 6, 5, 4, dtype=torch.float64), op)


class Lookup(nn.Module):
    def __init__(self, bound: float | None, function: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0, max_norm=bound)
        self.function = function

    def forward(self, ids: Tensor) -> Tensor:
        if self.function:
            return F.embedding(ids, self.table.weight, 0, self.table.max_norm)
        return self.table(ids)


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("bound", [None, 1.0])
def test_embeddings(bound: float | None, function: bool) -> None:
    # A bound on the norm writes to the table while it is read.
    torch.manual_seed(0)
    model = Lookup(bound, function).eval().double()
    check(model, torch.randint(0, 7, (2, 3)), Embedding if bound is None else Opaque)
