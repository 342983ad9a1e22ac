"""Networks that careless permutations break: from every frontend, each is permuted correctly or left alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from graphshrink.api import load
from graphshrink.ir.analysis import ChannelGroups, channel_groups
from graphshrink.targets.onnx.emitter import save_onnx, to_onnx
from graphshrink.targets.torch.emitter import to_fx
from support.onnx_run import outputs_of
from support.permutations import permute_all


class Between(nn.Module):
    """A 1x1 convolution to 8 channels, something, and another convolution."""

    def __init__(self, out: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(out, 5, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(torch.relu(self.first(x))))


class LocalResponse(Between):
    """Each channel is divided by its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(3)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Shuffle(Between):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6)


class Roll(Between):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, 2, 1)


class Grouped(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class HandGrouped(Grouped):
    """Group norm written with basic ops."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(2, 2, 4 * 36)
        y = y - y.mean(2, keepdim=True)
        y = y / ((y * y).mean(2, keepdim=True) + 0.1)
        y = y.reshape(2, 8, 6, 6)
        return y * self.norm.weight.reshape(1, 8, 1, 1) + self.norm.bias.reshape(1, 8, 1, 1)


class Instance(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(8, affine=True)
        nn.init.normal_(self.norm.weight)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Sliced(Between):
    """Every other channel, and the first three again."""

    def __init__(self) -> None:
        super().__init__(7)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, ::2], x[:, :3]], 1)


class Chunked(Between):
    """Two halves that are processed differently."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.chunk(x, 2, 1)
        return torch.cat([torch.tanh(a), torch.sigmoid(b)], 1)


class HalfSwap(Between):
    """Each half gates the other."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.chunk(x, 2, 1)
        return x * torch.cat([b, a], 1)


class Slopes(Between):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(8)
        nn.init.uniform_(self.act.weight, 0.1, 0.9)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x - 0.5)


class Best(Between):
    """An argmax over channels: the index of a channel is data."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.argmax(1, keepdim=True)


class Returned(Between):
    """The channels are also an output of the graph."""

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.relu(self.first(x))
        return self.last(y), y


class Twice(Between):
    """A module that is called twice couples the channels of both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 8, 3, padding=1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.relu(self.mix(x)))


class Tied(nn.Module):
    """Encoder and decoder share one matrix, which the decoder transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.second.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        y = torch.tanh(F.linear(y, self.second.weight.t()))
        return self.head(torch.relu(self.last(y)))


class Shared(Between):
    """A scale that one node reads as a weight and another as data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.cumsum(self.scale, 0).reshape(1, 8, 1, 1)
        return x * self.scale.reshape(1, 8, 1, 1) + order


class Collision(nn.Module):
    """Modules with names that new modules might get."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_1 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.conv_weight, self.conv_1_1 = nn.Parameter(torch.rand(8, 1, 1)), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_1_1(torch.relu(self.conv_1(self.conv(x) * self.conv_weight)))


class Rotary(nn.Module):
    """Attention whose dimensions are rotated in pairs with a distance of half a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 5)
        angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.chunk(x, 2, 3)
        return x * self.cos + torch.cat([-b, a], 3) * self.sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).reshape(2, 5, 3, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = torch.softmax(self.turn(q) @ self.turn(k).transpose(2, 3), -1)
        return self.head(self.out((scores @ v).transpose(1, 2).reshape(2, 5, 12)))


IMAGES = (2, 3, 6, 6)
TRAPS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    **{c.__name__: (c, IMAGES) for c in (
        LocalResponse, Shuffle, Roll, Grouped, HandGrouped, Instance, Sliced, Chunked, HalfSwap, Slopes,
        Best, Returned, Twice, Shared, Collision)},
    "Tied": (Tied, (4, 6)), "Rotary": (Rotary, (2, 5, 12)),
}  # fmt: skip
PARTS: dict[str, list[tuple[int, int]]] = {
    # The eight channels must keep their order.
    "LocalResponse": [], "Best": [], "Returned": [],
    # A shuffle is only a renaming; the rest follows pieces, halves and pairs.
    "Shuffle": [(8, 1)], "Roll": [(2, 1), (6, 1)], "HandGrouped": [(2, 4), (4, 1), (4, 1)],
    "Grouped": [(2, 4), (4, 1), (4, 1)], "Instance": [(8, 1)],
    "Sliced": [(2, 1), (2, 1), (3, 1)], "Chunked": [(4, 1), (4, 1)], "HalfSwap": [(4, 2)],
    "Slopes": [(8, 1)], "Twice": [(8, 1)], "Shared": [(8, 1)], "Collision": [(8, 1), (8, 1)],
    "Tied": [(8, 1), (8, 1)], "Rotary": [(4, 1), (4, 1), (4, 1), (12, 1)],
}  # fmt: skip
"""(units, channels in the smallest unit) of every group, where all nodes are understood."""
NOT_UNDERSTOOD = {"Roll", "Shared", "Tied"}
"""Networks of which torch calls may be opaque; nothing is permuted then."""


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    kind, shape = TRAPS[name]
    return kind().eval().double(), torch.randn(shape, dtype=torch.float64)


def parts(found: ChannelGroups) -> list[tuple[int, int]]:
    return sorted((g.size, g.unit) for g in found)


def close(want: Any, got: Any, limit: float = 1e-10) -> None:
    for a, b in zip(
        *(v if isinstance(v, (tuple, list)) else [v] for v in (want, got)), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.std() > 1e-3
        np.testing.assert_allclose(b, a, rtol=0, atol=limit * np.abs(a).max())


@pytest.mark.parametrize("way", ["fx", "export"])
@pytest.mark.parametrize("name", TRAPS)
def test_torch(name: str, way: str) -> None:
    model, x = made(name)
    graph = load(model, (x,))[0] if way == "fx" else load(torch.export.export(model, (x,)))[0]
    found = permute_all(graph)
    assert parts(found) == PARTS[name] or (name in NOT_UNDERSTOOD and not found.groups)
    with torch.no_grad():
        close(model(x), to_fx(graph)(x))


@pytest.mark.parametrize("name", TRAPS)
def test_onnx(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), source, dynamo=True, verbose=False, external_data=False)
    graph = load(source)[0]
    found = permute_all(graph)
    assert parts(found) == PARTS[name]
    save_onnx(graph, target)
    feeds = {graph.inputs[0].name: x.numpy()}
    want, got = (ReferenceEvaluator(str(path)).run(None, feeds) for path in (source, target))
    close(want, got)
    # The exporter writes some numbers (epsilons) in float32.
    with torch.no_grad():
        close(model(x), got, 1e-6)


def hand_made(*middle: onnx.NodeProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Two 1x1 convolutions from ``x`` to ``y`` and ``z``, and the nodes between ``h`` and ``m``."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((8, 3, 1, 1)),
        "b": rng.random((4, 8, 1, 1)),
        "s": rng.random((1, 8, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]), *middle, helper.make_node("Conv", ["m", "b"], ["y"])
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 4, 4))],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, {"x": rng.random((1, 3, 4, 4)).astype(np.float32)}


def body(name: str, scale: str) -> onnx.GraphProto:
    """A branch that captures the channels and a scale."""
    node = helper.make_node("Mul", ["h", scale], [name])
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8, 4, 4))
    return helper.make_graph([node], name, [], [made])


@pytest.mark.parametrize("kind", ["LRN", "If", "capture", "custom"])
def test_onnx_barriers(kind: str) -> None:
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", 9, (), [True]))
    branch = helper.make_node(
        "If", ["yes"], ["m"], then_branch=body("t", "s"), else_branch=body("e", "s")
    )
    middle = {
        "LRN": [helper.make_node("LRN", ["h"], ["m"], size=3)],
        "If": [yes, branch],
        # The scale is a weight outside of the branch and captured within.
        "capture": [helper.make_node("Mul", ["h", "s"], ["k"]), yes, branch],
        "custom": [helper.make_node("Relu", ["h"], ["m"], domain="custom")],
    }[kind]
    model, _ = hand_made(*middle)
    graph = load(model)[0]
    found = channel_groups(graph)
    assert not found.groups
    kinds = {"LRN": "LocalResponseNorm", "custom": "onnx:custom.Relu"}
    for value in (v for v in graph.constants if v.name in ("a", "b")):
        (why,) = found.reasons(value, 0 if value.name == "a" else 1)
        assert kinds.get(kind, "onnx:If") in why


def test_a_shared_initializer_moves_once() -> None:
    """A scale that is read twice stays one initializer, and new names do not collide."""
    model, feeds = hand_made(
        helper.make_node("Mul", ["h", "s"], ["s_1"]), helper.make_node("Add", ["s_1", "s"], ["m"])
    )
    graph = load(model)[0]
    assert parts(permute_all(graph)) == [(8, 1)]
    after = to_onnx(graph)
    # What computes from it takes the names that are left.
    names = [t.name for t in after.graph.initializer]
    assert len({*names, "x", "h", "s_1", "m", "y"}) == len(names) + 5
    want, got = (outputs_of(m, feeds) for m in (model, after))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
