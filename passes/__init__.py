"""Passes, pipelines and observers."""

from .affine_fit import Moments
from .base import Context, FunctionPass, Pass, PassError, known_passes, pass_class, register
from .expand_linear import ExpandLinear
from .fold_constants import FoldConstants
from .hoist_padding import HoistPadding
from .insert_gates import InsertGates
from .merge_linear import MergeLinear
from .observers import Check, CheckFailed, Dump, Timing, Verify, relative_error
from .pipeline import Observer, PassLike, PassRecord, Pipeline
from .prune_dead import PruneDead
from .removal_plan import RemovalPlan
from .remove_activations import RemoveActivations

__all__ = [
    "Check", "CheckFailed", "Context", "Dump", "ExpandLinear", "FoldConstants", "FunctionPass", "HoistPadding", "InsertGates",
    "MergeLinear", "Moments", "Observer", "Pass", "PassError", "PassLike", "PassRecord", "Pipeline",
    "PruneDead", "RemovalPlan", "RemoveActivations", "Timing", "Verify", "known_passes", "pass_class",
    "register", "relative_error",
]  # fmt: skip
