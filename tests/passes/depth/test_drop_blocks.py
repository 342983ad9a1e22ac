"""``drop-blocks``: the blocks that go, what is left, and repairs, judged in torch and onnxruntime."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphshrink import PassError, shrink
from graphshrink.api import load
from graphshrink.passes.depth.residual_blocks import sub_layers, transformer_layers
from support.onnx_run import outputs_of


class Layer(nn.Module):
    """A layer of a transformer; ``size`` is that of what it adds to its skips."""

    def __init__(self, first: bool, size: float) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.first = first
        with torch.no_grad():
            for layer in (self.out, self.down):
                layer.weight *= size
                layer.bias *= size

    def attention(self, x: Any) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)

    def mlp(self, x: Any) -> Any:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Any) -> Any:
        if self.first:
            x = x + self.attention(self.norms[0](x))
            return x + self.mlp(self.norms[1](x))
        x = self.norms[0](x + self.attention(x))
        return self.norms[1](x + self.mlp(x))


class Vit(nn.Module):
    """Patches, layers of a transformer, the mean over positions, a head. Layer 1 adds almost nothing."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 8))
        self.layers = nn.Sequential(*(Layer(first, size) for size in (2.0, 0.02, 2.0)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIONS: Any = {"example_inputs": (X[:2],), "calibration": X}


@pytest.mark.parametrize("first", [True, False])
def test_blocks_of_a_transformer(first: bool) -> None:
    graph, _ = load(Vit(first).eval(), (X[:2],))
    parts = sub_layers(graph)
    assert [b.attends for b in parts] == [True, False] * 3
    layers = transformer_layers(graph)
    assert [b.name for b in layers] == [f"layers.{i}.qkv to layers.{i}.down" for i in range(3)]
    assert all(a.exit is b.entry for a, b in pairwise(layers))


@pytest.mark.parametrize("by", ["loss", "influence"])
@pytest.mark.parametrize("first", [True, False])
def test_the_layer_that_adds_almost_nothing_goes(first: bool, by: str) -> None:
    model = Vit(first).eval()
    text = f"drop-blocks{{count=1,by={by},repair=false}},prune-dead,remove-noops"
    done = shrink(model, text, **OPTIONS)
    own = dict(done.model.named_parameters())
    assert not any(name.startswith("layers.1.") for name in own)
    assert {n.split(".")[1] for n in own if n.startswith("layers.")} == {"0", "2"}
    # It is the network whose second layer does nothing.
    model.layers[1] = nn.Identity()
    with torch.no_grad():
        np.testing.assert_allclose(done.model(X), model(X), atol=1e-5)


def test_files_and_reconstruction_behind_it(tmp_path: Any) -> None:
    model = Vit(False).eval()
    given = tmp_path / "in.onnx"
    shrink(model, "prune-dead", example_inputs=(X[:2],)).save(given)
    fresh = {"x": torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2)).numpy()}

    def error(file: Any) -> float:
        made, wanted = outputs_of(file, fresh)[0], outputs_of(given, fresh)[0]
        return float(np.square(made - wanted).mean() / wanted.var())

    tail = ",prune-dead,remove-noops"
    names = "layers=*layers.2*up*"
    plain, repaired, fitted = (
        shrink(given, text + tail, calibration=X.numpy()).model
        for text in (
            f"drop-blocks{{count=1,{names},repair=false}}",
            f"drop-blocks{{count=1,{names}}}",
            f"drop-blocks{{count=1,{names}}},reconstruct{{method=closed-form}}",
        )
    )
    assert len(plain.graph.node) < len(shrink(given, "prune-dead").model.graph.node)
    assert error(fitted) < error(repaired) <= error(plain)


def test_residual_networks() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
            self.down = nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.stem(x))
            for conv in self.convs:
                x = torch.relu(x + conv(x))
            return self.down(x)

    done = shrink(Blocks().eval(), "drop-blocks{ratio=0.5},prune-dead,remove-noops", **OPTIONS)
    assert sum(isinstance(m, nn.Conv2d) for m in done.model.modules()) == 4
    assert sum(r.what.startswith("skip") for r in done.report.passes[0].rewrites) == 2
    kept = [r.reason for r in done.report.passes[0].refusals if "its block stays" in r.reason]
    assert len(kept) == 2


def test_refusals() -> None:
    model = Vit().eval()
    for text in ("drop-blocks", "drop-blocks{count=1,ratio=0.5}"):
        with pytest.raises(PassError, match="give either count"):
            shrink(model, text, **OPTIONS)
    with pytest.raises(PassError, match="4 blocks should go, but there are 3"):
        shrink(model, "drop-blocks{count=4}", **OPTIONS)
    with pytest.raises(PassError, match="needs calibration data"):
        shrink(model, "drop-blocks{count=1}", example_inputs=(X[:2],))
    with pytest.raises(PassError, match="no node is named"):
        shrink(model, "drop-blocks{count=1,layers=nothing}", **OPTIONS)


class Mixed(nn.Module):
    """Residual blocks of convolutions behind a sum with a linear layer along the last axis, or the other way round."""

    def __init__(self, convolutions: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(9, 9) if convolutions else nn.Conv1d(6, 6, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(6, 6, 3, padding=1) if convolutions else nn.Linear(9, 9), nn.Tanh()
            )
            for _ in range(3)
        )
        self.head = nn.Conv1d(6, 2, 1) if convolutions else nn.Linear(9, 2)

    def forward(self, x: Any) -> Any:
        x = torch.sigmoid(x) + self.front(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("convolutions", [True, False])
def test_a_repair_lies_along_the_axis_of_the_node_in_front(convolutions: bool) -> None:
    """The bias in front has another length than the channels of the block; torch says whether its correction helps."""
    x = torch.randn(64, 6, 9, generator=torch.Generator().manual_seed(1))
    model = Mixed(convolutions).eval()
    errors = []
    for repair in ("true", "false"):
        passes = f"drop-blocks{{count=2,by=influence,repair={repair}}}"
        result = shrink(model, passes, example_inputs=(x[:2],), calibration=x)
        errors.append(float((result.model(x) - model(x)).square().mean()))
    assert 0 < errors[0] <= errors[1]
