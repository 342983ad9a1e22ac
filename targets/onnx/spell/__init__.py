"""How each op is written in ONNX, in the opset that the model already uses; one file a family of ops."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from onnx import NodeProto

from ....ir import ModelError, Node, Tensor, Value
from ...options import NEWEST_OPSET
from ..speller import DrySpeller, Speller, spells
from . import (  # noqa: F401 - their rules register themselves
    activations,
    arithmetic,
    convolutions,
    indexing,
    linear,
    logic,
    norms,
    padding,
    pools,
    quantize,
    recurrent,
    reductions,
    resample,
    shapes,
    slices,
)


def spell(
    node: Node,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    opset: int,
    new_constant: Callable[[Tensor, str], str],
    new_name: Callable[[str], str],
    existing: Callable[[Value], str],
    forms: dict[Value, str],
    computed: dict[tuple[Hashable, ...], str],
) -> list[NodeProto]:
    """ONNX nodes that compute what an IR node computes.

    Args:
        node: The node.
        inputs: The ONNX names of its inputs; ``""`` for one that is left out.
        outputs: The ONNX names of its results.
        opset: The version of the default domain.
        new_constant: Adds an initializer with a name like the hint and gives its name.
        new_name: Gives a free value name like the hint.
        existing: Gives the name of a constant that the model already has; an empty text if it has not.
        forms: The names of other forms of constants that were written for nodes before this one; it grows.
        computed: The names of shapes that were computed for nodes before this one; it grows.

    Raises:
        ModelError: If the op cannot be written in this opset.
    """
    speller = Speller(
        node, inputs, outputs, opset, new_constant, new_name, existing, forms, computed
    )
    spells.rule_of(node)(speller, node.op)
    for made in speller.made[:-1]:
        made.name = f"{node.name}/{made.op_type}"
    if speller.made:
        speller.made[-1].name = node.name
    return speller.made


def problem(node: Node, opset: int) -> str | None:
    """Why a node cannot be written in an opset; ``None`` if it can. Makes no ONNX node."""
    try:
        spells.rule_of(node)(DrySpeller(node, opset), node.op)
    except ModelError as error:
        return str(error).removeprefix(f"{node.name}: ")
    return None


def operators(node: Node, opset: int = NEWEST_OPSET) -> list[str]:
    """The ONNX operators that a node is written with, in order.

    Raises:
        ModelError: If the op cannot be written in this opset.
    """
    speller = DrySpeller(node, opset)
    spells.rule_of(node)(speller, node.op)
    return speller.kinds
