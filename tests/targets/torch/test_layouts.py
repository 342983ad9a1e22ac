"""How tensors lie in memory: what is written back runs wherever the host runs, and gives what the host gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphshrink import shrink_graph
from graphshrink.ir import Graph, Opaque, Rewriter, Transpose


@fx.wrap
def of_a_stranger(x: Tensor) -> Tensor:
    """A function that nobody but its author knows."""
    return x.view(x.shape[0], -1).as_strided((2, 3), (1, 2)) + x.sum()


class Stranger(nn.Module):
    """A module that asks for rows in order, and that is not traced into."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return x.view(-1) * 2.0


class Keeping(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Stranger) or super().is_leaf_module(m, module_qualified_name)


def graph_module(model: nn.Module) -> fx.GraphModule:
    tracer = Keeping()
    graph = tracer.trace(model)
    return fx.GraphModule(tracer.root, graph)


class Net(nn.Module):
    """A convolution that merges with what is behind it, and a function of its result."""

    def __init__(self, function: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv = nn.Conv2d(4, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 8)
        self.stranger = Stranger()
        nn.init.uniform_(self.norm.running_mean)
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.norm(self.conv(x)))


def shuffled(m: Net, y: Tensor) -> Tensor:
    z = y.view(1, 2, 4, 6, 6).transpose(1, 2).contiguous().view(1, 8, 6, 6)
    return m.conv(z.view(1, 2, 4, 6, 6).transpose(1, 2).contiguous().view(1, 8, 6, 6)[:, :4])


def windows(m: Net, y: Tensor) -> Tensor:
    z = y.permute(0, 2, 3, 1).contiguous().view(1, 2, 3, 2, 3, 8)
    z = m.linear(z.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 9, 8))
    return z.view(1, 2, 2, 3, 3, 8).permute(0, 1, 3, 2, 4, 5).contiguous().view(1, 6, 6, 8)


FUNCTIONS: dict[str, Callable[[Net, Tensor], Any]] = {
    "shuffle": shuffled,
    "windows": windows,
    "size by name": lambda m, y: y.transpose(1, 2).contiguous().view(size=(1, 48, 6)),
    "view_as": lambda m, y: y.transpose(1, 2).contiguous().view_as(torch.ones(48, 6)),
    "through others": lambda m, y: (
        F.relu(y.transpose(1, 3).contiguous()).mul(0.5).add(1.0).view(36, 8)
    ),
    "sizes that are read": lambda m, y: (
        y.transpose(1, 3).contiguous().view(y.shape[0] * y.size(2), -1)
    ),
    "flatten and unflatten": lambda m, y: (
        y.permute(0, 2, 3, 1)
        .contiguous()
        .flatten(1, 2)
        .unflatten(1, (6, 6))
        .unflatten(-1, (2, 4))
        .relu()
    ),
    "other bytes": lambda m, y: (
        y.transpose(1, 3).contiguous().view(torch.int64).sum(-1, keepdim=True),
        y.transpose(1, 3).contiguous().view(torch.int32)[..., ::2],
    ),
    "strided": lambda m, y: y.transpose(1, 3).contiguous().as_strided((2, 5), (3, 2), 1),
    "strided far behind": lambda m, y: torch.relu(y.transpose(1, 3).contiguous()).as_strided(
        (2, 5), (3, 2), 1
    ),
    "strided from the layer": lambda m, y: (y * 2.0).as_strided((2, 5), (3, 2), 1),
    "strided without order": lambda m, y: y.transpose(1, 3).as_strided((2, 5), (3, 2), 1),
    "stride": lambda m, y: y * torch.relu(y.transpose(1, 3).contiguous()).stride()[1],
    "complex": lambda m, y: torch.view_as_real(
        torch.view_as_complex(y.view(1, 2, 4, 36).permute(0, 2, 3, 1).contiguous()) * 2.0
    ),
    "written through": lambda m, y: written(y),
    "written behind": lambda m, y: written_behind(y),
    "returned": lambda m, y: y.permute(0, 2, 3, 1).contiguous(),
    "returned through others": lambda m, y: torch.relu(y.permute(0, 2, 3, 1).contiguous()),
    "clone": lambda m, y: (
        y.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).view(36, 8)
    ),
    "other format": lambda m, y: (
        y.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(36, 8)
    ),
}


def written(y: Tensor) -> Tensor:
    z = y.transpose(1, 3).contiguous()
    z.view(36, 8).narrow(0, 3, 2).fill_(7.0)
    return z * 2.0


def written_behind(y: Tensor) -> Tensor:
    z = torch.relu(y.transpose(1, 3).contiguous())
    z.view(36, 8).add_(1.0)
    return z * 2.0


