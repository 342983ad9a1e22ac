"""How convolutions are written in ONNX."""

from __future__ import annotations

from typing import Any

from .... import ir
from ..speller import Speller, spells


@spells(ir.Conv, writes="Conv")
def conv(s: Speller, op: ir.Conv) -> None:
    """Conv."""
    s.plain("Conv", **window_attributes(op))


@spells(ir.ConvTranspose, writes="ConvTranspose")
def conv_transpose(s: Speller, op: ir.ConvTranspose) -> None:
    """ConvTranspose."""
    attrs = window_attributes(op)
    if any(op.output_padding):
        attrs["output_padding"] = list(op.output_padding)
    s.plain("ConvTranspose", **attrs)


def window_attributes(op: ir.Conv | ir.ConvTranspose | ir.QuantizedConv) -> dict[str, Any]:
    """The attributes of an operator with windows."""
    return {
        "strides": list(op.strides),
        "pads": list(op.pads),
        "dilations": list(op.dilations),
        "group": op.groups,
    }
