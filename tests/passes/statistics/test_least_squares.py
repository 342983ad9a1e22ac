"""Least squares under a mask, row by row against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphshrink.passes.statistics.least_squares import GroupSums, refit


def _sums(seed: int, groups: int, size: int, outputs: int, n: int) -> tuple:
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((n, groups, size)) @ rng.standard_normal((size, size))
    columns += rng.standard_normal(size)
    targets = rng.standard_normal((n, groups, outputs))
    sums = GroupSums.zeros(groups, size, outputs)
    for lo in range(0, n, 7):
        sums.add(columns[lo : lo + 7], targets[lo : lo + 7])
    weight = rng.standard_normal((groups, outputs, size + 1))
    kept = rng.random((groups, outputs, size + 1)) < 0.6
    return columns, targets, sums, np.where(kept, weight, 0), kept


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4),
    st.sampled_from([1e-3, 0.1, 3.0]),
)  # fmt: skip
def test_a_masked_refit_is_the_least_squares_solution_of_the_kept_numbers(
    seed: int, groups: int, size: int, outputs: int, strength: float
) -> None:
    columns, targets, sums, weight, kept = _sums(seed, groups, size, outputs, 40)
    found = refit(sums, weight, strength, kept)
    assert (found[~kept] == 0).all()
    for g in range(groups):
        u = np.concatenate([columns[:, g], np.ones((len(columns), 1))], 1)
        ridge = strength * np.square(columns[:, g]).mean()
        for o in range(outputs):
            free = np.flatnonzero(kept[g, o])
            # The ridge as further rows: sqrt(n * ridge) * (w - w_now) = 0, but not for the bias.
            sizes = np.where(free < size, np.sqrt(len(columns) * ridge), 0)
            matrix = np.concatenate([u[:, free], np.diag(sizes)])
            wanted = np.concatenate([targets[:, g, o], sizes * weight[g, o, free]])
            best = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
            np.testing.assert_allclose(found[g, o, free], best, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 2**32 - 1))
def test_a_mask_that_keeps_all_changes_nothing(seed: int) -> None:
    *_, sums, weight, kept = _sums(seed, 2, 4, 3, 30)
    whole = refit(sums, weight, 0.1)
    np.testing.assert_allclose(refit(sums, weight, 0.1, np.ones_like(kept)), whole, rtol=1e-12)
    # Rows whose numbers all may change agree with the solution of all rows at once.
    kept[:] = True
    kept[0, 0, 0] = False
    np.testing.assert_allclose(refit(sums, weight, 0.1, kept)[:, 1:], whole[:, 1:], rtol=1e-6)


def test_columns_that_depend_on_each_other_without_a_ridge() -> None:
    rng = np.random.default_rng(0)
    columns = np.repeat(rng.standard_normal((30, 1, 1)), 2, axis=2)
    targets = 3 * columns[:, :, :1]
    sums = GroupSums.zeros(1, 2, 1)
    sums.add(columns, targets)
    kept = np.array([[[True, True, False]]])
    found = refit(sums, np.zeros((1, 1, 3)), 0.0, kept)
    assert found[0, 0, :2].sum() == pytest.approx(3)
    assert found[0, 0, 2] == 0
