"""One ONNX operator that is written in torch: what its rule works with, and the table of rules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from onnx import NodeProto, helper
from torch import fx

from ....ir import ModelError, Node, Tensor, Value
from ..sizes import Sizes
from ..speller import Results, Size, Speller, Writer


class Operator(Speller):
    """Writes one ONNX operator.

    Attributes:
        attributes: Its attributes by name.
        opset: The version of ONNX's operators in its model.
        known: The sizes that values hold.
    """

    def __init__(
        self,
        node: Node,
        out: Writer,
        proto: NodeProto,
        opset: int,
        known: Sizes,
        anchor: Value | None,
    ) -> None:
        super().__init__(node, out)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        self.opset, self.known, self._anchor = opset, known, anchor
        self.used = [bool(name) for name in proto.output]
        """Which results have a name."""

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def ints(self, name: str) -> list[int] | None:
        """An attribute that is a list of ints."""
        found = self.attributes.get(name)
        return None if found is None else [int(i) for i in found]

    def data(self, index: int) -> Tensor | None:
        """The constant that an input is."""
        value = self.node.input(index)
        return None if value is None else value.data

    def is_given(self, index: int) -> bool:
        """Whether an optional input is there."""
        return self.node.input(index) is not None

    def size(self, index: int, axis: int) -> Size:
        """The size of an axis of an input."""
        return self.known.size(self.node.required(index), axis)

    def shape(self, index: int = 0) -> list[Size]:
        """The sizes of an input.

        Raises:
            ModelError: If the number of its axes is not known.
        """
        found = self.known.shape(self.node.required(index))
        if found is None:
            raise self.refuse_operator("its input has an unknown number of axes")
        return found

    def numbers(self, index: int) -> list[Size]:
        """The integers of an input as ints.

        Raises:
            ModelError: If their number is not known.
        """
        value = self.node.required(index)
        found = self.out.as_sizes(value)
        if found is not None:
            return found
        count = 1 if value.type.rank == 0 else value.type.dim(0)
        if not isinstance(count, int) or (value.type.rank or 0) > 1:
            raise self.refuse_operator(f"how many numbers its input {index} has is not known")
        flat = self.call(torch.reshape, self.out.value(value), (-1,))
        listed = self.call("tolist", flat)
        return [self.call(operator.getitem, listed, i) for i in range(count)]

    def constants(self, index: int) -> list[int]:
        """The integers of an input that must be known.

        Raises:
            ModelError: If they are computed from data.
        """
        found = self.numbers(index)
        if not all(isinstance(n, int) for n in found):
            raise self.refuse_operator(f"its input {index} is computed, not constant")
        return [n for n in found if isinstance(n, int)]

    def axes(self, index: int = 1) -> list[int] | None:
        """Constant axes, given as an attribute or, in newer opsets, as an input; ``None`` if there are none."""
        given = self.ints("axes")
        if given is None and self.is_given(index):
            given = self.constants(index)
        return given

    def device(self, index: int | None = None) -> dict[str, fx.Node]:
        """The argument ``device`` of calls that make tensors: that of an input, or of the first input of the model."""
        value = self._anchor if index is None else self.node.required(index)
        if value is None:
            return {}
        return {"device": self.call(getattr, self.out.value(value), "device")}

    def vector(self, sizes: Sequence[Size]) -> fx.Node:
        """Sizes as a tensor of int64."""
        device = self.device()
        if all(isinstance(n, int) for n in sizes):
            return self.call(torch.tensor, list(sizes), dtype=torch.int64, **device)
        parts = [self.call(torch.full, (), n, dtype=torch.int64, **device) for n in sizes]
        return self.call(torch.stack, parts)

    def refuse_operator(self, why: str) -> ModelError:
        """The error for a form that torch has no way to compute."""
        return ModelError(f"{self.node.name}: {why}")


Rule = Callable[[Operator], Results]

OPERATORS: dict[str, Rule] = {}
"""The rules by the names of operators."""


def writes(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators."""

    def register(rule: Rule) -> Rule:
        for name in names:
            OPERATORS[name] = rule
        return rule

    return register


__all__ = ["OPERATORS", "Operator", "Rule", "writes"]
