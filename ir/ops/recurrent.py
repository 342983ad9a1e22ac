"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..types import Dim, Shape, TensorType
from .base import InferenceError, InputTypes, Op, optional, required, same_dtype

DIRECTIONS = ("forward", "reverse", "bidirectional")
"""The ways in which a recurrent layer reads a sequence."""


@dataclass(frozen=True)
class _Recurrent(Op):
    """What the recurrent layers of ONNX share: ``(x, w, r, b?, lengths?, h?)`` gives ``(y, last h)``.

    Shapes, with D directions and G gates: x ``(time, batch, inputs)``, w ``(D, G * hidden, inputs)``,
    r ``(D, G * hidden, hidden)``, b ``(D, 2 * G * hidden)`` (both biases), lengths ``(batch,)``, each state
    ``(D, batch, hidden)``, y ``(time, D, batch, hidden)``.

    Attributes:
        hidden: The size of the state.
        direction: One of :data:`DIRECTIONS`.
        results: How many of y and the last states there are.
    """

    hidden: int
    direction: str = "forward"
    results: int = 1
    arity = (3, 6)
    gates: ClassVar[int]
    """The number of gates."""
    states: ClassVar[int] = 1
    """The number of states: they are the last inputs, but for peepholes, and the last results."""
    peepholes: ClassVar[int] = 0
    """The number of gates that may read the cell state, with weights ``(D, peepholes * hidden)`` behind the states."""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {self.direction!r}; known are {DIRECTIONS}")
        most = 1 + self.states
        if not 1 <= self.results <= most:
            raise ValueError(f"{self.name} has 1 to {most} results, not {self.results}")

    @property
    def directions(self) -> int:
        """1, or 2 when it reads both ways."""
        return 2 if self.direction == "bidirectional" else 1

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, w, r, b = (
            required(inputs, 0),
            required(inputs, 1),
            required(inputs, 2),
            optional(inputs, 3),
        )
        dtype = same_dtype(self, x, w, r, b)
        d, n, rows = self.directions, self.hidden, self.gates * self.hidden
        features = x.dim(-1)
        time: Dim = x.shape[0] if x.rank == 3 and x.shape else None
        batch: Dim = x.shape[1] if x.rank == 3 and x.shape else None
        state: Shape = (d, batch, n)
        wanted: list[tuple[TensorType | None, Shape]] = [
            (x, (None, None, None)),
            (w, (d, rows, features)),
            (r, (d, rows, n)),
            (b, (d, 2 * rows)),
            (optional(inputs, 4), (batch,)),
            *((optional(inputs, 5 + i), state) for i in range(self.states)),
        ]
        if self.peepholes:
            wanted.append((optional(inputs, 5 + self.states), (d, self.peepholes * n)))
        for type_, shape in wanted:
            if type_ is not None and not type_.accepts(TensorType(type_.dtype, shape)):
                raise InferenceError(f"{self.name} of hidden size {n} with an operand {type_}")
        last = TensorType(dtype, state)
        return (TensorType(dtype, (time, d, batch, n)), *[last] * self.states)[: self.results]

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        y, features = outputs[0].shape, required(inputs, 0).dim(-1)
        if y is None or features is None:
            return None
        # The batch is the third axis; one sample if it is open.
        known = TensorType(None, (*y[:2], y[2] if isinstance(y[2], int) else 1, *y[3:])).size
        return None if known is None else known * self.gates * (features + self.hidden)


@dataclass(frozen=True)
class Lstm(_Recurrent):
    """ONNX's LSTM with its default activations: ``(x, w, r, b?, lengths?, h?, c?, p?)`` gives ``(y, last h, last c)``.

    Shapes, with D directions: x ``(time, batch, inputs)``, w ``(D, 4 * hidden, inputs)``,
    r ``(D, 4 * hidden, hidden)``, b ``(D, 8 * hidden)`` (both biases), h and c ``(D, batch, hidden)``,
    p ``(D, 3 * hidden)``, y ``(time, D, batch, hidden)``. The four gates are input, output, forget, cell.

    ``p`` has peepholes (Gers and Schmidhuber, 2000): the input and the forget gate also read the cell state before the step, and the
    output gate that after it, each times a weight for each channel, in the order input, output, forget.

    Attributes:
        hidden: The size of the state.
        direction: One of :data:`DIRECTIONS`.
        results: How many of y, last h and last c there are.
    """

    arity = (3, 8)
    gates = 4
    states = 2
    peepholes = 3


@dataclass(frozen=True)
class Gru(_Recurrent):
    """ONNX's GRU with its default activations: ``(x, w, r, b?, lengths?, h?)`` gives ``(y, last h)``.

    Shapes, with D directions: x ``(time, batch, inputs)``, w ``(D, 3 * hidden, inputs)``,
    r ``(D, 3 * hidden, hidden)``, b ``(D, 6 * hidden)`` (both biases), h ``(D, batch, hidden)``,
    y ``(time, D, batch, hidden)``. The three gates are update, reset, new.

    Attributes:
        hidden: The size of the state.
        direction: One of :data:`DIRECTIONS`.
        results: How many of y and last h there are.
        reset_after: Whether the reset gate scales the product with the state and its bias, as in torch and cuDNN; if not, it
            scales the state before the product.
    """

    reset_after: bool = False
    gates = 3


@dataclass(frozen=True)
class Rnn(_Recurrent):
    """ONNX's RNN with the activation ``kind``: ``(x, w, r, b?, lengths?, h?)`` gives ``(y, last h)``.

    Shapes, with D directions: x ``(time, batch, inputs)``, w ``(D, hidden, inputs)``, r ``(D, hidden, hidden)``,
    b ``(D, 2 * hidden)`` (both biases), h ``(D, batch, hidden)``, y ``(time, D, batch, hidden)``.

    Attributes:
        hidden: The size of the state.
        direction: One of :data:`DIRECTIONS`.
        results: How many of y and last h there are.
        kind: The activation, ``tanh`` or ``relu``, of all directions.
    """

    kind: str = "tanh"
    kinds = ("tanh", "relu")
    gates = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in self.kinds:
            raise ValueError(f"Rnn with the activation {self.kind!r}: it is tanh or relu")


__all__ = ["Gru", "Lstm", "Rnn"]
