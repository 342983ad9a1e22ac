"""Writes one IR node as torch: what the rules of all ops work with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx, nn

from ...hosts.torch.dtypes import DTYPES
from ...hosts.torch.modules.gates import Switch
from ...ir import DType, ModelError, Node, Tensor, Value
from ..support import Spellings

Size = int | fx.Node
"""A size: a number, or a call that computes it as an int."""

Results = fx.Node | list[fx.Node]
"""The result of a node; where it has several, a call that gives all of them, or a list."""

Rule = Callable[["Speller", Any], Results]
"""Writes the node of a speller, whose op is the second argument."""

spells: Spellings[Rule] = Spellings("torch")
"""The rules of all ops; the files in ``spell/`` fill it."""

TORCH_DTYPES = {ours: theirs for theirs, ours in DTYPES.items() if not theirs.is_complex}
"""The element types that values written here can have."""


class Writer(Protocol):
    """Makes calls and modules: the emitter, or one that makes nothing and only shows what a rule refuses."""

    def value(self, value: Value) -> fx.Node:
        """The FX node that holds a value."""

    def as_sizes(self, value: Value) -> list[Size] | None:
        """The numbers of a vector of sizes that are written as ints; ``None`` where it is written as a tensor."""

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of a method by name."""

    def module(self, name: str, made: nn.Module, *args: Any) -> fx.Node:
        """A call of a new module under a dotted name like ``name``."""

    def fill(self, made: nn.Module, name: str, data: Tensor) -> None:
        """Give a new module its parameter or buffer of this name."""

    def tensor(self, data: Tensor) -> torch.Tensor:
        """The numbers of a constant, on the device of the host's parameters."""

    def constant(self, value: Value) -> torch.Tensor:
        """The tensor of a constant that is no weight of a layer: a parameter if it learns."""

    def buffer(self, name: str, made: torch.Tensor) -> fx.Node:
        """Numbers that a rule computes, as a buffer under a dotted name like ``name``."""

    def bare(self, value: Value | None) -> bool:
        """Whether a weight is the ``in_proj_weight`` of a module, say, and no layer's own ``weight``."""

    def switch(self, number: Value, mode: str) -> Switch:
        """The switch of the gates that read a constant number."""

    @property
    def training(self) -> bool:
        """Whether the host module is in training mode."""


class Speller:
    """Writes one node.

    Attributes:
        node: The node.
        out: Makes calls and modules.
    """

    def __init__(self, node: Node, out: Writer) -> None:
        self.node, self.out = node, out

    # What the node reads.

    def value(self, index: int = 0) -> fx.Node:
        """The input at a place, which must be there."""
        return self.out.value(self.node.required(index))

    def optional(self, index: int) -> fx.Node | None:
        """The input at a place, or ``None`` if it is left out."""
        value = self.node.input(index)
        return None if value is None else self.out.value(value)

    def values(self) -> list[fx.Node]:
        """All inputs that are there."""
        return [self.out.value(value) for value in self.node.inputs if value is not None]

    def sizes(self, index: int) -> list[Size] | None:
        """The numbers of an input that holds sizes, as ints; ``None`` where it is a tensor."""
        return self.out.as_sizes(self.node.required(index))

    @property
    def rank(self) -> int | None:
        """The rank of the first input."""
        return self.node.required(0).type.rank

    @property
    def dtype(self) -> DType | None:
        """The element type of the first input."""
        return self.node.required(0).type.dtype

    def axis(self, axis: int) -> int:
        """An axis of the first input, counted from the front.

        Raises:
            ModelError: If it is counted from the last axis and the rank is not known.
        """
        if axis >= 0:
            return axis
        if self.rank is None:
            raise self.refuse("counted from the last axis needs the rank and")
        return axis % self.rank

    def along(self, index: int, axis: int) -> fx.Node:
        """An input that is a vector, reshaped so that it lies along an axis of the first input."""
        vector, value = self.node.required(index), self.value(index)
        if vector.type.rank == 0:
            return value
        if self.rank is None:
            raise self.refuse("of unknown rank")
        trailing = self.rank - axis % self.rank - 1 if self.rank else 0
        return self.call(torch.reshape, value, (-1, *[1] * trailing)) if trailing else value

    def weights(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias (the second and third input) when both are constants."""
        weight, bias = self.node.input(1), self.node.input(2)
        if weight is None or weight.data is None or (bias is not None and bias.data is None):
            return None
        return weight.data, bias.data if bias is not None else None

    # What it is written as.

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of a method by name."""
        return self.out.call(function, *args, **kwargs)

    def module(self, made: nn.Module, *args: Any) -> fx.Node:
        """A call of a new module under the node's dotted name."""
        return self.out.module(self.node.name, made, *args)

    def filled(self, made: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        """A new module with its ``weight`` and, if it has one, its ``bias``."""
        self.out.fill(made, "weight", weight)
        if bias is not None:
            self.out.fill(made, "bias", bias)
        return made

    def dtype_of(self, dtype: DType) -> torch.dtype:
        """An element type in torch.

        Raises:
            ModelError: If torch has none.
        """
        try:
            return torch_dtype(dtype)
        except ModelError as error:
            raise ModelError(f"{self.node.name}: {error}") from None

    def meta(self, dtype: DType) -> dict[str, Any]:
        """The arguments of a module whose parameters are replaced at once: it allocates nothing."""
        return {"device": "meta", "dtype": self.dtype_of(dtype)}

    def refuse(self, what: str) -> ModelError:
        """The error for a form of the op that torch has no way to compute; ``what`` follows the op's name."""
        return ModelError(f"{self.node.name}: {self.node.op.name} {what} has no spelling in torch")


def torch_dtype(dtype: DType) -> torch.dtype:
    """An element type in torch.

    Raises:
        ModelError: If torch has none.
    """
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"torch has no element type {dtype.value}")
    return TORCH_DTYPES[dtype]
