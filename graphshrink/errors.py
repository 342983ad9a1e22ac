"""The errors that are meant for the user, each one line that names the thing and the remedy."""

from .ir.errors import GraphshrinkError, MissingExtra, ModelError, TrainingError, UsageError
from .passes import CheckFailed, PassError

__all__ = [
    "CheckFailed", "GraphshrinkError", "MissingExtra", "ModelError", "PassError", "TrainingError", "UsageError",
]  # fmt: skip
