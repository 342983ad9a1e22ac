"""Pieces of a result that are taken several times (``p[1] + p[1]`` behind ``p = x.chunk(2)``) or by name (``x.topk(3).values``)."""

from __future__ import annotations

import builtins
import copy as copying
import operator
from collections.abc import Mapping

from torch import fx

from ...hosts.torch.buffers import keep_temporary, temporary
from ...hosts.torch.calls import call_name
from .registry import PIECES

_SORTED = ("values", "indices")

_NAMES: Mapping[str, tuple[str, ...]] = {
    "aminmax": ("min", "max"),
    **dict.fromkeys(
        (
            "cummax",
            "cummin",
            "kthvalue",
            "max",
            "median",
            "min",
            "mode",
            "nanmedian",
            "sort",
            "topk",
        ),
        _SORTED,
    ),
}
"""The names of the pieces of calls, in order."""


def pieces_taken_once(module: fx.GraphModule, lengths: Mapping[str, int]) -> fx.GraphModule:
    """The module itself, or one with its parts whose graph takes each piece of a call once, and by place; the given one is not changed.

    Args:
        module: The module.
        lengths: Known numbers of pieces by the name of the call: places that are negative count from there.
    """
    first: dict[tuple[fx.Node, int], fx.Node] = {}
    again: dict[fx.Node, fx.Node] = {}
    named: dict[fx.Node, tuple[fx.Node, int]] = {}
    for node in module.graph.nodes:
        place = _named_place(node)
        if place is not None:
            named[node] = place
        elif node.op == "call_function" and node.target is operator.getitem:
            source, index = node.args
            if not isinstance(source, fx.Node) or type(index) is not int:
                continue
            if not _is_tuple(source, module):
                continue
            place = source, index + lengths.get(source.name, 0) if index < 0 else index
        else:
            continue
        found = first.setdefault(place, node)
        if found is not node:
            again[node] = found
    if not again and not named:
        return module
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        if node in again:
            made[node] = made[again[node]]
        elif node in named:
            source, index = named[node]
            made[node] = graph.create_node(
                "call_function", operator.getitem, (made[source], index), name=node.name
            )
            made[node].meta = copying.copy(node.meta)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.set_codegen(module.graph._codegen)
    copy = fx.GraphModule(module, graph, type(module).__name__)
    copy.training = module.training
    copy.meta = dict(getattr(module, "meta", {}))
    keep_temporary(copy, temporary(module))
    return copy


def _named_place(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The call whose piece a node takes by name, and the place of the piece."""
    if node.op != "call_function" or node.target is not builtins.getattr:
        return None
    source, name = node.args[:2]
    if not isinstance(source, fx.Node) or source.op not in ("call_function", "call_method"):
        return None
    names = _NAMES.get(call_name(source.target).rpartition(".")[2], ())
    return (source, names.index(str(name))) if name in names else None


def _is_tuple(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a call gives a tuple or a list of tensors, the same object each time that a piece is taken."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) in PIECES
    return node.op in ("call_function", "call_method") and call_name(node.target) in PIECES
