"""Where the nodes of an FX-born graph came from, and the module that they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...ir import TensorType


@dataclass(frozen=True)
class FxOrigin:
    """The host nodes that an IR node was made from, by name, in order.

    Attributes:
        nodes: The names.
        inputs: ``Value.host`` of each IR input when the node was made.
        outputs: The host names of the results.
        parts: Number of IR nodes made from this host call; it is copied only if all of them are unchanged.
    """

    nodes: tuple[str, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    parts: int = 1


Alike = Callable[[str], Iterator[tuple[str, int | None]]]
"""Takes the name of a host node that is a size, or a shape; yields values and axes that have this size for all inputs, in order. The axis
is ``None`` for a shape."""


def _none_alike(name: str) -> Iterator[tuple[str, int | None]]:
    return iter(())


def _no_other_batch() -> None:
    return None


@dataclass(frozen=True)
class FxHost:
    """The host module of an FX-born graph, with its inputs and facts about its nodes.

    Attributes:
        module: The module, which nobody may change.
        inputs: Example inputs, or ``None``.
        order: Host nodes by name.
        inplace: Names of host nodes that work in place.
        sizes: Names of host nodes that compute sizes from shapes, and are no nodes of the IR.
        exported: The inputs that a program was exported with, or ``None``.
        in_rows: Names of host nodes whose results are known to lie in order, as ``contiguous`` makes them.
        strided: Names of those that are known not to.
        alike: Finds another value with the same size.
        baked: Host nodes whose ops have sizes that follow the inputs, with these sizes for the example inputs.
        other_batch: Finds the types of all results for a batch of another size than that of the example inputs; ``None`` if the module
            does not run with one.
    """

    module: fx.GraphModule
    inputs: tuple[Any, ...] | None
    order: dict[str, fx.Node]
    inplace: frozenset[str]
    sizes: tuple[str, ...] = ()
    exported: tuple[Any, ...] | None = None
    in_rows: frozenset[str] = frozenset()
    strided: frozenset[str] = frozenset()
    alike: Alike = _none_alike
    baked: Mapping[str, str] = field(default_factory=dict)
    other_batch: Callable[[], Mapping[str, TensorType] | None] = _no_other_batch
