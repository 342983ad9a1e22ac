"""Regions of exported programs: calls of a graph with gradients or autocast switched, which become part of the program.

Gradients change no result, and disabled autocast none outside autocast; where either could matter, a note says so. A region under
autocast stays a call.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .registry import refuses

_GRADIENTS = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"

refuses(_AUTOCAST, reason="it computes under autocast")
refuses(_GRADIENTS, reason="it is a region with gradients switched that is not called as torch.export calls it")  # fmt: skip


def inline_regions(module: fx.GraphModule) -> list[str]:
    """Replace regions of a program by their calls, as far as that gives the same results.

    Args:
        module: The module of an exported program; its graph is changed.

    Returns:
        Notes on what the result does otherwise.
    """
    notes: dict[str, None] = {}
    pending = [n for n in module.graph.nodes if _name(n)]
    if not pending:
        return []
    while pending:
        node = pending.pop()
        name, found = _name(node), _region(module, node)
        if name == _AUTOCAST and node.args[2] is not False:
            notes["parts of the program compute under autocast: these are left alone"] = None
            continue
        if found is None:
            continue
        graph, prefix, args = found
        if name == _AUTOCAST:
            notes["parts of the program disable autocast: the result does not, if it is called under autocast"] = None  # fmt: skip
        elif node.args[0] is False and any(_needs_gradients(module, a) for a in args):
            notes["parts of the program compute without gradients: in the result, gradients go through them"] = None  # fmt: skip
        pending += _inline(module.graph, node, graph, prefix, args)
    module.recompile()
    return list(notes)


def _name(node: fx.Node) -> str:
    """The name of a region's call; empty for other calls."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return ""
    return node.target._name if node.target._name in (_GRADIENTS, _AUTOCAST) else ""


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Graph, str, Sequence[Any]] | None:
    """The graph of a region, its name in the module, and its arguments; ``None`` where it is not as torch.export writes it."""
    place = next((i for i, a in enumerate(node.args) if isinstance(a, fx.Node)), None)
    if place is None or node.kwargs:
        return None
    part: Any = node.args[place]
    if part.op != "get_attr":
        return None
    held = operator.attrgetter(str(part.target))(module)
    plain = all(u.target is operator.getitem and type(u.args[1]) is int for u in node.users)
    if not isinstance(held, fx.GraphModule) or not plain:
        return None
    args = node.args[place + 1 :]
    taken = [n for n in held.graph.nodes if n.op == "placeholder"]
    results = next(n for n in held.graph.nodes if n.op == "output").args[0]
    if len(taken) != len(args) or not isinstance(results, (tuple, list)):
        return None
    return held.graph, str(part.target), args


def _inline(
    graph: fx.Graph, node: fx.Node, inner: fx.Graph, prefix: str, args: Sequence[Any]
) -> list[fx.Node]:
    """Copy a region's calls in front of its own; returns the regions among them."""
    rest, env, regions = iter(args), dict[fx.Node, Any](), []
    results: Sequence[Any] = ()
    with graph.inserting_before(node):
        for found in inner.nodes:
            if found.op == "placeholder":
                env[found] = next(rest)
            elif found.op == "output":
                results = fx.map_arg(found.args[0], lambda n: env[n])  # type: ignore[assignment]
            else:
                env[found] = made = graph.node_copy(found, lambda n: env[n])
                if made.op == "get_attr":
                    made.target = f"{prefix}.{made.target}"
                if _name(made):
                    regions.append(made)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index,call-overload]
        graph.erase_node(user)
    part = next(a for a in node.args if isinstance(a, fx.Node))
    graph.erase_node(node)
    if not part.users:
        graph.erase_node(part)
    return regions


def _needs_gradients(module: fx.GraphModule, found: Any) -> bool:
    """Whether a value depends on a tensor that is trained."""
    pending, seen = [found], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        pending += node.all_input_nodes
        held = operator.attrgetter(str(node.target))(module) if node.op == "get_attr" else None
        if isinstance(held, torch.Tensor) and held.requires_grad:
            return True
    return False


__all__ = ["inline_regions"]
