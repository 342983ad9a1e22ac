"""Write a Scale as the batch norm that it was, where only the order of its channels is another one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..frontends.fx_norms import BatchNorm, BatchNormPart
from ..ir import MovedTensor, Node, Scale, Tensor

_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip
"""The batch norm of inputs of a rank."""


def reordered_norm(node: Node, made: Callable[[Tensor], torch.Tensor]) -> nn.Module | None:
    """A batch norm that computes what a Scale does, with its running statistics in the new order.

    Args:
        node: The Scale.
        made: Makes a torch tensor of one of ours.

    Returns:
        A module, or ``None`` if the Scale is no batch norm any more.
    """
    x = node.inputs[0]
    assert isinstance(node.op, Scale)
    if x is None or x.type.rank not in _NORMS or node.op.axis % x.type.rank != 1:
        return None
    parts = [_part(node, place, want) for place, want in ((1, "scale"), (2, "shift"))]
    if parts[0] is None or parts[1] is None:
        return None
    (norm, order), (other, same) = parts[0], parts[1]
    if norm is not other or not np.array_equal(order, same):
        return None
    if (norm.weight is None) != (norm.bias is None):
        return None
    places = torch.from_numpy(order)

    def moved(tensor: Tensor) -> torch.Tensor:
        found = made(tensor)
        return found[places.to(found.device)]

    found = _NORMS[x.type.rank](
        len(order), norm.eps, norm.momentum, norm.weight is not None, device="meta"
    )
    found.running_mean, found.running_var = moved(norm.mean), moved(norm.var)
    if norm.weight is not None and norm.bias is not None:
        found.weight = nn.Parameter(moved(norm.weight))
        found.bias = nn.Parameter(moved(norm.bias))
    seen = torch.tensor(0) if norm.batches is None else norm.batches.detach().clone()
    found.num_batches_tracked = seen.to(found.running_mean.device)
    return found


def _part(node: Node, place: int, part: str) -> tuple[BatchNorm, npt.NDArray[np.int64]] | None:
    """The batch norm that a constant is a part of, and the order of its channels."""
    value = node.input(place)
    data = value.data if value is not None else None
    moves = []
    while isinstance(data, MovedTensor):
        moves.append(data.move)
        data = data.source
    if data is None or not isinstance(data.host, BatchNormPart) or data.host.part != part:
        return None
    order = np.arange(data.size, dtype=np.int64)
    for move in reversed(moves):
        order = move(order)
    return data.host.norm, order


__all__ = ["reordered_norm"]
