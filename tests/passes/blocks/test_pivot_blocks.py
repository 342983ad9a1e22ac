"""Blocks of weights: found in zeros, assigned, searched, refitted. Judged by scipy and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from sklearn.linear_model import Ridge

from graphshrink.passes.blocks.assign import assign
from graphshrink.passes.blocks.blocks import (
    Blocks,
    capacities,
    component_labels,
    contiguous_labels,
    find_blocks,
)
from graphshrink.passes.blocks.order import ChannelOrder
from graphshrink.passes.blocks.refit import Covariance, RefitLayer
from graphshrink.passes.blocks.search import (
    Side,
    cluster_labels,
    kept_mass,
    search_blocks,
    spectral_labels,
)
from support.work import work


def planted(rows: int, columns: int, k: int, rng: np.random.Generator, each: int = 0) -> Any:
    """Nonzeros of permuted blocks: all of them, or ``each`` a row and column on average, connected."""
    across, along = (rng.permutation(contiguous_labels(capacities(n, k))) for n in (rows, columns))
    if not each:
        return (across[:, None] == along[None, :]).astype(float), across, along
    i, j = [], []
    for block in range(k):
        r, c = np.flatnonzero(across == block), np.flatnonzero(along == block)
        # A path through all of them, then more at random.
        n = max(len(r), len(c))
        i += [r[np.arange(n) % len(r)], r[(np.arange(n) + 1) % len(r)], rng.choice(r, each * n)]
        j += [c[np.arange(n) % len(c)], c[np.arange(n) % len(c)], rng.choice(c, each * n)]
    ij = np.concatenate(i), np.concatenate(j)
    return coo_array((np.ones(ij[0].size), ij), shape=(rows, columns)), across, along


def same_blocks(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the names of the blocks."""
    return len(np.unique(a * (b.max() + 1) + b)) == len(np.unique(a)) == len(np.unique(b))


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", [(96, 96), (192, 96), (96, 480)])
def test_planted_blocks_are_recovered(k: int, shape: tuple[int, int]) -> None:
    weight, across, along = planted(*shape, k, np.random.default_rng(k))
    found = find_blocks(weight, capacities(shape[0], k), capacities(shape[1], k))
    assert found is not None
    assert same_blocks(found.rows, across)
    assert same_blocks(found.columns, along)
    assert (found.mask() == (weight != 0)).all()
    for rows, columns in found:
        assert weight[np.ix_(rows, columns)].all()


@pytest.mark.parametrize("k", [2, 8, 32])
def test_large_sparse_blocks_are_recovered_in_time_that_follows_the_nonzeros(k: int) -> None:
    """The work of ours is the same for any size: all that grows is inside scipy's linear algorithm."""
    counts = []
    for n in (512, 4096):
        weight, across, along = planted(n, n, k, np.random.default_rng(n), each=4)
        sizes = capacities(n, k)
        found = find_blocks(weight, sizes, sizes)
        assert found is not None
        assert same_blocks(found.rows, across)
        assert same_blocks(found.columns, along)
        counts.append(work(lambda w=weight, s=sizes: find_blocks(w, s, s)))  # type: ignore[misc]
    assert counts[1] < 1.1 * counts[0]


def test_smaller_components_are_packed_and_zeros_fill_up() -> None:
    rng = np.random.default_rng(0)
    weight, _, _ = planted(64, 64, 16, rng)
    weight[weight[:, 0] != 0] = 0.0  # Four rows and columns that nothing holds.
    sizes = capacities(64, 4)
    found = find_blocks(weight, sizes, sizes)
    assert found is not None
    assert (np.bincount(found.rows) == 16).all()
    assert (np.bincount(found.columns) == 16).all()
    assert not weight[~found.mask()].any()


def test_components_that_do_not_pack() -> None:
    sizes = capacities(12, 4)
    assert find_blocks(np.ones((12, 12)), sizes, sizes) is None
    weight, _, _ = planted(12, 12, 3, np.random.default_rng(0))
    assert find_blocks(weight, sizes, sizes) is None
    assert find_blocks(np.zeros((12, 12)), sizes, sizes) is not None
    rows, columns = component_labels(weight)
    assert same_blocks(rows, (weight @ np.arange(12)).round().astype(int))
    assert len(np.unique(columns)) == 3


