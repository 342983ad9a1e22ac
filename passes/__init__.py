"""Passes, pipelines and observers."""

from .base import Context, FunctionPass, Pass, PassError, known_passes, pass_class, register
from .fold_constants import FoldConstants
from .insert_gates import InsertGates
from .merge_linear import MergeLinear
from .observers import Check, CheckFailed, Dump, Timing, Verify, relative_error
from .pipeline import Observer, PassLike, PassRecord, Pipeline
from .prune_dead import PruneDead

__all__ = [
    "Check", "CheckFailed", "Context", "Dump", "FoldConstants", "FunctionPass", "InsertGates", "MergeLinear", "Observer", "Pass",
    "PassError", "PassLike", "PassRecord", "Pipeline", "PruneDead", "Timing", "Verify", "known_passes",
    "pass_class", "register", "relative_error",
]  # fmt: skip
