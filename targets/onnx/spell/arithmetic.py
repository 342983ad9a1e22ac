"""How sums, products, extrema, functions of one number, scales and casts are written in ONNX."""

from __future__ import annotations

from .... import ir
from ....hosts.onnx.operators import FUNCTIONS
from ....hosts.onnx.tensors import code_of
from ....ir import DType, ModelError
from ....ir.tensor import reshaped
from ..speller import Speller, spells
from .shapes import new_axes


@spells(ir.Add, writes="Add")
@spells(ir.Sub, writes="Sub")
@spells(ir.Mul, writes="Mul")
@spells(ir.Div, writes="Div")
@spells(ir.Pow, writes="Pow")
def arithmetic(s: Speller, op: ir.Op) -> None:
    """The operator of the same name."""
    s.plain(op.name)


@spells(ir.Max, writes="Max")
@spells(ir.Min, writes="Min")
def extremum(s: Speller, op: ir.Max | ir.Min) -> None:
    """Max or Min, which broadcast from opset 8 on."""
    shapes = {v.type.shape if v is not None else None for v in s.node.inputs}
    if s.opset < 8 and (len(shapes) > 1 or None in shapes):
        raise s.refuse("of different shapes does not exist")
    s.plain(op.name)


@spells(ir.Mod, writes={"floor": "Mod Sign Mul Less Add Where", "trunc": "Mod"})
def mod(s: Speller, op: ir.Mod) -> None:
    """Mod; of floats it rounds towards zero, and a remainder of the wrong sign then needs the divisor added."""
    if op.kind == "trunc" or not s.dtype.is_float:
        s.plain("Mod", fmod=int(op.kind == "trunc"))
        return
    divisor = s.inputs[1]
    rest = s.emit("Mod", s.inputs, fmod=1)
    signs = s.emit("Mul", [s.emit("Sign", [rest]), s.emit("Sign", [divisor])])
    differ = s.emit("Less", [signs, s.scalar(0.0, "zero")])
    s.emit("Where", [differ, s.emit("Add", [rest, divisor]), rest], s.outputs[0])


_OPERATORS = {kind: name for name, kind in FUNCTIONS.items()}


@spells(ir.Unary, writes={**_OPERATORS, "rsqrt": "Sqrt Reciprocal"})
def unary(s: Speller, op: ir.Unary) -> None:
    """The operator of the function."""
    if op.kind == "rsqrt":
        s.emit("Reciprocal", [s.emit("Sqrt", s.inputs)], s.outputs[0])
    else:
        s.plain(_OPERATORS[op.kind])


@spells(ir.Identity, writes="Identity")
def identity(s: Speller, op: ir.Identity) -> None:
    """Identity."""
    s.plain("Identity")


@spells(ir.Cast, writes="Cast")
def cast(s: Speller, op: ir.Cast) -> None:
    """Cast."""
    s.plain("Cast", to=code_of(DType(op.to)))


@spells(ir.Scale, writes="Mul Add Unsqueeze Identity")
def scale(s: Speller, op: ir.Scale) -> None:
    """Mul and Add of vectors that lie along one axis."""
    line(s, op.axis, 1, s.outputs[0])


def line(s: Speller, axis: int, first: int, output: str | None = None) -> str:
    """Scale and shift the first operand by the operands ``first`` and ``first + 1``, vectors along an axis; returns the name of the result."""
    rank = s.rank
    parts = [(kind, i) for kind, i in (("Mul", first), ("Add", first + 1)) if s.given(i)]
    current = s.inputs[0]
    for place, (kind, index) in enumerate(parts):
        vector, operand = s.node.required(index), s.inputs[index]
        size = vector.type.dim(0)
        if size != 1:
            if rank is None:
                raise ModelError(f"{s.node.name}: {s.node.op.name} of a value of unknown rank")
            trailing = rank - axis % rank - 1
            if trailing and vector.data is not None:
                wide = reshaped(vector.data, (size or 1, *[1] * trailing))
                operand = s.new_constant(wide, operand)
            elif trailing:
                operand = new_axes(s, operand, list(range(1, trailing + 1)))
        last = place == len(parts) - 1
        current = s.emit(kind, [current, operand], output if last else None)
    return current if parts else s.emit("Identity", [current], output)


def clip(s: Speller, low: float, high: float, x: str, output: str | None) -> str:
    """Clip between two numbers, which are infinite where it is open; the bounds are inputs from opset 11 on.

    Infinities are written: a bound that is left out is the largest finite number in onnxruntime, which infinite inputs would become.
    """
    if s.opset < 11:
        return s.emit("Clip", [x], output, min=low, max=high)
    ends = [s.scalar(v, hint) for v, hint in ((low, "min"), (high, "max"))]
    return s.emit("Clip", [x, *ends], output)
