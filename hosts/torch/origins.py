"""Where the nodes of an FX-born graph came from, and the module that they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn


@dataclass(frozen=True)
class FxOrigin:
    """The host nodes that an IR node stands for, by name, in order.

    Attributes:
        nodes: The names.
        inputs: ``Value.host`` of each IR input when the node was made.
        outputs: The host names of the results.
        parts: How many IR nodes the one host node is; only all of them together stand for it.
    """

    nodes: tuple[str, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    parts: int = 1


@dataclass(frozen=True)
class FxHost:
    """The host module of an FX-born graph, and what is known of its inputs.

    Attributes:
        module: The module, which nobody may change.
        inputs: Example inputs, or ``None``.
        order: Host nodes by name.
        inplace: Names of host nodes that work in place.
        sizes: Names of host nodes that compute sizes from shapes, and are no nodes of the IR.
        exported: The inputs that a program was exported with, or ``None``.
        in_rows: Names of host nodes whose results are known to lie in order, as ``contiguous`` makes them.
        strided: Names of those that are known not to.
    """

    module: fx.GraphModule
    inputs: tuple[Any, ...] | None
    order: dict[str, fx.Node]
    inplace: frozenset[str]
    sizes: tuple[str, ...] = ()
    exported: tuple[Any, ...] | None = None
    in_rows: frozenset[str] = frozenset()
    strided: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class BatchNormPart:
    """What a constant of a Scale is of a batch norm (the ``host`` of the tensor).

    Attributes:
        module: The batch norm.
        part: Which of the two constants it is.
    """

    module: nn.Module
    part: Literal["scale", "shift"]
