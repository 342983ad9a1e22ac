"""What torch's calls and modules are in the IR, by family. Importing this package registers all rules."""

from ..registry import CALLS, MODULES, PIECES, REFUSED
from . import (
    activations,
    arithmetic,
    attention,
    casts,
    gates,
    holes,
    indexing,
    linear,
    norms,
    pools,
    recurrent,
    reductions,
    resample,
    shapes,
)

__all__ = [
    "CALLS",
    "MODULES",
    "PIECES",
    "REFUSED",
    "activations",
    "arithmetic",
    "attention",
    "casts",
    "gates",
    "holes",
    "indexing",
    "linear",
    "norms",
    "pools",
    "recurrent",
    "reductions",
    "resample",
    "shapes",
]