UNTRACED = ("stride",)


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def agree(model: nn.Module, small: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted, given = outputs(model(x)), outputs(small(x))
    for want, found in zip(wanted, given, strict=True):
        assert found.dtype is want.dtype
        if want.dtype.is_floating_point:
            torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
            if want.is_contiguous():
                assert found.is_contiguous()


def ways(model: nn.Module, x: Tensor, name: str) -> list[fx.GraphModule]:
    made = [
        shrink_graph(graph_module(model)),
        shrink_graph(graph_module(model), example_inputs=(x,)),
    ]
    if name not in UNTRACED:
        made.append(shrink_graph(torch.export.export(model, (x,))))
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_runs_as_the_host_does(name: str, form: torch.memory_format) -> None:
    model = Net(FUNCTIONS[name])
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64).to(memory_format=form)
    try:
        with torch.no_grad():
            model(x)
    except RuntimeError:
        assert form is torch.channels_last  # Here the host itself needs another layout.
        return
    if name == "other bytes":
        # The merged convolution rounds otherwise, which shows in single bytes.
        model.norm = nn.Identity()
    for small in ways(model, x, name):
        agree(model, small, x)


@pytest.mark.parametrize("name", ["shuffle", "windows", "through others", "clone"])
def test_decomposed_programs(name: str) -> None:
    model, x = Net(FUNCTIONS[name]), torch.randn(1, 4, 6, 6, dtype=torch.float64)
    program = torch.export.export(model, (x,)).run_decompositions()
    agree(model, shrink_graph(program), x)


def test_what_is_not_known_gets_rows_in_order() -> None:
    for function in (
        lambda m, y: m.stranger(y.transpose(1, 3).contiguous()) + 1.0,
        lambda m, y: m.stranger(torch.relu(y.transpose(1, 3).contiguous())),
        lambda m, y: of_a_stranger(y.transpose(1, 3).contiguous()),
    ):
        model, x = Net(function), torch.randn(1, 4, 6, 6, dtype=torch.float64)
        traced = graph_module(model)
        agree(model, shrink_graph(traced), x)
        agree(model, shrink_graph(traced, example_inputs=(x,)), x)


def test_calls_stay_where_nothing_in_front_of_them_changed() -> None:
    def function(m: Net, y: Tensor) -> Tensor:
        return m.linear(y.view(8, 36).t().contiguous().view(36, 8))

    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    traced = graph_module(Net(function))
    kept = shrink_graph(traced, [], example_inputs=(x,))
    assert [n.target for n in kept.graph.nodes] == [n.target for n in traced.graph.nodes]
    small = shrink_graph(traced, example_inputs=(x,))
    targets = [n.target for n in small.graph.nodes]
    assert "contiguous" not in targets
    assert "view" not in targets
    assert targets.count("reshape") == 2


def test_layouts_that_passes_change() -> None:
    """A pass that spells every transpose anew, or takes all of them away."""

    def respell(graph: Graph, rw: Rewriter) -> None:
        for node in list(graph.nodes):
            if not isinstance(node.op, Opaque):
                rw.replace(node, node.op, node.inputs)

    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    for name, function in FUNCTIONS.items():
        model = Net(function)
        if name == "other bytes":
            model.norm = nn.Identity()
        small = shrink_graph(graph_module(model), [respell, "prune-dead"], example_inputs=(x,))
        agree(model, small, x)


def test_transposes_that_cancel() -> None:
    def function(m: Net, y: Tensor) -> Tensor:
        z = y.permute(0, 2, 3, 1).permute(0, 3, 1, 2).contiguous().view(8, 36)
        return z.t().contiguous().view(6, 48)

    model, x = Net(function), torch.randn(1, 4, 6, 6, dtype=torch.float64)

    def cancel(graph: Graph, rw: Rewriter) -> None:
        first, second = (
            n for n in graph.nodes if isinstance(n.op, Transpose) and len(n.op.perm) > 2
        )
        rw.replace_uses(second.output, first.inputs[0])

    passes = [cancel, "prune-dead", "merge-linear"]
    for small in (
        shrink_graph(graph_module(model), passes, example_inputs=(x,)),
        shrink_graph(graph_module(model), passes),
    ):
        agree(model, small, x)


def test_any_batch_of_any_layout() -> None:
    def function(m: Net, y: Tensor) -> Tensor:
        z = y.permute(0, 2, 3, 1).contiguous().view(y.size(0), -1, 8)
        return m.linear(z).transpose(1, 2).contiguous().view(y.size(0), 2, -1)

    model, x = Net(function), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    small = shrink_graph(graph_module(model), example_inputs=(x,))
    other = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    for given in (x, other, other.to(memory_format=torch.channels_last)):
        agree(model, small, given)
