"""How recurrent layers are written in ONNX."""

from __future__ import annotations

from .... import ir
from ..speller import Speller, spells


@spells(ir.Lstm, writes="LSTM")
def lstm(s: Speller, op: ir.Lstm) -> None:
    """LSTM."""
    s.many("LSTM", s.inputs, s.outputs, hidden_size=op.hidden, direction=op.direction)
