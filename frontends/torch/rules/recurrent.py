"""torch's LSTM, as ONNX reads it: one op a layer, its gates in ONNX's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from .... import ir
from ....ir import DerivedTensor, Opaque, Tensor, Value
from ...lowering import Path, Step, Steps
from ...lowering.base import Builder
from ...support import LeftAlone
from ..call import Call
from ..registry import reads_pieces

_GATES = (0, 3, 1, 2)
"""Where the gates of ONNX (input, output, forget, cell) are in torch's order (input, forget, cell, output)."""

_LIMITS = "batched, constant weights, no projection"


@dataclass(frozen=True)
class _Layers:
    """What an LSTM is made of.

    Attributes:
        weights: For each layer and direction the matrices of inputs and of states, and their biases, if it has any.
        layers: The number of layers.
        bidirectional: Whether sequences are read both ways.
        batch_first: Whether the batch is the first axis of inputs and results.
    """

    weights: tuple[tuple[Tensor, ...], ...]
    layers: int
    bidirectional: bool
    batch_first: bool


@reads_pieces(nn.LSTM, makes=ir.Lstm, note=_LIMITS, nested=(1,), several=True)
def _module(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, (h, c))`` gives ``(y, (h, c))``."""
    module: Any = call.module
    if module.proj_size:
        raise LeftAlone("it projects its states")
    _check_dropout(module.dropout, module.training, module.num_layers)
    ends = ["", "_reverse"] if module.bidirectional else [""]
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    weights = [
        _constants([call.tensor(f"{kind}_l{layer}{end}") for kind in kinds])
        for layer in range(module.num_layers)
        for end in ends
    ]
    found = _Layers(tuple(weights), module.num_layers, module.bidirectional, module.batch_first)
    return _lstm(call.value(0), call.get(1, "hx"), found, [(0,), (1, 0), (1, 1)], taken)


@reads_pieces("lstm", makes=ir.Lstm, note=_LIMITS, several=True)
def _aten(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, (h, c), weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)`` gives ``(y, h, c)``."""
    x, state, values, biases, layers, dropout, train, bidirectional, batch_first = call.args
    if not isinstance(x, Value) or not isinstance(values, (list, tuple)):
        raise LeftAlone("its sequences are packed")
    _check_dropout(dropout, train, layers)
    width = 4 if biases else 2
    if len(values) != width * layers * (2 if bidirectional else 1):
        raise LeftAlone("it projects its states")
    weights = [_constants(values[i : i + width]) for i in range(0, len(values), width)]
    found = _Layers(tuple(weights), layers, bool(bidirectional), bool(batch_first))
    return _lstm(x, state, found, [(0,), (1,), (2,)], taken)


def _check_dropout(dropout: float, training: bool, layers: int) -> None:
    if dropout and training and layers > 1:
        raise LeftAlone("it drops numbers between its layers in training mode")


def _constants(values: Sequence[Value | None]) -> tuple[Tensor, ...]:
    data = tuple(v.data for v in values if v is not None and v.data is not None)
    if len(data) != len(values):
        raise LeftAlone("its weights are computed")
    return data


def _lstm(
    x: Value, state: Any, found: _Layers, paths: Sequence[Path], taken: Sequence[Path]
) -> Steps | None:
    """One Lstm a layer, and what makes of their results those that are read."""
    if x.type.rank != 3:
        raise LeftAlone("its input is not batched")
    first = None if state is None or all(map(_is_zeros, state)) else list(state)
    directions = 2 if found.bidirectional else 1
    hidden = found.weights[0][1].shape[1]
    op = ir.Lstm(hidden, "bidirectional" if found.bidirectional else "forward", 3)
    made = Builder()
    y: Any = made.add(ir.Transpose((1, 0, 2)), x) if found.batch_first else x
    last: list[Step] = []
    for layer in range(found.layers):
        own = found.weights[layer * directions : (layer + 1) * directions]
        operands: list[Any] = [y, _matrix([w[0] for w in own]), _matrix([w[1] for w in own])]
        if len(own[0]) > 2:
            operands.append(_biases(own))
        if first is not None:
            operands += [None] * (5 - len(operands))
            operands += [_of_layer(made, s, layer, found.layers, directions) for s in first]
        step = made.add(op, *operands)
        last.append(step)
        if layer + 1 < found.layers or paths[0] in taken:
            y = _joined(made, step, found.bidirectional, hidden)
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
    """Whether a first state is zeros, as ``nn.LSTM`` makes them where none is given."""
    node = value.producer if isinstance(value, Value) else None
    return node is not None and isinstance(node.op, Opaque) and node.op.kind == "fx:aten.zeros"


def _matrix(weights: Sequence[Tensor]) -> Tensor:
    """One matrix a direction, its rows in ONNX's order."""
    shape = (len(weights), *weights[0].shape)

    def load() -> Any:
        return np.stack([_reordered(w) for w in weights])

    return DerivedTensor(shape, weights[0].dtype, load, sources=tuple(weights))


def _biases(own: Sequence[Sequence[Tensor]]) -> Tensor:
    """Both biases of each direction, one behind the other."""

    def load() -> Any:
        return np.stack([np.concatenate([_reordered(b) for b in w[2:]]) for w in own])

    shape = (len(own), 2 * own[0][2].shape[0])
    sources = tuple(b for w in own for b in w[2:])
    return DerivedTensor(shape, own[0][2].dtype, load, sources=sources)


def _reordered(weight: Tensor) -> Any:
    gates = weight.float64().reshape(4, -1, *weight.shape[1:])
    return gates[list(_GATES)].reshape(weight.shape)
