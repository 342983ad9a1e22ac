"""How each op is written in torch; one file a family of ops."""

from __future__ import annotations

from ....ir import ModelError, Node, Opaque
from ..speller import Results, Speller, Writer, spells
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


def spell(node: Node, out: Writer) -> Results:
    """Write a node with a writer; its result, or all of them.

    Raises:
        ModelError: If torch has no way to compute it.
    """
    if isinstance(node.op, Opaque):
        raise ModelError(f"{node.name}: {node.op.kind} was changed and cannot be written again")
    return spells.rule_of(node)(Speller(node, out), node.op)