def test_capacities() -> None:
    assert capacities(12, 4).tolist() == [3, 3, 3, 3]
    assert capacities(10, 4).tolist() == [3, 3, 3, 1]
    assert capacities(9, 8).min() < 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_assignment_is_optimal(data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = int(sizes.sum())
    kinds = {
        "normal": rng.standard_normal((n, sizes.size)), "ties": rng.integers(0, 3, (n, sizes.size)).astype(float),
        "heavy": rng.standard_t(1, (n, sizes.size)) * 1e6, "none": np.zeros((n, sizes.size)),
    }  # fmt: skip
    benefit = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    prices = rng.standard_normal(sizes.size) * data.draw(st.sampled_from([0.0, 1.0, 1e6]))
    labels = assign(benefit, sizes, prices=prices)
    assert (np.bincount(labels, minlength=sizes.size) == sizes).all()
    places = np.repeat(benefit, sizes, axis=1)
    best = places[linear_sum_assignment(-places)].sum()
    got = benefit[np.arange(n), labels].sum()
    assert got == pytest.approx(best, rel=1e-9, abs=1e-9 * np.abs(benefit).max())


@pytest.mark.parametrize("sizes", [capacities(512, 8), capacities(500, 8)])
def test_assignment_where_most_want_one_block(sizes: npt.NDArray[np.int64]) -> None:
    # Rows and columns of very different weight: nearly all rows have most in the block of the heaviest columns.
    rng = np.random.default_rng(0)
    n = int(sizes.sum())
    weight = rng.standard_normal((n, 8)) ** 2 * rng.lognormal(0, 2, (n, 1)) * 2.0 ** np.arange(8)
    prices = np.zeros(8)
    labels = assign(weight, sizes, prices=prices)
    assert np.bincount(weight.argmax(1)).max() > 3 * sizes.max()
    places = np.repeat(weight, sizes, axis=1)
    best = places[linear_sum_assignment(-places)].sum()
    assert weight[np.arange(n), labels].sum() == pytest.approx(best, rel=1e-9)
    # The prices alone leave hardly a row to move, without which it would take a hundred times as long.
    at_prices = np.bincount((weight - prices).argmax(1), minlength=8)
    assert np.maximum(at_prices - sizes, 0).sum() <= 8


def test_assignment_across_cells() -> None:
    rng = np.random.default_rng(0)
    cells = rng.permutation(contiguous_labels(capacities(64, 4)))
    labels = assign(rng.standard_normal((64, 8)), capacities(64, 8), cells)
    assert (np.bincount(cells * 8 + labels) == 2).all()


def test_search_finds_planted_blocks_under_noise() -> None:
    rng = np.random.default_rng(0)
    weight, across, along = planted(128, 64, 8, rng)
    saliency = (weight + 0.2 * rng.standard_normal(weight.shape)) ** 2
    sides = Side(capacities(128, 8)), Side(capacities(64, 8))
    found = search_blocks(saliency, *sides)
    assert same_blocks(found.rows, across)
    assert same_blocks(found.columns, along)
    # The seeds alone come close.
    for seed in (
        cluster_labels(saliency, sides[0].sizes, sides[1].sizes),
        spectral_labels(saliency, *sides, 0),
    ):
        known = seed >= 0
        assert known.mean() > 0.9
        pairs = np.bincount(seed[known] * 8 + along[known], minlength=64).reshape(8, 8)
        assert pairs.max(1).sum() > 0.8 * known.sum()


def test_search_keeps_far_more_than_the_present_order_and_more_than_alternation() -> None:
    saliency = np.random.default_rng(0).standard_t(3, (256, 256)) ** 2
    side = Side(capacities(256, 16))
    present = Blocks(contiguous_labels(side.sizes), contiguous_labels(side.sizes), 16)
    mass = {s: kept_mass(saliency, search_blocks(saliency, side, side, steps=s)) for s in (0, 250)}
    assert kept_mass(saliency, present) < 0.1
    assert mass[0] > 0.3
    assert mass[250] >= mass[0]
    again = search_blocks(saliency, side, side)
    assert kept_mass(saliency, again) == mass[250]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["fixed", "cells", "free"]),
    st.sampled_from(["fixed", "cells", "free"]),
)
def test_search_keeps_to_what_is_bound(seed: int, first: str, second: str) -> None:
    rng = np.random.default_rng(seed)
    sizes = capacities(32, 4)
    labels = rng.permutation(contiguous_labels(sizes))
    kinds = {
        "fixed": Side(sizes, fixed=labels),
        "cells": Side(sizes, cells=labels),
        "free": Side(sizes),
    }
    saliency = rng.random((32, 32))
    saliency[rng.random((32, 32)) < 0.3] = 0
    found = search_blocks(saliency, kinds[first], kinds[second], steps=3)
    for kind, side in ((first, found.rows), (second, found.columns)):
        assert (np.bincount(side) == sizes).all()
        if kind == "fixed":
            assert (side == labels).all()
        if kind == "cells":
            assert (np.bincount(labels * 4 + side) == 2).all()


