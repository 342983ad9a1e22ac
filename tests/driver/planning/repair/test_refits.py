"""The algebra of corrections, against numpy's least squares and plain moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from graphshrink.passes.statistics.least_squares import GroupSums, refit
from graphshrink.planning.repair.refits import rescale, shift

SEEDS = st.integers(0, 2**32 - 1)


def _data(seed: int, groups: int = 2, size: int = 3, outputs: int = 2, n: int = 40) -> tuple:
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((n, groups, size)) @ rng.standard_normal((size, size))
    columns += rng.standard_normal(size)
    targets = rng.standard_normal((n, groups, outputs)) + 3 * columns[:, :, :1]
    weight = rng.standard_normal((groups, outputs, size + 1))
    sums = GroupSums.zeros(groups, size, outputs)
    sums.add(columns[: n // 3], targets[: n // 3])
    sums.add(columns[n // 3 :], targets[n // 3 :])
    return columns, targets, weight, sums


def _made(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.einsum("ngk,gok->ngo", columns, weight[:, :, :-1]) + weight[:, :, -1]


@given(SEEDS, st.floats(0.001, 10))
def test_a_refit_has_the_smallest_ridge_loss(seed: int, strength: float) -> None:
    columns, targets, weight, sums = _data(seed)
    found = refit(sums, weight, strength)
    for g in range(2):
        ridge = strength * np.mean(columns[:, g] ** 2)
        ones = np.ones((len(columns), 1))
        stacked = np.concatenate([columns[:, g], ones], 1) / len(columns) ** 0.5
        pull = np.concatenate([np.eye(3), np.zeros((3, 1))], 1) * ridge**0.5
        for o in range(2):
            goal = np.r_[targets[:, g, o] / len(columns) ** 0.5, pull @ weight[g, o]]
            best = optimize.lsq_linear(np.r_[stacked, pull], goal).x
            np.testing.assert_allclose(found[g, o], best, rtol=1e-5, atol=1e-6)


@given(SEEDS)
def test_a_layer_that_errs_nowhere_stays(seed: int) -> None:
    columns, _, weight, _ = _data(seed)
    sums = GroupSums.zeros(2, 3, 2)
    sums.add(columns, _made(columns, weight))
    assert sums.error(weight) == pytest.approx(0, abs=1e-9)
    for found in (refit(sums, weight, 0.1), shift(sums, weight)):
        np.testing.assert_allclose(found, weight, rtol=1e-7, atol=1e-7)
    for spread in (False, True):
        found = rescale(sums, weight, spread=spread)
        np.testing.assert_allclose(_made(columns, found), _made(columns, weight), atol=1e-6)


@given(SEEDS)
def test_moments(seed: int) -> None:
    columns, targets, weight, sums = _data(seed)
    shifted = _made(columns, shift(sums, weight))
    np.testing.assert_allclose(shifted.mean(0), targets.mean(0), atol=1e-8)
    np.testing.assert_allclose(shifted.std(0), _made(columns, weight).std(0), atol=1e-8)
    spread = _made(columns, rescale(sums, weight, spread=True))
    ratio = targets.std(0) / _made(columns, weight).std(0)
    np.testing.assert_allclose(spread.mean(0), targets.mean(0), atol=1e-8)
    wanted = np.clip(ratio, 0.25, 4) * _made(columns, weight).std(0)
    np.testing.assert_allclose(spread.std(0), wanted, rtol=1e-6)


@given(SEEDS)
def test_each_correction_errs_less_than_the_layer(seed: int) -> None:
    columns, targets, weight, sums = _data(seed)

    def error(w: np.ndarray) -> float:
        spread = ((targets - targets.mean(0)) ** 2).sum()
        return float(((_made(columns, w) - targets) ** 2).sum() / spread)

    assert sums.error(weight) == pytest.approx(error(weight), rel=1e-6)
    scaled = rescale(sums, weight, spread=False)
    assert error(refit(sums, weight, 0.01)) <= error(weight) * (1 + 1e-9)
    assert error(scaled) <= error(shift(sums, weight)) * (1 + 1e-9)
    assert error(shift(sums, weight)) <= error(weight) * (1 + 1e-9)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_columns_and_one_sample(value: float) -> None:
    weight = np.ones((1, 1, 3))
    sums = GroupSums.zeros(1, 2, 1)
    sums.add(np.full((1, 1, 2), value), np.full((1, 1, 1), 5.0))
    for found in (
        refit(sums, weight, 0.1),
        shift(sums, weight),
        rescale(sums, weight, spread=False),
        rescale(sums, weight, spread=True),
    ):
        assert np.isfinite(found).all()
        assert _made(np.full((1, 1, 2), value), found).item() == pytest.approx(5)


def test_dead_columns_keep_their_weights() -> None:
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((20, 1, 3))
    columns[:, :, 1] = 0
    sums = GroupSums.zeros(1, 3, 1)
    sums.add(columns, rng.standard_normal((20, 1, 1)))
    weight = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    assert refit(sums, weight, 0.1)[0, 0, 1] == pytest.approx(2)
    assert refit(sums, weight, 0.1)[0, 0, 0] != pytest.approx(1)
