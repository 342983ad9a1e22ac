"""The canonical ops."""

from .arithmetic import COMPARISONS, LOGIC, UNARY, Compare, Logical, Max, Min, Pow, Unary, Where
from .base import Axis, InferenceError, Op, Tie
from .elementwise import (
    ACTIVATIONS,
    GATE_MODES,
    Activation,
    Add,
    Cast,
    Div,
    Gate,
    Identity,
    LayerNorm,
    LogSoftmax,
    MatMul,
    Mul,
    PRelu,
    Softmax,
    Sub,
    check_gate,
)
from .indexing import ArgReduce, CumSum, Expand, Gather
from .linear import (
    AveragePool,
    Conv,
    ConvTranspose,
    Embedding,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Pad,
    Scale,
)
from .norm import GroupNorm
from .opaque import Opaque
from .quantize import QUANTIZED, Dequantize, Quantize
from .recurrent import Lstm
from .resample import COORDINATES, RESIZE_MODES, ROUNDINGS, DepthToSpace, Resize, SpaceToDepth
from .shape import (
    REDUCTIONS,
    Concat,
    Flatten,
    Reduce,
    Reshape,
    Select,
    Slice,
    Split,
    Squeeze,
    Transpose,
    Unsqueeze,
)

__all__ = [
    "ACTIVATIONS", "COMPARISONS", "COORDINATES", "GATE_MODES", "LOGIC", "QUANTIZED", "REDUCTIONS", "RESIZE_MODES",
    "ROUNDINGS", "UNARY", "Activation", "Add", "ArgReduce", "AveragePool", "Axis", "Cast", "Compare", "Concat",
    "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "Dequantize", "Div", "Embedding", "Expand", "Flatten",
    "Gate", "Gather", "GlobalAveragePool", "GroupNorm", "Identity", "InferenceError", "LayerNorm", "Linear",
    "LogSoftmax", "Logical", "Lstm", "MatMul", "Max", "MaxPool", "Min", "Mul", "Op", "Opaque", "PRelu", "Pad",
    "Pow", "Quantize", "Reduce", "Reshape", "Resize", "Scale", "Select", "Slice", "Softmax", "SpaceToDepth",
    "Split", "Squeeze", "Sub", "Tie", "Transpose", "Unary", "Unsqueeze", "Where", "check_gate",
]  # fmt: skip
