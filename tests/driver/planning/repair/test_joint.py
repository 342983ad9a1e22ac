"""Joint moves: the algebra against numpy's least squares, coordinates against scipy's divergence, and a network that needs several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from graphshrink.planning.quality import divergence
from graphshrink.planning.repair.joint import Coordinates, amounts


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 10))
def test_amounts_are_a_ridge_regression(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    columns, left = rng.standard_normal((4, 9)), rng.standard_normal(9)
    pull = np.diag((ridge * (columns**2).sum(1)) ** 0.5)
    wanted = np.linalg.lstsq(np.r_[columns.T, pull], np.r_[left, np.zeros(4)], rcond=None)[0]
    np.testing.assert_allclose(amounts(columns, left, ridge), wanted, rtol=1e-6, atol=1e-9)


def test_moves_that_do_nothing_have_no_amount() -> None:
    columns = np.array([[0.0, 0.0], [1.0, 0.0]])
    found = amounts(columns, np.array([2.0, 1.0]), 1e-9)
    np.testing.assert_allclose(found, [0, 2], atol=1e-6)
    assert not amounts(np.zeros((2, 2)), np.ones(2), 0.1).any()
    assert amounts(np.zeros((0, 2)), np.ones(2), 0.1).shape == (0,)


@pytest.mark.parametrize("kind", ["logits", "softmax", "log"])
def test_half_of_the_squared_distance_is_about_the_divergence(kind: str) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((7, 5))
    made = wanted + 0.01 * rng.standard_normal((7, 5))
    kl = rel_entr(softmax(wanted, -1), softmax(made, -1)).sum(-1).mean()
    if kind != "logits":
        wanted, made = softmax(wanted, -1), softmax(made, -1)
    if kind == "log":
        wanted, made = np.log(wanted), np.log(made)
    found = Coordinates([kind], [wanted], 3)
    distance = 0.5 * ((found([made]) - found.target) ** 2).sum()
    assert distance == pytest.approx(kl, rel=0.05)


@pytest.mark.parametrize("kind", ["error", "mse", "cosine"])
def test_half_of_the_squared_distance_is_the_loss(kind: str) -> None:
    rng = np.random.default_rng(0)
    wanted, made = rng.standard_normal((2, 7, 5))
    found = Coordinates([kind], [wanted], 3)
    distance = 0.5 * ((found([made]) - found.target) ** 2).sum()
    assert distance == pytest.approx(divergence(kind, made, wanted))


def test_large_outputs_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphshrink.planning.repair.joint.MOST_ENTRIES", 20)
    found = Coordinates(["error"], [np.arange(35.0).reshape(7, 5)], 2)
    assert found.target.shape == (10,)
    assert found([np.arange(35.0).reshape(7, 5)]).tolist() == found.target.tolist()
