"""Batch norms in evaluation mode are scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...ir import DType, Tensor
from ...ir.batch_norm import BatchNorm
from ..support import LeftAlone

Array64 = npt.NDArray[np.float64]

_LARGE = 1 << 17
"""Longer vectors are not checked at import, so that they stay lazy."""

_CANCELLED = 64
"""The largest ratio of a negative variance to its sum with epsilon; at this ratio, float32 loses 6 bits in the sum."""


def batch_norm_scale(norm: BatchNorm, dtype: DType) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm, computed in float64 when they are needed.

    Raises:
        LeftAlone: If a number is not finite, or a variance is so negative that adding epsilon does not make
            it a safe divisor: the result of such a batch norm depends on how its host rounds.
    """
    _check(norm.gamma, norm.beta, norm.mean, norm.var, norm.epsilon)
    return norm.evaluated(dtype)


def _check(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> None:
    if var.size > _LARGE:
        return
    try:
        found = {"scale": gamma, "bias": beta, "mean": mean, "variance": var}
        arrays = {what: data.float64() for what, data in found.items() if data is not None}
    except (
        ValueError,
        RuntimeError,
    ):  # The tensor has no numbers: a parsed text, or a meta tensor.
        return
    for what, array in arrays.items():
        if not np.isfinite(array).all():
            raise LeftAlone(f"its {what} is not finite everywhere")
    divisor = arrays["variance"] + eps
    if not (divisor > 0).all() or (np.abs(arrays["variance"]) > _CANCELLED * divisor).any():
        least = arrays["variance"].min()
        raise LeftAlone(f"its variance is {least:.6g} somewhere, with an epsilon of {eps:g}")


__all__ = ["batch_norm_scale"]
