"""ONNX's recurrent layers."""

from __future__ import annotations

from .... import ir
from ...lowering import Lowered
from ..node import OnnxNode
from ..registry import reads


@reads("LSTM", makes=ir.Lstm, note="default activations, no clipping, no peepholes, layout 0")
def _lstm(node: OnnxNode) -> Lowered | None:
    # Other activations, clipping, coupled gates and peepholes are left alone.
    peepholes = node.input(7) is not None
    if node.attribute("layout", 0) or node.flag("input_forget") or peepholes:
        return None
    hidden, w = node.attribute("hidden_size"), node.type(1)
    direction = node.text("direction", "forward")
    if hidden is None or not 1 <= node.outputs <= 3 or len(node.inputs) < 3:
        return None
    if node.type().rank != 3 or w.rank != 3:
        return None
    return ir.Lstm(hidden, direction, node.outputs), node.inputs[:7]
