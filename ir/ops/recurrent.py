"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Dim, Shape, TensorType
from .base import InferenceError, InputTypes, Op, optional, required, same_dtype

DIRECTIONS = ("forward", "reverse", "bidirectional")
"""The ways in which a recurrent layer reads a sequence."""


@dataclass(frozen=True)
class Lstm(Op):
    """ONNX's LSTM with its default activations: ``(x, w, r, b?, lengths?, h?, c?)`` gives ``(y, last h, last c)``.

    Shapes, with D directions: x ``(time, batch, inputs)``, w ``(D, 4 * hidden, inputs)``,
    r ``(D, 4 * hidden, hidden)``, b ``(D, 8 * hidden)`` (both biases), h and c ``(D, batch, hidden)``,
    y ``(time, D, batch, hidden)``. The four gates are input, output, forget, cell.

    Attributes:
        hidden: The size of the state.
        direction: One of :data:`DIRECTIONS`.
        results: How many of y, last h and last c there are.
    """

    hidden: int
    direction: str = "forward"
    results: int = 1
    arity = (3, 7)

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {self.direction!r}; known are {DIRECTIONS}")
        if not 1 <= self.results <= 3:
            raise ValueError(f"an Lstm has 1 to 3 results, not {self.results}")

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
        d, n = self.directions, self.hidden
        features = x.dim(-1)
        state: Shape = (d, x.shape[1] if x.shape is not None and len(x.shape) == 3 else None, n)
        wanted: list[tuple[TensorType | None, Shape]] = [
            (x, (None, None, None)),
            (w, (d, 4 * n, features)),
            (r, (d, 4 * n, n)),
            (b, (d, 8 * n)),
            (optional(inputs, 5), state),
            (optional(inputs, 6), state),
        ]
        for type_, shape in wanted:
            if type_ is not None and not type_.accepts(TensorType(type_.dtype, shape)):
                raise InferenceError(f"Lstm of hidden size {n} with an operand {type_}")
        time: Dim = x.shape[0] if x.shape is not None else None
        batch: Dim = x.shape[1] if x.shape is not None else None
        last = TensorType(dtype, (d, batch, n))
        return (TensorType(dtype, (time, d, batch, n)), last, last)[: self.results]

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        size, features = outputs[0].size, required(inputs, 0).dim(-1)
        return None if size is None or features is None else size * 4 * (features + self.hidden)


__all__ = ["Lstm"]
