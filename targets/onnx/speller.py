"""Writes one IR node as ONNX nodes: what the rules of all ops work with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, defs, helper

from ...hosts.onnx.operators import types_problem
from ...ir import ArrayTensor, DType, ModelError, Node, Tensor, Value
from ..support import Spellings

Rule = Callable[["Speller", Any], None]
"""Writes the node of a speller, whose op is the second argument."""

spells: Spellings[Rule] = Spellings("ONNX")
"""The rules of all ops; the files in ``spell/`` fill it."""

NEWER = 17
"""The opset that errors propose, where the model's is too old: it has all that passes write, and runtimes know it."""

_BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Gemm", "And", "Or", "Equal"}
)


@dataclass
class Speller:
    """Writes one node.

    Attributes:
        node: The node.
        inputs: The ONNX names of its inputs; ``""`` for one that is left out.
        outputs: The ONNX names of its results.
        opset: The version of the default domain.
        new_constant: Adds an initializer with a name like the hint and gives its name.
        new_name: Gives a free value name like the hint.
        existing: Gives the name of a constant that the model already has; an empty text if it has not.
        forms: The names of other forms of constants that were written for nodes before this one.
        computed: The names of shapes that were computed for nodes before this one, by what they are made of.
    """

    node: Node
    inputs: Sequence[str]
    outputs: Sequence[str]
    opset: int
    new_constant: Callable[[Tensor, str], str]
    new_name: Callable[[str], str]
    existing: Callable[[Value], str] = lambda value: ""
    forms: dict[Value, str] = field(default_factory=dict)
    computed: dict[tuple[Hashable, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.made: list[NodeProto] = []

    def emit(
        self, kind: str, inputs: Sequence[str], output: str | None = None, **attrs: Any
    ) -> str:
        """One ONNX node with one result.

        Args:
            kind: The operator.
            inputs: The names of its inputs; empty ones at the end are dropped.
            output: The name of its result; a new one when not given.
            attrs: Its attributes.

        Returns:
            The name of the result.

        Raises:
            ModelError: If the opset lacks the operator, or it may broadcast, which operators have done since opset 7.
        """
        if self.opset < 7 and kind in _BROADCASTING:
            raise self.refuse("is written with broadcasting, which does not exist")
        output = (
            output if output is not None else self.new_name(f"{self.outputs[0]}_{kind.lower()}")
        )
        inputs = list(inputs)
        while inputs and not inputs[-1]:
            inputs.pop()
        self.many(kind, inputs, [output], **attrs)
        return output

    def many(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> None:
        """One ONNX node with several results.

        Raises:
            ModelError: If the opset lacks the operator, or lacks it for these element types.
        """
        if not defs.has(kind, self.opset, ""):
            raise self.refuse(f"needs {kind}, which does not exist")
        read = dict(zip(self.inputs, self.node.inputs, strict=False))
        made = dict(zip(self.outputs, self.node.outputs, strict=False))
        problem = types_problem(
            kind,
            self.opset,
            [_dtype(read.get(n)) for n in inputs],
            [_dtype(made.get(n)) for n in outputs],
        )
        if problem:
            raise ModelError(
                f"{self.node.name}: {self.node.op.name} is written as {kind}, and {problem}"
            )
        self._write(kind, inputs, outputs, attrs)

    def plain(self, kind: str, **attrs: Any) -> None:
        """One ONNX node that reads and gives what the IR node does."""
        self.emit(kind, self.inputs, self.outputs[0], **attrs)

    def _write(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Mapping[str, Any]
    ) -> None:
        self.made.append(helper.make_node(kind, list(inputs), list(outputs), **attrs))

    def given(self, index: int) -> str:
        """The name of an input that may be left out; ``""`` if it is."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @property
    def rank(self) -> int | None:
        """The rank of the first input."""
        return self.node.required(0).type.rank

    @property
    def dtype(self) -> DType:
        """The element type of the first input.

        Raises:
            ModelError: If it is not known.
        """
        found = self.node.required(0).type.dtype
        if found is None:
            raise ModelError(f"{self.node.name}: {self.node.op.name} of unknown element type")
        return found

    def ints(self, values: Sequence[int], hint: str) -> str:
        """An int64 vector as a constant."""
        return self.new_constant(ArrayTensor(np.array(values, np.int64)), hint)

    def once(self, key: tuple[Hashable, ...], emit: Callable[[], str]) -> str:
        """A shape that nodes before this one may have computed too.

        Args:
            key: The names of values and the numbers that it is made of.
            emit: Emits it and returns its name.
        """
        if key not in self.computed:
            self.computed[key] = emit()
        return self.computed[key]

    def scalar(self, value: float, hint: str) -> str:
        """A scalar of the node's element type as a constant."""
        return self.new_constant(ArrayTensor(np.array(value).astype(self.dtype.numpy)), hint)

    def refuse(self, why: str) -> ModelError:
        """The error for an op that this opset cannot spell."""
        return ModelError(
            f"{self.node.name}: {self.node.op.name} {why} in opset {self.opset}; "
            f"convert the model to a newer one first: --opset {max(NEWER, self.opset + 1)}"
        )


def _dtype(value: Value | None) -> DType | None:
    return None if value is None else value.type.dtype


class DrySpeller(Speller):
    """Runs a rule without making ONNX nodes, to learn whether it refuses and which operators it writes."""

    def __init__(self, node: Node, opset: int) -> None:
        names = [
            f"i{place}" if value is not None else "" for place, value in enumerate(node.inputs)
        ]
        outputs = [f"o{place}" for place in range(max(1, len(node.outputs)))]
        super().__init__(node, names, outputs, opset, lambda tensor, hint: hint, lambda hint: hint)
        self.kinds: list[str] = []

    def _write(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Mapping[str, Any]
    ) -> None:
        self.kinds.append(kind)
