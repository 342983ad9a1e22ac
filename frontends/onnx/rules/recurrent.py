"""ONNX's recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from .... import ir
from ....ir import Value
from ....ir.ops.recurrent import _Recurrent
from ...lowering import Lowered
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads

_LIMITS = "default activations, no clipping, layout 0"


@reads("LSTM", makes=ir.Lstm, note=_LIMITS)
def _lstm(node: OnnxNode) -> Lowered | None:
    if node.flag("input_forget"):
        raise LeftAlone("its input and forget gates are coupled")
    return _layer(node, ir.Lstm(*_common(node)), ("sigmoid", "tanh", "tanh"))


@reads("GRU", makes=ir.Gru, note=_LIMITS)
def _gru(node: OnnxNode) -> Lowered | None:
    op = ir.Gru(*_common(node), node.flag("linear_before_reset"))
    return _layer(node, op, ("sigmoid", "tanh"))


@reads(
    "RNN", makes=[(ir.Rnn, "tanh"), (ir.Rnn, "relu")], note="tanh or relu, no clipping, layout 0"
)
def _rnn(node: OnnxNode) -> Lowered | None:
    kind = (_activations(node) or ["tanh"])[0]
    if kind not in ir.Rnn.kinds:
        raise LeftAlone(f"its activation is {kind}")
    return _layer(node, ir.Rnn(*_common(node), kind), (kind,))


def _common(node: OnnxNode) -> tuple[int, str, int]:
    """Hidden size, direction and number of results.

    Raises:
        ValueError: If the hidden size is not stated.
    """
    hidden = node.attribute("hidden_size")
    if hidden is None:
        raise ValueError(f"{node.kind} without hidden_size")
    return hidden, node.text("direction", "forward"), node.outputs


def _layer(node: OnnxNode, op: _Recurrent, activations: Sequence[str]) -> Lowered | None:
    """The op with its operands, if every direction has these activations."""
    if node.attribute("layout", 0):
        raise LeftAlone("its first axis is the batch (layout 1)")
    if node.attribute("clip") is not None:
        raise LeftAlone("it clips the numbers that its activations read")
    if _activations(node) not in ([], [*activations] * op.directions):
        raise LeftAlone("it has activations other than the default ones")
    if node.type().rank != 3 or node.type(1).rank != 3 or len(node.inputs) < 3:
        return None
    return op, _without_zeros(node, op.states + bool(op.peepholes))


def _activations(node: OnnxNode) -> list[str]:
    """The activations of all directions in lower case; none if they are not stated."""
    return [name.decode().lower() for name in node.attribute("activations") or ()]


def _without_zeros(node: OnnxNode, count: int) -> list[Value | None]:
    """The inputs, without initial states and peepholes that are all zero: zero is ONNX's default.

    ``count`` is the number of these inputs, which are the last ones.
    """
    inputs = list(node.inputs[: 5 + count])
    for place in range(5, 5 + count):
        data = node.data(place)
        if data is not None and data.size <= _MOST_NUMBERS and not data.float64().any():
            inputs[place] = None
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


_MOST_NUMBERS = 1 << 16
"""Larger constants are not tested for zero, so that they stay lazy."""
