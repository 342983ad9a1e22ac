"""The result of a rule: an op with its operands, or several such steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...ir import InferenceError, Op, Tensor, TensorType, Value

Operand = Value | Tensor | None
"""An operand of an op: a value, a tensor that a rule computed, or ``None`` if it is left out."""

Lowered = tuple[Op, Sequence[Operand]]
"""An op and its operands: the result of a rule."""


@dataclass(frozen=True)
class Step:
    """A result of an earlier step, used as an operand of a later one.

    Attributes:
        number: The number of the step.
        result: The number of the result.
    """

    number: int
    result: int = 0

    def of(self, result: int) -> Step:
        """Another result of the same step."""
        return Step(self.number, result)


Path = tuple[int, ...]
"""The position of a tensor in a nested tuple: ``(1, 0)`` is the first item of the second."""


@dataclass(frozen=True)
class Steps:
    """One call that becomes several ops, or that returns several tensors.

    Attributes:
        parts: The ops in order, each with its operands.
        results: The results of a call that returns several tensors; if ``None``, the call returns those of the last step.
        names: Names of parts of a module, by the number of the step that computes what they do.
    """

    parts: tuple[tuple[Op, Sequence[Operand | Step]], ...]
    results: Mapping[Path, Step] | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    def infer(self) -> list[tuple[TensorType, ...]]:
        """The types of the results of each step.

        Raises:
            InferenceError: If operands do not fit an op, or an op cannot infer its results.
        """
        made: list[tuple[TensorType, ...]] = []
        for op, operands in self.parts:
            types = [
                made[o.number][o.result] if isinstance(o, Step) else None if o is None else o.type
                for o in operands
            ]
            inferred = op.infer(types)
            if inferred is None:
                raise InferenceError(f"the result of {op.name} is not known")
            made.append(inferred)
        return made


class Builder:
    """Collects the steps of one call."""

    def __init__(self) -> None:
        self.parts: list[tuple[Op, Sequence[Operand | Step]]] = []
        self.names: dict[int, str] = {}

    def add(self, op: Op, *operands: Operand | Step, name: str = "") -> Step:
        """Append an op; returns its first result, as an operand for later steps. ``name`` is that of a part of a module."""
        if name:
            self.names[len(self.parts)] = name
        self.parts.append((op, operands))
        return Step(len(self.parts) - 1)

    def chain(self, lowered: tuple[Op, Sequence[Operand | Step]] | Lowered) -> Step:
        """Append the op that a rule returned; returns its first result."""
        op, operands = lowered
        return self.add(op, *operands)

    def steps(self, results: Mapping[Path, Step] | None = None) -> Steps:
        """All steps, and the results of a call that returns several."""
        return Steps(tuple(self.parts), results, self.names)


def first_of_several(lowered: Lowered | None) -> Steps | None:
    """The steps of a call that returns several tensors, if an op computes the first one and the others are unused."""
    return None if lowered is None else Steps((lowered,), {(0,): Step(0)})


__all__ = ["Builder", "Lowered", "Operand", "Path", "Step", "Steps", "first_of_several"]
