"""Write a Scale as the batch norm that it is the evaluated form of, so that it trains as one.

That is a batch norm of another host, or one of torch where only the order of its channels is another one, or some are gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...ir import MovedTensor, Node, Scale, Tensor
from ...ir.batch_norm import BatchNorm, BatchNormPart
from .parameters import hold

_Order = npt.NDArray[np.int64]


def made_norm(node: Node, tensor: Callable[[Tensor], torch.Tensor]) -> nn.Module | None:
    """A batch norm that computes what a Scale does, with the numbers of its channels in their order.

    Args:
        node: The Scale.
        tensor: Makes the tensor of a constant.

    Returns:
        A new module, or ``None`` if the Scale is no batch norm, or none any more.
    """
    found = norm_of(node)
    if found is None:
        return None
    norm, order = found
    if isinstance(norm.host, nn.Module):
        return _reordered(norm.host, order)
    return _made(norm, order, node, tensor)


def norm_of(node: Node) -> tuple[BatchNorm, npt.NDArray[np.int64]] | None:
    """The batch norm that a Scale computes, and the order of its channels; ``None`` if it is no batch norm, or none any more."""
    scale, shift = _part(node, 1, "scale"), _part(node, 2, "shift")
    if scale is None or shift is None:
        return None
    (norm, order), (other, same) = scale, shift
    if norm is not other or not np.array_equal(order, same):
        return None
    if isinstance(norm.host, nn.Module) and not _takes(norm.host, node):
        return None
    return norm, order


def is_norm(node: Node) -> bool:
    """Whether a Scale is an evaluated batch norm."""
    return _part(node, 1, "scale") is not None


def _reordered(module: nn.Module, order: _Order) -> nn.Module:
    """A copy of a batch norm with these of its channels."""
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


def _made(
    norm: BatchNorm, order: _Order, node: Node, tensor: Callable[[Tensor], torch.Tensor]
) -> nn.Module | None:
    """A new batch norm; ``None`` where the rank is not known, or the channels are another axis."""
    rank = node.required(0).type.rank
    assert isinstance(node.op, Scale)
    if rank is None or rank not in _BY_RANK or node.op.axis % rank != 1:
        return None
    learned = norm.gamma is not None or norm.beta is not None
    made: nn.Module = _BY_RANK[rank](len(order), norm.epsilon, affine=learned, device="meta")
    chosen = torch.from_numpy(order)
    mean = tensor(norm.mean)
    hold(made, "running_mean", _moved(mean, chosen))
    hold(made, "running_var", _moved(tensor(norm.var), chosen))
    for name, data, number in (("weight", norm.gamma, 1.0), ("bias", norm.beta, 0.0)):
        if learned:
            found = torch.full_like(mean, number) if data is None else tensor(data)
            hold(made, name, nn.Parameter(_moved(found, chosen)))
    counted = torch.zeros((), dtype=torch.int64, device=mean.device)
    hold(made, "num_batches_tracked", counted)
    return made


def _moved(tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return tensor.detach()[order.to(tensor.device)]


def _takes(module: nn.Module, node: Node) -> bool:
    """Whether a batch norm takes the value that a Scale works on now, and as its channels what the Scale scales."""
    rank = node.required(0).type.rank
    assert isinstance(node.op, Scale)
    if rank is None:
        return node.op.axis == 1
    taken = next((ranks for kind, ranks in _RANKS.items() if isinstance(module, kind)), (rank,))
    return rank in taken and node.op.axis % rank == 1


_BY_RANK: dict[int, Any] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip
_RANKS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
}  # fmt: skip


def _part(node: Node, place: int, part: str) -> tuple[BatchNorm, _Order] | None:
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


__all__ = ["is_norm", "made_norm", "norm_of"]
