"""Sparse weights from statistics of a layer's inputs: Wanda and SparseGPT.

A weight is a matrix ``(rows, K)`` here, one for each group of a convolution. Its columns are ordered tap by tap
(:func:`.im2col.tap_major`), so that m consecutive columns are m channels at one tap. ``G`` is the Gram matrix of the
inputs in the same order. A change ``D`` of the weight changes the outputs by ``tr(D G D^T)``, squared and summed over
the data.

* Wanda (Sun et al., 2023) keeps the weights with the largest ``|w| * ||x||`` of each row; it does not change them.
* SparseGPT (Frantar and Alistarh, 2023) goes through the columns from left to right. The columns to the right
  compensate the error of a pruned column optimally: with ``U^T U = H^-1`` the upper Cholesky factor of the
  inverse of the damped ``H = G + damping * mean(diag G) * I``, pruning ``w_j`` costs ``(w_j / U_jj)^2``, and the row's
  numbers from ``j`` on change by ``-(w_j / U_jj) * U_j``. The columns after a block are updated once for each block.

An input that is 0 on all the data contributes only the damping: its weights are pruned first and do not change otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...ir.masks.nm_pattern import Mask, Pattern, unstructured_mask
from ..merge.algebra.tensors import Array64

_RAISES = 8
"""How often the damping is multiplied by ten before a matrix is rejected."""


@dataclass(frozen=True)
class PruningRule:
    """Which weights are kept: by an N:M pattern, or a fraction of all weights.

    Attributes:
        pattern: The N:M pattern; ``None`` for a fraction.
        density: The fraction that is kept.
    """

    pattern: Pattern | None
    density: float

    def mask_rows(self, scores: Array64) -> Mask:
        """The mask of the largest scores, chosen in each row: ``(rows, K)``."""
        if self.pattern is not None:
            return self.pattern.mask(scores)
        count = int(self.density * scores.shape[1] + 0.5)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        kept = np.zeros(scores.shape, bool)
        np.put_along_axis(kept, order, True, axis=1)
        return kept

    def mask_block(self, scores: Array64) -> Mask:
        """The mask of the largest scores, chosen in a whole block of columns: ``(rows, columns)``."""
        if self.pattern is not None:
            return self.pattern.mask(scores)
        return unstructured_mask(scores, self.density)

    def __str__(self) -> str:
        return f"{1 - self.density:.0%} sparse" if self.pattern is None else str(self.pattern)


def wanda(weight: Array64, squares: Array64, keep: PruningRule) -> Mask:
    """The mask ``(rows, K)`` of the weights that Wanda keeps.

    Args:
        weight: ``(rows, K)``.
        squares: ``(K,)``: the sums of squares of the inputs.
        keep: Which weights are kept.
    """
    # Only ratios matter: with a largest square of 1 the scores are in the range of the weights.
    sizes = np.sqrt(squares / (float(squares.max(initial=0.0)) or 1.0))
    return keep.mask_rows(np.abs(weight) * sizes)


def sparsegpt(
    weight: Array64,
    gram: Array64,
    keep: PruningRule,
    *,
    damping: float = 0.01,
    block: int = 128,
    rounded: Callable[[Array64], Array64] = lambda column: column,
) -> tuple[Array64, Mask, float]:
    """Prune a weight by SparseGPT.

    Args:
        weight: ``(rows, K)``.
        gram: ``(K, K)``: the Gram matrix of the inputs.
        keep: Which weights are kept.
        damping: The number added to the diagonal, relative to its mean; raised if the matrix is singular.
        block: The number of columns that are updated together; rounded to a multiple of the pattern's m.
        rounded: Rounds numbers to their storage type, so that the rounding error is compensated too.

    Returns:
        The pruned weight ``(rows, K)``, the mask of the kept weights, and the damping that was used.

    Raises:
        ValueError: If the matrix is not positive definite with any damping.
    """
    upper, damping = _upper_factor(gram, damping)
    weight = weight.copy()
    out, kept = np.zeros_like(weight), np.zeros(weight.shape, bool)
    m = 1 if keep.pattern is None else keep.pattern.m
    block = max(block // m, 1) * m
    size = weight.shape[1]
    for lo in range(0, size, block):
        hi = min(lo + block, size)
        diagonal = np.diagonal(upper)[lo:hi]
        current = weight[:, lo:hi]
        mask = kept[:, lo:hi]
        if keep.pattern is None:
            mask[:] = keep.mask_block((current / diagonal) ** 2)
        lost = np.empty_like(current)
        for j in range(hi - lo):
            if keep.pattern is not None and j % m == 0:
                # Choose now, because the columns before have changed these numbers.
                group = slice(j, j + m)
                mask[:, group] = keep.pattern.mask((current[:, group] / diagonal[group]) ** 2)
            column = np.where(mask[:, j], rounded(current[:, j]), 0.0)
            out[:, lo + j] = column
            lost[:, j] = (current[:, j] - column) / diagonal[j]
            current[:, j:] -= lost[:, j, None] * upper[lo + j, lo + j : hi]
        weight[:, hi:] -= lost @ upper[lo:hi, hi:]
    return out, kept, damping


def _upper_factor(gram: Array64, damping: float) -> tuple[Array64, float]:
    """``U`` with ``U^T U = (G + damping * I)^-1``, for ``G`` divided by the mean of its diagonal.

    Only ratios of ``U`` matter. The division keeps the numbers in the range of float64 for any unit of the inputs.
    """
    sizes = np.diagonal(gram)
    if (sizes < 0).any():
        raise ValueError("its Gram matrix is not positive definite with any damping")
    gram = gram / (float(sizes.mean()) or 1.0)
    for _ in range(_RAISES):
        damped = gram + damping * np.eye(len(gram))
        try:
            # H = R R^T with an upper R, from the Cholesky factor of the mirrored matrix; U is the inverse of R.
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            inverse = np.triu(np.linalg.inv(upper))
        except np.linalg.LinAlgError:
            pass
        else:
            if np.isfinite(inverse).all():
                return inverse, damping
        damping = max(10 * damping, 1e-8)
    raise ValueError("its Gram matrix is not positive definite with any damping")


def output_change(change: Array64, gram: Array64) -> float:
    """``tr(D G D^T)``: the squared change of all outputs, summed over the data."""
    return max(0.0, float(np.einsum("rk,rk->", change @ gram, change)))
