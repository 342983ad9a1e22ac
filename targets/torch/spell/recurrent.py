"""How recurrent layers are written in torch."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from .... import ir
from ....ir import DerivedTensor, Tensor
from ..speller import Results, Speller, spells

_GATES = (0, 2, 3, 1)
"""Where the gates of torch (input, forget, cell, output) are in ONNX's order (input, output, forget, cell)."""


@spells(ir.Lstm, note="constant weights, one length for all sequences")
def lstm(s: Speller, op: ir.Lstm) -> Results:
    """``nn.LSTM``, whose result has the directions behind the batch; sequences are flipped to be read from the end."""
    node = s.node
    constants = [value.data for value in (node.required(1), node.required(2)) if value.data]
    bias = node.input(3)
    if len(constants) < 2 or (bias is not None and bias.data is None):
        raise s.refuse("with computed weights")
    if node.input(4) is not None:
        raise s.refuse("with sequences of different lengths")
    w, r = constants
    made = nn.LSTM(
        w.shape[2], op.hidden, bidirectional=op.directions == 2, bias=bias is not None, **s.meta(w.dtype)
    )  # fmt: skip
    _fill(s, made, op, w, r, bias.data if bias is not None else None)
    x, reverse = s.value(), op.direction == "reverse"
    if reverse:
        x = s.call(torch.flip, x, (0,))
    state = _state(s)
    called = s.module(made, x) if state is None else s.module(made, x, state)
    y, last = (s.call(operator.getitem, called, i) for i in range(2))
    if reverse:
        y = s.call(torch.flip, y, (0,))
    y = s.call("unflatten", y, 2, (op.directions, op.hidden))
    y = s.call(torch.transpose, y, 1, 2)
    results = [y, *(s.call(operator.getitem, last, i) for i in range(op.results - 1))]
    return results[0] if len(results) == 1 else results


def _state(s: Speller) -> tuple[fx.Node, fx.Node] | None:
    """The first hidden and cell state; zeros for one that is left out beside the other."""
    h, c = s.optional(5), s.optional(6)
    if h is None and c is None:
        return None
    if h is None:
        return s.call(torch.zeros_like, c), s.value(6)
    return h, s.call(torch.zeros_like, h) if c is None else c


def _fill(
    s: Speller, made: nn.LSTM, op: ir.Lstm, w: Tensor, r: Tensor, bias: Tensor | None
) -> None:
    """Give the module its weights, a matrix for each direction, with the gates in torch's order."""
    n = op.hidden
    for d in range(op.directions):
        end = "_reverse" if d else ""
        s.out.fill(made, f"weight_ih_l0{end}", _rows(w, d, 0, n))
        s.out.fill(made, f"weight_hh_l0{end}", _rows(r, d, 0, n))
        if bias is not None:
            s.out.fill(made, f"bias_ih_l0{end}", _rows(bias, d, 0, n))
            s.out.fill(made, f"bias_hh_l0{end}", _rows(bias, d, 4 * n, n))
    made._init_flat_weights()


def _rows(data: Tensor, direction: int, start: int, hidden: int) -> Tensor:
    """The rows of the four gates of one direction, from ``start`` on, in torch's order."""

    def ordered() -> Any:
        own = data.float64()[direction, start : start + 4 * hidden]
        return own.reshape(4, hidden, *own.shape[1:])[list(_GATES)].reshape(own.shape)

    return DerivedTensor((4 * hidden, *data.shape[2:]), data.dtype, ordered, sources=(data,))
