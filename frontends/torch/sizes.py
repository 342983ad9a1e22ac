"""Numbers that a traced module computes from shapes, such as ``x.shape[1] // 2``.

Where shapes are known these calls have known results, which are arguments like any others; they are no nodes of
the IR. The size of axis 0 is that of the example only, and torch.export has symbols: such a size is
:class:`~.call.Free`, which only reshapes and ``expand`` take, so that it is never baked into a weight.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ...ir import Value
from ...ir.analysis.sizes import SizeRoots
from .call import Free

_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_METHODS = ("size", "dim", "ndimension", "numel", "nelement")
_PLAIN = (int, float, str, torch.dtype, torch.device, torch.SymInt, type(None))
_RESHAPING = (
    "unsqueeze_",
    "squeeze_",
    "t_",
    "transpose_",
    "resize_",
    "resize_as_",
    "swapaxes_",
    "set_",
)
"""Methods that change a shape in place; in a graph that calls one, no size is known."""


def is_plain(found: Any) -> bool:
    """Whether a result consists of numbers, types and devices only."""
    if isinstance(found, (tuple, list)):
        return all(map(is_plain, found))
    if isinstance(found, slice):
        return all(map(is_plain, (found.start, found.stop, found.step)))
    return isinstance(found, _PLAIN)


def known_sizes(nodes: Sequence[fx.Node], results: Mapping[str, Any]) -> dict[str, Any]:
    """The calls that depend only on shapes, each with its result.

    Args:
        nodes: The host's nodes in order.
        results: The results that are no tensors, from a run on fake tensors or from the export.
    """
    if any(n.op == "call_method" and n.target in _RESHAPING for n in nodes):
        return {}
    found: dict[str, Any] = {}
    for node in nodes:
        if node.op not in ("call_function", "call_method") or node.name not in results:
            continue
        result, sources = results[node.name], node.all_input_nodes
        if _asks_a_tensor(node) and sources[0].name not in results:
            found[node.name] = _shape_of(node, result)
        elif sources and all(s.name in found for s in sources):
            found[node.name] = _computed(node, result, found)
    return found


def _asks_a_tensor(node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1 or node.args[:1] != (node.all_input_nodes[0],):
        return False
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is builtins.getattr:
        return len(node.args) == 2 and node.args[1] in _ATTRIBUTES
    return node.target is torch.ops.aten.sym_size.int


def _shape_of(node: fx.Node, result: Any) -> Any:
    """A shape query's result, with the batch size replaced by a ``Free`` placeholder."""
    source = node.all_input_nodes[0].name
    if isinstance(result, tuple):
        return tuple(
            _free(d, (source, i)) if i == 0 else _symbol(d, (source, i))
            for i, d in enumerate(result)
        )
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    asked = (source, axis) if type(axis) is int and axis >= 0 else None
    if node.target in ("numel", "nelement") or (node.target == "size" and axis != 0):
        # A negative axis may be the batch axis, as the rank is not known here: treat it as free.
        whole = node.target == "size" and isinstance(axis, int) and axis > 0
        return _symbol(result, asked) if whole else _free(result)
    return _free(result, asked) if axis == 0 else _symbol(result, asked)


def _computed(node: fx.Node, result: Any, found: Mapping[str, Any]) -> Any:
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        source, index = node.args
        taken = found[source.name] if isinstance(source, fx.Node) else None
        if isinstance(taken, (tuple, list)) and isinstance(index, (int, slice)):
            return taken[index]
    if any(_is_free(found[s.name]) for s in node.all_input_nodes):
        return _all_free(result)
    return result


def _is_free(found: Any) -> bool:
    return (
        any(map(_is_free, found)) if isinstance(found, (tuple, list)) else isinstance(found, Free)
    )


def _all_free(found: Any) -> Any:
    return tuple(map(_all_free, found)) if isinstance(found, (tuple, list)) else _free(found)


def _free(found: Any, asked: tuple[str, int] | None = None) -> Any:
    plain = isinstance(found, (int, float)) and not isinstance(found, bool)
    return Free(found if plain else str(found), asked)


def _symbol(found: Any, asked: tuple[str, int] | None = None) -> Any:
    return Free(str(found), asked) if isinstance(found, torch.SymInt) else found


def placed(found: Any, values: Mapping[str, Value], roots: SizeRoots) -> Any:
    """Sizes, with the earliest axis of equal size filled in for free ones."""
    if isinstance(found, (tuple, list)):
        return type(found)(placed(f, values, roots) for f in found)
    if not isinstance(found, Free) or found.asked is None or found.asked[0] not in values:
        return found
    value, axis = values[found.asked[0]], found.asked[1]
    return replace(found, place=roots.root(value, axis))
