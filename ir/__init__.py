"""The intermediate representation: graphs of canonical ops over lazy tensors."""

from .exactness import Exactness
from .graph import Graph, GraphError, Node, Value
from .ops import (
    ACTIVATIONS,
    REDUCTIONS,
    Activation,
    Add,
    AveragePool,
    Axis,
    Cast,
    Concat,
    Conv,
    ConvTranspose,
    Div,
    Flatten,
    GlobalAveragePool,
    Identity,
    InferenceError,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mul,
    Op,
    Opaque,
    Pad,
    PRelu,
    Reduce,
    Reshape,
    Scale,
    Select,
    Slice,
    Softmax,
    Split,
    Squeeze,
    Sub,
    Tie,
    Transpose,
    Unsqueeze,
)
from .rewriter import Refusal, Rewrite, Rewriter
from .tensor import ArrayTensor, DerivedTensor, ElidedTensor, LazyTensor, SplatTensor, Tensor
from .text import TextError, parse, print_graph
from .types import UNKNOWN, Dim, DType, Shape, TensorType
from .verify import VerificationError, verify

__all__ = [
    "ACTIVATIONS", "REDUCTIONS", "UNKNOWN", "Activation", "Add", "ArrayTensor", "AveragePool", "Axis",
    "Cast", "Concat", "Conv", "ConvTranspose", "DType", "DerivedTensor", "Dim", "Div", "ElidedTensor",
    "Exactness", "Flatten", "GlobalAveragePool", "Graph", "GraphError", "Identity", "InferenceError",
    "LayerNorm", "LazyTensor", "Linear", "MatMul", "MaxPool", "Mul", "Node", "Op", "Opaque", "PRelu",
    "Pad", "Reduce", "Refusal", "Reshape", "Rewrite", "Rewriter", "Scale", "Select", "Shape", "Slice",
    "Softmax", "SplatTensor", "Split", "Squeeze", "Sub", "Tensor", "TensorType", "TextError", "Tie",
    "Transpose", "Unsqueeze", "Value", "VerificationError", "parse", "print_graph", "verify",
]  # fmt: skip
