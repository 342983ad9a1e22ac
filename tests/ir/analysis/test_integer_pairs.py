from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphshrink.ir.analysis.integer_pairs import (
    LIMIT,
    largest_within_limit,
    pair_sums,
    within_limit,
)


def in_16_bits(integers: np.ndarray) -> bool:
    """Whether no pair of products with the largest uint8 leaves the range of 16 bits."""
    for row in integers.reshape(len(integers), -1).astype(int):
        for a, b in itertools.combinations(row, 2):
            if abs(a) * 255 + abs(b) * 255 > 2**15 - 1:
                return False
    return True


@pytest.mark.parametrize("top", [40, 64, 65, 90, 127])
def test_integers_within_the_limit_fit_into_16_bits_wherever_they_stand(top: int) -> None:
    rng = np.random.default_rng(top)
    numbers = rng.integers(-top, top + 1, (50, 6), dtype=np.int8)
    assert {in_16_bits(row[None]) == within_limit(row[None], 0) for row in numbers} == {True}
    assert within_limit(numbers.T, 1) == within_limit(numbers, 0) == in_16_bits(numbers)


def test_channels_of_any_axis_and_of_one_number() -> None:
    weight = np.array([[3.0, -7.0, 1.0], [0.0, 2.0, -2.0]])
    np.testing.assert_array_equal(pair_sums(weight, 0), [10, 4])
    np.testing.assert_array_equal(pair_sums(weight, 1), [3, 9, 3])
    np.testing.assert_array_equal(pair_sums(weight[:, :1], 0), [3, 0])
    np.testing.assert_array_equal(pair_sums(weight[:, :0], 0), [0, 0])
    assert pair_sums(np.array([[-128, -128]], np.int8), 0) == [256]
    assert not within_limit(np.zeros((2, 3), np.uint8), 0)


def test_numbers_up_to_their_largest_keep_to_the_limit() -> None:
    numbers = np.array([[100, 28, 0, -5], [64, 64, 1, 2], [3, 1, 0, 0]], np.int8)
    most = largest_within_limit(numbers, 0)
    assert most is not None
    assert (most >= np.abs(numbers)).all()
    assert (pair_sums(most, 0) <= LIMIT).all()
    assert most[0].tolist() == [100, 28, 28, 28]
    turned = largest_within_limit(numbers.T, 1)
    assert turned is not None
    np.testing.assert_array_equal(turned.T, most)
    assert largest_within_limit(np.array([[100, 29]], np.int8), 0) is None
    assert largest_within_limit(numbers[:, :1], 0) is None
