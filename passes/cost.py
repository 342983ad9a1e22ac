"""What a linear op costs: multiply-accumulates, and a price for every element that is written.

A merge is worth it when the merged map costs no more than the maps it replaces. Costs are for one sample
(the batch size changes none of the comparisons). Where the spatial size is not known, positions
are counted relative to the start of the run, from the strides alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..ir import AveragePool, Conv, ConvTranspose, Identity, Linear, Node, Value
from .affine import Affine

ELEMENT = 4.0
"""Writing one element costs as much as this many multiply-accumulates."""


def positions(values: Sequence[Value], maps: Sequence[Affine], rank: int) -> list[float] | None:
    """How many places each value of a run has that a kernel is applied at.

    Args:
        values: The input of the run, then the result of each map.
        maps: The maps of the run.
        rank: Their spatial rank.

    Returns:
        The places, or ``None`` when a size is not known.
    """
    if rank == 0:
        return [1.0] * len(values)
    known: list[float] = []
    for value in values:
        shape = value.type.shape
        sizes = [d for d in shape[2:] if isinstance(d, int)] if shape is not None else []
        if shape is None or len(sizes) != len(shape) - 2:
            return None
        known.append(float(math.prod(sizes)))
    return known


def relative_positions(maps: Sequence[Affine]) -> list[float]:
    """Like :func:`positions`, relative to the input of the run, from the strides alone."""
    found = [1.0]
    for affine in maps:
        step = float(math.prod(affine.strides))
        found.append(found[-1] * step if affine.transposed else found[-1] / step)
    return found


def map_macs(affine: Affine, before: float, after: float) -> float:
    """Multiply-accumulates of a kernel between ``before`` and ``after`` positions."""
    return affine.weight.size * (before if affine.transposed else after)


def node_macs(node: Node, affine: Affine, before: float, after: float) -> float:
    """Multiply-accumulates of a node that computes ``affine``."""
    if isinstance(node.op, Conv | ConvTranspose | Linear | AveragePool):
        return map_macs(affine, before, after)
    return 0.0


def write_cost(node: Node, affine: Affine, after: float) -> float:
    """The price of the elements that a node writes."""
    return 0.0 if isinstance(node.op, Identity) else ELEMENT * affine.outputs * after
