"""How recurrent layers are written in ONNX."""

from __future__ import annotations

from .... import ir
from ....ir.ops.recurrent import _Recurrent
from ..speller import Speller, spells


@spells(ir.Lstm, writes="LSTM")
def lstm(s: Speller, op: ir.Lstm) -> None:
    """LSTM."""
    _layer(s, "LSTM", op)


@spells(ir.Gru, writes="GRU")
def gru(s: Speller, op: ir.Gru) -> None:
    """GRU."""
    _layer(s, "GRU", op, **({"linear_before_reset": 1} if op.reset_after else {}))


@spells(ir.Rnn, writes=dict.fromkeys(ir.Rnn.kinds, "RNN"))
def rnn(s: Speller, op: ir.Rnn) -> None:
    """RNN, whose default activation is tanh."""
    stated = {} if op.kind == "tanh" else {"activations": [op.kind.title()] * op.directions}
    _layer(s, "RNN", op, **stated)


def _layer(s: Speller, kind: str, op: _Recurrent, **attrs: object) -> None:
    s.many(kind, s.inputs, s.outputs, hidden_size=op.hidden, direction=op.direction, **attrs)
