"""Passes, pipelines and observers. Each name is loaded from its module when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks.mask_blocks import MaskBlocks
    from .blocks.pivot import Pivot
    from .channels.permute_channels import PermuteChannels
    from .cleanup.fold_constants import FoldConstants
    from .cleanup.prune_dead import PruneDead
    from .depth.affine_fit import ActivationStats
    from .depth.expand_linear import ExpandLinear
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
        Condition,
    )
    from .infra.contract import Context, FunctionPass, Pass, PassError
    from .infra.observers import Dump, Timing, Verify, Writable
    from .infra.pipeline import Observer, PassLike, PassRecord, Pipeline
    from .infra.registry import known_passes, pass_class, register
    from .infra.repeat import Repeat
    from .infra.tolerance import relative_error
    from .merge.merge_linear import MergeLinear
    from .sparsity.fold_masks import FoldMasks
    from .sparsity.sparsify import Sparsify
    from .statistics.gram import Gram, GramMatrix, InputMoments, InputStats
    from .statistics.moments import ActivationMoments, ChannelMoments, ChannelStats
    from .statistics.requests import Accumulator, Calibration, Request

_HOMES = {
    **dict.fromkeys(("MaskBlocks",), ".blocks.mask_blocks"),
    **dict.fromkeys(("Pivot",), ".blocks.pivot"),
    **dict.fromkeys(("PermuteChannels",), ".channels.permute_channels"),
    **dict.fromkeys(("FoldConstants",), ".cleanup.fold_constants"),
    **dict.fromkeys(("PruneDead",), ".cleanup.prune_dead"),
    **dict.fromkeys(("ActivationStats",), ".depth.affine_fit"),
    **dict.fromkeys(("ExpandLinear",), ".depth.expand_linear"),
    **dict.fromkeys(("HoistPadding",), ".depth.hoist_padding"),
    **dict.fromkeys(("InsertGates",), ".depth.insert_gates"),
    **dict.fromkeys(("RemovalPlan",), ".depth.removal_plan"),
    **dict.fromkeys(("RemoveActivations",), ".depth.remove_activations"),
    **dict.fromkeys(
        (
            "Check",
            "CheckFailed",
        ),
        ".infra.check",
    ),
    **dict.fromkeys(
        (
            "CALIBRATION_DATA",
            "KNOWN_RANKS",
            "NO_GATES",
            "NO_LASTING_MASKS",
            "Condition",
        ),
        ".infra.conditions",
    ),
    **dict.fromkeys(
        (
            "Context",
            "FunctionPass",
            "Pass",
            "PassError",
        ),
        ".infra.contract",
    ),
    **dict.fromkeys(
        (
            "Dump",
            "Timing",
            "Verify",
            "Writable",
        ),
        ".infra.observers",
    ),
    **dict.fromkeys(
        (
            "Observer",
            "PassLike",
            "PassRecord",
            "Pipeline",
        ),
        ".infra.pipeline",
    ),
    **dict.fromkeys(
        (
            "known_passes",
            "pass_class",
            "register",
        ),
        ".infra.registry",
    ),
    **dict.fromkeys(("Repeat",), ".infra.repeat"),
    **dict.fromkeys(("relative_error",), ".infra.tolerance"),
    **dict.fromkeys(("MergeLinear",), ".merge.merge_linear"),
    **dict.fromkeys(("FoldMasks",), ".sparsity.fold_masks"),
    **dict.fromkeys(("Sparsify",), ".sparsity.sparsify"),
    **dict.fromkeys(
        (
            "Gram",
            "GramMatrix",
            "InputMoments",
            "InputStats",
        ),
        ".statistics.gram",
    ),
    **dict.fromkeys(
        (
            "ActivationMoments",
            "ChannelMoments",
            "ChannelStats",
        ),
        ".statistics.moments",
    ),
    **dict.fromkeys(
        (
            "Accumulator",
            "Calibration",
            "Request",
        ),
        ".statistics.requests",
    ),
}

__all__ = [
    "CALIBRATION_DATA",
    "KNOWN_RANKS",
    "NO_GATES",
    "NO_LASTING_MASKS",
    "Accumulator",
    "ActivationMoments",
    "ActivationStats",
    "Calibration",
    "ChannelMoments",
    "ChannelStats",
    "Check",
    "CheckFailed",
    "Condition",
    "Context",
    "Dump",
    "ExpandLinear",
    "FoldConstants",
    "FoldMasks",
    "FunctionPass",
    "Gram",
    "GramMatrix",
    "HoistPadding",
    "InputMoments",
    "InputStats",
    "InsertGates",
    "MaskBlocks",
    "MergeLinear",
    "Observer",
    "Pass",
    "PassError",
    "PassLike",
    "PassRecord",
    "PermuteChannels",
    "Pipeline",
    "Pivot",
    "PruneDead",
    "RemovalPlan",
    "RemoveActivations",
    "Repeat",
    "Request",
    "Sparsify",
    "Timing",
    "Verify",
    "Writable",
    "known_passes",
    "pass_class",
    "register",
    "relative_error",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
