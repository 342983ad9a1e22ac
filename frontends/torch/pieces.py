"""Pieces of a result that are taken several times: ``p[1] + p[1]`` behind ``p = x.chunk(2)``."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx

from ...hosts.torch.buffers import keep_temporary, temporary
from ...hosts.torch.calls import call_name
from .registry import PIECES


def pieces_taken_once(module: fx.GraphModule, lengths: Mapping[str, int]) -> fx.GraphModule:
    """The module itself, or one with its parts whose graph takes each piece of a call once; the given one is not changed.

    Args:
        module: The module.
        lengths: Known numbers of pieces by the name of the call: places that are negative count from there.
    """
    first: dict[tuple[fx.Node, int], fx.Node] = {}
    again: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is not operator.getitem:
            continue
        source, index = node.args
        if isinstance(source, fx.Node) and type(index) is int and _is_tuple(source, module):
            place = index + lengths.get(source.name, 0) if index < 0 else index
            found = first.setdefault((source, place), node)
            if found is not node:
                again[node] = found
    if not again:
        return module
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        made[node] = made[again[node]] if node in again else graph.node_copy(node, made.__getitem__)
    graph.set_codegen(module.graph._codegen)
    copy = fx.GraphModule(module, graph, type(module).__name__)
    copy.training = module.training
    copy.meta = dict(getattr(module, "meta", {}))
    keep_temporary(copy, temporary(module))
    return copy


def _is_tuple(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a call gives a tuple or a list of tensors, the same object each time that a piece is taken."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) in PIECES
    return node.op in ("call_function", "call_method") and call_name(node.target) in PIECES
