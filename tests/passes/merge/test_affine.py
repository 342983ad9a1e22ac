"""The algebra of affine maps against torch, in float64: composition, sums, groups, borders, bias maps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphshrink.ir import ArrayTensor, DType, Exactness, SplatTensor
from graphshrink.passes.merge.algebra.affine import Affine, Refused, Rules
from graphshrink.passes.merge.algebra.kernels import compose_kernels, regroup

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
TOLERANCE = 1e-10

many = settings(max_examples=40, deadline=None)


def apply(affine: Affine, x: torch.Tensor) -> torch.Tensor:
    """What a map does, by torch."""
    n = affine.rank
    weight = torch.from_numpy(np.array(affine.weight.float64()))
    const = None if affine.const is None else torch.from_numpy(np.array(affine.const.float64()))
    if n == 0:
        y = F.linear(x, weight)
    elif affine.transposed:
        assert affine.pads[:n] == affine.pads[n:]
        y = TRANSPOSED[n](
            x, weight, None, affine.strides, affine.pads[:n],
            affine.output_padding or 0, affine.groups, affine.dilations,
        )  # fmt: skip
    else:
        flat = [p for a in reversed(range(n)) for p in (affine.pads[a], affine.pads[n + a])]
        y = CONV[n](
            F.pad(x, flat), weight, None, affine.strides, 0, affine.dilations, affine.groups
        )
    if const is None:
        return y
    return y + (const if const.ndim > 1 else const.reshape(-1, *(1,) * n))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max().clamp_min(1.0))


def array(rng: np.random.Generator, *shape: int) -> ArrayTensor:
    return ArrayTensor(rng.standard_normal(shape))


def divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, 13) if all(n % d == 0 for n in numbers)]


@st.composite
def convs(draw: Any, rank: int, inputs: int, seed: int) -> Affine:
    outputs = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    groups = draw(st.sampled_from(divisors(inputs, outputs)))
    per_axis = lambda lo, hi: st.tuples(*[st.integers(lo, hi)] * rank)  # noqa: E731
    taps = draw(per_axis(1, 3))
    # Negative ones crop.
    pads = draw(st.tuples(*[st.sampled_from([0, 1, 2, 0, 1, 2, -1, -2])] * (2 * rank)))
    strides = draw(per_axis(1, 3))
    dilations = draw(per_axis(1, 2))
    rng = np.random.default_rng(seed)
    bias = array(rng, outputs) if draw(st.booleans()) else None
    weight = array(rng, outputs, inputs // groups, *taps)
    return Affine(weight, bias, strides, pads, dilations, groups, size=(None,) * rank)


@st.composite
def pairs(draw: Any) -> tuple[Affine, Affine, torch.Tensor]:
    rank = draw(st.sampled_from([1, 1, 2, 2, 3]))
    channels = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    seed = draw(st.integers(0, 2**20))
    first = draw(convs(rank, channels, seed))
    second = draw(convs(rank, first.outputs, seed + 1))
    size = [draw(st.integers(1, 9 if rank < 3 else 6)) for _ in range(rank)]
    x = torch.from_numpy(np.random.default_rng(seed + 2).standard_normal((2, channels, *size)))
    for affine, at in ((first, size), (second, None)):
        at = at or [s for s in replace(first, size=tuple(size)).output_size if s is not None]
        for a in range(rank):
            begin, end = affine.pads[a], affine.pads[rank + a]
            assume(at[a] + begin + end >= affine.span[a])
            assume(at[a] + min(begin, 0) + min(end, 0) > 0)
    return first, second, x


def sized(affine: Affine, x: torch.Tensor) -> Affine:
    return replace(affine, size=tuple(x.shape[2:]))


@given(pairs())
@many
def test_composition_without_second_padding_is_exact(case: Any) -> None:
    first, second, x = case
    second = replace(second, pads=(0,) * (2 * first.rank))
    assume(
        all(
            s >= k
            for s, k in zip(sized(first, x).output_size, second.span, strict=True)
            if s is not None
        )
    )
    merged = first.then(second)
    assert isinstance(merged, Affine)
    assert merged.exactness is Exactness.EXACT
    assert not merged.has_bias_map
    for a in range(first.rank):
        assert merged.strides[a] == first.strides[a] * second.strides[a]
        k1, k2 = first.span[a], second.span[a]
        assert merged.span[a] == k1 + first.strides[a] * (k2 - 1)
    assert merged.groups == math.gcd(first.groups, second.groups)
    assert error(apply(merged, x), apply(second, apply(first, x))) < TOLERANCE


@given(pairs(), st.booleans())
@many
def test_what_is_not_refused_is_exact(case: Any, static: bool) -> None:
    first, second, x = case
    merged = (sized(first, x) if static else first).then(second)
    if isinstance(merged, Refused):
        return
    assert merged.exactness is Exactness.EXACT
    want = apply(second, apply(first, x))
    assert error(apply(merged, x), want) < TOLERANCE
    if static:
        assert sized(merged, x).output_size == tuple(want.shape[2:])


@given(st.integers(0, 2**20), st.integers(1, 2), st.integers(0, 2), st.integers(8, 12))
@many
def test_a_border_merge_is_right_inside(seed: int, stride: int, pad: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    first = Affine(array(rng, 4, 3, 3, 3), array(rng, 4), (stride,) * 2, (pad,) * 4, (1, 1))
    second = Affine(array(rng, 2, 4, 3, 3), array(rng, 2), (1, 1), (1,) * 4, (1, 1))
    merged = first.then(second, Rules(allow_border=True, bias_maps=False))
    assert isinstance(merged, Affine)
    assert merged.exactness is Exactness.BORDER
    x = torch.from_numpy(rng.standard_normal((2, 3, size, size)))
    got, want = apply(merged, x), apply(second, apply(first, x))
    assert got.shape == want.shape
    assert error(got[:, :, 1:-1, 1:-1], want[:, :, 1:-1, 1:-1]) < TOLERANCE


@given(pairs(), st.integers(0, 2**20))
@many
def test_addition_is_exact(case: Any, seed: int) -> None:
    first, other, x = case
    rng = np.random.default_rng(seed)
    groups = divisors(first.inputs, first.outputs)[-1]
    shape = (first.outputs, first.inputs // groups, *other.taps)
    other = replace(
        other, weight=ArrayTensor(rng.standard_normal(shape)), groups=groups, strides=first.strides,
        const=array(rng, first.outputs) if seed % 2 else None,
    )  # fmt: skip
    total = sized(first, x) + sized(other, x)
    n = first.rank
    fits = all(
        x.shape[2 + a] + other.pads[a] + other.pads[n + a] >= other.span[a]
        and x.shape[2 + a] + min(other.pads[a], 0) + min(other.pads[n + a], 0) > 0
        for a in range(n)
    )
    assume(fits)
    a, b = apply(first, x), apply(other, x)
    if a.shape != b.shape:
        assert isinstance(total, Refused)
        return
    assert isinstance(total, Affine)
    assert total.exactness is Exactness.EXACT
    assert min(total.pads, default=0) >= min(0, *first.pads, *other.pads)
    assert error(apply(total, x), a + b) < TOLERANCE
    minus = sized(first, x) + sized(other, x).negated()
    assert isinstance(minus, Affine)
    assert error(apply(minus, x), a - b) < TOLERANCE


@given(st.integers(1, 3), st.data())
@many
def test_an_identity_lands_on_the_tap_that_the_padding_says(rank: int, data: Any) -> None:
    taps = data.draw(st.tuples(*[st.integers(1, 5)] * rank))
    begins = tuple(data.draw(st.integers(0, k - 1)) for k in taps)
    ends = tuple(k - 1 - p for k, p in zip(taps, begins, strict=True))
    channels, groups = 6, data.draw(st.sampled_from([1, 2, 3, 6]))
    rng = np.random.default_rng(1)
    ones = (1,) * rank
    conv = Affine(
        array(rng, channels, channels // groups, *taps), None, ones, (*begins, *ends), ones, groups,
        size=(None,) * rank,
    )  # fmt: skip
    skip = Affine(
        SplatTensor((channels, 1, *ones), DType.F64, 1.0), None, ones, (0,) * (2 * rank), ones,
        channels, size=(None,) * rank,
    )  # fmt: skip
    total = conv + skip
    assert isinstance(total, Affine)
    assert (total.taps, total.groups) == (taps, groups)
    difference = total.weight.float64() - conv.weight.float64()
    want = np.zeros_like(difference)
    for i in range(channels):
        want[(i, i % (channels // groups), *begins)] = 1.0
    np.testing.assert_allclose(difference, want, atol=1e-12)
    x = torch.from_numpy(rng.standard_normal((1, channels, *[6] * rank)))
    assert error(apply(total, x), apply(conv, x) + x) < TOLERANCE


@given(st.data())
@many
def test_a_1x1_downsample_joins_a_strided_3x3(data: Any) -> None:
    stride = data.draw(st.integers(1, 3))
    size = data.draw(st.integers(3, 12))
    rng = np.random.default_rng(size)
    main = Affine(array(rng, 4, 3, 3, 3), array(rng, 4), (stride,) * 2, (1,) * 4, (1, 1))
    side = Affine(array(rng, 4, 3, 1, 1), array(rng, 4), (stride,) * 2, (0,) * 4, (1, 1))
    # Padding 1 around a 3x3 leaves the output as large as that of a 1x1, whatever the input.
    total = main + side
    assert isinstance(total, Affine)
    assert (total.taps, total.pads) == ((3, 3), (1, 1, 1, 1))
    x = torch.from_numpy(rng.standard_normal((1, 3, size, size)))
    assert error(apply(total, x), apply(main, x) + apply(side, x)) < TOLERANCE


def test_a_stride_2_3x3_and_a_3x3_are_a_stride_2_7x7() -> None:
    rng = np.random.default_rng(0)
    first = Affine(array(rng, 4, 3, 3, 3), None, (2, 2), (1,) * 4, (1, 1))
    second = Affine(array(rng, 2, 4, 3, 3), None, (1, 1), (0,) * 4, (1, 1))
    merged = first.then(second)
    assert isinstance(merged, Affine)
    assert (merged.taps, merged.strides, merged.pads) == ((7, 7), (2, 2), (1, 1, 1, 1))
    x = torch.from_numpy(rng.standard_normal((2, 3, 17, 17)))
    assert error(apply(merged, x), apply(second, apply(first, x))) < TOLERANCE


def test_one_dimension_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(4), rng.standard_normal(3)
    found = compose_kernels(a[None, None], b[None, None], (1, 1), ([1], [1]), [6])
    np.testing.assert_allclose(found[0, 0], scipy.signal.convolve(a, b), atol=1e-12)
    spread = np.zeros(5)
    spread[::2] = b
    strided = compose_kernels(a[None, None], b[None, None], (1, 1), ([1], [2]), [8])
    np.testing.assert_allclose(strided[0, 0], scipy.signal.convolve(a, spread), atol=1e-12)


@pytest.mark.parametrize(("g1", "g2"), [(1, 6), (6, 1), (4, 6), (6, 4), (12, 12), (12, 3), (2, 2)])
def test_groups_become_their_greatest_common_divisor(g1: int, g2: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((12, 12 // g1, 2))
    second = rng.standard_normal((24, 12 // g2, 3))
    found = compose_kernels(first, second, (g1, g2), ([1], [1]), [4])
    g = math.gcd(g1, g2)
    assert found.shape == (24, 12 // g, 4)
    dense = compose_kernels(regroup(first, g1, 1), regroup(second, g2, 1), (1, 1), ([1], [1]), [4])
    np.testing.assert_allclose(regroup(found, g, 1), dense, atol=1e-12)


@given(st.integers(1, 2), st.data())
@many
def test_transposed_convolutions_take_pointwise_maps(rank: int, data: Any) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    inputs, middle, last = draw(st.tuples(*[st.sampled_from([2, 4, 6])] * 3))
    groups = draw(st.sampled_from(divisors(inputs, middle)))
    taps = draw(st.tuples(*[st.integers(1, 3)] * rank))
    strides = draw(st.tuples(*[st.integers(1, 3)] * rank))
    extra = tuple(s - 1 for s in strides)
    ones, zeros = (1,) * rank, (0,) * (2 * rank)
    up = Affine(
        array(rng, inputs, middle // groups, *taps), array(rng, middle), strides, zeros, ones, groups,
        True, extra, size=(None,) * rank,
    )  # fmt: skip
    after_groups = draw(st.sampled_from(divisors(middle, last)))
    after = Affine(
        array(rng, last, middle // after_groups, *ones), array(rng, last), ones, zeros, ones,
        after_groups, size=(None,) * rank,
    )  # fmt: skip
    x = torch.from_numpy(rng.standard_normal((2, inputs, *[4] * rank)))
    merged = up.then(after)
    assert isinstance(merged, Affine)
    assert merged.transposed
    assert error(apply(merged, x), apply(after, apply(up, x))) < TOLERANCE
    before_groups = draw(st.sampled_from(divisors(last, inputs)))
    before = replace(
        after,
        weight=array(rng, inputs, last // before_groups, *ones),
        groups=before_groups,
        const=None,
    )
    x = torch.from_numpy(rng.standard_normal((2, last, *[4] * rank)))
    merged = before.then(up)
    assert isinstance(merged, Affine)
    assert error(apply(merged, x), apply(up, apply(before, x))) < TOLERANCE
    assert isinstance(replace(before, const=array(rng, inputs)).then(up), Refused)
    scale = replace(
        after, weight=array(rng, middle, 1, *ones), groups=middle, const=array(rng, middle)
    )
    merged = up.then(scale)
    assert isinstance(merged, Affine)
    x = torch.from_numpy(rng.standard_normal((2, inputs, *[4] * rank)))
    assert error(apply(merged, x), apply(scale, apply(up, x))) < TOLERANCE


@given(st.integers(0, 2**20), st.integers(3, 9), st.integers(3, 9), st.integers(1, 2))
@many
def test_pw_dw_pw_is_exact_with_a_bias_map(seed: int, height: int, width: int, stride: int) -> None:
    rng = np.random.default_rng(seed)
    expand = Affine(array(rng, 12, 4, 1, 1), array(rng, 12), (1, 1), (0,) * 4, (1, 1))
    depth = Affine(array(rng, 12, 1, 3, 3), array(rng, 12), (stride,) * 2, (1,) * 4, (1, 1), 12)
    project = Affine(array(rng, 4, 12, 1, 1), array(rng, 4), (1, 1), (0,) * 4, (1, 1))
    x = torch.from_numpy(rng.standard_normal((2, 4, height, width)))
    want = apply(project, apply(depth, apply(expand, x)))
    step = sized(expand, x).then(depth)
    assert isinstance(step, Affine)
    merged = step.then(project)
    assert isinstance(merged, Affine)
    assert merged.has_bias_map
    assert merged.const is not None
    assert merged.const.shape == (1, *want.shape[1:])
    assert error(apply(merged, x), want) < TOLERANCE
    # In the other order of association too.
    tail = depth.then(project)
    assert isinstance(tail, Affine)
    whole = sized(expand, x).then(tail)
    assert isinstance(whole, Affine)
    assert error(apply(whole, x), want) < TOLERANCE
    # A size that is not known: refused, and the reason says so.
    refused = replace(expand, size=(None, None)).then(depth)
    assert isinstance(refused, Refused)
    assert "not static" in refused.reason
    # Without a bias there is nothing to refuse.
    bare = replace(expand, const=None, size=(None, None)).then(depth)
    assert isinstance(bare, Affine)
    assert error(apply(bare, x), apply(depth, apply(replace(expand, const=None), x))) < TOLERANCE


def test_patches_take_a_padded_convolution() -> None:
    """Non-overlapping patches do not reach back: more than 1x1 is exact."""
    rng = np.random.default_rng(0)
    patch = Affine(array(rng, 4, 3, 4, 4), None, (4, 4), (0,) * 4, (1, 1), size=(16, 16))
    conv = Affine(array(rng, 4, 4, 3, 3), None, (1, 1), (1,) * 4, (1, 1))
    merged = patch.then(conv)
    assert isinstance(merged, Affine)
    assert (merged.taps, merged.strides) == ((12, 12), (4, 4))
    x = torch.from_numpy(rng.standard_normal((1, 3, 16, 16)))
    assert error(apply(merged, x), apply(conv, apply(patch, x))) < TOLERANCE
    # Two columns that the stride leaves over would be read at the end.
    assert isinstance(replace(patch, size=(18, 18)).then(conv), Refused)
    assert isinstance(replace(patch, size=(None, None)).then(conv), Refused)


def test_two_padded_3x3_are_refused() -> None:
    rng = np.random.default_rng(0)
    conv = Affine(array(rng, 4, 4, 3, 3), None, (1, 1), (1,) * 4, (1, 1), size=(8, 8))
    merged = conv.then(conv)
    assert isinstance(merged, Refused)
    assert "reaches beyond the border" in merged.reason


def test_different_strides_are_not_added() -> None:
    rng = np.random.default_rng(0)
    one = Affine(array(rng, 4, 4, 1, 1), None, (1, 1), (0,) * 4, (1, 1), size=(1, 1))
    two = replace(one, strides=(2, 2))
    found = one + two
    assert isinstance(found, Refused)
    assert "strides" in found.reason


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_numbers_are_rounded_once(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    tensors = [ArrayTensor(rng.standard_normal((8, 8, 1, 1)).astype(dtype.numpy)) for _ in range(3)]
    maps = [Affine(t, None, (1, 1), (0,) * 4, (1, 1)) for t in tensors]
    step = maps[0].then(maps[1])
    assert isinstance(step, Affine)
    merged = step.then(maps[2])
    assert isinstance(merged, Affine)
    a, b, c = (t.float64()[:, :, 0, 0] for t in tensors)
    np.testing.assert_allclose(merged.weight.float64()[:, :, 0, 0], c @ b @ a, atol=1e-13)
    assert merged.weight.dtype is dtype
    stored = merged.weight.numpy()
    assert stored.dtype == dtype.numpy
    np.testing.assert_array_equal(stored, merged.weight.float64().astype(dtype.numpy))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_a_large_scaled_kernel_is_written_in_blocks(dtype: DType) -> None:
    """The shortcut that avoids a float64 copy gives the same numbers."""
    rng = np.random.default_rng(0)
    weight = ArrayTensor(rng.standard_normal((512, 128, 3, 3)).astype(dtype.numpy))
    conv = Affine(weight, None, (1, 1), (0,) * 4, (1, 1), 2)
    after = Affine(
        ArrayTensor(rng.standard_normal((512, 1, 1, 1)).astype(dtype.numpy)),
        None, (1, 1), (0,) * 4, (1, 1), 512,
    )  # fmt: skip
    before = Affine(
        ArrayTensor(rng.standard_normal((256, 1, 1, 1)).astype(dtype.numpy)),
        None, (1, 1), (0,) * 4, (1, 1), 256,
    )  # fmt: skip
    step = before.then(conv)
    assert isinstance(step, Affine)
    merged = step.then(after)
    assert isinstance(merged, Affine)
    stored = merged.weight.numpy()
    np.testing.assert_array_equal(stored, merged.weight.float64().astype(dtype.numpy))
    columns = before.weight.float64().reshape(2, 1, 128, 1, 1)
    want = weight.float64().reshape(2, 256, 128, 3, 3) * columns
    want = want.reshape(512, 128, 3, 3) * after.weight.float64()
    np.testing.assert_allclose(merged.weight.float64(), want, rtol=1e-14)


def kernel(
    taps: int, dilation: int, pads: tuple[int, int], stride: int = 1, groups: int = 1, seed: int = 0
) -> Affine:
    """A convolution of one axis over four channels."""
    rng = np.random.default_rng(seed)
    weight = array(rng, 4, 4 // groups, taps)
    return Affine(weight, array(rng, 4), (stride,), pads, (dilation,), groups, size=(None,))


WINDOWS = [(1, 1, (0, 0)), (1, 3, (1, 1)), (2, 2, (1, 1)), (3, 1, (1, 1)), (3, 2, (2, 2)), (3, 3, (0, 6)), (3, 4, (4, 4)), (2, 6, (2, 4)), (2, 1, (0, 1)), (1, 3, (0, 0))]  # fmt: skip


@pytest.mark.parametrize("first", WINDOWS)
@pytest.mark.parametrize("second", WINDOWS)
def test_sums_on_a_common_grid(first: Any, second: Any) -> None:
    one, two = kernel(*first, seed=1), kernel(*second, groups=2, seed=2)
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 4, 13)))
    wants = apply(one, x), apply(two, x)
    total = sized(one, x) + sized(two, x)
    if wants[0].shape != wants[1].shape:
        assert isinstance(total, Refused)
        return
    assert isinstance(total, Affine)
    assert total.groups == 1
    assert error(apply(total, x), wants[0] + wants[1]) < TOLERANCE
    # No more taps than the grid needs: one of them lies on each end, and no coarser grid has them all.
    (used,) = np.abs(total.weight.float64()).sum((0, 1)).nonzero()
    assert (used[0], used[-1]) == (0, total.taps[0] - 1)
    assert np.gcd.reduce(used) in (0, 1)
    assert sized(total, x).output_size == tuple(wants[0].shape[2:])


@pytest.mark.parametrize("first", WINDOWS)
@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
def test_compositions_on_a_common_grid(first: Any, taps: int, dilation: int, strides: Any) -> None:
    one, two = kernel(*first, strides[0], seed=1), kernel(taps, dilation, (0, 0), strides[1], 2, 2)
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 4, 19)))
    merged = one.then(two)
    assert isinstance(merged, Affine)
    assert error(apply(merged, x), apply(two, apply(one, x))) < TOLERANCE
    (used,) = np.abs(merged.weight.float64()).sum((0, 1)).nonzero()
    assert (used[0], used[-1]) == (0, merged.taps[0] - 1)
    assert np.gcd.reduce(used) in (0, 1)


def test_channels_of_grouped_transposed_convolutions() -> None:
    rng = np.random.default_rng(0)
    first = Affine(array(rng, 6, 4, 3), array(rng, 8), (2,), (1, 1), (1,), 2, True, (1,), (5,))
    assert (first.inputs, first.outputs) == (6, 8)
    second = Affine(array(rng, 3, 8, 1), array(rng, 3), (1,), (0, 0), (1,), size=(None,))
    merged = first.then(second)
    assert isinstance(merged, Affine)
    assert (merged.inputs, merged.outputs) == (6, 3)
    x = torch.from_numpy(rng.standard_normal((2, 6, 5)))
    assert error(apply(merged, x), apply(second, apply(first, x))) < TOLERANCE
    assert merged.output_size == tuple(apply(merged, x).shape[2:])
    assert isinstance(first.then(replace(second, weight=array(rng, 3, 4, 1))), Refused)


@pytest.mark.parametrize("pads", [(1, -1), (-1, 1), (-2, -1), (2, 0), (1, 2)])
@pytest.mark.parametrize("mapped", [False, True])
def test_bias_maps_where_the_second_map_crops(pads: Any, mapped: bool) -> None:
    rng = np.random.default_rng(0)
    first = kernel(1, 1, (0, 0))
    if mapped:
        first = replace(first, const=array(rng, 1, 4, 9))
    second = kernel(3, 2, pads, 2, 2, 1)
    x = torch.from_numpy(rng.standard_normal((2, 4, 9)))
    merged = sized(first, x).then(second)
    assert isinstance(merged, Affine)
    assert merged.has_bias_map == (mapped or max(pads) > 0)
    assert error(apply(merged, x), apply(second, apply(first, x))) < TOLERANCE


def test_a_bias_map_where_every_side_is_padded_otherwise() -> None:
    rng = np.random.default_rng(0)
    first = Affine(array(rng, 4, 4, 1, 1), array(rng, 4), (1, 1), (0,) * 4, (1, 1), size=(6, 7))
    second = Affine(array(rng, 2, 2, 3, 2), None, (2, 1), (1, 0, 2, 3), (1, 2), 2, size=(6, 7))
    x = torch.from_numpy(rng.standard_normal((2, 4, 6, 7)))
    merged = first.then(second)
    assert isinstance(merged, Affine)
    assert merged.has_bias_map
    assert error(apply(merged, x), apply(second, apply(first, x))) < TOLERANCE
