"""How sums, products, extrema, functions of one number, scales and casts are written in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from .... import ir
from ....hosts.torch.modules.scale import Scale
from ....ir import DType, Value
from ..batch_norms import made_norm
from ..parameters import hold
from ..speller import Speller, spells

_BINARY: dict[type[ir.Op], Callable[..., Any]] = {
    ir.Add: torch.add,
    ir.Sub: torch.sub,
    ir.Mul: torch.mul,
}


@spells(*_BINARY)
def binary(s: Speller, op: ir.Op) -> fx.Node:
    """A function of two tensors."""
    return s.call(_BINARY[type(op)], *s.values())


@spells(ir.Div)
def divide(s: Speller, op: ir.Div) -> fx.Node:
    """``torch.div``; integers round towards zero."""
    if s.dtype is not None and s.dtype.is_int:
        return s.call(torch.div, *s.values(), rounding_mode="trunc")
    return s.call(torch.div, *s.values())


@spells(ir.Pow)
def power(s: Speller, op: ir.Pow) -> fx.Node:
    """``torch.pow``, in the element type of the base."""
    base, exponent = s.dtype, s.node.required(1).type.dtype
    made = s.call(torch.pow, *s.values())
    if base is exponent or base is None or exponent is None:
        return made
    return s.call("to", made, s.dtype_of(base))


@spells(ir.Mod, kinds=ir.REMAINDERS)
def remainder(s: Speller, op: ir.Mod) -> fx.Node:
    """``torch.remainder`` or ``torch.fmod``."""
    return s.call(torch.remainder if op.kind == "floor" else torch.fmod, *s.values())


@spells(ir.Max, ir.Min)
def extremum(s: Speller, op: ir.Max | ir.Min) -> fx.Node:
    """``torch.maximum`` or ``torch.minimum``, one operand after another."""
    function = torch.maximum if isinstance(op, ir.Max) else torch.minimum
    first, *rest = s.values()
    for other in rest:
        first = s.call(function, first, other)
    return first if rest else s.call(torch.clone, first)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": torch.abs, "neg": torch.neg, "sign": torch.sign, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal, "rsqrt": torch.rsqrt, "erf": torch.erf, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "asin": torch.asin, "acos": torch.acos,
    "atan": torch.atan, "sinh": torch.sinh, "cosh": torch.cosh, "asinh": torch.asinh, "acosh": torch.acosh,
    "atanh": torch.atanh, "not": torch.logical_not, "isnan": torch.isnan,
    "isinf": torch.isinf,
}  # fmt: skip


@spells(ir.Unary, kinds=_FUNCTIONS)
def unary(s: Speller, op: ir.Unary) -> fx.Node:
    """A function of one tensor."""
    return s.call(_FUNCTIONS[op.kind], s.value())


@spells(ir.Identity)
def identity(s: Speller, op: ir.Identity) -> fx.Node:
    """``nn.Identity``."""
    return s.module(nn.Identity(), s.value())


@spells(ir.Cast, note="not to element types that torch lacks, nor to uint16, uint32 and uint64")
def cast(s: Speller, op: ir.Cast) -> fx.Node:
    """``Tensor.to``."""
    return s.call("to", s.value(), s.dtype_of(DType(op.to)))


@spells(ir.Scale)
def scale(s: Speller, op: ir.Scale) -> fx.Node:
    """The batch norm that it was, perhaps with channels in another order; else ``Scale``, or products of numbers and of computed vectors."""
    norm = made_norm(s.node, s.out.tensor)
    if norm is not None:
        return s.module(norm, s.value())
    rank = s.rank
    operands = [s.node.input(1), s.node.input(2)]
    if rank is None and any(v is not None and v.type.dim(0) != 1 for v in operands):
        raise s.refuse("of unknown rank")
    if any(v is not None and v.data is None for v in operands):
        return scale_calls(s, op)
    if all(v is None or _is_number(v) for v in operands):
        return _by_numbers(s, operands)
    return s.module(scale_module(s, operands, rank - op.axis % rank - 1 if rank else 0), s.value())


def scale_module(s: Speller, vectors: Sequence[Value | None], trailing: int) -> Scale:
    """The module of a scale and a shift, constants that are parameters where they are learned."""
    made = Scale(None, None, trailing)
    for name, value in zip(("scale", "shift"), vectors, strict=True):
        if value is None or value.data is None:
            continue
        vector = s.out.constant(value)
        shaped = vector.detach().clone().reshape(-1, *[1] * trailing)
        learned = isinstance(vector, nn.Parameter)
        hold(made, name, nn.Parameter(shaped, vector.requires_grad) if learned else shaped)
    return made


def _is_number(value: Value) -> bool:
    """Whether a constant is one number that is written in the code, and comes from no parameter or buffer."""
    return value.data is not None and value.data.size == 1 and value.data.hosts == ()


def _by_numbers(s: Speller, operands: Sequence[Value | None]) -> fx.Node:
    made = s.value()
    functions: tuple[Callable[..., Any], ...] = (torch.mul, torch.add)
    for value, function in zip(operands, functions, strict=True):
        if value is not None and value.data is not None:
            made = s.call(function, made, value.data.numpy().item())
    return made


def scale_calls(s: Speller, op: ir.Scale) -> fx.Node:
    """A product and a sum with vectors along an axis."""
    made = s.value()
    for index, function in ((1, torch.mul), (2, torch.add)):
        if s.node.input(index) is not None:
            made = s.call(function, made, s.along(index, op.axis))
    return made
