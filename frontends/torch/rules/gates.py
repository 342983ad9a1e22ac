"""Modules of ours: learned gates, and scales that an earlier run wrote."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import ir
from ....hosts.torch.dtypes import DTYPES
from ....hosts.torch.modules.gates import Gate, Switch
from ....hosts.torch.modules.masks import plain_type
from ....hosts.torch.modules.scale import Scale
from ....ir import LazyTensor, Tensor
from ....ir.tensor import reshaped
from ...lowering import Lowered, Steps
from ..call import Call
from ..modules import hooked
from ..registry import MODULES, reads_own_module


@reads_own_module(Gate, makes=ir.Gate)
def _gate(call: Call) -> Lowered | None:
    """A learned gate: its activation, its number, and whatever the activation needs."""
    module: Any = call.module
    if hooked(module.activation) or hooked(module.switch):
        return None
    entry = MODULES.get(plain_type(module.activation))
    if entry is None:
        return None
    inner = call.inside("activation", module.activation)
    lowered = entry.rule(entry.call(inner))
    if lowered is None or isinstance(lowered, Steps):
        return None
    op, operands = lowered
    given: list[Any] = [call.value(0), _number(module.switch)]
    line = None if module.line is None else _line(call.inside("line", module.line))
    if module.line is not None and (line is None or hooked(module.line)):
        return None
    axis = line[0] if line is not None else 1
    if isinstance(op, ir.PRelu):
        slope: Any = operands[1]
        if line is not None and op.axis != axis and slope.size > 1:
            return None
        made = ir.Gate("prelu", axis=op.axis if line is None else axis, mode=module.mode)
        given.append(slope)
    elif isinstance(op, ir.Activation):
        made = ir.Gate(op.kind, op.params, axis, module.mode)
        given += [] if line is None else [None]
    else:
        return None
    if line is not None:
        wide = given[1].dtype.numpy
        neutral = (ir.ArrayTensor(np.ones(1, wide)), ir.ArrayTensor(np.zeros(1, wide)))
        given += [d if v is None else v for v, d in zip(line[1], neutral, strict=True)]
    return made, given


def _number(switch: Switch) -> Tensor:
    """The gate value as a lazy ``(1,)`` tensor. Gates that share a Switch share ``.host``: they are tied."""
    dtype = DTYPES[switch.score.dtype]

    def load() -> Any:
        found = switch.number().cpu().reshape(1)
        return found.double().numpy().astype(dtype.numpy)

    return LazyTensor((1,), dtype, load, switch)


@reads_own_module(Scale, makes=ir.Scale)
def _scale(call: Call) -> Lowered | None:
    """A scale and shift that was emitted earlier."""
    found = _line(call)
    return None if found is None else (ir.Scale(found[0]), [call.value(0), *found[1]])


def _line(call: Call) -> tuple[int, list[Tensor | None]] | None:
    """The axis, scale and shift of a ``Scale`` module, whose tensors have ones behind their axis."""
    x, module = call.value(0), call.module
    assert isinstance(module, Scale)
    rank = x.type.rank
    vectors: list[Tensor | None] = []
    for name in ("scale", "shift"):
        value = call.tensor(name)
        known = value is not None and value.data is not None
        vectors.append(reshaped(value.data, (value.data.size,)) if known else None)  # type: ignore[union-attr, arg-type]
    if all(v is None for v in vectors) or (rank is not None and rank <= module.trailing):
        return None
    axis = -1 - module.trailing
    return axis if rank is None else axis + rank, vectors