def test_uneven_blocks_and_empty_saliency() -> None:
    sizes = capacities(10, 4), capacities(7, 4)
    for saliency in (np.zeros((10, 7)), np.random.default_rng(0).random((10, 7))):
        found = search_blocks(saliency, Side(sizes[0]), Side(sizes[1]))
        assert (np.bincount(found.rows) == sizes[0]).all()
        assert (np.bincount(found.columns) == sizes[1]).all()
    assert kept_mass(np.zeros((2, 2)), Blocks(np.arange(2), np.arange(2), 2)) == 1.0


# Refit.


def layer(rng: np.random.Generator, rows: int = 12, columns: int = 8, taps: int = 1) -> Any:
    n = columns * taps
    x = rng.standard_normal((400, n)) @ rng.standard_normal((n, n)) + rng.standard_normal(n)
    return x, RefitLayer(rng.standard_normal((rows, columns, taps)), Covariance.of(x), ridge=1e-2)


@pytest.mark.parametrize("taps", [1, 3])
def test_refit_is_ridge_regression(taps: int) -> None:
    rng = np.random.default_rng(0)
    x, found = layer(rng, taps=taps)
    blocks = Blocks(
        rng.permutation(contiguous_labels(capacities(12, 4))),
        rng.permutation(contiguous_labels(capacities(8, 4))),
        4,
    )
    weight, shift = found.refitted(blocks)
    flat, got = found.weight.reshape(12, -1), weight.reshape(12, -1)
    y = x @ flat.T
    for rows, columns in blocks:
        places = (columns[:, None] * taps + np.arange(taps)).ravel()
        alpha = 1e-2 * len(x) * np.diag(found.inputs.matrix).mean()
        judge = Ridge(alpha=alpha).fit(x[:, places], y[:, rows])
        np.testing.assert_allclose(got[np.ix_(rows, places)], judge.coef_, atol=1e-9)
        np.testing.assert_allclose(shift[rows], judge.intercept_, atol=1e-8)
        rest = np.setdiff1d(np.arange(x.shape[1]), places)
        assert not got[np.ix_(rows, rest)].any()


def test_errors_are_those_of_the_samples() -> None:
    rng = np.random.default_rng(1)
    x, found = layer(rng)
    blocks = Blocks(
        rng.permutation(contiguous_labels(capacities(12, 2))),
        rng.permutation(contiguous_labels(capacities(8, 2))),
        2,
    )
    y = x @ found.weight[:, :, 0].T
    for weight, shift in (found.refitted(blocks), found.masked(blocks)):
        off = x @ weight[:, :, 0].T + shift - y
        want = np.sqrt((off**2).mean(0).sum() / y.var(0).sum())
        assert found.error(weight, shift) == pytest.approx(want, rel=1e-9)
    assert found.error(found.weight, np.zeros(12)) == 0.0


