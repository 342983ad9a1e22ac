"""Write a Scale as the batch norm that it was, where only the order of its channels is another one, or some are gone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...hosts.torch.origins import BatchNormPart
from ...ir import MovedTensor, Node, Scale


def reordered_norm(node: Node) -> nn.Module | None:
    """A batch norm that computes what a Scale does, with the running statistics of its channels in their order.

    Args:
        node: The Scale.

    Returns:
        A new module, or ``None`` if the Scale is no batch norm any more.
    """
    found = norm_of(node)
    if found is None:
        return None
    module, order = found
    made: Any = copy.deepcopy(module)
    made.num_features = len(order)
    with torch.no_grad():
        for name in ("running_mean", "running_var", "weight", "bias"):
            tensor = getattr(made, name)
            if tensor is None:
                continue
            chosen = tensor.detach()[torch.from_numpy(order).to(tensor.device)]
            if isinstance(tensor, nn.Parameter):
                chosen = nn.Parameter(chosen, tensor.requires_grad)
            setattr(made, name, chosen)
    result: nn.Module = made
    return result


def norm_of(node: Node) -> tuple[Any, npt.NDArray[np.int64]] | None:
    """The batch norm that a Scale computes, and the order of its channels; ``None`` if it is no batch norm any more."""
    scale, shift = _part(node, 1, "scale"), _part(node, 2, "shift")
    if scale is None or shift is None:
        return None
    (module, order), (other, same) = scale, shift
    if module is not other or not np.array_equal(order, same) or not _takes(module, node):
        return None
    return module, order


def _takes(module: nn.Module, node: Node) -> bool:
    """Whether a batch norm takes the value that a Scale works on now, and as its channels what the Scale scales."""
    rank = node.required(0).type.rank
    assert isinstance(node.op, Scale)
    if rank is None:
        return node.op.axis == 1
    taken = next((ranks for kind, ranks in _RANKS.items() if isinstance(module, kind)), (rank,))
    return rank in taken and node.op.axis % rank == 1


_RANKS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
}  # fmt: skip


def _part(node: Node, place: int, part: str) -> tuple[nn.Module, npt.NDArray[np.int64]] | None:
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
    return data.host.module, order


__all__ = ["norm_of", "reordered_norm"]
