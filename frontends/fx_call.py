"""One torch call, as the rule of its function sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir import Op, Tensor, Value

Operand = Value | Tensor | None
Lowered = tuple[Op, Sequence[Operand]]
"""The op and its operands: values, or tensors that a rule derived."""


@dataclass
class Call:
    """One call, with values in place of tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

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
