"""Views, slices and pieces of torch: read as ops, copied as they were, and spelled anew the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphshrink import shrink_graph
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Graph, Opaque, Rewriter
from graphshrink.targets.torch.emitter import to_fx
from support.fx_calls import Call, body, ops, respelled, traced

torch.manual_seed(0)
X = torch.randn(2, 4, 6, 8)


def pieces(x: Any) -> Any:
    a, b = x.split([1, 3], 1)[0], x.chunk(4, -1)[3]
    return a.sum() + b.sum()


def both(x: Any) -> Any:
    parts = torch.split(x, 3, 2)
    return torch.cat([parts[1], parts[0]], 2)


def uneven(x: Any) -> Any:
    parts = x.chunk(4, 2)  # Of six: 2, 2, 2.
    return parts[2] * parts[0]


def bound(x: Any) -> Any:
    rows = x.unbind(1)
    return rows[3] - rows[0] * rows[2]


CASES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "index": (lambda x: x[:, 2], ["Select"]),
    "negative-index": (lambda x: x[..., -1], ["Select"]),
    "select": (lambda x: x.select(2, 3), ["Select"]),
    "slice": (lambda x: x[:, 1:3], ["Slice"]),
    "steps": (lambda x: x[:, :, ::2, 1:7:3], ["Slice"]),
    "open-ends": (lambda x: x[-1:, :-2], ["Slice"]),
    "narrow": (lambda x: x.narrow(1, 1, 2), ["Slice"]),
    "everything": (lambda x: x[:, 0:, :-1][:, :, 0:] * 2, ["Slice", "Identity", "Scale"]),
    "all-of-this-size": (lambda x: x[:, :9, :-1].narrow(2, 0, 5) * 2, ["Slice", "Slice", "Scale"]),
    "new-axis": (lambda x: x[:, None], ["Unsqueeze"]),
    "unsqueeze": (lambda x: x.unsqueeze(-1), ["Unsqueeze"]),
    "squeeze": (lambda x: x[:, :2].unsqueeze(1).squeeze(1), ["Slice", "Squeeze", "Unsqueeze"]),
    "squeeze-slice": (lambda x: x[:, 1:2].squeeze(1), ["Select"]),
    "movedim": (lambda x: x.movedim((0, 1), (-1, 0)), ["Transpose"]),
    "swapaxes": (lambda x: x.swapaxes(1, -1), ["Transpose"]),
    "flatten": (lambda x: x.flatten(1), ["Flatten"]),
    "flatten-two": (lambda x: x.flatten(1, 2), ["Reshape"]),
    "flatten-last": (lambda x: torch.flatten(x, -2), ["Reshape"]),
    "t": (lambda x: x[0].select(0, 1).t(), ["Select", "Select", "Transpose"]),
    "sum": (lambda x: x.sum((1, 3), keepdim=True), ["Reduce"]),
    "sum-all": (lambda x: x.sum(), ["Reduce"]),
    "amax": (lambda x: x.amax(1), ["Reduce"]),
    "amin": (lambda x: torch.amin(x, (0, -1)), ["Reduce"]),
    "split-and-swap": (both, ["Split", "Concat"]),
    "chunks": (uneven, ["Split", "Mul"]),
    "unbind": (bound, ["Select", "Select", "Select", "Mul", "Sub"]),
}


@pytest.mark.parametrize("name", CASES)
def test_ops_from_fx(name: str) -> None:
    function, wanted = CASES[name]
    module = traced(function)
    graph = from_fx(module, (X,))
    assert sorted(ops(graph)) == sorted(wanted)
    copied = to_fx(graph)
    assert body(copied) == body(module)
    want = function(X)
    assert torch.equal(copied(X), want)
    torch.testing.assert_close(respelled(graph)(X), want, rtol=0, atol=1e-6)
    for node, value in ((n, v) for n in from_fx(module, (X,)).nodes for v in n.outputs):
        assert value.type.is_static, node


@pytest.mark.parametrize("name", CASES)
def test_ops_from_torch_export(name: str) -> None:
    function, wanted = CASES[name]
    program = torch.export.export(Call(function).eval(), (X,))
    graph = from_export(program)
    # torch 2.8 writes slices of everything in front of others.
    assert sorted({*ops(graph)} - {"Identity"}) == sorted({*wanted} - {"Identity"})
    torch.testing.assert_close(to_fx(graph)(X), function(X), rtol=0, atol=0)


def test_what_is_cut_once_is_written_once() -> None:
    module = to_fx(from_fx(traced(bound), (X,)))
    assert sum(n.target == "unbind" for n in module.graph.nodes) == 1


def test_pieces_that_nobody_takes() -> None:
    graph = from_fx(traced(pieces), (X,))
    split, chunk = (n for n in graph.nodes if n.op.name == "Split")
    assert [v.use_count for v in split.outputs] == [1, 0]
    assert [v.use_count for v in chunk.outputs] == [0, 0, 0, 1]
    torch.testing.assert_close(respelled(graph)(X), pieces(X))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.split(2, 1) + x.chunk(2, 1))[2],  # The tuple itself is used.
        lambda x: x[:, 0, 1:],  # Two ops in one call.
        lambda x: x[:, torch.tensor([0, 1]), torch.tensor([1, 0])],  # Two indices that are tensors.
        lambda x: x.to(torch.int64).sum(1),  # Integers add up in a wider type.
    ],
)
def test_what_is_not_one_op_is_a_barrier(function: Callable[[Any], Any]) -> None:
    module = traced(function)
    graph = from_fx(module, (X,))
    assert any(isinstance(n.op, Opaque) for n in graph.nodes)
    copied = to_fx(graph)
    assert body(copied) == body(module)
    assert torch.equal(copied(X), function(X))


def test_without_shapes() -> None:
    module = traced(lambda x: x[:, 0])
    graph = from_fx(module)
    assert ops(graph) == ["fx:_operator.getitem"]
    assert body(to_fx(graph)) == body(module)


def test_pieces_written_in_place_are_left_alone() -> None:
    """A piece is a view: what is written to it is seen in what it was cut from."""

    def function(x: Any) -> Any:
        y = x * 2
        a = y.chunk(2, 1)[0]
        a.relu_()
        return y + 1

    module = traced(function)
    graph = from_fx(module, (X,))
    assert all(isinstance(n.op, Opaque) for n in graph.nodes)
    assert torch.equal(to_fx(graph)(X), function(X))


def respell(graph: Graph, rw: Rewriter) -> None:
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


STATED: dict[str, Any] = {
    "all that there is": lambda x: x[:1],
    "more than there is": lambda x: x[:3],
    "from the end": lambda x: x[-1:],
    "its size": lambda x: x[: x.shape[0]],
    "of a layer": lambda x: torch.relu(x)[:1] * 2.0,
    "narrow": lambda x: x.narrow(0, 0, 1),
    "split": lambda x: torch.split(x, 1)[0],
    "split of what is known": lambda x: x.transpose(0, 1).split(2, 0)[1],
    "chunk": lambda x: x.chunk(2, 0)[0],
    "reshape": lambda x: x.reshape(1, -1),
    "squeeze": lambda x: x.squeeze(0),
    "squeeze all": lambda x: x.squeeze(),
}
"""Numbers that are written down beside the size of batches, which is one in the example."""


@pytest.mark.parametrize("name", STATED)
def test_numbers_that_are_written_down_are_not_the_size_of_the_batch(name: str) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = STATED[name](x)
            return made * 3.0

    x = torch.randn(4, 6, 3)
    for passes in (None, [respell]):
        small = shrink_graph(Net().eval(), passes, example_inputs=(x[:1],))
        for given in (x, x[:1], x[:2]):
            want = Net()(given)
            assert torch.equal(small(given), want)
