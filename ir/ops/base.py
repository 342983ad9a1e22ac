"""The base class of ops: immutable payloads that infer the types of their results and tell which axes are coupled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..types import DType, TensorType

InputTypes = Sequence[TensorType | None]
"""The types of a node's inputs; ``None`` for an optional input that is left out."""


class InferenceError(ValueError):
    """The inputs of a node do not fit its op."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one operand of a node.

    Attributes:
        operand: 0, 1, ... for the inputs; -1, -2, ... for the outputs (-1 is the first).
        axis: The axis, counted from 0.
    """

    operand: int
    axis: int


Tie = frozenset[Axis]
"""Axes that move together: permuting all of them alike leaves what the op computes unchanged."""


@dataclass(frozen=True)
class Op:
    """The payload of a node: the function that it computes, without its operands.

    Subclasses are frozen dataclasses of ints, floats, bools, strings and tuples of these, so that ops
    compare by value, hash, and print. The class name is the op's name in the text form.
    """

    names: ClassVar[dict[str, type[Op]]] = {}
    arity: ClassVar[tuple[int, int | None]] = (1, 1)
    """The smallest and largest number of inputs; ``None`` for any number."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """The values of the field ``kind``, where each is a function of its own; each has a row in the table of ops."""

    broadcasts: ClassVar[bool] = False
    """Whether it broadcasts its operands and computes each element from one element of each of them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            # dataclass(slots=True) would make a second class of the same name; ours have none.
            if cls.__name__ in Op.names:
                raise TypeError(f"an op named {cls.__name__} is already defined")
            Op.names[cls.__name__] = cls

    @property
    def name(self) -> str:
        """The op's name in the text form."""
        return type(self).__name__

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...] | None:
        """The types of the results, or ``None`` when the op cannot infer them (the types that were given are kept).

        Raises:
            InferenceError: If the inputs do not fit.
        """
        raise NotImplementedError

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        """The axes that may be permuted together, or ``None`` when the op is a barrier.

        An axis that is in no tie must stay in order.
        """
        return None

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        """Multiply-accumulate operations; 0 where there are none, ``None`` when sizes are unknown."""
        return 0

    def attributes(self) -> dict[str, Any]:
        """The fields by name, in order of definition."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front.

    Raises:
        InferenceError: If there is no such axis.
    """
    if not -rank <= axis < rank:
        raise InferenceError(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def required(inputs: InputTypes, index: int) -> TensorType:
    """The type of an input that the op cannot do without."""
    if index >= len(inputs) or inputs[index] is None:
        raise InferenceError(f"input {index} is missing")
    found = inputs[index]
    assert found is not None
    return found


def optional(inputs: InputTypes, index: int) -> TensorType | None:
    """The type of an input that may be left out."""
    return inputs[index] if index < len(inputs) else None


def ties(*groups: Sequence[tuple[int, int]]) -> tuple[Tie, ...]:
    """Ties from lists of (operand, axis)."""
    return tuple(frozenset(Axis(o, a) for o, a in group) for group in groups if group)


def same_shape_ties(rank: int | None, operands: Sequence[int]) -> tuple[Tie, ...] | None:
    """Every axis tied across operands of equal rank; a barrier when the rank is unknown."""
    if rank is None:
        return None
    return ties(*([(o, axis) for o in operands] for axis in range(rank)))


def same_dtype(op: Op, *types: TensorType | None) -> DType | None:
    """The common element type of operands, ``None`` when unknown.

    Raises:
        InferenceError: If two of them differ.
    """
    found: DType | None = None
    for type_ in types:
        if type_ is None or type_.dtype is None:
            continue
        if found is not None and type_.dtype is not found:
            raise InferenceError(f"{op.name} mixes {found.value} and {type_.dtype.value}")
        found = type_.dtype
    return found


__all__ = ["Axis", "InferenceError", "Op", "Tie"]
