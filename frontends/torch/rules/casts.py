"""torch's casts, copies and dropout."""

from __future__ import annotations

import torch
from torch import nn

from .... import ir
from ....hosts.torch.dtypes import DTYPES
from ....hosts.torch.layouts import keeps_format
from ...lowering import Lowered
from ..call import Call
from ..registry import Memory, knows_memory, reads, reads_module

_TO = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "bool": torch.bool, "byte": torch.uint8, "char": torch.int8, "short": torch.int16,
}  # fmt: skip
"""Methods that are named for the type they convert to."""


def _named_cast(name: str, dtype: torch.dtype) -> None:
    @reads(name, makes=[ir.Cast, ir.Identity], memory=Memory.SHARED)
    def rule(call: Call) -> Lowered | None:
        return _cast(call, dtype) if len(call.args) + len(call.kwargs) == 1 else None


for _name, _dtype in _TO.items():
    _named_cast(_name, _dtype)


@reads("to", makes=[ir.Cast, ir.Identity], note="to a type alone", memory=Memory.SHARED)
def _to(call: Call) -> Lowered | None:
    """``(x, dtype)``."""
    plain = len(call.args) + len(call.kwargs) == 2
    return _cast(call, call.get(1, "dtype")) if plain else None


def _cast(call: Call, dtype: object) -> Lowered | None:
    x = call.value(0)
    to = DTYPES.get(dtype) if isinstance(dtype, torch.dtype) else None
    if to is None or x.type.dtype is None:
        return None
    return ir.Identity() if to is x.type.dtype else ir.Cast(to.value), [x]


@reads("alias", makes=ir.Identity, memory=Memory.VIEW)
def _alias(call: Call) -> Lowered | None:
    return ir.Identity(), [call.value(0)]


@reads("contiguous", makes=ir.Identity, note="rows in order", memory=Memory.SHARED)
def _contiguous(call: Call) -> Lowered | None:
    """``(x, memory_format)``: the value itself, unless another format is asked for."""
    plain = keeps_format(call.get(1, "memory_format"))
    return (ir.Identity(), [call.value(0)]) if plain else None


@reads(
    "dropout",
    makes=ir.Identity,
    note="in evaluation mode",
    memory=Memory.SHARED,
    inplace=3,
)
def _dropout(call: Call) -> Lowered | None:
    """``(x, p, training)``: nothing happens when it is evaluated."""
    training = call.get(2, "training", call.kwargs.get("train", True))
    return None if training else (ir.Identity(), [call.value(0)])


# A module in training mode that would drop anything is an error by now.
reads_module(nn.Identity, call="alias")
reads_module(nn.Dropout, call="alias")
reads_module(nn.Dropout1d, call="alias")
reads_module(nn.Dropout2d, call="alias")
reads_module(nn.Dropout3d, call="alias")
reads_module(nn.AlphaDropout, call="alias")
reads_module(nn.FeatureAlphaDropout, call="alias")

knows_memory("clone", memory=Memory.NEW)
knows_memory("detach", memory=Memory.VIEW)
knows_memory("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", inplace=3)
knows_memory("feature_alpha_dropout", inplace=3)
knows_memory("rrelu", inplace=4)
