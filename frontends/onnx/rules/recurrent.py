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
    if not _default_activations(node):
        return None
    hidden, w = node.attribute("hidden_size"), node.type(1)
    direction = node.text("direction", "forward")
    if hidden is None or not 1 <= node.outputs <= 3 or len(node.inputs) < 3:
        return None
    if node.type().rank != 3 or w.rank != 3:
        return None
    return ir.Lstm(hidden, direction, node.outputs), node.inputs[:7]


def _default_activations(node: OnnxNode) -> bool:
    """Whether the activations of an LSTM are the default ones, left out or written; their names have any case."""
    written = node.attribute("activations")
    if not written:
        return True
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in written]
    count = 2 if node.text("direction", "forward") == "bidirectional" else 1
    return [n.lower() for n in names] == ["sigmoid", "tanh", "tanh"] * count
