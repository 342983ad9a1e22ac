"""Ops that work element by element, with NumPy broadcasting where they take two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Dim, DType, Shape, TensorType
from .base import (
    Axis,
    InferenceError,
    InputTypes,
    Op,
    Tie,
    axis_of,
    optional,
    required,
    same_dtype,
    same_shape_ties,
    ties,
)

ACTIVATIONS: dict[str, int] = {
    "relu": 0, "relu6": 0, "clip": 2, "leaky_relu": 1, "elu": 1, "celu": 1, "selu": 2,
    "sigmoid": 0, "hard_sigmoid": 2, "silu": 0, "hard_swish": 0, "tanh": 0, "gelu": 0,
    "gelu_tanh": 0, "softplus": 0, "softsign": 0, "mish": 0, "thresholded_relu": 1,
}  # fmt: skip
"""The kinds of activation, each with the number of its parameters.

``clip`` has (min, max), infinite when open; ``selu`` has (alpha, gamma); ``hard_sigmoid`` has
(alpha, beta) of ``clip(alpha * x + beta, 0, 1)``; ``hard_swish`` is ``x * clip(x / 6 + 1/2, 0, 1)``;
``gelu`` is the erf form, ``gelu_tanh`` the tanh approximation.
"""


@dataclass(frozen=True)
class Activation(Op):
    """A nonlinearity of one input, element by element."""

    kind: str
    params: tuple[float, ...] = ()
    kinds = tuple(ACTIVATIONS)

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.kind!r}; known are {sorted(ACTIVATIONS)}")
        if len(self.params) != ACTIVATIONS[self.kind]:
            raise ValueError(
                f"{self.kind} takes {ACTIVATIONS[self.kind]} parameters, not {self.params}"
            )

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (required(inputs, 0),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


@dataclass(frozen=True)
class PRelu(Op):
    """Leaky ReLU with a learned slope: ``(x, slope)``, the slope a vector along ``axis`` or of size 1."""

    axis: int = 1
    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (required(inputs, 0),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return _vector_ties(inputs, [1], self.axis)


def _vector_ties(inputs: InputTypes, operands: Sequence[int], axis: int) -> tuple[Tie, ...] | None:
    """The axes of an activation whose slopes and lines, the numbered operands, lie along ``axis``."""
    x = required(inputs, 0)
    sizes = {place: required(inputs, place).dim(0) for place in operands}
    if x.rank is None or None in sizes.values():
        return None
    # One slope for all needs no axis, and torch has such slopes on values without axis 1.
    tied = [(place, 0) for place, size in sizes.items() if size != 1]
    own = axis_of(axis, x.rank) if tied else -1
    return ties(*([(0, a), *(tied if a == own else []), (-1, a)] for a in range(x.rank)))


GATE_MODES = ("soft", "top-k", "hard-concrete")
"""The modes in which a gate learns; see :mod:`graphshrink.nn`. A frozen gate computes the same in all of them."""


def check_gate(mode: str, value: float) -> None:
    """Check the mode and the initial value of a gate.

    Raises:
        ValueError: If the mode is not known, or no gate of that mode starts at ``value``.
    """
    if mode not in GATE_MODES:
        raise ValueError(f"a gate's mode is one of {', '.join(GATE_MODES)}, not {mode!r}")
    if not 0 <= value <= 1 or (mode == "top-k" and value not in (0, 1)):
        ends = "0 or 1" if mode == "top-k" else "between 0 and 1"
        raise ValueError(f"the initial value of a {mode} gate is {ends}, not {value!r}")


@dataclass(frozen=True)
class Gate(Op):
    """An activation blended with a straight line: ``(x, g, slope?, scale?, shift?)`` gives ``g * act(x) + (1 - g) * (scale * x + shift)``.

    ``g`` is one number (a vector of size 1) between 0, the line, and 1, the activation. Without scale and shift the
    line is the identity; they are given both or not at all, as vectors along ``axis``. Gates that
    read the same value are tied: they are learned and removed together.

    Attributes:
        kind: A kind of :data:`ACTIVATIONS`, or ``prelu``, whose slope is the third input.
        params: The parameters of that kind.
        axis: The axis that a slope and a line lie along.
        mode: The mode in which it learns, one of :data:`GATE_MODES`.
    """

    kind: str
    params: tuple[float, ...] = ()
    axis: int = 1
    mode: str = "soft"
    arity = (2, 5)

    def __post_init__(self) -> None:
        if self.kind != "prelu":
            Activation(self.kind, self.params)
        elif self.params:
            raise ValueError(f"prelu takes no parameters, not {self.params}")
        if self.mode not in GATE_MODES:
            raise ValueError(f"unknown mode {self.mode!r}; known are {', '.join(GATE_MODES)}")

    @property
    def activation(self) -> Activation | PRelu:
        """The op that a gate of 1 computes."""
        return PRelu(self.axis) if self.kind == "prelu" else Activation(self.kind, self.params)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, g, slope = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        if (slope is not None) != (self.kind == "prelu"):
            raise InferenceError(
                f"a gate of {self.kind} {'needs a' if slope is None else 'has no'} slope"
            )
        if g.shape is not None and (len(g.shape) != 1 or g.dim(0) not in (1, None)):
            raise InferenceError(f"a gate is one number, not {g}")
        line = [optional(inputs, 3), optional(inputs, 4)]
        if (line[0] is None) != (line[1] is None):
            raise InferenceError("the line of a gate has a scale and a shift, not one of them")
        for vector in line:
            if vector is not None and vector.rank not in (1, None):
                raise InferenceError(f"the line of a gate is made of vectors, not of {vector}")
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        given = [place for place in (2, 3, 4) if optional(inputs, place) is not None]
        if not given:
            return same_shape_ties(required(inputs, 0).rank, (0, -1))
        return _vector_ties(inputs, given, self.axis)


def broadcast(a: Shape | None, b: Shape | None) -> Shape | None:
    """The broadcast of two shapes by NumPy's rule; a size is ``None`` where it cannot be inferred.

    Raises:
        InferenceError: If two known sizes do not broadcast.
    """
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(_broadcast_dim(p, q) for p, q in zip(a, b, strict=True))


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a == 1:
        return b
    if b == 1 or (a == b and a is not None):
        return a
    if isinstance(a, int) and isinstance(b, int):
        raise InferenceError(f"sizes {a} and {b} do not broadcast")
    # A known size other than 1 decides: the unknown one must be that size or 1.
    return a if isinstance(a, int) else b if isinstance(b, int) else None


@dataclass(frozen=True)
class _Broadcast(Op):
    """An op that broadcasts its operands, and computes each element from one element of each of them."""

    broadcasts = True

    def shape(self, inputs: InputTypes) -> Shape | None:
        """The shape that the operands are broadcast to."""
        shape: Shape | None = ()
        for index in range(len(inputs)):
            shape = broadcast(shape, required(inputs, index).shape)
        return shape

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (TensorType(same_dtype(self, *inputs), self.shape(inputs)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        shapes = [required(inputs, index).shape for index in range(len(inputs))]
        known = [s for s in shapes if s is not None]
        return broadcast_ties(known) if len(known) == len(shapes) else None


@dataclass(frozen=True)
class _Binary(_Broadcast):
    arity = (2, 2)


def broadcast_ties(shapes: Sequence[Shape]) -> tuple[Tie, ...]:
    """The axes of operands that are broadcast together, tied to those of the result (-1)."""
    rank = max(map(len, shapes))
    found: list[Tie] = []
    for axis in range(rank):
        tie = {Axis(-1, axis)}
        known = True
        sizes = [s[axis - rank] for s in shapes if rank - axis <= len(s)]
        # Two unknown sizes may differ, and then one of them is 1.
        whole = len(sizes) == len(shapes) > 1
        same = whole and sizes[0] is not None and len(set(sizes)) == 1
        for operand, shape in enumerate(shapes):
            own = axis - (rank - len(shape))
            if own < 0:
                continue
            size = shape[own]
            if not isinstance(size, int) and not same:
                known = False
            elif size != 1 or same:
                tie.add(Axis(operand, own))
        if known:
            found.append(frozenset(tie))
    return tuple(found)


@dataclass(frozen=True)
class Add(_Binary):
    """``a + b``."""


@dataclass(frozen=True)
class Sub(_Binary):
    """``a - b``."""


@dataclass(frozen=True)
class Mul(_Binary):
    """``a * b``."""


@dataclass(frozen=True)
class Div(_Binary):
    """``a / b``; integers round towards zero."""


@dataclass(frozen=True)
class Identity(Op):
    """The input itself."""

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (required(inputs, 0),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


@dataclass(frozen=True)
class Cast(Op):
    """Conversion to another element type (``to`` is its short name)."""

    to: str

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (TensorType(DType(self.to), required(inputs, 0).shape),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


@dataclass(frozen=True)
class _Softmax(Op):
    axis: int = -1

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.rank is not None:
            axis_of(self.axis, x.rank)
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        # The normaliser is a sum, which does not depend on the order along its axis.
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


@dataclass(frozen=True)
class Softmax(_Softmax):
    """Softmax along one axis."""


@dataclass(frozen=True)
class LogSoftmax(_Softmax):
    """The logarithm of softmax along one axis."""


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer normalisation over the axes from ``axis`` to the last: ``(x, scale?, shift?)``."""

    axis: int = -1
    epsilon: float = 1e-5
    arity = (1, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.rank is not None:
            axis_of(self.axis, x.rank)
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        first = axis_of(self.axis, rank)
        affine = [i for i in (1, 2) if optional(inputs, i) is not None]
        for i in affine:
            shape = required(inputs, i).shape
            # A scale that is broadcast does not move with the axes that it scales.
            if shape is None or len(shape) != rank - first or None in shape or 1 in shape:
                return None
        return ties(
            *(
                [(0, a), *([(i, a - first) for i in affine] if a >= first else []), (-1, a)]
                for a in range(rank)
            )
        )


@dataclass(frozen=True)
class MatMul(Op):
    """Matrix product of two activations by NumPy's rule (a constant right operand is a ``Linear``)."""

    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        a, b = required(inputs, 0), required(inputs, 1)
        dtype = same_dtype(self, a, b)
        if a.shape is None or b.shape is None:
            return (TensorType(dtype),)
        if len(a.shape) < 2 or len(b.shape) < 2:
            ends = (a.dim(-1), b.dim(-2) if len(b.shape) > 1 else b.dim(-1))
            if not a.shape or not b.shape or (None not in ends and ends[0] != ends[1]):
                raise InferenceError(f"MatMul of {a} and {b}")
            left = a.shape[:-1] if len(a.shape) > 1 else ()
            right = b.shape[-1:] if len(b.shape) > 1 else ()
            batch = a.shape[:-2] if len(a.shape) > 1 else b.shape[:-2]
            tail = left[-1:] if len(a.shape) > 1 else ()
            return (TensorType(dtype, (*batch, *tail, *right)),)
        inner = (a.dim(-1), b.dim(-2))
        if None not in inner and inner[0] != inner[1]:
            raise InferenceError(f"MatMul of {a} and {b}")
        lead = broadcast(a.shape[:-2], b.shape[:-2])
        assert lead is not None
        return (TensorType(dtype, (*lead, a.shape[-2], b.shape[-1])),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        a, b = required(inputs, 0), required(inputs, 1)
        if a.rank is None or b.rank is None or min(a.rank, b.rank) < 2:
            return None
        assert a.shape is not None
        assert b.shape is not None
        out = max(a.rank, b.rank)
        return broadcast_ties((a.shape[:-2], b.shape[:-2])) + ties(
            [(0, a.rank - 2), (-1, out - 2)],
            [(0, a.rank - 1), (1, b.rank - 2)],
            [(1, b.rank - 1), (-1, out - 1)],
        )

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        size, inner = outputs[0].size, required(inputs, 0).dim(-1)
        return None if size is None or inner is None else size * inner


__all__ = [
    "ACTIVATIONS",
    "GATE_MODES",
    "Activation",
    "Add",
    "Cast",
    "Div",
    "Gate",
    "Identity",
    "LayerNorm",
    "LogSoftmax",
    "MatMul",
    "Mul",
    "PRelu",
    "Softmax",
    "Sub",
    "check_gate",
]
