"""How recurrent layers are written in torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import rnn as rnn_utils

from .... import ir
from ....hosts.torch.modules.reset_first import ResetFirstGRU
from ....hosts.torch.recurrent import TO_TORCH
from ....ir import DerivedTensor, MaskedTensor, Reduction, Tensor
from ....ir.ops.recurrent import _Recurrent
from ..speller import Results, Speller, spells

_Layer = nn.LSTM | nn.GRU | nn.RNN | ResetFirstGRU

_LIMITS = "constant weights; sequences of different lengths: not backwards alone, none empty"


@spells(ir.Lstm, note=f"{_LIMITS}; no peepholes")
def lstm(s: Speller, op: ir.Lstm) -> Results:
    """``nn.LSTM``."""
    if s.node.input(7) is not None:
        raise s.refuse("whose gates read the cell state (peepholes)")
    return _layer(s, op, nn.LSTM)


@spells(ir.Gru, note=f"{_LIMITS}, nor with the state reset before the product")
def gru(s: Speller, op: ir.Gru) -> Results:
    """``nn.GRU``, or ``ResetFirstGRU`` if the state is reset before the product."""
    if op.reset_after:
        return _layer(s, op, nn.GRU)
    if s.node.input(4) is not None:
        raise s.refuse(
            "over sequences of different lengths that resets the state before the product"
        )
    return _layer(s, op, ResetFirstGRU)


@spells(ir.Rnn, kinds=ir.Rnn.kinds, note=_LIMITS)
def rnn(s: Speller, op: ir.Rnn) -> Results:
    """``nn.RNN``."""
    return _layer(s, op, nn.RNN, nonlinearity=op.kind)


def _layer(s: Speller, op: _Recurrent, make: type[_Layer], **options: Any) -> Results:
    """A module, whose result has the directions behind the batch; sequences are flipped to be read from the end."""
    node = s.node
    constants = [value.data for value in (node.required(1), node.required(2)) if value.data]
    bias = node.input(3)
    if len(constants) < 2 or (bias is not None and bias.data is None):
        raise s.refuse("with computed weights")
    if node.input(4) is not None and op.direction == "reverse":
        raise s.refuse("backwards over sequences of different lengths")
    w, r = constants
    made = make(
        w.shape[2], op.hidden, bidirectional=op.directions == 2, bias=bias is not None, **options, **s.meta(w.dtype)
    )  # fmt: skip
    _fill(s, made, op, w, r, bias.data if bias is not None else None)
    x, reverse = s.value(), op.direction == "reverse"
    if reverse:
        x = s.call(torch.flip, x, (0,))
    state = _states(s) if op.states == 2 else s.optional(5)
    given = _packed(s, x) if node.input(4) is not None else x
    called = s.module(made, given) if state is None else s.module(made, given, state)
    y, last = (s.call(operator.getitem, called, i) for i in range(2))
    if node.input(4) is not None:
        padded = s.call(rnn_utils.pad_packed_sequence, y, total_length=s.call("size", x, 0))
        y = s.call(operator.getitem, padded, 0)
    if reverse:
        y = s.call(torch.flip, y, (0,))
    if op.directions == 1:
        y = s.call(torch.unsqueeze, y, 1)
    else:
        y = s.call("unflatten", y, 2, (op.directions, op.hidden))
        y = s.call(torch.transpose, y, 1, 2)
    results = [y]
    if op.results > 1:
        results += (
            [last]
            if op.states == 1
            else [s.call(operator.getitem, last, i) for i in range(op.results - 1)]
        )
    return results[0] if len(results) == 1 else results


def _packed(s: Speller, x: fx.Node) -> fx.Node:
    """Sequences of different lengths as torch's layers take them, which want the lengths on the CPU."""
    lengths = s.call("to", s.value(4), "cpu", torch.int64)
    return s.call(rnn_utils.pack_padded_sequence, x, lengths, enforce_sorted=False)


def _states(s: Speller) -> tuple[fx.Node, fx.Node] | None:
    """The first hidden and cell state; zeros for one that is left out beside the other."""
    h, c = s.optional(5), s.optional(6)
    if h is None and c is None:
        return None
    if h is None:
        return s.call(torch.zeros_like, c), s.value(6)
    return h, s.call(torch.zeros_like, h) if c is None else c


def _fill(
    s: Speller, made: _Layer, op: _Recurrent, w: Tensor, r: Tensor, bias: Tensor | None
) -> None:
    """Give the module its weights, a matrix for each direction, with the gates in torch's order."""
    rows, order = op.gates * op.hidden, TO_TORCH[type(op)]
    for d in range(op.directions):
        end = "_reverse" if d else ""
        s.out.fill(made, f"weight_ih_l0{end}", _rows(w, d, 0, rows, order))
        s.out.fill(made, f"weight_hh_l0{end}", _rows(r, d, 0, rows, order))
        if bias is not None:
            s.out.fill(made, f"bias_ih_l0{end}", _rows(bias, d, 0, rows, order))
            s.out.fill(made, f"bias_hh_l0{end}", _rows(bias, d, rows, rows, order))
    if isinstance(made, nn.RNNBase):
        made._init_flat_weights()


class GateRows(DerivedTensor):
    """Rows of one direction of a weight or of both biases, with the gates in torch's order.

    Attributes:
        place: The whole constant, the direction, the first row, and where torch's gates are in it.
    """

    place: tuple[Tensor, int, int, tuple[int, ...]]


def _rows(data: Tensor, direction: int, start: int, count: int, order: Sequence[int]) -> Tensor:
    """``count`` rows of one direction from ``start`` on: those of all gates, in torch's order; a lasting mask comes along."""

    def ordered(array: Any) -> Any:
        own = array[direction, start : start + count]
        return own.reshape(len(order), -1, *own.shape[1:])[list(order)].reshape(own.shape)

    masked = data if isinstance(data, MaskedTensor) and data.lasting else None
    whole, shape = data if masked is None else masked.weight, (count, *data.shape[2:])
    rows = GateRows(shape, data.dtype, lambda: ordered(whole.float64()), sources=(whole,))
    rows.place = (whole, direction, start, tuple(order))
    if masked is None:
        return rows
    reduction = None if masked.pattern is None else Reduction(shape, 1)
    return MaskedTensor(rows, ordered(masked.mask), masked.pattern, reduction, lasting=True)
