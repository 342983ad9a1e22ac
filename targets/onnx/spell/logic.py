"""How comparisons, logic and choices are written in ONNX."""

from __future__ import annotations

from .... import ir
from ..speller import Speller, spells

_COMPARISONS = {
    "equal": "Equal", "not_equal": "Equal", "less": "Less", "less_equal": "LessOrEqual",
    "greater": "Greater", "greater_equal": "GreaterOrEqual",
}  # fmt: skip


@spells(ir.Compare, writes={**_COMPARISONS, "not_equal": "Equal Not"})
def compare(s: Speller, op: ir.Compare) -> None:
    """The operator of the comparison; there is none for "not equal"."""
    dtype = s.node.required(0).type.dtype
    kind = _COMPARISONS[op.kind]
    if kind == "Equal" and s.opset < 11 and (dtype is None or dtype.is_float):
        raise s.refuse("of floating-point numbers does not exist")
    if op.kind == "not_equal":
        s.emit("Not", [s.emit("Equal", s.inputs)], s.outputs[0])
    else:
        s.plain(kind)


_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}


@spells(ir.Logical, writes=_LOGIC)
def logical(s: Speller, op: ir.Logical) -> None:
    """And, Or, Xor."""
    s.plain(_LOGIC[op.kind])


@spells(ir.Where, writes="Where")
def where(s: Speller, op: ir.Where) -> None:
    """Where."""
    s.plain("Where")
