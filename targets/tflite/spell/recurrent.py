"""LSTM, GRU and RNN layers, unrolled.

TFLite's own LSTM operator keeps its state from one run of the interpreter to the next, so a second sequence would start in the final
state of the first, and it does not return the final state; it has no GRU. Therefore each step is written as operations that share one
weight; the product with the inputs, which does not depend on the state, is one operation for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import Gru, Lstm, Node, Rnn, Value
from ....ir.ops.recurrent import _Recurrent
from ..emitter import Emitter, Unsupported, spells
from ..flat import Array, FlatTensor
from ..layout import Layout

_MOST_STEPS = 1024

States = tuple[FlatTensor | None, ...]
"""The states of one direction, (batch, hidden), the hidden state first; ``None`` for zeros."""


@spells(Lstm)
def lstm(e: Emitter, node: Node, op: Lstm) -> None:
    """FULLY_CONNECTED for the inputs, then one for the state at every step."""
    _layer(e, node, op, _LstmCell)


@spells(Gru)
def gru(e: Emitter, node: Node, op: Gru) -> None:
    """FULLY_CONNECTED for the inputs, then one or two for the state at every step."""
    _layer(e, node, op, _GruAfterCell if op.reset_after else _GruBeforeCell)


@spells(Rnn, kinds=Rnn.kinds)
def rnn(e: Emitter, node: Node, op: Rnn) -> None:
    """FULLY_CONNECTED for the inputs, then one for the state at every step."""
    _layer(e, node, op, _RnnCell)


def _layer(e: Emitter, node: Node, op: _Recurrent, cell: type[_Cell]) -> None:
    x = node.required(0)
    weights = [_constant(e, node.required(i)) for i in (1, 2)]
    if node.input(4) is not None:
        raise Unsupported("the sequences of a batch have different lengths")
    (steps,) = e.known_sizes(x, [0], "number of steps")
    if steps * op.directions > _MOST_STEPS:
        raise Unsupported(f"it has {steps} steps, and is unrolled up to {_MOST_STEPS} steps")
    b, rows = node.input(3), op.gates * op.hidden
    bias = np.zeros((op.directions, 2 * rows), np.float32) if b is None else _constant(e, b)
    # (time, batch, features), or batch first if the input is stored so.
    batch_first = e.layout_of(x).perm == (1, 0, 2)
    tensor = e.get(x, Layout((1, 0, 2) if batch_first else (0, 1, 2)))
    axis = 1 if batch_first else 0
    states = [_state(e, node.input(5 + i), op.directions) for i in range(op.states)]
    peepholes = node.input(5 + op.states)
    looks = None if peepholes is None else _constant(e, peepholes)
    ways = []
    for d in range(op.directions):
        made = cell(e, op, weights[0][d], weights[1][d], bias[d])
        if looks is not None:
            made.peepholes = [made._bias(part) for part in np.split(looks[d], op.peepholes)]
        backwards = op.direction == "reverse" or d == 1
        ways.append(made.run(tensor, axis, tuple(state[d] for state in states), backwards))
    _put(e, node, ways, axis)


class _Cell:
    """One direction of a layer. The rows of the weights are those of the gates, in ONNX's order.

    Attributes:
        peepholes: Weights of the cell state for some gates, ``(hidden,)`` each, or none.
    """

    peepholes: Sequence[FlatTensor] = ()

    def __init__(self, e: Emitter, op: _Recurrent, w: Array, r: Array, bias: Array) -> None:
        self.e, self.op, self.hidden = e, op, op.hidden
        self.kind = op.name.lower()
        self.w = self._weight(w, "w")
        both = bias.astype(np.float64).reshape(2, -1)
        self.bias = self._bias(self.prepare(r, *both))

    def prepare(self, r: Array, of_input: Array, of_state: Array) -> Array:
        """Write the constants of a step, from the matrix of the state and both biases; return the bias of the product with the input."""
        self.r = self._weight(r, "r")
        self.zeros = self._bias(np.zeros(len(r)))
        return of_input + of_state

    def step(self, gates: FlatTensor, states: States) -> States:
        """Write one step, from the products with its input; return the states after it."""
        raise NotImplementedError

    def run(
        self, x: FlatTensor, axis: int, states: States, backwards: bool
    ) -> tuple[list[FlatTensor], States]:
        """Write all steps; return the hidden state after each step, in the order of time, and the last states."""
        e = self.e
        wide = self._dense(x, self.w, self.bias)
        shape = (x.shape[1 - axis], wide.shape[-1])
        each = [e.tensor("step", shape, "FLOAT32") for _ in range(x.shape[axis])]
        e.add_operation("UNPACK", [wide], each, ("UnpackOptions", {"num": len(each), "axis": axis}))
        out = []
        for gates in reversed(each) if backwards else each:
            states = self.step(gates, states)
            assert states[0] is not None
            out.append(states[0])
        return out[::-1] if backwards else out, states

    def _weight(self, array: Array, name: str) -> FlatTensor:
        return self.e.weight(np.ascontiguousarray(array), f"{self.kind}_{name}")

    def _bias(self, array: Array) -> FlatTensor:
        return self.e.constant(array.astype(np.float32))

    def _parts(self, gates: FlatTensor) -> list[FlatTensor]:
        """The parts of a product that belong to each gate."""
        count = gates.shape[-1] // self.hidden
        if count == 1:
            return [gates]
        parts = [
            self.e.tensor("gate", (gates.shape[0], self.hidden), "FLOAT32") for _ in range(count)
        ]
        self.e.add_operation(
            "SPLIT",
            [self.e.constant(1, "INT32"), gates],
            parts,
            ("SplitOptions", {"numSplits": count}),
        )
        return parts

    def _dense(self, x: FlatTensor, weight: FlatTensor, bias: FlatTensor) -> FlatTensor:
        shape = (*x.shape[:-1], weight.shape[0])
        fields = {"fusedActivationFunction": 0, "keepNumDims": len(shape) > 2}
        return self.e.op("FULLY_CONNECTED", [x, weight, bias], shape, "FLOAT32",
                         ("FullyConnectedOptions", fields))  # fmt: skip

    def _one(self, code: str, a: FlatTensor) -> FlatTensor:
        return self.e.op(code, [a], a.shape, "FLOAT32")

    def _two(self, code: str, a: FlatTensor, b: FlatTensor) -> FlatTensor:
        fields = {"fusedActivationFunction": 0}
        return self.e.op(code, [a, b], a.shape, "FLOAT32", (f"{code.title()}Options", fields))


class _LstmCell(_Cell):
    """The gates are input, output, forget, cell."""

    def step(self, gates: FlatTensor, states: States) -> States:
        h, c = states
        if h is not None:
            gates = self._two("ADD", gates, self._dense(h, self.r, self.zeros))
        parts = self._parts(gates)
        i, f = self._gate(parts[0], c, 0), self._gate(parts[2], c, 2)
        new = self._two("MUL", i, self._one("TANH", parts[3]))
        c = new if c is None else self._two("ADD", self._two("MUL", f, c), new)
        o = self._gate(parts[1], c, 1)
        return self._two("MUL", o, self._one("TANH", c)), c

    def _gate(self, part: FlatTensor, c: FlatTensor | None, number: int) -> FlatTensor:
        """Write a gate, which reads the cell state if there are peepholes."""
        if self.peepholes and c is not None:
            part = self._two("ADD", part, self._two("MUL", c, self.peepholes[number]))
        return self._one("LOGISTIC", part)


class _RnnCell(_Cell):
    """One gate: the state itself."""

    def step(self, gates: FlatTensor, states: States) -> States:
        (h,) = states
        if h is not None:
            gates = self._two("ADD", gates, self._dense(h, self.r, self.zeros))
        assert isinstance(self.op, Rnn)
        return (self._one(self.op.kind.upper(), gates),)


class _GruCell(_Cell):
    """The gates are update, reset, new."""

    def between(self, update: FlatTensor, new: FlatTensor, h: FlatTensor | None) -> FlatTensor:
        """Write ``(1 - update) * new + update * h``."""
        if h is None:
            return self._two("SUB", new, self._two("MUL", update, new))
        return self._two("ADD", new, self._two("MUL", update, self._two("SUB", h, new)))


class _GruBeforeCell(_GruCell):
    """The reset gate scales the state before the product."""

    def prepare(self, r: Array, of_input: Array, of_state: Array) -> Array:
        n = self.hidden
        self.r, self.zeros = self._weight(r[: 2 * n], "r"), self._bias(np.zeros(2 * n))
        self.new, self.no_bias = self._weight(r[2 * n :], "r_new"), self._bias(np.zeros(n))
        return of_input + of_state

    def step(self, gates: FlatTensor, states: States) -> States:
        (h,) = states
        z, r, new = self._parts(gates)
        if h is not None:
            more = self._parts(self._dense(h, self.r, self.zeros))
            z, r = (self._two("ADD", a, b) for a, b in zip((z, r), more, strict=True))
            scaled = self._two("MUL", self._one("LOGISTIC", r), h)
            new = self._two("ADD", new, self._dense(scaled, self.new, self.no_bias))
        return (self.between(self._one("LOGISTIC", z), self._one("TANH", new), h),)


class _GruAfterCell(_GruCell):
    """The reset gate scales the product with the state, and its bias."""

    def prepare(self, r: Array, of_input: Array, of_state: Array) -> Array:
        n = self.hidden
        self.r, self.new_bias = self._weight(r, "r"), self._bias(of_state[2 * n :])
        # The bias of the new state is added to the product that is scaled, not to that with the input.
        inner: Array = np.concatenate([np.zeros(2 * n), of_state[2 * n :]])
        self.state_bias = self._bias(inner)
        whole: Array = of_input + of_state - inner
        return whole

    def step(self, gates: FlatTensor, states: States) -> States:
        (h,) = states
        z, r, new = self._parts(gates)
        if h is None:
            r = self._one("LOGISTIC", r)
            return (self.between(self._one("LOGISTIC", z), self._new(new, r, self.new_bias), h),)
        more = self._parts(self._dense(h, self.r, self.state_bias))
        z, r = (
            self._one("LOGISTIC", self._two("ADD", a, b))
            for a, b in zip((z, r), more, strict=False)
        )
        return (self.between(z, self._new(new, r, more[2]), h),)

    def _new(self, x: FlatTensor, r: FlatTensor, h: FlatTensor) -> FlatTensor:
        return self._one("TANH", self._two("ADD", x, self._two("MUL", r, h)))


def _put(e: Emitter, node: Node, ways: list[tuple[list[FlatTensor], States]], axis: int) -> None:
    """Record the results: y (time, directions, batch, hidden) and the last states (directions, batch, hidden)."""
    y, *last = node.outputs
    if y.use_count:
        runs = []
        for out, _ in ways:
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
    for number, value in enumerate(last):
        states = [own[number] for _, own in ways]
        parts = [e.reshape(state, (1, *state.shape)) for state in states if state is not None]
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
