"""Numbers that a traced module computes from shapes, such as ``x.shape[1] // 2``.

Where shapes are known these calls have known results, which are arguments like any others; they are no nodes of
the IR. The size of axis 0 is that of the example only, and torch.export has symbols: such a size is
:class:`~.call.Free`, which only reshapes and ``expand`` take, so that it is never baked into a weight. A size that follows
another axis of the inputs (:mod:`.resized_runs`) is :class:`~.call.Followed`.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from ...hosts.torch.calls import by_name, shape_of_other
from ...ir import TensorType, Value
from ...ir.analysis.sizes import SizeRoots
from .call import Followed, Free
from .runs import Runs, Sizes

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


_ONE_RUN = Runs()
"""No other runs."""


def is_plain(found: Any) -> bool:
    """Whether a result consists of numbers, types and devices only."""
    if isinstance(found, (tuple, list)):
        return all(map(is_plain, found))
    if isinstance(found, slice):
        return all(map(is_plain, (found.start, found.stop, found.step)))
    return isinstance(found, _PLAIN)


def known_sizes(
    nodes: Sequence[fx.Node], results: Mapping[str, Any], runs: Runs = _ONE_RUN
) -> dict[str, Any]:
    """The calls that depend only on shapes, each with its result.

    Args:
        nodes: The host's nodes in order.
        results: The results that are no tensors, from a run on fake tensors or from the export.
        runs: The runs with other sizes.
    """
    if any(n.op == "call_method" and n.target in _RESHAPING for n in nodes):
        return {}
    found: dict[str, Any] = {}
    for node in nodes:
        if node.op not in ("call_function", "call_method") or node.name not in results:
            continue
        result, sources = results[node.name], node.all_input_nodes
        if _asks_a_tensor(node) and sources[0].name not in results:
            found[node.name] = _shape_of(node, result, runs)
        elif sources and all(s.name in found for s in sources):
            others = [r.results.get(node.name) for r in runs.resized]
            found[node.name] = _computed(node, result, found, others)
    return found


def asks_sizes(nodes: Sequence[fx.Node]) -> bool:
    """Whether any call asks a tensor for its shape, or makes another one as large."""
    calls = [n for n in nodes if n.op in ("call_function", "call_method")]
    return any(_asks_a_tensor(n) or shape_of_other(n) is not None for n in calls)


def cuts_nothing(nodes: Sequence[fx.Node], types: Mapping[str, TensorType]) -> bool:
    """Whether any slice takes all of its input, which it may not do for a longer one."""
    cuts = (operator.getitem, torch.narrow, "narrow")
    return any(
        n.target in cuts
        and (kind := types.get(n.name)) is not None
        and kind == types.get(getattr(n.args[0] if n.args else None, "name", ""))
        for n in nodes
        if n.op.startswith("call_") and n.op != "call_module"
    )


def _asks_a_tensor(node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1 or node.args[:1] != (node.all_input_nodes[0],):
        return False
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is builtins.getattr:
        return len(node.args) == 2 and node.args[1] in _ATTRIBUTES
    return node.target is torch.ops.aten.sym_size.int


def _shape_of(node: fx.Node, result: Any, runs: Runs) -> Any:
    """A shape query's result, with sizes that the next call may change replaced by placeholders."""
    source = node.all_input_nodes[0].name
    seen = (result, *(r.results.get(node.name) for r in runs.resized))
    if isinstance(result, tuple):
        return tuple(_size(d, (source, i), runs) for i, d in enumerate(result))
    if not isinstance(result, (int, torch.SymInt)) or node.target in ("dim", "ndimension"):
        return result
    if node.target in ("numel", "nelement"):
        return _free(result, runs=seen)
    if node.target is builtins.getattr:
        return result  # The number of axes.
    axis = node.args[1] if len(node.args) > 1 else by_name(node.kwargs, "dim")
    kind = runs.found.get(source)
    if type(axis) is int and axis < 0 and kind is not None and kind.rank is not None:
        axis += kind.rank
    # Without a known rank, a negative axis may be that of batches.
    if type(axis) is not int or axis < 0:
        return _free(result, runs=seen)
    return _size(result, (source, axis), runs)


def _size(found: Any, asked: tuple[str, int], runs: Runs) -> Any:
    """The size of one axis: free where it follows the size of batches, or is a symbol."""
    source, axis = asked
    seen = runs.sizes(source, axis)
    in_batches = [r.found for r in runs.resized if r.batch]
    moves = seen is not None and any(
        source in run and run[source].dim(axis) not in (found, None) for run in in_batches
    )
    if axis == 0 or moves:
        return _free(found, asked, seen or ())
    if type(found) is int and seen is not None and runs.follows(source, axis):
        return Followed(found, asked, runs=seen)
    return _symbol(found, asked)


def _computed(node: fx.Node, result: Any, found: Mapping[str, Any], others: Sequence[Any]) -> Any:
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        source, index = node.args
        taken = found[source.name] if isinstance(source, fx.Node) else None
        if isinstance(taken, (tuple, list)) and isinstance(index, (int, slice)):
            return taken[index]
    sources = [found[s.name] for s in node.all_input_nodes]
    if any(map(_is_free, sources)):
        follows = all(_is_free(s, Followed) or not _is_free(s) for s in sources)
        return _all_free(result, others, follows=follows)
    return result


def _is_free(found: Any, kind: type[Free] = Free) -> bool:
    """Whether any of some sizes is free; with a kind, whether all that are free are of this kind."""
    leaves = tree_leaves(found)
    free = [f for f in leaves if isinstance(f, Free)]
    return bool(free) and all(isinstance(f, kind) for f in free)


def _all_free(found: Any, others: Sequence[Any], *, follows: bool) -> Any:
    """The results of a computation with free sizes.

    Args:
        found: Those of the run on the example inputs.
        others: Those of the other runs.
        follows: Whether they depend on no batch.
    """
    if isinstance(found, (tuple, list)):
        whole = all(isinstance(o, (tuple, list)) and len(o) == len(found) for o in others)
        return tuple(
            _all_free(f, [o[i] for o in others] if whole else (), follows=follows and whole)
            for i, f in enumerate(found)
        )
    if type(found) is int and follows:
        return Followed(found, runs=(found, *others))
    return _free(found, runs=(found, *others))


def _free(found: Any, asked: tuple[str, int] | None = None, runs: Sizes = ()) -> Any:
    plain = isinstance(found, (int, float)) and not isinstance(found, bool)
    return Free(found if plain else str(found), asked, runs=runs if plain else ())


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
