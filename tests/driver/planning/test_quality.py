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
    loss = distill_loss([kind], [-1], [float(wanted.var())], 1.0)
    found = float(loss(torch.from_numpy(made), torch.from_numpy(wanted)))
    assert found == pytest.approx(divergence(kind, made, wanted), rel=1e-4)


def _identity(op: ir.Op, shape: tuple[str | int, ...]) -> ir.Graph:
    """A graph that computes an op of its input."""
    graph = ir.Graph()
    x = graph.add_input("x", ir.TensorType(ir.DType.F32, shape))
    graph.add_output(ir.Rewriter(graph).insert(op, [x]).output)
    return graph


@pytest.mark.parametrize("measure", ["kl", "cosine", "error", "mse"])
@pytest.mark.parametrize("widths", [(5, 5, 5), (5, 3, 7)])
def test_samples_of_different_lengths_are_compared_row_by_row(
    measure: str, widths: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    shapes = list(zip((2, 4, 3), widths, strict=True))
    wanted, made = ([rng.standard_normal((2, *s)).astype(np.float32) for s in shapes] for _ in "ab")
    graph = _identity(ir.Identity(), ("n", "length", "width"))
    scorer = Scorer(graph, [(a,) for a in wanted], measure)
    rows = [(a, b) for pair in zip(made, wanted, strict=True) for a, b in _rows(*pair)]
    flat = [np.concatenate(part) for part in zip(*rows, strict=True)]
    if measure == "kl":
        found = np.mean([rel_entr(softmax(b), softmax(a)).sum() for a, b in rows])
    elif measure == "cosine":
        found = np.mean([distance.cosine(a, b) for a, b in rows])
    else:
        found = mean_squared_error(*flat) / (flat[1].var() if measure == "error" else 1)
    assert scorer.of([[a] for a in made]) == pytest.approx(found, rel=1e-4)
    assert scorer.of([[a] for a in wanted]) == 0


def _rows(*arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    return list(zip(*(a.reshape(-1, a.shape[-1]) for a in arrays), strict=True))


@pytest.mark.parametrize("op", [ir.Softmax, ir.LogSoftmax])
@pytest.mark.parametrize("axis", [0, 1, -3, 2, -1])
def test_distributions_along_any_axis(op: type[ir.Softmax], axis: int) -> None:
    import torch

    rng = np.random.default_rng(4)
    scores = rng.standard_normal((2, 3, 8, 5, 4, 3)).astype(np.float32)
    scorer = Scorer(_identity(op(axis), ("n", 5, 4, 3)), [(a,) for a in scores[0]])
    assert scorer.kinds == ["log" if op is ir.LogSoftmax else "softmax"]
    wanted, made = softmax(scores, axis + 2 if axis >= 0 else axis)
    divergences = rel_entr(wanted, made).sum(axis + 1 if axis >= 0 else axis)
    form = np.log if op is ir.LogSoftmax else np.asarray
    assert scorer.of([[form(a)] for a in made]) == pytest.approx(divergences.mean(), rel=1e-4)
    loss = distill_loss(scorer.kinds, scorer.axes, [1.0], 1.0)
    found = [
        float(loss(*(torch.from_numpy(form(a)) for a in pair)))
        for pair in zip(made, wanted, strict=True)
    ]
    assert np.mean(found) == pytest.approx(divergences.mean(), rel=1e-4)


def test_an_output_of_unknown_rank_is_compared_as_asked() -> None:
    graph = _identity(ir.Identity(), ("n", 5))
    graph.inputs[0].type = graph.outputs[0].type = ir.TensorType(ir.DType.F32, None)
    batches = [(np.random.default_rng(5).standard_normal((4, 5)).astype(np.float32),)]
    assert Scorer(graph, batches, "cosine").kinds == ["cosine"]


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
