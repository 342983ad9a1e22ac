"""Names of torch's calls: the same for a function, a method, an in-place variant and ATen's operator."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

_ATEN_DIFFERS = (
    "batch_norm", "instance_norm", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
)  # fmt: skip
"""Calls for which ATen, and ``torch`` itself, have other arguments or results than ``torch.nn.functional``."""

_OPERATORS = {
    operator.iadd: "add", operator.isub: "sub", operator.imul: "mul", operator.itruediv: "div",
}  # fmt: skip

_AUGMENTED = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"}

_PACKET = torch._ops.OpOverloadPacket


def call_name(target: Any) -> str:
    """The plain name of a function: ``conv2d``, ``add``; in-place names lose their underscore."""
    if is_aten(target):
        name = target._qualified_op_name if isinstance(target, _PACKET) else target._schema.name
        name = name.split("::")[1]
        return f"aten.{name}" if name in _ATEN_DIFFERS else name.rstrip("_")
    if target in (torch.batch_norm, torch.instance_norm, torch.adaptive_max_pool1d):
        return f"aten.{target.__name__}"
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and not _is_torch(target):
        return ""
    if target in _OPERATORS or name in _AUGMENTED:
        return _OPERATORS.get(target) or _AUGMENTED[name]
    return name.rstrip("_").removeprefix("boolean_dispatch.")


def by_name(kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An argument by name; torch also takes the names that NumPy has for ``dim`` and ``keepdim``."""
    if name not in kwargs and name in _NUMPY_NAMES:
        name = _NUMPY_NAMES[name]
    return kwargs.get(name, default)


_NUMPY_NAMES = {"dim": "axis", "keepdim": "keepdims"}


def shape_of_other(node: fx.Node) -> fx.Node | None:
    """The tensor of which a call takes nothing but the shape (``x.reshape_as(other)``)."""
    other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    name = call_name(node.target) if node.op in ("call_function", "call_method") else ""
    return other if name in _AS_LARGE and isinstance(other, fx.Node) else None


_AS_LARGE = ("reshape_as", "view_as", "expand_as")


def is_aten(target: Any) -> bool:
    """Whether a function is one of ATen's own."""
    return isinstance(target, (torch._ops.OpOverload, _PACKET))


def _is_torch(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    return target in _OPERATORS or module.startswith(("torch", "_operator")) or module == ""


__all__ = ["call_name", "is_aten", "shape_of_other"]
