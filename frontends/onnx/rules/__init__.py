"""The rules that read ONNX operators as ops of the IR, by family. Importing this package registers all of them."""

from .... import ir
from ...support import cannot_read
from ..registry import RULES
from . import (
    activations,
    arithmetic,
    casts,
    indexing,
    linear,
    norms,
    pools,
    quantized,
    quantized_float,
    recurrent,
    reductions,
    resample,
    scalers,
    shapes,
)

__all__ = [
    "RULES",
    "activations",
    "arithmetic",
    "casts",
    "indexing",
    "linear",
    "norms",
    "pools",
    "quantized",
    "quantized_float",
    "recurrent",
    "reductions",
    "resample",
    "scalers",
    "shapes",
]

cannot_read(ir.Gate, "ONNX has no modules: a learned gate is written as arithmetic", "onnx")
