"""The factor of savings: against numpy's least squares, and without the network that it predicts."""

from __future__ import annotations

import numpy as np
import pytest

from graphshrink.planning.additivity import Additivity


def _fitted(promised: np.ndarray, costs: np.ndarray, prepared: float = 10.0) -> Additivity:
    made = Additivity()
    for i, (p, c) in enumerate(zip(promised, costs, strict=True)):
        made.add(frozenset([i]), float(p), prepared, float(c))  # type: ignore[list-item]
    return made


def test_the_factor_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    promised = rng.uniform(1, 5, 6)
    saved = 1.2 * promised + rng.normal(0, 0.1, 6)
    made = _fitted(promised, 10 - saved)
    wanted = np.linalg.lstsq(promised[:, None], saved, rcond=None)[0][0]
    assert made.factor() == pytest.approx(wanted, rel=1e-12)
    errors = []
    for i in range(6):
        others = np.arange(6) != i
        (factor,) = np.linalg.lstsq(promised[others, None], saved[others], rcond=None)[0]
        assert made.factor(without=frozenset([i])) == pytest.approx(factor, rel=1e-12)  # type: ignore[arg-type]
        roots = 1 / np.sqrt(1 + (np.log(promised[others] / promised[i]) / 0.2) ** 2)
        (factor,) = np.linalg.lstsq(
            (roots * promised[others])[:, None], roots * saved[others], rcond=None
        )[0]
        errors.append((factor * promised[i] - saved[i]) / (10 - saved[i]))
    assert made.error() == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)


def test_near_networks_predict_better_than_far_ones() -> None:
    # What saves nearly everything saves twice what was promised.
    made = _fitted(np.array([3.0, 3.1, 4.0, 4.5]), np.array([7.0, 6.9, 2.0, 1.0]))
    near = frozenset([0])
    assert made.factor(without=near) > 1.5  # type: ignore[arg-type]
    assert made.factor(without=near, near=3.0) == pytest.approx(1.0, abs=0.5)  # type: ignore[arg-type]
    assert made.factor(without=near, near=3.0) < made.factor(without=near)  # type: ignore[arg-type]


def test_few_networks_and_noise() -> None:
    assert Additivity().factor() == 1.0
    assert Additivity().error() is None
    one = _fitted(np.array([2.0]), np.array([7.0]))
    # Nothing else can predict the only one.
    assert one.factor(without=frozenset([0])) == one.factor() == 1.5  # type: ignore[arg-type]
    assert one.error() is None
    assert _fitted(np.array([1.0, 2.0]), np.array([20.0, 30.0])).factor() == 0.5
    assert _fitted(np.array([1.0, 2.0]), np.array([1.0, 1.0])).factor() == 2.0
    # A network that should save nothing says nothing.
    assert _fitted(np.array([0.0]), np.array([9.0])).factor() == 1.0
