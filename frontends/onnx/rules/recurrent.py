"""ONNX's recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from .... import ir
from ....ir import Value
from ...lowering import Lowered
from ..node import OnnxNode
from ..registry import reads


@reads("LSTM", makes=ir.Lstm, note="default activations, no clipping, no peepholes, layout 0")
def _lstm(node: OnnxNode) -> Lowered | None:
    # LSTMs with other activations, clipping, coupled gates or peepholes stay opaque.
    peepholes = node.input(7) is not None
    if node.attribute("layout", 0) or node.flag("input_forget") or peepholes:
        return None
    hidden, w = node.attribute("hidden_size"), node.type(1)
    direction = node.text("direction", "forward")
    if hidden is None or not 1 <= node.outputs <= 3 or len(node.inputs) < 3:
        return None
    if node.type().rank != 3 or w.rank != 3 or not _are_default(node, direction):
        return None
    return ir.Lstm(hidden, direction, node.outputs), _without_zero_states(node, (5, 6))


def _are_default(node: OnnxNode, direction: str) -> bool:
    """Whether the activations are ONNX's defaults, stated or not."""
    found = node.attribute("activations")
    default = [b"sigmoid", b"tanh", b"tanh"] * (2 if direction == "bidirectional" else 1)
    return not found or [name.lower() for name in found] == default


def _without_zero_states(node: OnnxNode, places: Sequence[int]) -> list[Value | None]:
    """The inputs without initial states that are all zero: zero is ONNX's default."""
    inputs = list(node.inputs[:7])
    for place in places:
        data = node.data(place)
        if data is not None and data.size <= _MOST_STATES and not data.float64().any():
            inputs[place] = None
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


_MOST_STATES = 1 << 16
"""Larger constants are not tested for zero, so that they stay lazy."""
