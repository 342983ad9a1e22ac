"""How ops that change shapes and orders of axes are written in ONNX."""

from __future__ import annotations

from .... import ir
from ....ir import ModelError
from ..speller import Speller, spells


@spells(ir.Reshape, writes="Reshape")
def reshape(s: Speller, op: ir.Reshape) -> None:
    """Reshape, where 0 copies an axis unless ``allowzero`` is set."""
    target = [0 if d is None else d for d in op.shape]
    if 0 in op.shape and None in op.shape:
        raise ModelError(f"{s.node.name}: Reshape both copies an axis and makes one of size zero")
    attrs = {"allowzero": 1} if 0 in op.shape else {}
    if attrs and s.opset < 14:
        raise s.refuse("to a size of zero does not exist")
    s.emit("Reshape", [s.inputs[0], s.ints(target, "shape")], s.outputs[0], **attrs)


@spells(ir.Flatten, writes="Flatten")
def flatten(s: Speller, op: ir.Flatten) -> None:
    """Flatten."""
    s.plain("Flatten", axis=op.axis)


@spells(ir.Transpose, writes="Transpose")
def transpose(s: Speller, op: ir.Transpose) -> None:
    """Transpose."""
    s.plain("Transpose", perm=list(op.perm))


@spells(ir.Squeeze, writes="Squeeze")
def squeeze(s: Speller, op: ir.Squeeze) -> None:
    """Squeeze, whose axes are an input from opset 13 on."""
    if s.opset >= 13:
        s.emit("Squeeze", [s.inputs[0], s.ints(op.axes, "axes")], s.outputs[0])
    else:
        s.emit("Squeeze", s.inputs[:1], s.outputs[0], axes=list(op.axes))


@spells(ir.Unsqueeze, writes="Unsqueeze")
def unsqueeze(s: Speller, op: ir.Unsqueeze) -> None:
    """Unsqueeze."""
    new_axes(s, s.inputs[0], list(op.axes), s.outputs[0])


def new_axes(s: Speller, value: str, axes: list[int], output: str | None = None) -> str:
    """A value with new axes of size 1; the axes are an input from opset 13 on."""
    if s.opset >= 13:
        return s.emit("Unsqueeze", [value, s.ints(axes, "axes")], output)
    return s.emit("Unsqueeze", [value], output, axes=axes)
