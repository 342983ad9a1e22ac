"""One call of torch that is written in ONNX: what its rule works with, and the table of rules.

Beside tensors, a module computes with numbers of Python: sizes, and elements of tensors (``x.size(0)``, ``n.item()``). Known ones are
numbers here too; others are tensors without axes in the file (:class:`Number`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import defs

from ....hosts.onnx.operators import types_problem
from ....hosts.onnx.origins import OnnxForm
from ....hosts.onnx.tensors import code_of
from ....hosts.torch.calls import by_name
from ....hosts.torch.dtypes import DTYPES
from ....ir import UNKNOWN, ArrayTensor, DType, Graph, Op, Opaque, TensorType, Value
from ....ir.errors import listed


class NotWritten(Exception):
    """A form of a call that ONNX cannot express, or that has no rule; the text says why."""


@dataclass(frozen=True)
class Number:
    """A number of Python that the file computes.

    Attributes:
        value: A tensor without axes, of int64, float64 or booleans.
    """

    value: Value

    @property
    def dtype(self) -> DType:
        """Its element type."""
        assert self.value.type.dtype is not None
        return self.value.type.dtype


Size = int | Number
"""A whole number, known or computed."""


@dataclass
class Writer:
    """Appends ONNX nodes to a graph.

    Attributes:
        graph: The graph.
        opset: The version of ONNX's operators that the file will have.
        name: The name of the call that is being written.
    """

    graph: Graph
    opset: int
    name: str = ""
    _sizes: dict[tuple[Value, int], Number] = field(default_factory=dict)
    _shapes: dict[Value, Value] = field(default_factory=dict)
    _keeping: dict[str, None] = field(default_factory=dict)

    def keeps_axis(self, name: str) -> None:
        """Record a call that drops an axis of size 1, whose size is open in the file: the file keeps the axis."""
        self._keeping[name] = None

    def notes(self) -> list[str]:
        """Where the file differs from the module, for the user."""
        if not self._keeping:
            return []
        names = listed(list(self._keeping))
        return [
            f"in the file, a batch of 1 keeps its axis in {names}, where the module drops it: name the axes, as in squeeze(1)"
        ]

    def node(
        self, kind: str, inputs: Sequence[Value | None], types: Sequence[TensorType], **attrs: Any
    ) -> tuple[Value, ...]:
        """One ONNX node.

        Args:
            kind: The operator.
            inputs: What it reads; ``None`` for an input that is left out.
            types: The types of its results, as far as known.
            attrs: Its attributes.

        Raises:
            NotWritten: If the opset lacks the operator, this form of it, or it for these element types.
        """
        schema = defs.get_schema(kind, self.opset, "") if defs.has(kind, self.opset, "") else None
        attrs = {name: found for name, found in attrs.items() if found is not None}
        if (
            schema is None
            or not attrs.keys() <= schema.attributes.keys()
            or len(inputs) > schema.max_input
        ):
            raise NotWritten(f"it needs a form of {kind} that opset {self.opset} lacks")
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        dtypes = [None if v is None else v.type.dtype for v in given]
        problem = types_problem(kind, self.opset, dtypes, [t.dtype for t in types])
        if problem:
            raise NotWritten(problem)
        made = self.graph.append(
            Opaque(f"onnx:{kind}"),
            given,
            name=f"{self.name}/{kind}",
            types=types,
            output_names=[f"{self.name}_{kind.lower()}"] * len(types),
        )
        made.origin = OnnxForm(kind, tuple(given), tuple(attrs.items()))
        return made.outputs

    def op(
        self, kind: str, *inputs: Value | None, type: TensorType | None = None, **attrs: Any
    ) -> Value:
        """One ONNX node with one result; of the element type of the first input, if no type is given."""
        first = next((v for v in inputs if v is not None), None)
        own = TensorType(first.type.dtype) if first is not None else UNKNOWN
        return self.node(kind, inputs, [type or own], **attrs)[0]

    def canonical(self, op: Op, *inputs: Value | None) -> tuple[Value, ...]:
        """One node of an op of the IR."""
        return self.graph.append(op, inputs, name=f"{self.name}/{op.name}").outputs

    def constant(self, array: Any, dtype: DType | None = None) -> Value:
        """A constant."""
        found = np.asarray(array)
        found = found if dtype is None else found.astype(dtype.numpy)
        return self.graph.add_constant(ArrayTensor(found), f"{self.name}_c")

    def ints(self, *numbers: int) -> Value:
        """A vector of known whole numbers."""
        return self.constant(np.array(numbers, np.int64))

    def cast(self, x: Value, dtype: DType) -> Value:
        """A tensor in another element type; itself where it has that type."""
        if x.type.dtype is dtype:
            return x
        return self.op("Cast", x, type=TensorType(dtype, x.type.shape), to=code_of(dtype))

    # Numbers.

    def scalar(self, number: Any, dtype: DType) -> Value:
        """A number as a tensor without axes.

        Raises:
            NotWritten: If the element type does not have this number.
        """
        if isinstance(number, Number):
            return self.cast(number.value, dtype)
        if not isinstance(number, (bool, int, float)):
            raise NotWritten(f"{number!r} is no number")
        with np.errstate(all="ignore"):
            made = np.array(number).astype(dtype.numpy)
        if not dtype.is_float and made != number:
            raise NotWritten(f"{dtype.value} has no {number!r}")
        return self.constant(made)

    def vector(self, sizes: Sequence[Size]) -> Value:
        """Whole numbers as a vector of int64."""
        if all(type(n) is int for n in sizes):
            return self.ints(*(n for n in sizes if isinstance(n, int)))
        parts = []
        for n in sizes:
            if type(n) is int:
                parts.append(self.ints(n))
            elif isinstance(n, Number) and n.dtype is DType.I64:
                parts.append(
                    self.op("Unsqueeze", n.value, self.ints(0), type=TensorType(DType.I64, (1,)))
                )
            else:
                raise NotWritten(f"{n!r} is no whole number")
        return self.op("Concat", *parts, type=TensorType(DType.I64, (len(parts),)), axis=0)

    def shape(self, x: Value) -> Value:
        """The sizes of a tensor as a vector."""
        if x not in self._shapes:
            kind = TensorType(DType.I64, (x.type.rank,))
            self._shapes[x] = self.op("Shape", x, type=kind)
        return self._shapes[x]

    def size(self, x: Value, axis: int) -> Size:
        """The size of an axis, which is counted from the front where the number of axes is known."""
        known = x.type.dim(axis) if x.type.rank is not None else None
        if isinstance(known, int):
            return known
        if (x, axis) not in self._sizes:
            made = self.op(
                "Gather", self.shape(x), self.constant(np.int64(axis)), type=_INT, axis=0
            )
            self._sizes[x, axis] = Number(made)
        return self._sizes[x, axis]

    def sizes(self, x: Value) -> list[Size]:
        """The sizes of all axes.

        Raises:
            NotWritten: If the number of axes is not known.
        """
        return [self.size(x, axis) for axis in range(self.rank(x))]

    def rank(self, x: Value) -> int:
        """The number of axes.

        Raises:
            NotWritten: If it is not known.
        """
        if x.type.rank is None:
            raise NotWritten("the number of axes of its input is not known")
        return x.type.rank

    def item(self, x: Value) -> Number:
        """The one number of a tensor."""
        dtype = x.type.dtype
        if dtype is None:
            raise NotWritten("the element type of its input is not known")
        wide = DType.F64 if dtype.is_float else DType.BOOL if dtype is DType.BOOL else DType.I64
        if x.type.rank != 0:
            x = self.op("Reshape", x, self.ints(), type=TensorType(dtype, ()))
        return Number(self.cast(x, wide))

    def arithmetic(self, kind: str, a: Any, b: Any) -> Any:
        """A function of two numbers of Python.

        Args:
            kind: ``Add``, ``Sub``, ``Mul``, ``Max`` or ``Min``.
            a: The first.
            b: The second.
        """
        if not isinstance(a, Number) and not isinstance(b, Number):
            return _KNOWN[kind](a, b)
        dtype = _wider(a, b)
        made = self.op(
            kind, self.scalar(a, dtype), self.scalar(b, dtype), type=TensorType(dtype, ())
        )
        return Number(made)

    def floor_divide(self, a: Any, b: Any) -> Any:
        """The quotient of whole numbers, rounded down as Python does; ONNX rounds towards zero."""
        if not isinstance(a, Number) and not isinstance(b, Number):
            return a // b
        rest = self.modulo(a, b)
        whole = self.arithmetic("Sub", a, rest)
        return Number(
            self.op("Div", self.scalar(whole, DType.I64), self.scalar(b, DType.I64), type=_INT)
        )

    def modulo(self, a: Any, b: Any) -> Any:
        """The remainder of whole numbers, with the sign of the divisor."""
        if not isinstance(a, Number) and not isinstance(b, Number):
            return a % b
        if _wider(a, b) is not DType.I64:
            raise NotWritten("it divides numbers that are not whole")
        return Number(
            self.op("Mod", self.scalar(a, DType.I64), self.scalar(b, DType.I64), type=_INT)
        )


_INT = TensorType(DType.I64, ())

_KNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Max": max,
    "Min": min,
}


def _wider(a: Any, b: Any) -> DType:
    """The element type in which Python computes with two numbers."""
    floats = any(
        isinstance(n, float) or (isinstance(n, Number) and n.dtype is DType.F64) for n in (a, b)
    )
    return DType.F64 if floats else DType.I64


@dataclass
class Call:
    """One call.

    Attributes:
        out: Appends nodes.
        name: The plain name of what is called.
        args: Arguments by place: values in place of tensors, numbers, and lists of these.
        kwargs: Arguments by name.
        type: The type of the result, as far as known.
        module: The module that is called, if one is.
    """

    out: Writer
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    type: TensorType
    module: Any = None

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        if place < len(self.args):
            return self.args[place]
        return by_name(self.kwargs, name, default)

    def tensor(self, place: int, name: str = "input") -> Value:
        """An argument that must be a tensor.

        Raises:
            NotWritten: If it is none.
        """
        found = self.get(place, name)
        if not isinstance(found, Value):
            raise NotWritten(f"its argument {name} is no tensor")
        return found

    def flag(self, place: int, name: str, default: bool = False) -> bool:
        """An argument that is true or false."""
        return bool(self.get(place, name, default))

    def known(self, place: int, name: str, default: Any = None) -> int:
        """An argument that must be a known whole number.

        Raises:
            NotWritten: If it is computed.
        """
        found = self.get(place, name, default)
        if type(found) is not int:
            raise NotWritten(f"its argument {name} is no known whole number")
        return found

    def size(self, place: int, name: str) -> Size:
        """An argument that must be a whole number, known or computed.

        Raises:
            NotWritten: If it is none.
        """
        return whole(self.out, self.get(place, name), name)

    def sizes(self, place: int, name: str) -> list[Size]:
        """Whole numbers that may be given as one list or one by one.

        Raises:
            NotWritten: If they are none.
        """
        found = self.get(place, name)
        if not isinstance(found, (list, tuple)):
            found = self.args[place:] if len(self.args) > place else (found,)
        return [whole(self.out, n, name) for n in found]

    def axis(self, x: Value, place: int, name: str = "dim", default: Any = None) -> int:
        """An argument that is an axis, counted from the front."""
        rank = self.out.rank(x)
        return self.known(place, name, default) % max(rank, 1)

    @property
    def dtype(self) -> DType:
        """The element type of the result.

        Raises:
            NotWritten: If it is not known.
        """
        if self.type.dtype is None:
            raise NotWritten("the element type of its result is not known")
        return self.type.dtype

    def op(self, kind: str, *inputs: Value | None, **attrs: Any) -> Value:
        """One ONNX node that makes the result."""
        return self.out.op(kind, *inputs, type=self.type, **attrs)

    def only(self, *names: str) -> None:
        """Refuse arguments by name that a rule does not look at.

        Raises:
            NotWritten: If there are any.
        """
        for name, found in self.kwargs.items():
            if name not in names and name not in _IDLE and found is not None:
                raise NotWritten(f"its argument {name}={found!r} has no rule")


_IDLE = frozenset(
    {"device", "layout", "pin_memory", "requires_grad", "memory_format", "non_blocking", "copy"}
)
"""Arguments that change no numbers."""


def whole(out: Writer, found: Any, name: str) -> Size:
    """A whole number; a tensor of one is read, as torch does.

    Raises:
        NotWritten: If it is none.
    """
    if isinstance(found, Value) and found.type.dtype is not None and found.type.dtype.is_int:
        return out.item(found)
    if type(found) is int or (isinstance(found, Number) and found.dtype is DType.I64):
        return found
    raise NotWritten(f"its argument {name} is no whole number")


def dtype_of(found: Any) -> DType:
    """The element type that a type of torch is.

    Raises:
        NotWritten: If ONNX has none.
    """
    dtype = DTYPES.get(found) if isinstance(found, torch.dtype) else None
    if dtype is None:
        raise NotWritten(f"ONNX has no element type {found}")
    return dtype


Rule = Callable[[Call], Any]
"""Returns a value, a number, or a list or tuple of them."""

CALLS: dict[str, Rule] = {}
"""The rules by plain name of the call, or by the class of a module."""


def writes(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of calls."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if name in CALLS:
                raise ValueError(f"call {name} has two rules")
            CALLS[name] = rule
        return rule

    return register


__all__ = [
    "CALLS",
    "Call",
    "NotWritten",
    "Number",
    "Rule",
    "Size",
    "Writer",
    "dtype_of",
    "whole",
    "writes",
]