def test_gains_are_what_the_refit_keeps() -> None:
    """With a vanishing ridge the gain of a row in a block is its variance less what the refit leaves."""
    rng = np.random.default_rng(2)
    x, _ = layer(rng)
    found = RefitLayer(rng.standard_normal((12, 8, 1)), Covariance.of(x), ridge=1e-12)
    columns = rng.permutation(contiguous_labels(capacities(8, 2)))
    gains = found.gains(columns, 2)
    y = x @ found.weight[:, :, 0].T
    for block in range(2):
        part = np.column_stack([np.ones(len(x)), x[:, columns == block]])
        rest = y - part @ np.linalg.lstsq(part, y, rcond=None)[0]
        np.testing.assert_allclose(gains[:, block], y.var(0) - rest.var(0), rtol=1e-6)
    # So the rows that are chosen by gains are the best of all.
    rows = assign(gains, capacities(12, 2))
    best = found.error(*found.refitted(Blocks(rows, columns, 2)))
    for _ in range(50):
        other = Blocks(rng.permutation(rows), columns, 2)
        assert found.error(*found.refitted(other)) >= best * (1 - 1e-9)


def test_statistics_must_fit_the_weight() -> None:
    with pytest.raises(ValueError, match="statistics of 3 inputs for a weight of 4"):
        RefitLayer(np.ones((2, 4, 1)), Covariance(np.eye(3), np.zeros(3)))


# Orders.


def test_one_order_for_blocks_that_cut_across() -> None:
    rng = np.random.default_rng(0)
    first = rng.permutation(contiguous_labels(capacities(48, 4)))
    order = ChannelOrder(48)
    order.add(first, "a")
    second = assign(rng.random((48, 3)), capacities(48, 3), order.cells())
    assert order.place(second) == 1
    order.add(second, "b")
    third = assign(rng.random((48, 2)), capacities(48, 2), order.cells())
    order.add(third, "c")
    assert order.owner == "a"
    assert sorted(order.order().tolist()) == list(range(48))
    positions = np.arange(96).reshape(48, 2)
    values = positions[order.order()].reshape(-1)
    for labels in (first, second, third):
        access = order.access(labels, positions)
        assert access.gather is None
        got = values
        if access.shape:
            got = np.moveaxis(values.reshape(access.shape), access.front, 0).reshape(-1)
        assert (got == access.channels).all()
        assert (np.diff(labels[access.channels // 2]) >= 0).all()
    odd = rng.permutation(first)
    assert order.place(odd) is None
    access = order.access(odd, positions)
    assert access.gather is not None
    assert (values[access.gather] == access.channels).all()
    assert (np.diff(odd[access.channels // 2]) >= 0).all()


def test_renamed_blocks_are_the_same_blocks() -> None:
    labels = np.array([0, 1, 0, 2, 2, 1])
    order = ChannelOrder(6)
    assert order.numbers_in(labels) is None
    order.add(labels, "a")
    names = np.array([2, 0, 1])
    found = order.numbers_in(names[labels])
    assert found is not None
    assert (found[names[labels]] == labels).all()
    assert order.numbers_in(np.array([0, 1, 0, 1, 2, 2])) is None


def test_a_fixed_order_has_only_blocks_in_one_piece() -> None:
    order = ChannelOrder(4, fixed="an input")
    assert order.place(np.array([0, 0, 1, 1])) == 0
    assert order.place(np.array([0, 1, 0, 1])) is None
    found = order.numbers_in(np.array([1, 1, 0, 0]))
    assert found is not None
    assert found.tolist() == [1, 0]
    (side,) = order.sides(capacities(4, 2), gather=False)
    assert side.fixed is not None
    assert side.fixed.tolist() == [0, 0, 1, 1]
    assert len(list(order.sides(capacities(4, 2), gather=True))) == 2
    assert order.order().tolist() == [0, 1, 2, 3]
