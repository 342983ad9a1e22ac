"""torch's LSTM, GRU and RNN, as ONNX reads them: one op a layer, its gates in ONNX's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from .... import ir
from ....hosts.torch.modules.reset_first import ResetFirstGRU
from ....hosts.torch.recurrent import FROM_TORCH
from ....ir import DerivedTensor, MaskedTensor, Opaque, Reduction, Tensor, Value
from ....ir.ops.recurrent import _Recurrent
from ...lowering import Path, Step, Steps
from ...lowering.base import Builder
from ...support import LeftAlone, Makes
from ..call import Call
from ..registry import reads_pieces


@dataclass(frozen=True)
class _Layers:
    """What a recurrent module is made of.

    Attributes:
        op: The op of one layer, with all its results.
        weights: For each layer and direction the matrices of inputs and of states, and their biases, if it has any.
        layers: The number of layers.
        batch_first: Whether the batch is the first axis of inputs and results.
    """

    op: _Recurrent
    weights: tuple[tuple[Tensor, ...], ...]
    layers: int
    batch_first: bool


_Make = Callable[[int, str, Any], _Recurrent]
"""Makes the op of a layer from the size of its state, its direction and the module, if there is one."""


def _lstm(hidden: int, direction: str, _: Any) -> _Recurrent:
    return ir.Lstm(hidden, direction, 3)


def _gru(hidden: int, direction: str, _: Any) -> _Recurrent:
    return ir.Gru(hidden, direction, 2, reset_after=True)


def _reset_first(hidden: int, direction: str, _: Any) -> _Recurrent:
    return ir.Gru(hidden, direction, 2, reset_after=False)


def _rnn(hidden: int, direction: str, module: Any) -> _Recurrent:
    return ir.Rnn(hidden, direction, 2, module.nonlinearity)


def _rnn_of(kind: str) -> _Make:
    return lambda hidden, direction, _: ir.Rnn(hidden, direction, 2, kind)


def _reads_module(
    module: type[nn.Module], make: _Make, makes: Makes | Sequence[Makes], limits: str
) -> None:
    two = module is nn.LSTM

    @reads_pieces(module, makes=makes, note=limits, nested=(1,) if two else (), several=True)
    def rule(call: Call, taken: Sequence[Path]) -> Steps | None:
        """``(x, states)`` gives ``(y, states)``; the states of an LSTM are a tuple."""
        own: Any = call.module
        layers = getattr(own, "num_layers", 1)
        if getattr(own, "proj_size", 0):
            raise LeftAlone("it projects its states")
        _check_dropout(getattr(own, "dropout", 0), own.training, layers)
        ends = ["", "_reverse"] if own.bidirectional else [""]
        kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if own.bias else [])]
        weights = [
            _constants([call.tensor(f"{kind}_l{layer}{end}") for kind in kinds])
            for layer in range(layers)
            for end in ends
        ]
        op = make(weights[0][1].shape[1], _direction(own.bidirectional), own)
        found = _Layers(op, tuple(weights), layers, getattr(own, "batch_first", False))
        state = call.get(1, "hx")
        first = state if two or state is None else (state,)
        paths = [(0,), (1, 0), (1, 1)] if two else [(0,), (1,)]
        return _steps(call.value(0), first, found, paths, taken)


_reads_module(nn.LSTM, _lstm, ir.Lstm, "batched, constant weights, no projection")
_reads_module(nn.GRU, _gru, ir.Gru, "batched, constant weights")
_reads_module(ResetFirstGRU, _reset_first, ir.Gru, "batched, constant weights")
_reads_module(nn.RNN, _rnn, [(ir.Rnn, kind) for kind in ir.Rnn.kinds], "batched, constant weights")


def _reads_aten(name: str, make: _Make, makes: Makes, limits: str) -> None:
    @reads_pieces(name, makes=makes, note=limits, several=True)
    def rule(call: Call, taken: Sequence[Path]) -> Steps | None:
        """``(x, states, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)`` gives ``(y, h)``.

        An LSTM has a list of two states, and ``c`` is its third result.
        """
        x, state, values, biases, layers, dropout, train, bidirectional, batch_first = call.args
        if not isinstance(x, Value) or not isinstance(values, (list, tuple)):
            raise LeftAlone("its sequences are packed")
        _check_dropout(dropout, train, layers)
        width = 4 if biases else 2
        if len(values) != width * layers * (2 if bidirectional else 1):
            raise LeftAlone("it projects its states")
        weights = [_constants(values[i : i + width]) for i in range(0, len(values), width)]
        op = make(weights[0][1].shape[1], _direction(bidirectional), None)
        found = _Layers(op, tuple(weights), layers, bool(batch_first))
        first = state if op.states == 2 else (state,)
        return _steps(x, first, found, [(i,) for i in range(1 + op.states)], taken)


_reads_aten("lstm", _lstm, ir.Lstm, "batched, constant weights, no projection")
_reads_aten("gru", _gru, ir.Gru, "batched, constant weights")
for _kind in ir.Rnn.kinds:
    _reads_aten(f"rnn_{_kind}", _rnn_of(_kind), (ir.Rnn, _kind), "batched, constant weights")


def _direction(bidirectional: bool) -> str:
    return "bidirectional" if bidirectional else "forward"


def _check_dropout(dropout: float, training: bool, layers: int) -> None:
    if dropout and training and layers > 1:
        raise LeftAlone("it drops numbers between its layers in training mode")


def _constants(values: Sequence[Value | None]) -> tuple[Tensor, ...]:
    data = tuple(v.data for v in values if v is not None and v.data is not None)
    if len(data) != len(values):
        raise LeftAlone("its weights are computed")
    return data


def _steps(
    x: Value, state: Any, found: _Layers, paths: Sequence[Path], taken: Sequence[Path]
) -> Steps | None:
    """One op a layer, and what makes of their results those that are read."""
    if x.type.rank != 3:
        raise LeftAlone("its input is not batched")
    first = None if state is None or all(map(_is_zeros, state)) else list(state)
    op, made = found.op, Builder()
    y: Any = made.add(ir.Transpose((1, 0, 2)), x) if found.batch_first else x
    last: list[Step] = []
    for layer in range(found.layers):
        own = found.weights[layer * op.directions : (layer + 1) * op.directions]
        order = FROM_TORCH[type(op)]
        operands: list[Any] = [y, *(_matrix([w[i] for w in own], order) for i in (0, 1))]
        if len(own[0]) > 2:
            operands.append(_biases(own, order))
        if first is not None:
            operands += [None] * (5 - len(operands))
            operands += [_of_layer(made, s, layer, found.layers, op.directions) for s in first]
        step = made.add(op, *operands)
        last.append(step)
        if layer + 1 < found.layers or paths[0] in taken:
            y = _joined(made, step, op.directions == 2, op.hidden)
    results: dict[Path, Step] = {}
    if paths[0] in taken:
        results[paths[0]] = made.add(ir.Transpose((1, 0, 2)), y) if found.batch_first else y
    for number, path in enumerate(paths[1:], 1):
        if path in taken:
            ends = [step.of(number) for step in last]
            results[path] = ends[0] if len(ends) == 1 else made.add(ir.Concat(0), *ends)
    return made.steps(results)


def _joined(made: Builder, y: Step, bidirectional: bool, hidden: int) -> Step:
    """The result of a layer with the directions behind each other on its last axis."""
    if not bidirectional:
        return made.add(ir.Squeeze((1,)), y)
    turned = made.add(ir.Transpose((0, 2, 1, 3)), y)
    return made.add(ir.Reshape((None, None, 2 * hidden)), turned)


def _of_layer(made: Builder, state: Any, layer: int, layers: int, directions: int) -> Any:
    """The first state of one layer."""
    if layers == 1:
        return state
    start = layer * directions
    return made.add(ir.Slice((start,), (start + directions,), (0,), (1,)), state)


def _is_zeros(value: Any) -> bool:
    """Whether a first state is zeros, as the modules make them where none is given."""
    node = value.producer if isinstance(value, Value) else None
    return node is not None and isinstance(node.op, Opaque) and node.op.kind == "fx:aten.zeros"


def _matrix(weights: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """One matrix a direction, its rows in ONNX's order. If some have masks, so has the result."""
    shape = (len(weights), *weights[0].shape)
    plain = tuple(w.weight if isinstance(w, MaskedTensor) else w for w in weights)

    def load() -> Any:
        return np.stack([_reordered(w.float64(), order) for w in plain])

    made = DerivedTensor(shape, weights[0].dtype, load, sources=plain)
    masked = [w for w in weights if isinstance(w, MaskedTensor)]
    if not masked:
        return made
    kept = [w.mask if isinstance(w, MaskedTensor) else np.ones(w.shape, bool) for w in weights]
    patterns = {w.pattern for w in masked}
    pattern = patterns.pop() if len(masked) == len(weights) and len(patterns) == 1 else None
    return MaskedTensor(
        made,
        np.stack([_reordered(k, order) for k in kept]),
        pattern,
        None if pattern is None else Reduction(shape, 2),
        lasting=any(w.lasting for w in masked),
    )


def _biases(own: Sequence[Sequence[Tensor]], order: Sequence[int]) -> Tensor:
    """Both biases of each direction, one behind the other."""

    def load() -> Any:
        return np.stack(
            [np.concatenate([_reordered(b.float64(), order) for b in w[2:]]) for w in own]
        )

    shape = (len(own), 2 * own[0][2].shape[0])
    sources = tuple(b for w in own for b in w[2:])
    return DerivedTensor(shape, own[0][2].dtype, load, sources=sources)


def _reordered(array: Any, order: Sequence[int]) -> Any:
    gates = array.reshape(len(order), -1, *array.shape[1:])
    return gates[list(order)].reshape(array.shape)
