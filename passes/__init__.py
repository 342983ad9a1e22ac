"""Passes, pipelines and observers."""

from .affine_fit import Moments
from .base import Context, FunctionPass, Pass, PassError, known_passes, pass_class, register
from .calibration import Accumulator, Calibration, Request
from .expand_linear import ExpandLinear
from .fold_constants import FoldConstants
from .fold_masks import FoldMasks
from .hoist_padding import HoistPadding
from .insert_gates import InsertGates
from .mask_blocks import MaskBlocks
from .merge_linear import MergeLinear
from .observers import Check, CheckFailed, Dump, Timing, Verify, Writable, relative_error
from .permute_channels import PermuteChannels
from .pipeline import Observer, PassLike, PassRecord, Pipeline
from .pivot import Pivot
from .prune_dead import PruneDead
from .removal_plan import RemovalPlan
from .remove_activations import RemoveActivations
from .sparsify import Sparsify
from .statistics import (
    ActivationMoments,
    ChannelMoments,
    ChannelStats,
    Gram,
    GramMatrix,
    InputMoments,
    InputStats,
)

__all__ = [
    "Accumulator", "ActivationMoments", "Calibration", "ChannelMoments", "ChannelStats", "Check", "CheckFailed",
    "Context", "Dump", "ExpandLinear", "FoldConstants", "FoldMasks", "FunctionPass", "Gram", "GramMatrix",
    "HoistPadding", "InputMoments", "InputStats", "InsertGates", "MaskBlocks", "MergeLinear", "Moments",
    "Observer", "Pass", "PassError", "PassLike", "PassRecord", "PermuteChannels", "Pipeline", "Pivot",
    "PruneDead", "RemovalPlan", "RemoveActivations", "Request", "Sparsify", "Timing", "Verify", "Writable", "known_passes",
    "pass_class", "register", "relative_error",
]  # fmt: skip
