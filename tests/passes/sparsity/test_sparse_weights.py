"""Wanda and SparseGPT against plain loops that invert a matrix for every column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink.ir import ArrayTensor, DType, Graph, Linear, TensorType
from graphshrink.ir.masks.nm_pattern import Pattern
from graphshrink.passes.sparsity.layer_waves import layer_waves
from graphshrink.passes.sparsity.sparse_weights import PruningRule, output_change, sparsegpt, wanda

KEEP = PruningRule(Pattern(2, 4), 0.5)


def problem(seed: int, rows: int = 5, size: int = 16, samples: int = 200) -> Any:
    """A weight, and inputs that are correlated and of very different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((size, size)) * rng.lognormal(0, 1, (size, 1))
    x = mixed @ rng.standard_normal((size, samples))
    return rng.standard_normal((rows, size)), x


def brute(weight: Any, gram: Any, n: int, m: int, damping: float) -> Any:
    """Optimal brain surgeon, column by column, each row alone, with a fresh inverse for each column."""
    hessian = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
    made = weight.copy()
    for row in made:
        kept: list[int] = []
        for j in range(len(row)):
            if j % m == 0:
                cost = {
                    k: row[k] ** 2 / np.linalg.inv(hessian[k:, k:])[0, 0] for k in range(j, j + m)
                }
                kept = sorted(cost, key=lambda k: -cost[k])[:n]
            if j not in kept:
                inverse = np.linalg.inv(hessian[j:, j:])
                row[j:] -= row[j] / inverse[0, 0] * inverse[:, 0]
                row[j] = 0.0
    return made


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([(2, 4), (1, 4), (4, 8)]), st.sampled_from([1, 8, 128]))
def test_sparsegpt_is_optimal_brain_surgery(seed: int, pattern: Any, block: int) -> None:
    weight, x = problem(seed)
    keep = PruningRule(Pattern(*pattern), pattern[0] / pattern[1])
    got, mask, damping = sparsegpt(weight, x @ x.T, keep, damping=0.01, block=block)
    assert damping == 0.01
    np.testing.assert_array_equal(got != 0, mask)
    want = brute(weight, x @ x.T, *pattern, 0.01)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)
    assert (np.count_nonzero(got.reshape(5, -1, pattern[1]), axis=2) <= pattern[0]).all()


def test_wanda_keeps_the_largest_of_weight_times_input() -> None:
    weight, x = problem(0)
    mask = wanda(weight, np.square(x).sum(1), KEEP)
    scores = np.abs(weight) * np.linalg.norm(x, axis=1)
    for row, kept in zip(scores, mask, strict=True):
        for group in range(0, 16, 4):
            best = sorted(range(group, group + 4), key=lambda i: -row[i])[:2]
            assert sorted(np.flatnonzero(kept[group : group + 4]) + group) == sorted(best)


@pytest.mark.parametrize("keep", [KEEP, PruningRule(None, 0.5), PruningRule(None, 0.3)])
def test_each_method_is_better_than_the_one_before(keep: PruningRule) -> None:
    errors = np.zeros(3)
    for seed in range(10):
        weight, x = problem(seed, rows=16, size=32)
        gram = x @ x.T
        scores = np.abs(weight)
        made = [
            np.where(keep.mask_rows(scores), weight, 0),
            np.where(wanda(weight, np.diagonal(gram), keep), weight, 0),
            sparsegpt(weight, gram, keep)[0],
        ]  # fmt: skip
        for i, new in enumerate(made):
            direct = np.square((new - weight) @ x).sum()
            assert output_change(new - weight, gram) == pytest.approx(direct, rel=1e-9)
            errors[i] += direct / np.square(weight @ x).sum()
    assert errors[2] < 0.9 * errors[1]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("density", [0.25, 0.5, 0.9])
def test_a_part_of_the_numbers_is_kept(density: float) -> None:
    weight, x = problem(1, rows=10, size=24)
    for made in (
        wanda(weight, np.square(x).sum(1), PruningRule(None, density)),
        sparsegpt(weight, x @ x.T, PruningRule(None, density), block=8)[1],
    ):
        assert np.count_nonzero(made) == pytest.approx(240 * density, abs=10)
    whole, _, _ = sparsegpt(weight, x @ x.T, PruningRule(None, 1.0))
    np.testing.assert_array_equal(whole, weight)


def test_singular_matrices() -> None:
    weight, x = problem(2)
    x = np.random.default_rng(0).standard_normal(x.shape)
    x[[0, 1, 5]] = 0
    # Dead inputs cost nothing, so that they go first; where a whole group is dead, the largest weights stay.
    got, _, damping = sparsegpt(weight, x @ x.T, KEEP, damping=1e-6)
    assert damping == 1e-6
    assert (got[:, [0, 1]] == 0).all()
    assert np.isfinite(got).all()
    dead = x.copy()
    dead[:4] = 0
    got, _, _ = sparsegpt(weight, dead @ dead.T, KEEP)
    assert (np.count_nonzero(got[:, :4], axis=1) == 2).all()
    for row, old in zip(got[:, :4], weight[:, :4], strict=True):
        assert sorted(np.abs(row[row != 0])) == pytest.approx(sorted(np.abs(old))[2:])
    # Fewer samples than inputs, no damping asked for: it is raised until the matrix can be inverted.
    few = x[:, :7]
    got, _, damping = sparsegpt(weight, few @ few.T, KEEP, damping=0.0)
    assert damping > 0
    assert np.isfinite(got).all()
    nothing, _, _ = sparsegpt(weight, np.zeros((16, 16)), KEEP)
    np.testing.assert_array_equal(nothing != 0, KEEP.mask_rows(np.abs(weight)))
    with pytest.raises(ValueError, match="is not positive definite with any damping"):
        sparsegpt(weight, -np.eye(16), KEEP)


def test_rounding_is_made_up_for() -> None:
    """Numbers come out as they are stored, and the later ones make up for what that loses."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((8, 64))
    x = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 500)) + 0.1 * rng.standard_normal(
        (64, 500)
    )
    gram = x @ x.T

    def coarse(column: Any) -> Any:
        return np.round(column * 4) / 4

    got, _, _ = sparsegpt(weight, gram, PruningRule(None, 1.0), rounded=coarse)
    np.testing.assert_array_equal(got, coarse(got))
    assert output_change(got - weight, gram) < 0.1 * output_change(coarse(weight) - weight, gram)


# Which layers share a run.


def test_waves_follow_what_depends_on_what() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 4)))

    def dense(name: str, value: Any, weight: Any = None) -> Any:
        w = weight or graph.add_constant(ArrayTensor(np.ones((4, 4), np.float32)), "w")
        return graph.append(Linear(), [value, w], name=name)

    q, k = dense("q", x), dense("k", x)
    out = dense("out", q.output)
    again = dense("again", out.output, q.inputs[1])
    last = dense("last", again.output)
    layers = {"k": [k], "q": [q, again], "out": [out], "last": [last]}
    assert layer_waves(graph, layers) == [["k"], ["out"], ["q"], ["last"]]
    assert layer_waves(graph, {"q": [q], "k": [k], "last": [last]}) == [["q", "k"], ["last"]]
