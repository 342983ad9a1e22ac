"""Batch norms of torch: each is a Scale whose constants remember what they were computed from.

Where only the order of its channels changes, the target can write a batch norm again, which still trains as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from .. import ir
from ..ir import DerivedTensor, Tensor, Value
from .fx_call import Call, Lowered


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """An evaluated batch norm.

    Attributes:
        mean: Its running mean.
        var: Its running variance.
        weight: Its scale, if it has one.
        bias: Its shift, if it has one.
        eps: What is added to the variance.
        momentum: How fast the running statistics follow.
        batches: How many batches a module has seen.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    momentum: float | None
    batches: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class BatchNormPart:
    """What one constant of a Scale is of a batch norm (the ``host`` of the tensor)."""

    norm: BatchNorm
    part: Literal["scale", "shift"]


def batch_norm(call: Call) -> Lowered | None:
    """``(x, mean, var, weight, bias, training, momentum, eps)``."""
    if call.get(5, "training", False):
        return None
    mean, var = call.get(1, "running_mean"), call.get(2, "running_var")
    weight, bias = call.get(3, "weight"), call.get(4, "bias")
    momentum, eps = call.get(6, "momentum", 0.1), call.get(7, "eps", 1e-5)
    return normalise(call.value(0), mean, var, weight, bias, eps, momentum)


def aten_batch_norm(call: Call) -> Lowered | None:
    """ATen's order: ``(x, weight, bias, mean, var, training, momentum, eps, cudnn)``."""
    x, weight, bias, mean, var, training, momentum, eps, *_ = call.args
    return None if training else normalise(x, mean, var, weight, bias, eps, momentum)


def normalise(
    x: Value,
    mean: Any,
    var: Any,
    weight: Any,
    bias: Any,
    eps: float,
    momentum: float | None,
    batches: torch.Tensor | None = None,
) -> Lowered | None:
    """An evaluated batch norm as a Scale, computed in float64 when it is needed."""
    tensors = [t.data if t is not None else None for t in (mean, var, weight, bias)]
    m, v, gamma, beta = tensors
    if m is None or v is None or (weight is not None and gamma is None):
        return None
    if bias is not None and beta is None:
        return None

    def scale() -> Any:
        root = np.sqrt(v.float64() + eps)
        return (gamma.float64() if gamma is not None else 1.0) / root

    def shift() -> Any:
        return (beta.float64() if beta is not None else 0.0) - m.float64() * scale()

    dtype = x.type.dtype or m.dtype
    norm = BatchNorm(m, v, gamma, beta, eps, momentum, batches)
    parts = DerivedTensor(m.shape, dtype, scale), DerivedTensor(m.shape, dtype, shift)
    parts[0].host, parts[1].host = BatchNormPart(norm, "scale"), BatchNormPart(norm, "shift")
    return ir.Scale(1), [x, *parts]


__all__ = ["BatchNorm", "BatchNormPart", "aten_batch_norm", "batch_norm", "normalise"]
