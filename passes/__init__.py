"""Passes, pipelines and observers."""

from .blocks.mask_blocks import MaskBlocks
from .blocks.pivot import Pivot
from .channels.permute_channels import PermuteChannels
from .cleanup.fold_constants import FoldConstants
from .cleanup.prune_dead import PruneDead
from .depth.affine_fit import Moments
from .depth.expand_linear import ExpandLinear
from .depth.hoist_padding import HoistPadding
from .depth.insert_gates import InsertGates
from .depth.removal_plan import RemovalPlan
from .depth.remove_activations import RemoveActivations
from .infra.check import Check, CheckFailed
from .infra.contract import (
    Context,
    FunctionPass,
    Pass,
    PassError,
    known_passes,
    pass_class,
    register,
)
from .infra.observers import Dump, Timing, Verify, Writable
from .infra.pipeline import Observer, PassLike, PassRecord, Pipeline
from .infra.tolerance import relative_error
from .merge.merge_linear import MergeLinear
from .sparsity.fold_masks import FoldMasks
from .sparsity.sparsify import Sparsify
from .statistics.gram import Gram, GramMatrix, InputMoments, InputStats
from .statistics.moments import ActivationMoments, ChannelMoments, ChannelStats
from .statistics.requests import Accumulator, Calibration, Request

__all__ = [
    "Accumulator", "ActivationMoments", "Calibration", "ChannelMoments", "ChannelStats", "Check", "CheckFailed",
    "Context", "Dump", "ExpandLinear", "FoldConstants", "FoldMasks", "FunctionPass", "Gram", "GramMatrix",
    "HoistPadding", "InputMoments", "InputStats", "InsertGates", "MaskBlocks", "MergeLinear", "Moments",
    "Observer", "Pass", "PassError", "PassLike", "PassRecord", "PermuteChannels", "Pipeline", "Pivot",
    "PruneDead", "RemovalPlan", "RemoveActivations", "Request", "Sparsify", "Timing", "Verify", "Writable", "known_passes",
    "pass_class", "register", "relative_error",
]  # fmt: skip
