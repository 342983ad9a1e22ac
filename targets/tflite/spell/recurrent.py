"""LSTM layers, unrolled.

TFLite's own LSTM operator keeps its state from one run of the interpreter to the next, so a second sequence would start in the final
state of the first, and it does not return the final state. Therefore each step is written as operations that share one weight; the
product with the inputs, which does not depend on the state, is one operation for all steps.
"""

from __future__ import annotations

import numpy as np

from ....ir import Lstm, Node, Value
from ..emitter import Emitter, Unsupported, spells
from ..flat import Array, FlatTensor
from ..layout import Layout

_MOST_STEPS = 1024


@spells(Lstm)
def lstm(e: Emitter, node: Node, op: Lstm) -> None:
    """FULLY_CONNECTED for the inputs, then one for the state at every step."""
    x = node.required(0)
    weights = [_constant(e, node.required(i)) for i in (1, 2)]
    if node.input(4) is not None:
        raise Unsupported("the sequences of a batch have different lengths")
    (steps,) = e.known_sizes(x, [0], "number of steps")
    if steps * op.directions > _MOST_STEPS:
        raise Unsupported(f"it has {steps} steps, and is unrolled up to {_MOST_STEPS} steps")
    b = node.input(3)
    bias = np.zeros((op.directions, 8 * op.hidden), np.float32) if b is None else _constant(e, b)
    # (time, batch, features), or batch first if the input is stored so.
    batch_first = e.layout_of(x).perm == (1, 0, 2)
    tensor = e.get(x, Layout((1, 0, 2) if batch_first else (0, 1, 2)))
    axis = 1 if batch_first else 0
    states = [_state(e, node.input(i), op.directions) for i in (5, 6)]
    ways = []
    for d in range(op.directions):
        cell = _Cell(e, weights[0][d], weights[1][d], bias[d], op.hidden)
        backwards = op.direction == "reverse" or d == 1
        ways.append(cell.run(tensor, axis, states[0][d], states[1][d], backwards))
    _put(e, node, ways, axis)


class _Cell:
    """One direction of an LSTM. The rows of the weights are those of the input, output, forget and cell gates, in this order."""

    def __init__(self, e: Emitter, w: Array, r: Array, bias: Array, hidden: int) -> None:
        self.e, self.hidden = e, hidden
        self.w = e.weight(np.ascontiguousarray(w), "lstm_w")
        self.r = e.weight(np.ascontiguousarray(r), "lstm_r")
        half = 4 * hidden
        self.bias = e.constant((bias[:half].astype(np.float64) + bias[half:]).astype(np.float32))
        self.zeros = e.constant(np.zeros(half, np.float32))

    def run(
        self,
        x: FlatTensor,
        axis: int,
        h: FlatTensor | None,
        c: FlatTensor | None,
        backwards: bool,
    ) -> tuple[list[FlatTensor], FlatTensor, FlatTensor]:
        """Write all steps; return the hidden state after each step, in the order of time, and the last hidden and cell state."""
        e, n = self.e, self.hidden
        batch = x.shape[1 - axis]
        wide = self._dense(x, self.w, self.bias)
        each = [e.tensor("step", (batch, 4 * n), "FLOAT32") for _ in range(x.shape[axis])]
        e.add_operation("UNPACK", [wide], each, ("UnpackOptions", {"num": len(each), "axis": axis}))
        out = []
        for gates in reversed(each) if backwards else each:
            if h is not None:
                gates = self._two("ADD", gates, self._dense(h, self.r, self.zeros))
            parts = [e.tensor("gate", (batch, n), "FLOAT32") for _ in range(4)]
            e.add_operation(
                "SPLIT", [e.constant(1, "INT32"), gates], parts, ("SplitOptions", {"numSplits": 4})
            )
            i, o, f = (e.op("LOGISTIC", [part], part.shape, "FLOAT32") for part in parts[:3])
            new = self._two("MUL", i, e.op("TANH", [parts[3]], parts[3].shape, "FLOAT32"))
            c = new if c is None else self._two("ADD", self._two("MUL", f, c), new)
            h = self._two("MUL", o, e.op("TANH", [c], c.shape, "FLOAT32"))
            out.append(h)
        assert h is not None
        assert c is not None
        return out[::-1] if backwards else out, h, c

    def _dense(self, x: FlatTensor, weight: FlatTensor, bias: FlatTensor) -> FlatTensor:
        shape = (*x.shape[:-1], weight.shape[0])
        fields = {"fusedActivationFunction": 0, "keepNumDims": len(shape) > 2}
        return self.e.op("FULLY_CONNECTED", [x, weight, bias], shape, "FLOAT32",
                         ("FullyConnectedOptions", fields))  # fmt: skip

    def _two(self, code: str, a: FlatTensor, b: FlatTensor) -> FlatTensor:
        fields = {"fusedActivationFunction": 0}
        return self.e.op(code, [a, b], a.shape, "FLOAT32", (f"{code.title()}Options", fields))


