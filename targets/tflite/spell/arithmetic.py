"""Arithmetic of two operands, with broadcasting."""

from __future__ import annotations

import numpy as np

from ....ir import Add, Cast, Div, Identity, Mul, Node, Op, Scale, Sub, Value
from ..emitter import Emitter, Unsupported, arranged, spells
from ..flat import FlatTensor
from ..layout import Layout
from ..operands import broadcast_operands, broadcast_shape

_FUSING: dict[type[Op], tuple[str, str]] = {
    Add: ("ADD", "AddOptions"), Sub: ("SUB", "SubOptions"),
    Mul: ("MUL", "MulOptions"), Div: ("DIV", "DivOptions"),
}  # fmt: skip
_TYPES = {
    "ADD": {"FLOAT32", "INT32", "INT64"},
    "SUB": {"FLOAT32", "INT32", "INT64"},
    "MUL": {"FLOAT32", "INT32", "INT64"},
    "DIV": {"FLOAT32", "INT32"},
}
_WIDEST = {"ADD": 6, "SUB": 6, "MUL": 6, "DIV": 5}


def broadcast_inputs(e: Emitter, node: Node) -> tuple[list[FlatTensor], Layout]:
    """Return the operands of a node, and the layout that its result will have."""
    return broadcast_operands(e, node.output, [v for v in node.inputs if v is not None])


@spells(Add, Sub, Mul, Div)
def arithmetic(e: Emitter, node: Node, op: Add | Sub | Mul | Div) -> None:
    """ADD, SUB, MUL, DIV with a fused activation."""
    code, options = _FUSING[type(op)]
    operands, layout = broadcast_inputs(e, node)
    dtype = e.dtype(node.output)
    if code == "DIV" and dtype == "INT64":
        return _divide_int64(e, node, operands, layout)
    if dtype not in _TYPES[code]:
        raise Unsupported(f"LiteRT has no kernel for {dtype.lower()}")
    check_rank(_WIDEST[code], operands)
    act, result = e.fuse_activation(node) if dtype == "FLOAT32" else (0, node.output)
    made = e.op(code, operands, broadcast_shape(*operands), dtype,
                (options, {"fusedActivationFunction": act}))  # fmt: skip
    e.put(result, made, layout)
    return None


def _divide_int64(e: Emitter, node: Node, operands: list[FlatTensor], layout: Layout) -> None:
    """DIV in int32, since LiteRT has no kernel for int64."""
    check_rank(_WIDEST["DIV"], operands)
    for value in node.inputs:
        known = value.data if value is not None else None
        if known is not None and known.size and np.abs(known.numpy().astype(float)).max() >= 2**31:
            raise Unsupported("LiteRT divides int64 in int32 only, and an operand is larger")
    narrow = [e.op("CAST", [t], t.shape, "INT32", ("CastOptions", {})) for t in operands]
    shape = broadcast_shape(*operands)
    made = e.op("DIV", narrow, shape, "INT32", ("DivOptions", {"fusedActivationFunction": 0}))
    e.notes["int64 is divided in int32: numbers from 2**31 on are not"] = None
    e.put(node.output, e.op("CAST", [made], shape, "INT64", ("CastOptions", {})), layout)


def check_rank(most: int, operands: list[FlatTensor]) -> None:
    """Refuse to broadcast more axes than the kernels support.

    Raises:
        Unsupported: If operands of more than ``most`` axes differ.
    """
    rank = max(t.rank for t in operands)
    if rank > most and len({t.shape for t in operands}) > 1:
        raise Unsupported(f"it broadcasts {rank} axes, LiteRT supports at most {most}")


@spells(Scale)
def scale(e: Emitter, node: Node, op: Scale) -> None:
    """MUL and ADD along one axis."""
    x = node.required(0)
    layout = e.layout_of(x)
    tensor = e.get(x, layout)
    steps = [
        (code, v) for code, v in (("MUL", node.input(1)), ("ADD", node.input(2))) if v is not None
    ]
    act, result = e.fuse_activation(node) if steps else (0, node.output)
    for i, (code, vector) in enumerate(steps):
        factor = vector_along(e, vector, layout, op.axis)
        last = act if i == len(steps) - 1 else 0
        tensor = e.op(code, [tensor, factor], tensor.shape, tensor.dtype,
                      (f"{code.title()}Options", {"fusedActivationFunction": last}))  # fmt: skip
    e.put(result, tensor, layout)


def vector_along(e: Emitter, vector: Value, layout: Layout, axis: int) -> FlatTensor:
    """Return a vector in the shape that broadcasts along one axis of a value stored in ``layout``."""
    axis %= layout.rank
    if vector.data is None:
        tensor = e.get(vector, Layout((0,)))
        place = layout.place(axis)
        return e.reshape(tensor, (*tensor.shape, *(1,) * (layout.rank - place - 1)))
    array = e.numbers(vector)
    array = array.reshape(*(1,) * axis, array.size, *(1,) * (layout.rank - axis - 1))
    array = arranged(array, layout)
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return e.constant(array, e.dtype(vector), vector.name)


@spells(Identity)
def identity(e: Emitter, node: Node, op: Identity) -> None:
    """No operation: the result is the tensor of the input."""
    x = node.required(0)
    e.put(node.output, e.as_stored(x), e.layout_of(x))


@spells(Cast)
def cast(e: Emitter, node: Node, op: Cast) -> None:
    """CAST, where the stored types differ."""
    x = node.required(0)
    tensor, layout = e.as_stored(x), e.layout_of(x)
    dtype = e.dtype(node.output)
    e.note_widened(node.output)
    if dtype != tensor.dtype:
        tensor = e.op("CAST", [tensor], tensor.shape, dtype, ("CastOptions", {}))
    e.put(node.output, tensor, layout)
