"""The errors that a user can act on; each is one line that names the cause and the remedy."""

from .ir.errors import GraphshrinkError, MissingExtra, ModelError, TrainingError, UsageError
from .passes import CheckFailed, PassError

__all__ = [
    "CheckFailed", "GraphshrinkError", "MissingExtra", "ModelError", "PassError", "TrainingError", "UsageError",
]  # fmt: skip
