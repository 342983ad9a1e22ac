"""How pools are written in ONNX."""

from __future__ import annotations

from typing import Any

from .... import ir
from ..speller import Speller, spells


@spells(ir.AveragePool, writes="AveragePool")
def average_pool(s: Speller, op: ir.AveragePool) -> None:
    """AveragePool."""
    attrs = _window(op) | {"count_include_pad": int(op.count_include_pad)}
    if op.ceil_mode:
        if s.opset < 10:
            raise s.refuse("with ceil_mode does not exist")
        attrs["ceil_mode"] = 1
    if any(d != 1 for d in op.dilations):
        if s.opset < 19:
            raise s.refuse("with dilations does not exist")
        attrs["dilations"] = list(op.dilations)
    s.emit("AveragePool", s.inputs[:1], s.outputs[0], **attrs)


@spells(ir.MaxPool, writes="MaxPool")
def max_pool(s: Speller, op: ir.MaxPool) -> None:
    """MaxPool."""
    attrs = _window(op)
    if op.ceil_mode or any(d != 1 for d in op.dilations):
        if s.opset < 10:
            raise s.refuse("with ceil_mode or dilations does not exist")
        attrs |= {"ceil_mode": int(op.ceil_mode), "dilations": list(op.dilations)}
    s.emit("MaxPool", s.inputs[:1], s.outputs[0], **attrs)


@spells(ir.GlobalAveragePool, writes="GlobalAveragePool")
def global_average_pool(s: Speller, op: ir.GlobalAveragePool) -> None:
    """GlobalAveragePool."""
    s.plain("GlobalAveragePool")


def _window(op: ir.AveragePool | ir.MaxPool) -> dict[str, Any]:
    return {
        "strides": list(op.strides),
        "pads": list(op.pads),
        "kernel_shape": list(op.kernel),
    }
