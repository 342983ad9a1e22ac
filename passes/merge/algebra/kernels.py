"""The numbers of composed and added kernels: plain float64 arrays in, float64 arrays out.

A kernel of ``groups`` g has the shape ``(O, I/g, *taps)``. Composing a first convolution with a second
one convolves the second kernel, spread by the first stride, with the first kernel::

    K[o, i, t] = sum over m, t1, t2 with t1*step1 + t2*step2 = t of  K2[o, m, t2] * K1[m, i, t1]

where the steps are the two dilations (the second one times the first stride) in units of the dilation of
the result. The result has gcd(g1, g2) groups: both kernels are block diagonal over the M channels between them, and
they share the block borders at the multiples of ``M / gcd(g1, g2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]


def compose_kernels(
    first: Array64,
    second: Array64,
    groups: tuple[int, int],
    steps: tuple[Sequence[int], Sequence[int]],
    size: Sequence[int],
) -> Array64:
    """The kernel of ``second`` after ``first``.

    Args:
        first: ``(M, I/g1, *taps1)``.
        second: ``(O, M/g2, *taps2)``.
        groups: ``(g1, g2)``.
        steps: For each axis, the distance between two taps of ``first``, and of ``second``, in taps of the result.
        size: The kernel size of the result.

    Returns:
        ``(O, I/gcd(g1, g2), *size)``.
    """
    g = math.gcd(*groups)
    a, b = groups[0] // g, groups[1] // g
    if a > 1 and b > 1:
        first, a = regroup(first, groups[0], g), 1
    middle, fan_in = first.shape[:2]
    outputs = second.shape[0]
    taps1 = first.shape[2:]
    result = np.zeros((outputs, a * fan_in, *size))
    # The channels between the kernels in blocks: by the groups of the second kernel, or of the first.
    blocks = (g * b,) if a == 1 else (g, a)
    left = first.reshape(*blocks, middle // math.prod(blocks), -1)
    for tap in np.ndindex(*second.shape[2:]):
        at = second[(slice(None), slice(None), *tap)]
        if a == 1:
            part = (at.reshape(g * b, outputs // (g * b), -1) @ left).reshape(outputs, -1)
        else:
            rows = at.reshape(g, outputs // g, a, -1).transpose(0, 2, 1, 3)
            turned = (rows @ left).reshape(g, a, outputs // g, -1)
            part = turned.transpose(0, 2, 1, 3).reshape(outputs, -1)
        target = result[(slice(None), slice(None), *_tap_slices(tap, steps[1], taps1, steps[0]))]
        target += part.reshape(outputs, a * fan_in, *taps1)
    return result


def _tap_slices(
    tap: Sequence[int], step: Sequence[int], taps: Sequence[int], inner: Sequence[int]
) -> list[slice]:
    """The slices that a kernel of size ``taps`` with dilation ``inner`` covers if it starts at ``tap * step``."""
    return [
        slice(t * s, t * s + (k - 1) * d + 1, d)
        for t, s, k, d in zip(tap, step, taps, inner, strict=True)
    ]


def regroup(kernel: Array64, groups: int, fewer: int) -> Array64:
    """The same kernel with ``fewer`` groups (a divisor of ``groups``): blocks on the diagonal, zeros elsewhere."""
    if groups == fewer:
        return kernel
    outputs, fan_in = kernel.shape[:2]
    many = groups // fewer
    result = np.zeros((fewer, many, outputs // groups, many, fan_in, *kernel.shape[2:]))
    blocks = kernel.reshape(fewer, many, outputs // groups, fan_in, *kernel.shape[2:])
    for i in range(many):
        result[:, i, :, i] = blocks[:, i]
    return result.reshape(outputs, many * fan_in, *kernel.shape[2:])


def add_kernels(
    terms: Sequence[tuple[Array64, int, Sequence[int], Sequence[int]]],
    groups: int,
    size: Sequence[int],
) -> Array64:
    """The sum of kernels on a common grid of taps.

    Args:
        terms: Each kernel with its groups, the grid position of its first tap, and the grid steps between its taps.
            At least one.
        groups: The groups of the result, a divisor of the groups of every term.
        size: The size of the grid.
    """
    kernel, own, _, _ = terms[0]
    fan_in = kernel.shape[1] * (own // groups)
    result: Array64 = np.zeros((kernel.shape[0], fan_in, *size))
    for kernel, own, start, step in terms:
        dense = regroup(kernel, own, groups)
        where = _tap_slices(start, [1] * len(size), dense.shape[2:], step)
        result[(slice(None), slice(None), *where)] += dense
    return result


def transpose_pointwise(kernel: Array64, groups: int) -> Array64:
    """The adjoint of a one-tap kernel: ``(O, I/g, 1, ...)`` becomes ``(I, O/g, 1, ...)``."""
    outputs, fan_in = kernel.shape[:2]
    blocks = kernel.reshape(groups, outputs // groups, fan_in)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(
        groups * fan_in, outputs // groups, *kernel.shape[2:]
    )


def convolve(
    x: Array64,
    kernel: Array64,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Array64:
    """The convolution of one ``(C, *spatial)`` array, without a bias; negative padding crops."""
    n = len(strides)
    padded = np.pad(x, [(0, 0), *((max(pads[a], 0), max(pads[n + a], 0)) for a in range(n))])
    kept = [slice(max(-pads[a], 0), padded.shape[1 + a] - max(-pads[n + a], 0)) for a in range(n)]
    padded = padded[(slice(None), *kept)]
    taps = kernel.shape[2:]
    size = [
        (padded.shape[1 + a] - dilations[a] * (taps[a] - 1) - 1) // strides[a] + 1 for a in range(n)
    ]
    outputs, fan_in = kernel.shape[:2]
    result = np.zeros((groups, outputs // groups, math.prod(size)))
    for tap in np.ndindex(*taps):
        window = tuple(
            slice(t * d, t * d + (s - 1) * step + 1, step)
            for t, d, s, step in zip(tap, dilations, size, strides, strict=True)
        )
        seen = padded[(slice(None), *window)].reshape(groups, fan_in, -1)
        rows = kernel[(slice(None), slice(None), *tap)].reshape(groups, -1, fan_in)
        result += rows @ seen
    return result.reshape(outputs, *size)
