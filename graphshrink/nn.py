"""The modules of gated, scaled and masked networks; ordinary ``torch.nn`` modules."""

from .ir import MissingExtra

try:
    import torch  # noqa: F401
except ImportError as missing:
    raise MissingExtra("graphshrink.nn", "torch", "torch") from missing

from .hosts.torch.modules import (
    BETA,
    GAMMA,
    LIMIT,
    MARGIN,
    RANDOM,
    ZETA,
    Gate,
    Mask,
    Scale,
    Switch,
    check_masks,
    fold_masks,
    mask_of,
    mask_weight,
    masks,
    rewind,
)
from .training.sparse_kernels import SparseKernels, use_sparse_kernels

__all__ = [
    "BETA",
    "GAMMA",
    "LIMIT",
    "MARGIN",
    "RANDOM",
    "ZETA",
    "Gate",
    "Mask",
    "Scale",
    "SparseKernels",
    "Switch",
    "check_masks",
    "fold_masks",
    "mask_of",
    "mask_weight",
    "masks",
    "rewind",
    "use_sparse_kernels",
]
