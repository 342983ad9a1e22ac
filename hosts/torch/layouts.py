"""Which calls of torch depend on how a tensor lies in memory.

Graphs of the IR say nothing of strides: ``contiguous()`` changes nothing in them, and goes. What is written back must
run all the same, and give what the host gives. So ``view`` becomes ``reshape`` where the layout in front of it may be another
one, what may ask for rows in order is given them, and where strides themselves are read, everything that decides about them stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .modules.gates import Gate
from .modules.masks import Constant, plain_type
from .modules.scale import Scale

_ROWS = (torch.contiguous_format, torch.preserve_format)

_DECIDE = {
    "contiguous", "clone", "to", "t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "mT",
    "T", "H", "mH", "adjoint", "expand", "expand_as", "flip", "rot90", "unfold", "as_strided", "empty_strided",
}  # fmt: skip
"""Calls that decide in which order a tensor lies in memory."""

_READ = {
    "as_strided", "stride", "storage_offset", "is_contiguous", "data_ptr", "storage", "untyped_storage", "set",
    "is_set_to", "as_strided_scatter", "as_strided_copy",
}  # fmt: skip
"""Calls whose results are other ones for another order."""

_NEED = {"view_as_complex", "view_as_real", "_reshape_alias"}
"""Calls that refuse some orders."""

_RESHAPED = {"view": "reshape", "_unsafe_view": "reshape", "view_as": "reshape_as"}
"""Calls that refuse some orders, and those that do not."""


def plain(node: fx.Node) -> str:
    """The plain name of a call of torch, without the underscore of in-place calls; empty for other nodes."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1].rstrip("_")
    if node.target is getattr:
        return str(node.args[1])
    own = (getattr(node.target, "__module__", None) or "torch").startswith("torch")
    name = getattr(node.target, "__name__", "")
    return (name if name in _RESHAPED else name.rstrip("_")) if own else ""


def keeps_format(format: Any) -> bool:
    """Whether ``contiguous(memory_format=...)`` asks for nothing but rows in order."""
    return format is None or format in _ROWS


def in_rows(node: fx.Node) -> bool:
    """Whether the result of a call certainly lies in order."""
    if plain(node) == "clone":
        return node.kwargs.get("memory_format") is torch.contiguous_format
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("memory_format")
    return plain(node) == "contiguous" and given in (None, torch.contiguous_format)


def decides(node: fx.Node) -> bool:
    """Whether a call decides in which order a tensor lies in memory."""
    return plain(node) in _DECIDE


def reads(node: fx.Node) -> bool:
    """Whether the result of a call depends on strides that nothing in front of it has settled."""
    return plain(node) in _READ and not (node.args and _is_in_rows(node.args[0]))


def views(node: fx.Node) -> bool:
    """Whether a call gives a view of its argument or fails, as its order wants it."""
    return plain(node) in _RESHAPED or plain(node) in _NEED


def held(acting: Iterable[fx.Node]) -> set[str]:
    """What must stay as it is for these calls to find the order that the host gave them.

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
    """Whether a result is put in order, or made from what was."""
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
    """Whether a call may fail on a tensor that does not lie in order, or read its strides."""
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
    """The call that does what a view does on any order, as (kind, target, arguments by name); ``None`` for other calls."""
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
