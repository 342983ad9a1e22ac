"""Permuting the channels of every group, at random, changes no output of well-known networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo.exports import example, exported, small
from zoo.models import SMALL
from zoo.more_models import MORE

from graphshrink.api import load
from graphshrink.ir import Graph, Linear, Opaque, Rewriter
from graphshrink.ir.analysis import ChannelGroup, channel_groups
from graphshrink.nn import Scale
from graphshrink.passes import Pipeline
from graphshrink.passes.channels.apply import apply_permutations
from graphshrink.targets.onnx.emitter import save_onnx
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate
from support.onnx_run import outputs_of
from support.permutations import freedom, permute_all

# The part of all rows and columns of weights that moves, of what could: graph inputs and outputs cannot.
FREE = {
    "mobilenet_v2": 0.97, "resnet18": 0.87, "resnet50": 0.95, "repvgg": 0.64, "efficientnet_b0": 0.98,
    "vit": 0.94, "densenet121": 0.87, "shufflenet_v1": 0.9, "shufflenet_v2": 0.97, "convnext": 0.97,
    "bert": 0.99, "gpt2": 0.95, "llama": 0.97, "lstm": 0.85, "lstm_cell": 0.93,
}  # fmt: skip
EXPORTED = {
    "bert": 0.98, "llama": 0.96, "shufflenet_v1": 0.94, "shufflenet_v2": 0.96, "convnext": 0.95, "gpt2": 0.71,
    "vit": 0.65, "lstm": 0.5, "lstm_cell": 0.0,
}  # fmt: skip
"""The same by torch.export, where attention of one call, and LSTMs, are not understood."""
NAMES = [*SMALL, *MORE]


def error(want: np.ndarray, got: np.ndarray) -> float:
    """The largest error, relative to the largest output, which must not be near zero."""
    assert np.abs(want).max() > 0.01
    assert want.std() > 0.001
    return float(np.abs(want - got).max() / np.abs(want).max())


@pytest.mark.parametrize(
    ("name", "way"), [*((n, "fx") for n in NAMES), *((n, "export") for n in (*MORE, "vit"))]
)
def test_torch(name: str, way: str) -> None:
    model, x = small(name, torch.float64), example(name, torch.float64)
    graph = load(model, (x,))[0] if way == "fx" else load(torch.export.export(model, (x,)))[0]
    if way == "export":
        assert freedom(graph, channel_groups(graph)) >= EXPORTED[name]
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    permute_all(graph)
    permuted = to_fx(graph)
    with torch.no_grad():
        assert error(model(x).numpy(), permuted(x).numpy()) < 1e-10
    # Batch norms still are some, which train.
    if way == "fx" and any("BatchNorm" in type(m).__name__ for m in model.modules()):
        assert not any(isinstance(m, Scale) for m in permuted.modules())
    assert all(torch.equal(p, parameters[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_onnx(name: str, onnx_files: Path, tmp_path: Path) -> None:
    source, target = exported(name, onnx_files), tmp_path / "out.onnx"
    graph, again = plain(source), plain(source)
    found = permute_all(graph)
    assert freedom(again, channel_groups(again)) >= FREE[name]
    tidy(graph)
    save_onnx(graph, target)
    x = example(name)
    if not any(isinstance(n.op, Opaque) for n in graph.nodes):
        given = [x.numpy()]
        assert error(evaluate(again, given)[0], evaluate(graph, given)[0]) < 1e-10
    first, second = run(source, x), run(target, x)
    assert error(first, second) < 2e-5
    assert found.groups
    assert target.stat().st_size <= 1.1 * source.stat().st_size + 5000


def tidy(graph: Graph) -> None:
    """Without what only computes constants."""
    Pipeline.parse("fold-constants{max-growth=10000000},prune-dead").run(graph)


def plain(path: Path) -> Graph:
    """The graph of a file, tidied."""
    graph = load(path)[0]
    tidy(graph)
    return graph


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    result: np.ndarray = outputs_of(path, x.numpy())[0]
    return result


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2", "convnext", "llama"])
def test_a_constant_that_is_left_out_shows(name: str, onnx_files: Path) -> None:
    """The tests above can fail: every single placement of a group is needed."""
    source = exported(name, onnx_files)
    given = [example(name).numpy()]
    read = plain(source)
    want = evaluate(read, given)[0]
    checked = 0
    for number, group in enumerate(channel_groups(read).groups[:5]):
        for place in range(len(group.placements))[:3]:
            graph = read.clone()
            whole = channel_groups(graph).groups[number]
            kept = [p for k, p in enumerate(whole.placements) if k != place]
            left = whole.placements[place].value.data
            assert left is not None
            # If all numbers are equal (a norm without a shift), a permutation changes nothing.
            if not kept or np.ptp(left.float64()) == 0:
                continue
            order = np.roll(np.arange(whole.size), 1)
            apply_permutations(
                graph, Rewriter(graph), [(ChannelGroup(whole.size, tuple(kept)), order)]
            )
            assert error(want, evaluate(graph, given)[0]) > 1e-6, whole.placements[place]
            checked += 1
    assert checked > 8


def test_groups_stay_valid_one_after_the_other(onnx_files: Path) -> None:
    """Groups are about positions: they stay valid after any permutations, in any order."""
    source = exported("vit", onnx_files)
    graph = plain(source)
    rng = np.random.default_rng(0)
    for _ in range(2):
        found = channel_groups(graph)
        twice = [(g, rng.permutation(g.size)) for g in (*found, *reversed(found.groups))]
        apply_permutations(graph, Rewriter(graph), twice)
    given = [example("vit").numpy()]
    again = plain(source)
    if any(isinstance(n.op, Opaque) for n in graph.nodes):
        pytest.skip("the oracle does not know an op of this export")
    assert error(evaluate(again, given)[0], evaluate(graph, given)[0]) < 1e-10


def test_tied_weights_stay_tied_and_trained() -> None:
    model, x = small("gpt2", torch.float64), example("gpt2", torch.float64)
    graph = load(model, (x,))[0]
    permute_all(graph)
    made = to_fx(graph)
    table = next(m.weight for m in made.modules() if isinstance(m, nn.Embedding))
    assert any(m.weight is table for m in made.modules() if isinstance(m, nn.Linear))
    assert not torch.equal(table, model.words.weight)
    # The same parameters are trained as before.
    sizes = [sorted(tuple(p.shape) for p in m.parameters()) for m in (made, model)]
    assert sizes[0] == sizes[1]


def test_resnet_by_name() -> None:
    """Every inner channel and every stream of ResNet-18, as single channels."""
    model, x = small("resnet18"), example("resnet18")
    graph = load(model, (x,))[0]
    found = channel_groups(graph)
    # Four streams (one a stage), and the inner channels of five blocks.
    assert len(found) == 4 + 5
    assert all(g.unit == 1 for g in found)
    stem = found.along(graph.value("0.0.weight"), 0)[0][0]
    names = {(p.value.name, p.axis) for p in stem.placements}
    assert {("0.0.weight", 0), ("2.body.1.0.weight", 0), ("3.body.1.0.weight", 0), ("2.body.0.0.weight", 1),
            ("4.down.0.weight", 1), ("4.body.0.0.weight", 1)} <= names  # fmt: skip
    head = next(n for n in graph.nodes if isinstance(n.op, Linear)).inputs[1]
    assert head is not None
    assert "output of the graph" in found.reasons(head, 0)[0]
    assert "input of the graph" in found.reasons(graph.value("0.0.weight"), 1)[0]
