"""How padding is written in ONNX."""

from __future__ import annotations

from .... import ir
from ..speller import Speller, spells


@spells(ir.Pad, writes="Pad")
def pad(s: Speller, op: ir.Pad) -> None:
    """Pad, whose amounts are an input from opset 11 on."""
    if s.opset < 11:
        s.emit("Pad", s.inputs[:1], s.outputs[0], pads=list(op.pads), mode=op.mode, value=op.value)
        return
    value = s.scalar(op.value, "pad_value") if op.mode == "constant" and op.value else ""
    s.emit("Pad", [s.inputs[0], s.ints(op.pads, "pads"), value], s.outputs[0], mode=op.mode)
