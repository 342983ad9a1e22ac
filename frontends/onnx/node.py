"""An ONNX node with its inputs as IR values: the argument of a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import Tensor, TensorType, Value
from ...ir.ops.base import axis_of
from .sizes import KnownSizes, Size

_HARMLESS = frozenset(
    {"consumed_inputs", "momentum", "ratio", "seed", "num_outputs", "saturate", "round_mode"}
)
"""Attributes that do not change what the ops of the IR compute."""


@dataclass
class OnnxNode:
    """One host node, with helpers for its rule.

    Attributes:
        kind: The operator.
        inputs: The inputs; ``None`` for an input that is left out.
        outputs: The number of results; optional ones that nothing reads may be left out.
        attributes: The host's attributes by name.
        opset: The version of the operator set.
        known: What is known of the sizes that the model computes.
    """

    kind: str
    inputs: list[Value | None]
    outputs: int
    attributes: dict[str, Any]
    opset: int
    known: KnownSizes
    _read: set[str] = field(default_factory=set)

    @property
    def unread(self) -> list[str]:
        """Attributes that the rule did not read, although they could change the result."""
        return [a for a in self.attributes if a not in self._read and a not in _HARMLESS]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, as onnx returns it."""
        self._read.add(name)
        return self.attributes.get(name, default)

    def input(self, index: int) -> Value | None:
        """An input; ``None`` if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> Value:
        """A required input.

        Raises:
            ValueError: If it is left out; the node then stays opaque.
        """
        value = self.input(index)
        if value is None:
            raise ValueError(f"{self.kind} without input {index}")
        return value

    def data(self, index: int) -> Tensor | None:
        """The tensor of a constant input; ``None`` for other inputs."""
        value = self.input(index)
        return value.data if value is not None else None

    def type(self, index: int = 0) -> TensorType:
        """An input's type."""
        value = self.input(index)
        return value.type if value is not None else TensorType()

    def ints(self, name: str, index: int | None = None) -> tuple[int, ...] | None:
        """Integers from an attribute, or from a constant input; ``None`` if absent or unknown."""
        found = self.attribute(name)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)
        data = self.data(index) if index is not None else None
        if data is None or data.size > 64 or not data.dtype.is_int:
            return None
        return tuple(int(v) for v in data.numpy().reshape(-1))

    def sizes(self, index: int) -> tuple[Size, ...] | None:
        """The known numbers of an input that holds sizes; ``None`` if nothing is known."""
        return self.known.of(self.input(index))

    def is_own(self, axis: int, size: Size) -> bool:
        """Whether a computed size is the size of an axis of the first input."""
        x = self.input(0)
        if x is None or not isinstance(size, tuple) or axis >= (x.type.rank or 0):
            return False
        return self.known.roots.root(x, axis) == size

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attribute(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def number(self, name: str, default: float) -> float:
        """A float attribute, as the shortest decimal that rounds to the same float32."""
        found = self.attribute(name)
        return default if found is None else shortest(found)

    def scalar(self, index: int) -> float | None:
        """The number in a constant input of one element; ``None`` for other inputs."""
        data = self.data(index)
        if data is None or data.size != 1:
            return None
        number = data.numpy().reshape(-1)[0]
        return shortest(number) if data.dtype.value == "f32" else float(number)

    def flag(self, name: str, default: int = 0) -> bool:
        """An integer attribute that is a boolean."""
        return bool(self.attribute(name, default))

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """Axes as nonnegative numbers.

        Raises:
            ValueError: If an axis does not exist or occurs twice.
        """
        found = tuple(axis_of(a, rank) for a in axes)
        if len(set(found)) != len(found):
            raise ValueError(f"axes {tuple(axes)} name one axis twice")
        return found


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
