"""How layer and group normalisation are written in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .... import ir
from ..speller import Speller, spells

_INSTANCE_NORMS: dict[int, Any] = {
    1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d,
}  # fmt: skip


@spells(ir.LayerNorm, note="known rank")
def layer_norm(s: Speller, op: ir.LayerNorm) -> fx.Node:
    """``nn.LayerNorm``; ``F.layer_norm`` where there is no weight, or it is computed, or a size is not known."""
    x = s.node.required(0).type
    if x.shape is None or x.rank == 0:
        raise s.refuse("of unknown rank")
    shape = x.shape[op.axis :]
    if all(isinstance(d, int) for d in shape):
        given = s.weights()
        if given is not None and all(t is None or t.shape == shape for t in given):
            weight, bias = given
            rest = {"bias": bias is not None, **s.meta(weight.dtype)}
            made = nn.LayerNorm(weight.shape, op.epsilon, **rest)
            return s.module(s.filled(made, weight, bias), s.value())
        vectors = [v for v in (s.node.input(1), s.node.input(2)) if v is not None]
        if all(v.type.shape == shape for v in vectors):
            return s.call(F.layer_norm, s.value(), shape, s.optional(1), s.optional(2), op.epsilon)
    # A scale or a shift that is broadcast, or may be.
    first = (x.rank or 0) - len(shape)
    sizes = [
        d if isinstance(d, int) else s.call("size", s.value(), first + i)
        for i, d in enumerate(shape)
    ]
    call = s.call(F.layer_norm, s.value(), tuple(sizes), None, None, op.epsilon)
    for index, function in ((1, torch.mul), (2, torch.add)):
        operand = s.optional(index)
        call = call if operand is None else s.call(function, call, operand)
    return call


@spells(ir.GroupNorm)
def group_norm(s: Speller, op: ir.GroupNorm) -> fx.Node:
    """``nn.GroupNorm`` or ``nn.InstanceNorm2d`` and its kin; the function where a vector is missing or computed."""
    given, n = s.weights(), (s.rank or 0) - 2
    if _is_of_one(s, op):
        # The functions that torch's modules call refuse to normalise one number; those of torch itself do it.
        rest: Any = (
            s.value(),
            op.groups or s.node.required(0).type.dim(1),
            s.optional(1),
            s.optional(2),
        )
        return s.call(torch.group_norm, *rest, op.epsilon)
    if given is not None and given[1] is not None and (op.groups or n in _INSTANCE_NORMS):
        size, meta = given[0].shape[0], s.meta(given[0].dtype)
        made: nn.Module
        if op.groups:
            made = nn.GroupNorm(op.groups, size, op.epsilon, **meta)
        else:
            made = _INSTANCE_NORMS[n](size, op.epsilon, affine=True, **meta)
        return s.module(s.filled(made, *given), s.value())
    x, weight, bias = s.value(), s.optional(1), s.optional(2)
    if op.groups:
        return s.call(F.group_norm, x, op.groups, weight, bias, op.epsilon)
    return s.call(F.instance_norm, x, weight=weight, bias=bias, eps=op.epsilon)


def _is_of_one(s: Speller, op: ir.GroupNorm) -> bool:
    """Whether each group, or channel, is known to be a single number."""
    shape = s.node.required(0).type.shape
    if shape is None or not isinstance(shape[1], int) or any(d != 1 for d in shape[2:]):
        return False
    return op.groups in (0, shape[1])


@spells(ir.LocalResponseNorm, note="known rank")
def local_response_norm(s: Speller, op: ir.LocalResponseNorm) -> fx.Node:
    """``F.local_response_norm``, which wants an axis behind the channels."""
    if s.rank is None:
        raise s.refuse("of unknown rank")
    rest = (op.size, op.alpha, op.beta, op.bias)
    if s.rank > 2:
        return s.call(F.local_response_norm, s.value(), *rest)
    made = s.call(F.local_response_norm, s.call(torch.unsqueeze, s.value(), -1), *rest)
    return s.call(torch.squeeze, made, -1)
