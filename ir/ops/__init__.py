"""The canonical ops."""

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
    MatMul,
    Mul,
    PRelu,
    Softmax,
    Sub,
    check_gate,
)
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
from .recurrent import Lstm
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
    "ACTIVATIONS", "GATE_MODES", "REDUCTIONS", "Activation", "Add", "AveragePool", "Axis", "Cast", "Concat", "Conv",
    "ConvTranspose", "Div", "Embedding", "Flatten", "Gate", "GlobalAveragePool", "GroupNorm", "Identity", "InferenceError", "LayerNorm",
    "Linear", "Lstm", "MatMul", "MaxPool", "Mul", "Op", "Opaque", "PRelu", "Pad", "Reduce", "Reshape",
    "Scale", "Select", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Tie", "Transpose", "Unsqueeze", "check_gate",
]  # fmt: skip
