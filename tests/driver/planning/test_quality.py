"""Scores of networks: whole, from cached prefixes, and against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import mean_squared_error, r2_score

pytest.importorskip("torch")

from zoo.exports import exported

import graphshrink
from graphshrink import UsageError, ir
from graphshrink.planning.candidates.skip import Skipped
from graphshrink.planning.quality import Scorer, divergence
from graphshrink.planning.samples import read_samples
from graphshrink.planning.sites import find_sites
from graphshrink.training.recovery.files import distill_loss


def test_divergences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20, 7)).astype(np.float32)
    wanted = rel_entr(softmax(b, -1), softmax(a, -1)).sum(-1).mean()
    assert divergence("logits", a, b) == pytest.approx(wanted, rel=1e-5)
    assert divergence("softmax", softmax(a, -1), softmax(b, -1)) == pytest.approx(wanted, rel=1e-5)
    assert divergence("log", log_softmax(a, -1), log_softmax(b, -1)) == pytest.approx(
        wanted, rel=1e-5
    )
    assert divergence("error", b + b.std(), b) == pytest.approx(1, rel=1e-5)


def test_measures_of_regressions_and_embeddings() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 20, 7))
    assert divergence("mse", a, b) == pytest.approx(mean_squared_error(b, a))
    assert divergence("error", a[:, 0], b[:, 0]) == pytest.approx(1 - r2_score(b[:, 0], a[:, 0]))
    angles = np.mean([distance.cosine(x, y) for x, y in zip(a, b, strict=True)])
    assert divergence("cosine", a, b) == pytest.approx(angles)
    assert divergence("cosine", 3 * b, b) == pytest.approx(0, abs=1e-30)
    assert divergence("cosine", np.zeros((2, 3)), np.zeros((2, 3))) == 0
    assert divergence("cosine", np.zeros((2, 3)), np.ones((2, 3))) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["log", "softmax", "logits", "error", "mse", "cosine"])
def test_training_measures_what_scores_measure(kind: str) -> None:
    import torch

    rng = np.random.default_rng(2)
    made, wanted = rng.standard_normal((2, 16, 5)).astype(np.float32)
    if kind in ("log", "softmax"):
        made, wanted = (
            {"log": log_softmax, "softmax": softmax}[kind](x, -1) for x in (made, wanted)
        )
    loss = distill_loss([kind], [float(wanted.var())], 1.0)
    found = float(loss(torch.from_numpy(made), torch.from_numpy(wanted)))
    assert found == pytest.approx(divergence(kind, made, wanted), rel=1e-4)


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit", "unet"])
def test_a_suffix_scores_like_the_whole_network(name: str, onnx_files: Path) -> None:
    graph = graphshrink.shrink(exported(name, onnx_files)).graph
    rng = np.random.default_rng(0)
    shape = graph.inputs[0].type.static_shape
    assert shape is not None
    batches = [(rng.standard_normal(shape).astype(np.float32),) for _ in range(4)]
    scorer = Scorer(graph, batches)
    assert scorer.loss(graph) == 0
    for node in list(graph.nodes)[3::6]:
        prefix = scorer.prefix(node)
        assert prefix.loss(graph) < 1e-8
    for site in find_sites(graph).found:
        if site.kind == "residual":
            changed = graph.clone()
            Skipped(site).apply(changed, ir.Rewriter(changed))
            whole = scorer.loss(changed)
            assert whole > 1e-6
            assert scorer.prefix(site.nodes[0]).loss(changed) == pytest.approx(
                whole, rel=1e-3, abs=1e-7
            )


def test_own_score(onnx_files: Path) -> None:
    graph = graphshrink.shrink(exported("mobilenet_v2", onnx_files)).graph
    batches = [(np.zeros((1, 3, 96, 96), np.float32),)] * 3

    def score(outputs: list[np.ndarray], reference: list[np.ndarray]) -> float:
        assert outputs[0].shape == reference[0].shape == (3, 100)
        return 0.25

    assert Scorer(graph, batches, score).loss(graph) == 0.25


def test_samples_are_divided_and_too_few_are_refused() -> None:
    graph = ir.Graph()
    graph.add_output(graph.add_input("x", ir.TensorType(ir.DType.F32, ("n", 2))))
    data = np.arange(400, dtype=np.float32).reshape(200, 2)
    samples = read_samples(graph, data)
    fitting, scoring = (
        np.concatenate([b[0] for b in part])[:, 0] for part in (samples.fitting, samples.scoring)
    )
    assert sorted([*fitting, *scoring]) == data[:, 0].tolist()
    assert 16 <= len(scoring) <= 40
    with pytest.raises(UsageError, match="31 samples; the planner needs at least 32"):
        read_samples(graph, data[:31])
    assert read_samples(graph, data[:100]).digest != samples.digest
