"""Names of the inputs and outputs of a torch module, as its author knows them."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from ...ir import Graph


def input_names(graph: Graph) -> list[str]:
    """The arguments of ``forward``, for a graph from torch; fx renames those that are called like built-in functions."""
    order = graph.host.order
    names = [str(order[v.host].target) if v.host in order else v.name for v in graph.inputs]
    return unique([name.lstrip("*") for name in names])


def output_names(graph: Graph) -> list[str]:
    """The keys and fields of what ``forward`` returns; ``output`` for a tensor, ``output_1`` for the second of a tuple."""
    count = len(graph.outputs)
    try:
        paths = _leaf_paths(graph.host.module.graph)
    except (TypeError, ValueError):  # A container that cannot be taken apart.
        paths = []
    if len(paths) != count:
        paths = [(i,) for i in range(count)] if count > 1 else [()] * count
    return unique([_name(path) for path in paths])


def unique(names: list[str]) -> list[str]:
    """The names, with a number behind those that came before."""
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        own, number = name, 1
        while own in seen or (own != name and own in taken):
            own, number = f"{name}_{number}", number + 1
        seen.add(own)
        found.append(own)
    return found


def _leaf_paths(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The path of each tensor in what a traced module returns: keys, fields and places."""
    returned: Any = next(n for n in graph.nodes if n.op == "output").args[0]
    shape = getattr(getattr(graph._codegen, "pytree_info", None), "out_spec", None)
    if shape is not None and isinstance(returned, list | tuple):
        returned = tree_unflatten(list(returned), shape)
    leaves, _ = tree_flatten_with_path(returned)
    return [tuple(_key(k) for k in path) for path, leaf in leaves if isinstance(leaf, fx.Node)]


def _key(entry: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _name(path: tuple[Any, ...]) -> str:
    words = [str(part) for part in path]
    if not path or isinstance(path[0], int):
        words.insert(0, "output")
    return "_".join(words)


__all__ = ["input_names", "output_names", "unique"]
