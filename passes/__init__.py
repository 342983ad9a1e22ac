"""Passes, pipelines and observers."""

from .base import Context, FunctionPass, Pass, PassError, known_passes, pass_class, register
from .observers import Check, CheckFailed, Dump, Timing, Verify, relative_error
from .pipeline import Observer, PassLike, PassRecord, Pipeline

__all__ = [
    "Check", "CheckFailed", "Context", "Dump", "FunctionPass", "Observer", "Pass", "PassError",
    "PassLike", "PassRecord", "Pipeline", "Timing", "Verify", "known_passes", "pass_class", "register",
    "relative_error",
]  # fmt: skip
