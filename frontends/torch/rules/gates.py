"""Modules of ours: learned gates, and scales that an earlier run wrote."""

from __future__ import annotations

from typing import Any

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
    number = _number(module.switch)
    if isinstance(op, ir.PRelu):
        slope: Any = operands[1]
        return ir.Gate("prelu", axis=op.axis, mode=module.mode), [call.value(0), number, slope]
    if not isinstance(op, ir.Activation):
        return None
    return ir.Gate(op.kind, op.params, mode=module.mode), [call.value(0), number]


def _number(switch: Switch) -> Tensor:
    """The gate value as a lazy ``(1,)`` tensor. Gates that share a Switch share ``.host``: they are tied."""
    dtype = DTYPES[switch.score.dtype]

    def load() -> Any:
        found = switch.number().cpu().reshape(1)
        return found.double().numpy().astype(dtype.numpy)

    return LazyTensor((1,), dtype, load, switch)


@reads_own_module(Scale, makes=ir.Scale)
def _scale(call: Call) -> Lowered | None:
    """A scale and shift that was emitted earlier; its tensors have ones behind their axis."""
    x, module = call.value(0), call.module
    assert isinstance(module, Scale)
    rank, vectors = x.type.rank, []
    for name in ("scale", "shift"):
        value = call.tensor(name)
        known = value is not None and value.data is not None
        vectors.append(reshaped(value.data, (value.data.size,)) if known else None)  # type: ignore[union-attr, arg-type]
    if all(v is None for v in vectors) or (rank is not None and rank <= module.trailing):
        return None
    axis = -1 - module.trailing
    return ir.Scale(axis if rank is None else axis + rank), [x, *vectors]
