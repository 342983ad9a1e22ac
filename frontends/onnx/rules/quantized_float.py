"""onnxruntime's own operators on quantised numbers: what they compute of dequantised ones, quantised again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .... import ir
from ....ir import DType, TensorType, Value
from ....ir.ops.quantize import QUANTIZED
from ...lowering import Steps
from ...lowering.base import Builder
from ..node import OnnxNode
from ..registry import RULES, reads

DOMAIN = "com.microsoft."
"""The prefix of onnxruntime's own operators among the rules."""

_NOTE = "one scale of each operand and of the result"

_Groups = Callable[[OnnxNode], tuple[Sequence[int], int]]
"""The place of each operand, which its scale and zero point follow, and that of the scale of the result."""


def _quantized(kind: str, places: _Groups, node: OnnxNode) -> Steps | None:
    """Dequantize the operands, compute the operator ``kind`` by its own rule, and quantize the result."""
    operands, result = places(node)
    if node.attribute("channels_last", 0) or not operands:
        return None
    steps, dtype = Builder(), node.type(operands[0]).dtype
    zero = node.input(result + 1)
    if dtype is None or dtype.value not in QUANTIZED or not _is_single(node, result):
        return None
    if zero is not None and zero.type.dtype is not dtype:
        return None
    floats: list[Value | None] = []
    made = {}
    for place in operands:
        shape = node.type(place).shape
        if shape is None or not _is_single(node, place + 1):
            return None
        value = Value(f"operand {place}", TensorType(DType.F32, shape))
        read = [node.input(place), node.input(place + 1)]
        if node.input(place + 2) is not None:
            read.append(node.input(place + 2))
        made[value] = steps.add(ir.Dequantize(), *read)
        floats.append(value)
    inner = OnnxNode(kind, floats, 1, node.attributes, node.opset, node.known, node._read)
    lowered = RULES[kind].rule(inner)
    if lowered is None or isinstance(lowered, Steps):
        return None
    op, read_by = lowered
    last = steps.add(op, *(made.get(v, v) if isinstance(v, Value) else v for v in read_by))
    more = [] if zero is None else [zero]
    steps.add(ir.Quantize(dtype.value), last, node.required(result), *more)
    return steps.steps()


def _is_single(node: OnnxNode, index: int) -> bool:
    """Whether an input is one float32 number."""
    type_ = node.type(index)
    return type_.static_shape in ((), (1,)) and type_.dtype is DType.F32


for _name, _kind, _makes, _operands in (
    ("QLinearAdd", "Add", ir.Add, (0, 3)),
    ("QLinearMul", "Mul", ir.Mul, (0, 3)),
    ("QLinearSigmoid", "Sigmoid", (ir.Activation, "sigmoid"), (0,)),
    ("QLinearLeakyRelu", "LeakyRelu", (ir.Activation, "leaky_relu"), (0,)),
    ("QLinearAveragePool", "AveragePool", ir.AveragePool, (0,)),
    ("QLinearGlobalAveragePool", "GlobalAveragePool", ir.GlobalAveragePool, (0,)),
):
    _places = partial(lambda found, node: (found, 3 * len(found)), _operands)
    reads(f"{DOMAIN}{_name}", makes=_makes, note=_NOTE, several=True)(
        partial(_quantized, _kind, _places)
    )

reads(f"{DOMAIN}QLinearConcat", makes=ir.Concat, note=_NOTE, several=True)(
    partial(_quantized, "Concat", lambda node: (range(2, len(node.inputs), 3), 0))
)