def _put(
    e: Emitter, node: Node, ways: list[tuple[list[FlatTensor], FlatTensor, FlatTensor]], axis: int
) -> None:
    """Record the results: y (time, directions, batch, hidden) and the last states (directions, batch, hidden)."""
    y, *last = node.outputs
    if y.use_count:
        runs = []
        for out, *_ in ways:
            batch, n = out[0].shape
            shape = (batch, len(out), n) if axis else (len(out), batch, n)
            made = e.op(
                "PACK",
                out,
                shape,
                "FLOAT32",
                ("PackOptions", {"valuesCount": len(out), "axis": axis}),
            )
            if axis:  # (batch, time, 1, hidden)
                runs.append(e.reshape(made, (batch, len(out), 1, n)))
            else:
                runs.append(e.reshape(made, (len(out), 1, batch, n)))
        layout = Layout((2, 0, 1, 3) if axis else (0, 1, 2, 3))
        e.put(y, _joined(e, runs, 2 if axis else 1), layout)
    for value, states in zip(last, ([h for _, h, _ in ways], [c for *_, c in ways]), strict=False):
        parts = [e.reshape(state, (1, *state.shape)) for state in states]
        e.put(value, _joined(e, parts, 0), Layout((0, 1, 2)))


def _joined(e: Emitter, parts: list[FlatTensor], axis: int) -> FlatTensor:
    if len(parts) == 1:
        return parts[0]
    shape = [d * len(parts) if i == axis else d for i, d in enumerate(parts[0].shape)]
    return e.op("CONCATENATION", parts, shape, "FLOAT32",
                ("ConcatenationOptions", {"axis": axis, "fusedActivationFunction": 0}))  # fmt: skip


def _state(e: Emitter, value: Value | None, directions: int) -> list[FlatTensor | None]:
    """Return the initial state of each direction, (batch, hidden); ``None`` for zeros."""
    if value is None or (value.data is not None and not np.any(e.numbers(value))):
        return [None] * directions
    whole = e.get(value, Layout((0, 1, 2)))
    parts: list[FlatTensor | None] = []
    if directions == 1:
        return [e.reshape(whole, whole.shape[1:])]
    pieces = [e.tensor("state", (1, *whole.shape[1:]), "FLOAT32") for _ in range(directions)]
    e.add_operation(
        "SPLIT",
        [e.constant(0, "INT32"), whole],
        pieces,
        ("SplitOptions", {"numSplits": directions}),
    )
    parts += [e.reshape(piece, piece.shape[1:]) for piece in pieces]
    return parts


def _constant(e: Emitter, value: Value) -> Array:
    """Return the numbers of a weight; refuse one that the model computes."""
    if value.data is None:
        raise Unsupported(f"its weight {value.name} is computed by the model, not constant")
    return e.numbers(value)
