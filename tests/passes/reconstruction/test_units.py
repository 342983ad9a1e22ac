"""Where units begin and end."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphshrink.api import load
from graphshrink.ir import Graph
from graphshrink.passes.reconstruction.units import Unit, find_units


class Layer(nn.Module):
    """A layer of a transformer with a mask of padding, with norms behind or in front of its skips."""

    def __init__(self, width: int = 8, first: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.first = first

    def attention(self, x: Any, mask: Any) -> Any:
        seen = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) + mask, -1)
        return self.out(seen @ self.value(x))

    def forward(self, x: Any, mask: Any) -> Any:
        if self.first:
            x = x + self.attention(self.norms[0](x), mask)
            return x + self.down(torch.relu(self.up(self.norms[1](x))))
        x = self.norms[0](x + self.attention(x, mask))
        return self.norms[1](x + self.down(torch.relu(self.up(x))))


class Transformer(nn.Module):
    """Two layers that read the same mask, which is computed from the arguments."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList([Layer(first=first), Layer(first=first)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any, lengths: Any) -> Any:
        mask = lengths.unsqueeze(1) * -1e4
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


class Residual(nn.Module):
    """Convolutions with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
            for _ in range(2)
        )
        self.head = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def units(model: nn.Module, *inputs: Any) -> tuple[Graph, tuple[Unit, ...]]:
    graph, _ = load(model.eval(), inputs)
    found = find_units(graph, {v.name: v for v in graph.clone().values()})
    assert not found.refused
    return graph, found.units


def names(found: tuple[Unit, ...]) -> list[list[str]]:
    return [[n.name for n in u.layers] for u in found]


def test_transformers_are_divided_into_attention_and_mlp_although_all_layers_read_one_mask() -> (
    None
):
    for first in (False, True):
        example = (torch.zeros(2, 5, 4), torch.zeros(2, 5))
        graph, found = units(Transformer(first), *example)
        parts = [
            [f"layers.{i}.{n}" for n in group]
            for i in range(2)
            for group in (("query", "key", "value", "out"), ("up", "down"))
        ]
        assert [sorted(n) for n in names(found)] == [["embed"], *map(sorted, parts), ["head"]]
        # The mask is a further input of attention alone.
        assert [len(u.inputs) for u in found] == [1, 2, 1, 2, 1, 1]
        assert found[-1].exit is graph.outputs[0]
        # Norms behind skips belong to the unit; in front of them, they begin the next one.
        ops = [n.op.name for n in found[1].nodes]
        assert (ops[-1], ops[0]) == (("Add", "LayerNorm") if first else ("LayerNorm", ops[0]))


def test_layers_that_share_a_weight_are_refused_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.head(torch.relu(self.inner(torch.relu(self.inner(x)))))

    graph, _ = load(Tied().eval(), (torch.zeros(1, 4),))
    found = find_units(graph, {v.name: v for v in graph.clone().values()})
    assert names(found.units) == [["head"]]
    assert len(found.refused) == 2
    assert {r for _, r in found.refused} == {"other parts of the network read its weight too"}


def test_layers_without_a_counterpart_are_refused_by_name() -> None:
    graph, _ = load(Residual().eval(), (torch.zeros(1, 3, 6, 6),))
    found = find_units(graph, {})
    assert not found.units
    assert [node.name for node, _ in found.refused][:2] == ["stem", "blocks.0.0"]
    assert all("the original has no %" in reason for _, reason in found.refused)


def test_residual_blocks_are_units_with_their_activation() -> None:
    _, found = units(Residual(), torch.zeros(1, 3, 6, 6))
    blocks = [[f"blocks.{i}.0", f"blocks.{i}.2"] for i in range(2)]
    assert names(found) == [["stem"], *blocks, ["head"]]
    assert [u.nodes[-1].op.name for u in found[:3]] == ["Activation"] * 3
    assert {t.value.type.rank for u in found for t in u.tuned} == {1, 2, 4}
