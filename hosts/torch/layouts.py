"""Which calls of torch depend on how a tensor lies in memory.

The IR does not model strides: ``contiguous()`` is an identity in it, and may be removed. The emitted module must run all the same,
with the same results. So ``view`` becomes ``reshape`` where the layout of its input may have changed, calls that may need a contiguous
tensor get one, and where strides are read, every call that decides on them stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .calls import call_name
from .modules.gates import Gate
from .modules.masks import Constant, plain_type
from .modules.scale import Scale

_ROWS = (torch.contiguous_format, torch.preserve_format)

_DECIDE = {
    "contiguous", "clone", "to", "t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "mT",
    "T", "H", "mH", "adjoint", "expand", "expand_as", "flip", "rot90", "unfold", "as_strided", "empty_strided",
}  # fmt: skip
"""Calls that decide on the memory layout of their result."""

_READ = {
    "as_strided", "stride", "storage_offset", "is_contiguous", "data_ptr", "storage", "untyped_storage", "set",
    "is_set_to", "as_strided_scatter", "as_strided_copy",
}  # fmt: skip
"""Calls whose result depends on the memory layout."""

_NEED = {"view_as_complex", "view_as_real", "_reshape_alias"}
"""Calls that fail on some memory layouts."""

_RESHAPED = {"view": "reshape", "_unsafe_view": "reshape", "view_as": "reshape_as"}
"""Calls that fail on some memory layouts, and equivalents that do not."""


def plain(node: fx.Node) -> str:
    """The plain name of a call of torch, or of the attribute that a node reads; empty for other nodes."""
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1])
    return call_name(node.target) if node.op in ("call_function", "call_method") else ""


def keeps_format(format: Any) -> bool:
    """Whether a memory format is the plain one: rows in order."""
    return format is None or format in _ROWS


def in_rows(node: fx.Node) -> bool:
    """Whether the result of a call is certainly contiguous."""
    if plain(node) == "clone":
        return node.kwargs.get("memory_format") is torch.contiguous_format
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("memory_format")
    return plain(node) == "contiguous" and given in (None, torch.contiguous_format)


def decides(node: fx.Node) -> bool:
    """Whether a call decides on the memory layout of its result."""
    return plain(node) in _DECIDE


def reads(node: fx.Node) -> bool:
    """Whether the result of a call depends on strides that no ``contiguous()`` in front of it has fixed."""
    return plain(node) in _READ and not (node.args and _is_in_rows(node.args[0]))


def views(node: fx.Node) -> bool:
    """Whether a call returns a view of its argument, or fails if the layout does not allow one."""
    return plain(node) in _RESHAPED or plain(node) in _NEED


def held(acting: Iterable[fx.Node]) -> set[str]:
    """The nodes that must stay unchanged, so that these calls find the layout that the host gave them.

    Args:
        acting: Calls that read strides, or whose result must be a view.
    """
    found: set[str] = set()
    for node in acting:
        behind = _in_front_of(node)
        if any(map(decides, behind)):
            found.update(n.name for n in behind)
    return found


def is_put_in_rows(node: fx.Node) -> bool:
    """Whether a result was made contiguous, or computed from a value that was."""
    return in_rows(node) or any(map(in_rows, _in_front_of(node)))


def _in_front_of(node: fx.Node) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    pending = list(node.all_input_nodes)
    while pending:
        last = pending.pop()
        if last not in found and last.op != "placeholder":
            found[last] = None
            pending += last.all_input_nodes
    return list(found)


def may_want_rows(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a call may fail on a tensor that is not contiguous, or read its strides."""
    if plain(node) in _NEED or plain(node) in _READ or _other_bytes(node):
        return True
    if node.op == "call_module":
        kind = plain_type(modules[str(node.target)])
        known = kind.__module__.startswith("torch.nn.modules") or kind in (Gate, Scale, Constant)
        return not known
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.namespace not in ("aten", "prims")
    module = getattr(node.target, "__module__", None) or "torch"
    foreign = not module.startswith(("torch", "_operator", "builtins", "math"))
    return foreign or isinstance(node.target, torch._ops.HigherOrderOperator)


def reshaping(node: fx.Node) -> tuple[str, Any, dict[str, Any]] | None:
    """The equivalent of a view call that works on any layout, as (kind, target, keyword arguments); ``None`` for other calls."""
    name = _RESHAPED.get(plain(node))
    if name is None or _other_bytes(node):
        return None
    renamed = {"shape" if k == "size" else k: v for k, v in node.kwargs.items()}
    if isinstance(node.target, torch._ops.OpOverload):
        return "call_function", getattr(torch.ops.aten, name).default, renamed
    return "call_method", name, renamed


def _other_bytes(node: fx.Node) -> bool:
    given = [*node.args[1:], *node.kwargs.values()]
    return plain(node) == "view" and any(isinstance(a, torch.dtype) for a in given)


def _is_in_rows(found: Any) -> bool:
    return isinstance(found, fx.Node) and in_rows(found)


__all__ = [
    "decides",
    "held",
    "in_rows",
    "is_put_in_rows",
    "keeps_format",
    "may_want_rows",
    "plain",
    "reads",
    "reshaping",
    "views",
]
