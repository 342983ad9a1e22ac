"""One torch call, as the rule of its function sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir import Op, Opaque, TensorType, Value
from ...ir.analysis.sizes import Place, SizeRoots
from ..lowering import Operand


@dataclass(frozen=True)
class Free:
    """A size that may be another one the next time: of the axis of batches, or a symbol.

    Attributes:
        value: What it is of the example, or the symbol.
        asked: The host node that was asked, and its axis, where the size is exactly that of an axis.
        place: The earliest axis that has this size, once it is read.
    """

    value: int | float | str
    asked: tuple[str, int] | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Step:
    """The result of an earlier one of several steps."""

    number: int


@dataclass(frozen=True)
class Steps:
    """One call that is several ops, each with its operands, in order; the last one makes the result."""

    parts: tuple[tuple[Op, Sequence[Operand | Step]], ...]


@dataclass
class Call:
    """One call, with values in place of tensors.

    Attributes:
        args: Arguments by place.
        kwargs: Arguments by name.
        roots: What is known of the sizes of values.
        example: Whether sizes of values are those of example inputs, whose first axis may be longer the next time.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    roots: SizeRoots = field(default_factory=SizeRoots, repr=False, compare=False)
    example: bool = False

    def certain(self, x: Value) -> TensorType:
        """The type of a value without a first size that is that of the example only."""
        if not self.example or not x.type.shape:
            return x.type
        source, axis = self.roots.root(x, 0)
        opaque = source.producer is None or isinstance(source.producer.op, Opaque)
        free = source.data is None and opaque and axis == 0
        return x.type.with_shape((None, *x.type.shape[1:])) if free else x.type

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)

    def value(self, place: int, name: str = "input") -> Value:
        """An argument that must be a tensor.

        Raises:
            TypeError: If it is not; the call then stays opaque.
        """
        found = self.get(place, name)
        if not isinstance(found, Value):
            raise TypeError(f"argument {name} is no tensor")
        return found

    def ints(self, place: int, name: str, default: Any, n: int) -> tuple[int, ...]:
        """``n`` integers, one repeated where only one is given.

        Raises:
            TypeError: If they are not known integers.
        """
        return ints(self.get(place, name, default), n)


def ints(found: Any, n: int) -> tuple[int, ...]:
    """``n`` integers, one repeated where only one is given.

    Raises:
        TypeError: If they are not known integers.
    """
    if isinstance(found, int) and not isinstance(found, bool):
        return (found,) * n
    if not isinstance(found, (list, tuple)) or not all(type(d) is int for d in found):
        raise TypeError(f"{found!r} is not {n} integers")
    return tuple(found) * n if len(found) == 1 else tuple(found)
