"""Ridge regression and brain surgery, against direct least squares and exhaustive search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from graphshrink.planning.closed_forms import Reader, Sums, ridge, surgery


def _problem(channels: int, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels * block, channels * block))
    columns = rng.standard_normal((400, channels * block)) @ mix + 1
    return np.c_[columns, np.ones(400)], rng.standard_normal((3, channels * block + 1))


def test_ridge_is_least_squares_with_a_small_ridge() -> None:
    u, w = _problem(5, 1, 0)
    t = u @ w.T
    sums = Sums(u.T @ u, t.T @ u, (t**2).sum(0))
    strength = 1e-3 * (u[:, :-1] ** 2).mean() * len(u)
    wide = np.vstack([u, np.sqrt(strength) * np.eye(6)[:5]])
    wanted = np.linalg.lstsq(wide, np.vstack([t, np.zeros((5, 3))]), rcond=None)[0].T
    found = ridge(sums)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)
    direct = ((t - u @ found.T) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    assert sums.error(found) == pytest.approx(direct, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("block", [1, 3])
def test_surgery_refits_what_is_left_and_removes_the_cheapest_channel(block: int) -> None:
    u, w = _problem(6, block, 1)
    t = u @ w.T
    columns = np.arange(6 * block).reshape(6, block)
    (size, kept, (refit,)) = next(surgery([Reader(u.T @ u, w, columns)], [5]))
    made = refit.weight
    assert size == 5
    assert refit.columns.tolist() == [*columns[kept].reshape(-1), 6 * block]

    # The ridge costs a little: compare errors with a slack.
    def refitted(channels: tuple[int, ...]) -> float:
        rows = [c * block + i for c in channels for i in range(block)] + [6 * block]
        best = np.linalg.lstsq(u[:, rows], t, rcond=None)[0]
        return float(((t - u[:, rows] @ best) ** 2).sum())

    errors = {c: refitted(c) for c in combinations(range(6), 5)}
    rows = [c * block + i for c in kept for i in range(block)] + [6 * block]
    error = float(((t - u[:, rows] @ made.T) ** 2).sum())
    assert errors[tuple(kept)] == min(errors.values())
    assert error <= 1.1 * min(errors.values())
