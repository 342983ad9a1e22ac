"""A user's script: it runs, and ``make types`` checks the types that it states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn
from torch.fx import GraphModule

from graphshrink import (
    Advice,
    Plan,
    Report,
    ShrinkResult,
    advise,
    plan,
    shrink,
    shrink_graph,
)
from graphshrink.planning.plan import PlannedSite
from support.small_networks import residual_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return residual_model(tmp_path / "in.onnx")


def test_torch_models_give_graph_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.randn(1, 4)
    result = shrink(model, "prune-dead", example_inputs=(x,), check=True)
    assert_type(result, ShrinkResult[GraphModule])
    small = assert_type(result.model, GraphModule)
    assert isinstance(small, GraphModule)
    again = assert_type(shrink_graph(small, example_inputs=(x,)), GraphModule)
    assert torch.equal(again(x), small(x))


def test_onnx_models_give_onnx_models(file: Path) -> None:
    model: ModelProto = onnx.load(file)
    assert isinstance(assert_type(shrink_graph(model), ModelProto), ModelProto)
    assert isinstance(assert_type(shrink_graph(str(file)), ModelProto), ModelProto)
    result = shrink(file, ["prune-dead"], target="onnx", seed=1)
    assert isinstance(assert_type(result.model, ModelProto), ModelProto)
    report = assert_type(result.report, Report)
    assert assert_type(report.after.nodes, int) == len(result.model.graph.node)
    tables: tuple[Any, ...] = (result, report)
    for shown in tables:
        assert len(repr(shown)) < 120
        assert "nodes" in repr(shown)
        assert max(map(len, str(shown).splitlines())) <= 80
        assert "prune-dead" in str(shown)
        assert shown._repr_html_().startswith("<pre")


def test_other_calls(file: Path) -> None:
    advice = assert_type(advise(file), Advice)
    assert assert_type(advice["depth"].gain, str) == "possible"

    def made(samples: Any) -> Plan:
        return assert_type(plan(file, samples, macs=0.8), Plan)

    found = made(np.random.default_rng(0).standard_normal((60, 1, 6, 6)).astype(np.float32))
    sites = assert_type(found.sites, list[PlannedSite])
    assert repr(found).startswith(f"<Plan macs 0.8: {len(sites)} of ")
    assert len(repr(found)) < 80
    assert sites[0].candidate in str(found)
    assert max(map(len, str(found).splitlines())) <= 80
    assert found._repr_html_().startswith("<pre")
