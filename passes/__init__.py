"""Passes, pipelines and observers. A name is imported from its module on first use."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks.mask_blocks import MaskBlocks
    from .blocks.pivot import Pivot
    from .channels.permute_channels import PermuteChannels
    from .channels.prune_channels import PruneChannels
    from .cleanup.deduplicate import Deduplicate
    from .cleanup.fold_constants import FoldConstants
    from .cleanup.fuse_dense import FuseDense
    from .cleanup.fuse_moves import FuseMoves
    from .cleanup.fuse_patterns import FusePatterns
    from .cleanup.move_scales import MoveScales
    from .cleanup.prune_dead import PruneDead
    from .cleanup.push_pads import PushPads
    from .cleanup.remove_noops import RemoveNoops
    from .depth.drop_blocks import DropBlocks
    from .depth.expand_linear import ExpandLinear
    from .depth.fresh_norms import FreshNorms
    from .depth.hoist_padding import HoistPadding
    from .depth.insert_gates import InsertGates
    from .depth.removal_plan import RemovalPlan
    from .depth.remove_activations import RemoveActivations
    from .infra.check import Check, CheckFailed
    from .infra.conditions import (
        CALIBRATION_DATA,
        KNOWN_RANKS,
        NO_GATES,
        NO_LASTING_MASKS,
        REFERENCE,
        Condition,
    )
    from .infra.contract import Context, Pass, PassError
    from .infra.observers import Dump, Timing, Verify
    from .infra.pipeline import Observer, PassLike, PassRecord, Pipeline
    from .infra.registry import known_passes, register
    from .infra.repeat import Repeat
    from .infra.tolerance import relative_error
    from .merge.merge_linear import MergeLinear
    from .quantize.quantize import Quantize
    from .quantize.requantize import Requantize
    from .reconstruction.reconstruct import Reconstruct
    from .sparsity.fold_masks import FoldMasks
    from .sparsity.sparsify import Sparsify
    from .statistics.gram import Gram, GramMatrix, InputMoments, InputStats
    from .statistics.moments import ActivationMoments, ChannelMoments, ChannelStats
    from .statistics.requests import Accumulator, Calibration, Request

_NAMES = {
    ".blocks.mask_blocks": ("MaskBlocks",),
    ".blocks.pivot": ("Pivot",),
    ".channels.permute_channels": ("PermuteChannels",),
    ".channels.prune_channels": ("PruneChannels",),
    ".cleanup.deduplicate": ("Deduplicate",),
    ".cleanup.fold_constants": ("FoldConstants",),
    ".cleanup.fuse_dense": ("FuseDense",),
    ".cleanup.fuse_moves": ("FuseMoves",),
    ".cleanup.fuse_patterns": ("FusePatterns",),
    ".cleanup.move_scales": ("MoveScales",),
    ".cleanup.prune_dead": ("PruneDead",),
    ".cleanup.push_pads": ("PushPads",),
    ".cleanup.remove_noops": ("RemoveNoops",),
    ".depth.affine_fit": ("ActivationStats",),
    ".depth.drop_blocks": ("DropBlocks",),
    ".depth.expand_linear": ("ExpandLinear",),
    ".depth.fresh_norms": ("FreshNorms",),
    ".depth.hoist_padding": ("HoistPadding",),
    ".depth.insert_gates": ("InsertGates",),
    ".depth.removal_plan": ("RemovalPlan",),
    ".depth.remove_activations": ("RemoveActivations",),
    ".infra.check": ("Check", "CheckFailed"),
    ".infra.conditions": (
        "CALIBRATION_DATA",
        "KNOWN_RANKS",
        "NO_GATES",
        "NO_LASTING_MASKS",
        "REFERENCE",
        "Condition",
    ),
    ".infra.contract": ("Context", "FunctionPass", "Pass", "PassError"),
    ".infra.observers": ("Dump", "Timing", "Verify"),
    ".infra.pipeline": ("Observer", "PassLike", "PassRecord", "Pipeline"),
    ".infra.registry": ("known_passes", "pass_class", "register"),
    ".infra.repeat": ("Repeat",),
    ".infra.tolerance": ("relative_error",),
    ".merge.merge_linear": ("MergeLinear",),
    ".quantize.quantize": ("Quantize",),
    ".quantize.requantize": ("Requantize",),
    ".reconstruction.reconstruct": ("Reconstruct",),
    ".sparsity.fold_masks": ("FoldMasks",),
    ".sparsity.sparsify": ("Sparsify",),
    ".statistics.gram": ("Gram", "GramMatrix", "InputMoments", "InputStats"),
    ".statistics.moments": ("ActivationMoments", "ChannelMoments", "ChannelStats"),
    ".statistics.requests": ("Accumulator", "Calibration", "Request"),
}
"""Where each name is: those of ``__all__``, and some that remain reachable."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "CALIBRATION_DATA",
    "KNOWN_RANKS",
    "NO_GATES",
    "NO_LASTING_MASKS",
    "REFERENCE",
    "Accumulator",
    "ActivationMoments",
    "Calibration",
    "ChannelMoments",
    "ChannelStats",
    "Check",
    "CheckFailed",
    "Condition",
    "Context",
    "Deduplicate",
    "DropBlocks",
    "Dump",
    "ExpandLinear",
    "FoldConstants",
    "FoldMasks",
    "FreshNorms",
    "FuseDense",
    "FuseMoves",
    "FusePatterns",
    "Gram",
    "GramMatrix",
    "HoistPadding",
    "InputMoments",
    "InputStats",
    "InsertGates",
    "MaskBlocks",
    "MergeLinear",
    "MoveScales",
    "Observer",
    "Pass",
    "PassError",
    "PassLike",
    "PassRecord",
    "PermuteChannels",
    "Pipeline",
    "Pivot",
    "PruneChannels",
    "PruneDead",
    "PushPads",
    "Quantize",
    "Reconstruct",
    "RemovalPlan",
    "RemoveActivations",
    "RemoveNoops",
    "Repeat",
    "Requantize",
    "Request",
    "Sparsify",
    "Timing",
    "Verify",
    "known_passes",
    "register",
    "relative_error",
]


def __getattr__(name: str) -> Any:
    if name == "Moments":
        warnings.warn(
            "graphshrink.passes.Moments is now ActivationStats", DeprecationWarning, stacklevel=2
        )
        name = "ActivationStats"
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
