"""The cost of a linear op: its multiply-accumulates, plus a price for each element written and for each bias map element read.

A merge is worth it if the merged map costs no more than the maps that it replaces. Costs are for one sample, because
the batch size does not change the comparison. If the spatial size is not known, positions are counted relative to the
input of the run, from the strides alone.

Reading the weights has no price. With many positions it is small compared to the multiply-accumulates; with one
position it is proportional to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir import AveragePool, Conv, ConvTranspose, Identity, Linear, Node, Value
from .algebra.affine import Affine

ELEMENT = 4.0
"""Writing one element costs as much as this many multiply-accumulates."""

BIAS_MAP_ELEMENT = 16.0
"""Reading one element of a bias map costs as much as this many multiply-accumulates.

The element is not in the cache, and it takes space in the file and in memory. A bias map is as large as the value that
it is added to, so that maps that save little can double the parameters of a small network: PP-OCRv4's detector at
320x320 grew from 1.0 to 2.1 million parameters without a gain in time.
"""


def positions(values: Sequence[Value], rank: int) -> list[float] | None:
    """The number of spatial positions of each value of a run.

    Args:
        values: The input of the run, then the result of each map.
        rank: The spatial rank of the maps.

    Returns:
        The numbers, or ``None`` if a size is not known.
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
    """The number of positions of each value relative to the input of the run, computed from the strides."""
    found = [1.0]
    for affine in maps:
        step = float(math.prod(affine.strides))
        found.append(found[-1] * step if affine.transposed else found[-1] / step)
    return found


def kernel_macs(affine: Affine, before: float, after: float) -> float:
    """Multiply-accumulates of a kernel whose input has ``before`` and whose result has ``after`` positions."""
    return affine.weight.size * (before if affine.transposed else after)


def node_macs(node: Node, affine: Affine, before: float, after: float) -> float:
    """Multiply-accumulates of a node that computes ``affine``."""
    if isinstance(node.op, Conv | ConvTranspose | Linear | AveragePool):
        return kernel_macs(affine, before, after)
    return 0.0


def element_cost(node: Node, affine: Affine, after: float) -> float:
    """The price of the elements that a node writes, plus that of its bias map if it adds one."""
    if isinstance(node.op, Identity):
        return 0.0
    return ELEMENT * affine.outputs * after + bias_map_cost(affine, after)


def bias_map_cost(affine: Affine, after: float) -> float:
    """The price of reading a bias map."""
    return BIAS_MAP_ELEMENT * affine.outputs * after if affine.has_bias_map else 0.0
