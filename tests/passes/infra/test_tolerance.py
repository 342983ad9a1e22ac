from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from graphshrink.passes.infra.tolerance import spread_of, squared_error


def test_the_squared_error_is_one_minus_r2() -> None:
    rng = np.random.default_rng(0)
    wanted, noise = rng.standard_normal((2, 40, 3)).astype(np.float32)
    made = wanted + 0.3 * noise
    assert squared_error(made, wanted) == pytest.approx(1 - r2_score(wanted.ravel(), made.ravel()))
    assert squared_error(wanted, wanted) == 0


def test_outputs_that_never_change_are_compared_with_their_size() -> None:
    constant = np.full((2, 3), 4.0)
    assert spread_of(constant) == 16
    assert squared_error(constant + 1, constant) == 1 / 16
    zeros = np.zeros((2, 3))
    assert squared_error(zeros + 0.5, zeros) == 0.25
    assert squared_error(zeros[:0], zeros[:0]) == 0
    assert squared_error(constant[:1], constant) == np.inf
