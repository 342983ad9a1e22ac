"""Sparse kernels for 2:4 weights in torch: applies ``to_sparse_semi_structured`` where it can, with a reason elsewhere.

torch multiplies 2:4 weights of dense layers on CUDA devices of compute capability 8.0 or newer, by cuSPARSELt or CUTLASS. It
compresses any weight without a check, so the pattern is checked here. The conditions on shapes are read from torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

CAPABILITY = (8, 0)
"""The first compute capability with sparse tensor cores."""


@dataclass(frozen=True)
class SparseKernels:
    """The result of a conversion.

    Attributes:
        converted: The names of the layers whose weights are compressed now.
        skipped: The names of the other layers with weights, each with the reason.
    """

    converted: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)


def use_sparse_kernels(module: nn.Module) -> SparseKernels:
    """Compress the 2:4 weights of a module's dense layers in place, so that sparse kernels compute them.

    This is for inference: compressed weights have no gradients. All other layers are left unchanged.

    Args:
        module: The module, on a CUDA device, in half precision or another type that torch has kernels for.

    Returns:
        The names of the converted layers, and of the others with reasons.
    """
    converted, skipped = [], {}
    for name, layer in module.named_modules():
        problem = kernel_problem(layer)
        if problem is None:
            problem = _convert(layer)
        if problem is None:
            converted.append(name)
        elif problem:
            skipped[name] = problem
    return SparseKernels(tuple(converted), skipped)


def kernel_problem(layer: nn.Module) -> str | None:
    """Why a layer cannot have a sparse kernel; ``None`` if it can, empty if it is no dense layer or convolution."""
    if not isinstance(layer, nn.Linear):
        conv = isinstance(layer, nn.modules.conv._ConvNd)
        return "torch has sparse kernels for dense layers only" if conv else ""
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized: fold_masks first"
    weight: Any = layer.weight
    if isinstance(weight, torch.sparse.SparseSemiStructuredTensor):
        return "its weight is already compressed"
    if weight.shape[1] % 4:
        return f"it sums over {weight.shape[1]} channels, which is no multiple of 4"
    if not bool(((weight.detach().reshape(-1, 4) != 0).sum(1) <= 2).all()):
        return "its weight is not 2:4"
    limits = _backend()._DTYPE_SHAPE_CONSTRAINTS
    if weight.dtype not in limits:
        known = ", ".join(str(d).removeprefix("torch.") for d in limits)
        return (
            f"torch has kernels for {known}; its type is {str(weight.dtype).removeprefix('torch.')}"
        )
    least = (limits[weight.dtype].sparse_min_rows, limits[weight.dtype].sparse_min_cols)
    if any(n % k for n, k in zip(weight.shape, least, strict=True)):
        rows, columns = least
        return f"{tuple(weight.shape)} is no multiple of ({rows}, {columns})"
    if not weight.is_cuda:
        return f"it is on the device {weight.device}: move it to a CUDA device"
    if torch.cuda.get_device_capability(weight.device) < CAPABILITY:
        return f"the device {weight.device} has no sparse tensor cores (these need capability 8.0)"
    return None


def _backend() -> Any:
    """The class by which torch compresses weights."""
    if torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS:
        return torch.sparse.SparseSemiStructuredTensorCUTLASS
    return torch.sparse.SparseSemiStructuredTensorCUSPARSELT


def _convert(layer: nn.Module) -> str | None:
    weight: Any = layer.weight
    try:
        made = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"torch cannot compress it: {first}"
    layer.weight = nn.Parameter(made, requires_grad=False)
    return None


__all__ = ["CAPABILITY", "SparseKernels", "kernel_problem", "use_sparse_kernels"]
