"""How convolutions are written in ONNX."""

from __future__ import annotations

from typing import Any

from .... import ir
from ..speller import Speller, spells


@spells(ir.Conv, writes="Conv")
def conv(s: Speller, op: ir.Conv) -> None:
    """Conv."""
    s.plain("Conv", **_attributes(op))


@spells(ir.ConvTranspose, writes="ConvTranspose")
def conv_transpose(s: Speller, op: ir.ConvTranspose) -> None:
    """ConvTranspose."""
    attrs = _attributes(op)
    if any(op.output_padding):
        attrs["output_padding"] = list(op.output_padding)
    s.plain("ConvTranspose", **attrs)


def _attributes(op: ir.Conv | ir.ConvTranspose) -> dict[str, Any]:
    return {
        "strides": list(op.strides),
        "pads": list(op.pads),
        "dilations": list(op.dilations),
        "group": op.groups,
    }
