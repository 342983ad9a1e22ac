"""In-place torch code before and after rewrites, against torch itself: results, and what the caller's tensors hold then."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphshrink import ModelError, shrink_graph
from graphshrink.frontends.torch.trace import trace
from graphshrink.ir import Graph, Opaque, Rewriter


def respell(graph: Graph, rw: Rewriter) -> None:
    """Write every node that is understood anew."""
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


def respell_sources(graph: Graph, rw: Rewriter) -> None:
    """Write anew what in-place calls read, but not those calls: half of the graph is copied."""
    for node in list(graph.nodes):
        written = isinstance(node.op, Opaque) or node.op.name in ("Activation", "Add", "Scale")
        if not written:
            rw.replace(node, node.op, node.inputs)


class Net(nn.Module):
    def __init__(self, function: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.next = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu, self.selu = nn.ReLU(inplace=True), nn.SELU(inplace=True)
        self.drop, self.alpha = nn.Dropout(0.5), nn.AlphaDropout(0.5)
        self.flat, self.same, self.fold = nn.Flatten(), nn.Identity(), nn.Unflatten(1, (2, 2))
        self.shuffle = nn.PixelShuffle(1)
        nn.init.normal_(self.norm.running_mean)
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def act(y: Tensor) -> Tensor:
    """An in-place call that is understood, and changes much."""
    return y.mul_(-2.0)


PRIVATE: dict[str, Callable[[Net, Tensor], Any]] = {
    "chain": lambda m, x: m.relu(m.norm(m.conv(x))).add_(1.0).mul_(2.0),
    "scales that cancel": lambda m, x: act((y := m.conv(x)).mul(2.0).mul(0.5)) + y,
    "scales that cancel twice": lambda m, x: (
        m.relu((y := m.conv(x)).mul(2.0).mul(0.5)) + m.relu(y.mul(4.0).mul(0.25).neg()) + y
    ),
    "activation of scales that cancel": lambda m, x: m.relu((y := m.conv(x)) * 2.0 * 0.5) + y,
    "activation of scales of the input": lambda m, x: (m.relu(x * 2.0 * 0.5) + 1.0, m.conv(x)),
    "activation of an input that nobody reads": lambda m, x: m.relu(x * 2.0 * 0.5) + 1.0,
    "input that is written last": lambda m, x: m.conv(x) + x.mul(3.0) + torch.relu_(x),
    "parameter's copy": lambda m, x: torch.relu_(m.conv.bias * 2.0 * 0.5) + m.conv(x).sum(),
    "scales of the input": lambda m, x: (act(x.mul(2.0).mul(0.5)), m.conv(x)),
    "copy of the input": lambda m, x: (act(x.clone()), x + 1.0),
    "shift that cancels": lambda m, x: act((y := m.conv(x)).add(1.0).sub(1.0)) + y,
    "read before, merged behind": lambda m, x: merged_behind(m, x),
    "read before by a view": lambda m, x: viewed_before(m, x),
    "through a view": lambda m, x: (
        act((y := m.conv(x)).mul(2.0).mul(0.5).flatten(1)).view(y.shape) + y
    ),
    "through an identity": lambda m, x: act(m.same(m.drop((y := m.conv(x)).mul(2.0).mul(0.5)))) + y,
    "of a parameter": lambda m, x: act(m.conv.bias.mul(1.0)) + m.conv.bias + m.conv(x).sum(),
    "added to itself": lambda m, x: (lambda y: y.add_(y).mul_(y))(m.conv(x)),
    "augmented": lambda m, x: operator.imul(operator.iadd(m.conv(x), m.next(x)), 3.0),
}
"""What nobody else sees: it may be merged, and must not be seen afterwards either."""


def merged_behind(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    before = y * 2.0
    z = act(y)
    return before * 3.0 + z


def viewed_before(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    before = y.transpose(2, 3).relu()
    return before.mul(3.0) + act(y)


def after(make: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Any]:
    """Write to what may share memory with a value, and read that value afterwards."""

    def function(m: Net, x: Tensor) -> Any:
        y = m.norm(m.conv(x))
        z = act(make(m, y))
        return m.next(y), y * 2.0, z + 1.0

    return function


ALIASES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "the value": lambda m, y: y,
    "view": lambda m, y: y.view(2, -1),
    "reshape": lambda m, y: y.reshape(2, -1),
    "reshape that copies": lambda m, y: y.transpose(1, 2).reshape(2, -1),
    "flatten": lambda m, y: torch.flatten(y, 1),
    "flatten module": lambda m, y: m.flat(y),
    "unflatten": lambda m, y: y.unflatten(1, (2, 2)),
    "unflatten module": lambda m, y: m.fold(y),
    "transpose": lambda m, y: y.transpose(1, 2),
    "permute": lambda m, y: y.permute(0, 2, 3, 1),
    "movedim": lambda m, y: y.movedim(1, 2),
    "squeeze": lambda m, y: y.unsqueeze(0).squeeze(0),
    "slice": lambda m, y: y[:, 1:3],
    "narrow": lambda m, y: y.narrow(1, 1, 2),
    "select": lambda m, y: y.select(1, 0),
    "item": lambda m, y: y[0],
    "chunk": lambda m, y: y.chunk(2, 1)[1],
    "split": lambda m, y: torch.split(y, 2, 1)[0],
    "unbind": lambda m, y: y.unbind(1)[2],
    "diagonal": lambda m, y: torch.diagonal(y, dim1=2, dim2=3),
    "expand": lambda m, y: y.expand(2, 4, 3, 3),
    "expand_as": lambda m, y: y.expand_as(y),
    "detach": lambda m, y: y.detach(),
    "data": lambda m, y: y.data,
    "contiguous": lambda m, y: y.contiguous(),
    "contiguous that copies": lambda m, y: y.transpose(1, 2).contiguous(),
    "to the same type": lambda m, y: y.to(torch.float64),
    "double": lambda m, y: y.double(),
    "to another type": lambda m, y: y.to(torch.float32),
    "dropout": lambda m, y: F.dropout(y, 0.5, training=False),
    "dropout module": lambda m, y: m.drop(y),
    "alpha dropout": lambda m, y: m.alpha(y),
    "identity": lambda m, y: m.same(y),
    "pixel shuffle": lambda m, y: m.shuffle(y),
    "clone": lambda m, y: y.clone(),
    "scale": lambda m, y: y * 1.0,
    "shift": lambda m, y: y + 0.0,
    "relu": lambda m, y: torch.relu(y),
    "relu in place": lambda m, y: torch.relu_(y),
    "several": lambda m, y: m.drop(y.detach().view(2, -1)).chunk(2, 1)[0].contiguous(),
}

WRITES: dict[str, Callable[[Net, Tensor], Any]] = {
    "method": lambda m, y: y.add_(1.0),
    "function": lambda m, y: torch.relu_(y),
    "functional": lambda m, y: F.relu(y, inplace=True),
    "functional by place": lambda m, y: F.relu(y, True),
    "leaky by place": lambda m, y: F.leaky_relu(y, 0.3, True),
    "elu by place": lambda m, y: F.elu(y, 1.0, True),
    "hardtanh by place": lambda m, y: F.hardtanh(y, -0.1, 0.1, True),
    "selu by place": lambda m, y: F.selu(y, True),
    "celu by place": lambda m, y: F.celu(y, 0.5, True),
    "threshold by place": lambda m, y: F.threshold(y, 0.1, 20.0, True),
    "module": lambda m, y: m.relu(y),
    "module that is not understood": lambda m, y: m.selu(y),
    "out": lambda m, y: torch.add(y, 1.0, out=y),
    "out of another": lambda m, y: torch.neg(y * 2.0, out=y),
    "augmented": lambda m, y: operator.iadd(y, 1.0),
    "augmented by a number": lambda m, y: augmented_by_sizes(y),
    "augmented division": lambda m, y: operator.itruediv(y, 3.0),
    "augmented floor division": lambda m, y: operator.ifloordiv(y, 0.1),
    "augmented remainder": lambda m, y: operator.imod(y, 0.1),
    "augmented power": lambda m, y: operator.ipow(y, 2),
    "augmented product": lambda m, y: operator.imatmul(y, torch.ones(3, 3, dtype=y.dtype)),
    "augmented attribute": lambda m, y: operator.isub(y.mT, 1.0),
    "augmented items": lambda m, y: augmented_items(y),
    "item": lambda m, y: operator.setitem(y, (slice(None), 0), 5.0),
    "items of a tensor": lambda m, y: operator.setitem(
        y, (slice(None), slice(0, 2)), y[:, 2:] * 2.0
    ),
    "fill": lambda m, y: y.fill_(3.0),
    "copy": lambda m, y: y.copy_(y * 2.0 + 1.0),
    "masked": lambda m, y: y.masked_fill_(y > 0, 9.0),
    "index": lambda m, y: y.index_add_(1, torch.tensor([0, 2]), y[:, 1:3] * 2.0),
    "zero": lambda m, y: y.zero_(),
    "aten": lambda m, y: torch.ops.aten.add_.Tensor(y, y),
    "many": lambda m, y: torch._foreach_mul_([y], 2.0),
}


def augmented_by_sizes(y: Tensor) -> None:
    n = y.shape[2]
    before, shape = n, y.size()
    n += 1
    n *= shape[3]
    shape += (n,)
    y += n * 10.0 + before
    y *= shape[4]


def augmented_items(y: Tensor) -> None:
    y[:, 1:3] -= 2.0
    y[0, 0] *= y[0, 1]


def written(write: Callable[[Net, Tensor], Any]) -> dict[str, Callable[[Net, Tensor], Any]]:
    """The same write to a layer's result, a view of it, the input, and a parameter's own view."""

    def whole(m: Net, x: Tensor) -> Any:
        y = m.norm(m.conv(x))
        before = y * 2.0
        write(m, y)
        return m.next(y), before * 3.0

    def view(m: Net, x: Tensor) -> Any:
        y = m.conv(x)
        write(m, y.view(2, 4, 3, 3))
        return m.norm(y) + 1.0

    def given(m: Net, x: Tensor) -> Any:
        y = m.conv(x)
        write(m, x)
        return m.norm(y) + x

    def last(m: Net, x: Tensor) -> Any:
        y = m.norm(m.conv(x))
        write(m, y)
        return y

    return {"whole": whole, "view": view, "input": given, "last": last}


def agree(function: Callable[[Net, Tensor], Any], *, export: bool = False, batch: int = 2) -> None:
    model = Net(function)
    x = torch.randn(batch, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = copy.deepcopy(model.state_dict())
    theirs = x.clone()
    with torch.no_grad():
        want = model(theirs)
        traced = trace(model, (x,))
    want = want if isinstance(want, tuple) else (want,)
    want = tuple(w.clone() for w in want)
    given: list[tuple[Any, Any]] = [(traced, p) for p in (
        None, [respell, "prune-dead"], ["prune-dead", respell_sources, "merge-linear"],
    )]  # fmt: skip
    if export:
        given.append((torch.export.export(model, (x,)), None))
    for host, passes in given:
        extra = {"example_inputs": (x,)} if host is traced else {}
        ours = x.clone()
        small = shrink_graph(host, passes, **extra)
        if host is traced:
            small = pickle.loads(pickle.dumps(small))  # Which traces it once more.
        with torch.no_grad():
            got = small(ours)
        got = got if isinstance(got, tuple) else (got,)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        # The caller's tensor is written where torch writes it, and nowhere else.
        assert torch.equal(ours, theirs)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_private_stays_private(name: str) -> None:
    agree(PRIVATE[name])


@pytest.mark.parametrize("name", ALIASES)
def test_writes_through_what_may_share_memory(name: str) -> None:
    function = after(ALIASES[name])
    if name == "expand":
        agree(after(lambda m, y: y[:1].expand(1, 4, 3, 3)))
        return
    agree(function)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("where", ["view", "input"])
def test_all_ways_to_write(name: str, where: str) -> None:
    agree(written(WRITES[name])[where])


@pytest.mark.parametrize("name", ["method", "functional", "module", "copy"])
def test_writes_of_exported_programs(name: str) -> None:
    for where in ("whole", "view", "last"):
        agree(written(WRITES[name])[where], export=True)
    agree(after(ALIASES["slice"]), export=True)


def test_private_writes_are_merged_and_stay_in_place() -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    model = Net(lambda m, x: m.relu(m.norm(m.conv(x))))
    small = shrink_graph(fx.symbolic_trace(model), example_inputs=(x,))
    assert [str(n.target) for n in small.graph.nodes if n.op == "call_module"] == ["conv", "relu"]
    assert small.relu.inplace
    torch.testing.assert_close(small(x), model(x))


def test_whole_numbers_are_written_in_place_too() -> None:
    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = (x * 10.0).long()
        view = y.flatten()
        y |= 3
        y &= 14
        y ^= 5
        y <<= 2
        y >>= 1
        y //= 3
        return view, y

    agree(forward)


def test_numbers_that_are_given_are_bound_anew() -> None:
    class Numbers(nn.Module):
        def forward(self, x: Tensor, n: float) -> Tensor:
            before = n
            n += 1.0
            return x * before + n

    x = torch.randn(2, 3)
    small = shrink_graph(Numbers().eval(), example_inputs=(x, 2.0))
    torch.testing.assert_close(small(x, 2.0), x * 2.0 + 3.0)


def test_an_input_that_may_be_a_number_is_never_computed_wrongly() -> None:
    class Maybe(nn.Module):
        def forward(self, x: Tensor, n: Any) -> Tensor:
            before = n
            n += 1.0
            return x * before + n

    x = torch.randn(2, 3)
    small = shrink_graph(Maybe().eval())
    torch.testing.assert_close(small(x, x * 2.0), x * (x * 2.0 + 1.0) + x * 2.0 + 1.0)
    with pytest.raises(AttributeError):
        small(x, 2.0)


def test_another_tensor_in_a_variable_is_not_traced() -> None:
    class Sets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2.0
            y.data = x
            return y

    with pytest.raises(ModelError, match=r"forward sets \.data of a tensor"):
        shrink_graph(Sets().eval(), example_inputs=(torch.randn(2, 3),))


def test_values_are_tensors_when_they_are_asked() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor, *, other: Any = None) -> Any:
            y = torch.relu(x).chunk(2, 1)[0]
            assert torch.is_tensor(x.mT)
            assert not isinstance(x.shape[1], Tensor)
            assert not isinstance(y, (nn.Parameter, list))
            return [y * 2.0] if isinstance(y, Tensor) else y

    x = torch.randn(2, 4)
    small = shrink_graph(Asks().eval(), example_inputs=(x,))
    torch.testing.assert_close(small(x), Asks()(x))


def test_what_is_only_added_in_place_is_not_written() -> None:
    def block(m: Net, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        y += x
        return m.relu(y)

    agree(block)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    small = shrink_graph(Net(block), example_inputs=(x,))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in small.modules())
