"""What a linear op costs: multiply-accumulates, and a price for every element that is written, or read of a bias map.

A merge is worth it when the merged map costs no more than the maps it replaces. Costs are for one sample
(the batch size changes none of the comparisons). Where the spatial size is not known, positions
are counted relative to the start of the run, from the strides alone.

The weights of a kernel are read once a run too. They are used at every position, so that their price would be small beside
the multiply-accumulates wherever there is more than one position, and in proportion to them where there is one; it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir import AveragePool, Conv, ConvTranspose, Identity, Linear, Node, Value
from .algebra.affine import Affine

ELEMENT = 4.0
"""Writing one element costs as much as this many multiply-accumulates."""

MAP_ELEMENT = 16.0
"""One element of a bias map costs as much as this many: it is read once a run, from memory that nothing wrote just
before, and it lies in the file and in memory for as long as the model does. A map is as large as what it is added to, so
that a small network can double its parameters by maps that save little: PP-OCRv4's detector at 320x320 had
2.1 million instead of 1.0 for no gain in time."""


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


def element_cost(node: Node, affine: Affine, after: float) -> float:
    """The price of the elements that a node writes, and of its bias map if it adds one."""
    if isinstance(node.op, Identity):
        return 0.0
    return ELEMENT * affine.outputs * after + map_cost(affine, after)


def map_cost(affine: Affine, after: float) -> float:
    """The price of reading a bias map."""
    return MAP_ELEMENT * affine.outputs * after if affine.has_map else 0.0
