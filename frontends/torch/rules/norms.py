"""Batch norms of torch: each is a Scale.

The constants of one that was a module remember it. Where only the order of its channels changes, the target can
write a batch norm again, which still trains as one; a call in evaluation mode never did.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .... import ir
from ....hosts.torch.origins import BatchNormPart
from ....ir import Value
from ...lowering import Lowered
from ...norms import batch_norm_scale
from ..call import Call


def batch_norm(call: Call) -> Lowered | None:
    """``(x, mean, var, weight, bias, training, momentum, eps)``."""
    if call.get(5, "training", False):
        return None
    return normalise(
        call.value(0),
        call.get(1, "running_mean"),
        call.get(2, "running_var"),
        call.get(3, "weight"),
        call.get(4, "bias"),
        call.get(7, "eps", 1e-5),
    )


def aten_batch_norm(call: Call) -> Lowered | None:
    """ATen's order: ``(x, weight, bias, mean, var, training, momentum, eps, cudnn)``."""
    x, weight, bias, mean, var, training, _, eps, *_ = call.args
    return None if training else normalise(x, mean, var, weight, bias, eps)


def normalise(
    x: Value,
    mean: Any,
    var: Any,
    weight: Any,
    bias: Any,
    eps: float,
    module: nn.Module | None = None,
) -> Lowered | None:
    """An evaluated batch norm as a Scale, computed in float64 when it is needed."""
    tensors = [t.data if t is not None else None for t in (mean, var, weight, bias)]
    m, v, gamma, beta = tensors
    if m is None or v is None or (weight is not None and gamma is None):
        return None
    if bias is not None and beta is None:
        return None
    parts = batch_norm_scale(gamma, beta, m, v, eps, x.type.dtype or m.dtype)
    if module is not None:
        parts[0].host = BatchNormPart(module, "scale")
        parts[1].host = BatchNormPart(module, "shift")
    return ir.Scale(1), [x, *parts]


__all__ = ["BatchNormPart", "aten_batch_norm", "batch_norm", "normalise"]
