"""The intermediate representation: graphs of canonical ops over lazy tensors."""

from .errors import GraphshrinkError, MissingExtra, ModelError, TrainingError, UsageError
from .exactness import Exactness
from .graph import Graph, GraphError, Node, Value, sketch
from .masks.masked_tensor import MaskedTensor, check_masks, remasked
from .masks.nm_pattern import Pattern, Reduction
from .ops.arithmetic import *
from .ops.base import *
from .ops.elementwise import *
from .ops.indexing import *
from .ops.linear import *
from .ops.norm import *
from .ops.opaque import *
from .ops.quantize import *
from .ops.recurrent import *
from .ops.resample import *
from .ops.shape import *
from .rewriter import Refusal, Rewrite, Rewriter
from .tensor import (
    ArrayTensor,
    DerivedTensor,
    ElidedTensor,
    LazyTensor,
    MovedTensor,
    SplatTensor,
    Tensor,
)
from .text import TextError, parse, print_graph
from .types import UNKNOWN, Dim, DType, Shape, TensorType
from .verify import VerificationError, verify

__all__ = [
    "ACTIVATIONS",
    "COMPARISONS",
    "COORDINATES",
    "GATE_MODES",
    "LOGIC",
    "PREDICATES",
    "QUANTIZED",
    "REDUCTIONS",
    "REMAINDERS",
    "RESIZE_MODES",
    "ROUNDINGS",
    "UNARY",
    "UNKNOWN",
    "Activation",
    "Add",
    "ArgReduce",
    "ArrayTensor",
    "AveragePool",
    "Axis",
    "Cast",
    "Compare",
    "Concat",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "DType",
    "DepthToSpace",
    "Dequantize",
    "DerivedTensor",
    "Dim",
    "Div",
    "ElidedTensor",
    "Embedding",
    "Exactness",
    "Expand",
    "Flatten",
    "Gate",
    "Gather",
    "GlobalAveragePool",
    "Graph",
    "GraphError",
    "GraphshrinkError",
    "GroupNorm",
    "Identity",
    "InferenceError",
    "LayerNorm",
    "LazyTensor",
    "Linear",
    "LogSoftmax",
    "Logical",
    "Lstm",
    "MaskedTensor",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "MissingExtra",
    "Mod",
    "ModelError",
    "MovedTensor",
    "Mul",
    "Node",
    "Op",
    "Opaque",
    "PRelu",
    "Pad",
    "Pattern",
    "Pow",
    "Quantize",
    "Reduce",
    "Reduction",
    "Refusal",
    "Reshape",
    "Resize",
    "Rewrite",
    "Rewriter",
    "Scale",
    "Select",
    "Shape",
    "Slice",
    "Softmax",
    "SpaceToDepth",
    "SplatTensor",
    "Split",
    "Squeeze",
    "Sub",
    "Tensor",
    "TensorType",
    "TextError",
    "Tie",
    "TrainingError",
    "Transpose",
    "Unary",
    "Unsqueeze",
    "UsageError",
    "Value",
    "VerificationError",
    "Where",
    "check_gate",
    "check_masks",
    "parse",
    "print_graph",
    "remasked",
    "sketch",
    "verify",
]
