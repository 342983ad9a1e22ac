"""``deduplicate``: constants with the same numbers become one, and so do nodes that compute the same.

Common subexpression elimination by hashing: the nodes are visited in topological order, and two nodes are the same if
their ops are equal and their inputs are the same values. Results of random and of unknown ops are never shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...ir import ArrayTensor, DType, Graph, LazyTensor, Node, Opaque, Rewriter, Value
from ..infra.contract import Context, Pass
from ..infra.registry import register

_START = 1024
"""The first numbers of constants are compared before all of them are read."""

_SMALL = 1 << 12
"""Constants of at most this many numbers are compared by their unrounded numbers."""


@register
@dataclass(frozen=True)
class Deduplicate(Pass):
    """Compute equal results once and store equal constants once; exact.

    Modules and parameters of torch stay as they are: equal ones may be trained apart, and hooks are called for each.
    """

    name = "deduplicate"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        if ctx.target == "fx":
            return
        _merge_constants(graph, rw)
        _merge_nodes(graph, rw)


def _merge_constants(graph: Graph, rw: Rewriter) -> None:
    """Let all readers of equal constants read the first of them."""
    candidates = [v for v in graph.constants if v.use_count and _is_comparable(v)]
    for alike in _groups(candidates, lambda v: v.type):
        for similar in _groups(alike, lambda v: _digest(v, _START)):
            for first, *others in _groups(similar, lambda v: _digest(v, None)):
                for value in others:
                    with rw.rewrite("share an equal constant", *value.users):
                        rw.replace_uses(value, first)
                        rw.erase_constant(value)


def _is_comparable(value: Value) -> bool:
    """Whether a constant is stored as it is: neither computed from others nor named by an output."""
    data = value.data
    stored = isinstance(data, ArrayTensor | LazyTensor) and data.dtype is not DType.STRING
    return stored and not value.bases and not value.is_output


def _groups(values: Iterable[Value], key: Callable[[Value], Hashable]) -> Iterator[list[Value]]:
    """The groups of at least two values with the same key, in order."""
    found: dict[Hashable, list[Value]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return (group for group in found.values() if len(group) > 1)


def _digest(value: Value, count: int | None) -> bytes:
    """A hash of the first ``count`` numbers of a constant, bit by bit; of all if ``None``."""
    assert value.data is not None
    numbers = value.data.numpy().reshape(-1)[:count]
    return hashlib.sha256(numbers.tobytes()).digest()


def _merge_nodes(graph: Graph, rw: Rewriter) -> None:
    """Let all readers of equal nodes read the results of the first of them."""
    seen: dict[Hashable, Node] = {}
    same = _same_numbers(graph)
    bases = {base for v in graph.constants for base in v.bases}
    for node in graph.nodes:
        # What is computed from constants belongs to fold-constants.
        if not node.outputs or any(v.data is not None or v in bases for v in node.outputs):
            continue
        key = _key(node, same)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is not node and _may_replace(first, node):
            if _is_inner(node):
                # It goes only together with the node of the host that it is a part of.
                same.update(zip(node.outputs, first.outputs, strict=True))
                continue
            with rw.rewrite(f"share the result of an equal {node.op.name}", node, first):
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    new.type = new.type.refined(old.type)
                    rw.replace_uses(old, new)
                _erase_all(node, rw)


def _is_inner(node: Node) -> bool:
    """Whether a node is a part of a host node that became several, whose results it does not make."""
    return getattr(node.origin, "parts", 1) > 1 and not any(
        isinstance(v.host, str) for v in node.outputs
    )


def _erase_all(node: Node, rw: Rewriter) -> None:
    """Remove a node, and the inner ones in front of it that nothing else reads."""
    pending = [node]
    while pending:
        dead = pending.pop()
        if dead.graph is None or any(v.use_count for v in dead.outputs):
            continue
        makers = [v.producer for v in dead.inputs if v is not None]
        rw.erase(dead)
        pending += [maker for maker in makers if maker is not None and _is_inner(maker)]


def _same_numbers(graph: Graph) -> dict[Value, Value]:
    """For small constants that are other forms of host values, the first one with the same unrounded numbers."""
    found: dict[Hashable, Value] = {}
    same: dict[Value, Value] = {}
    for value in graph.constants:
        data = value.data
        if data is None or not value.use_count or not value.bases or data.size > _SMALL:
            continue
        if data.dtype.is_wide_float:
            same[value] = found.setdefault((data.type, data.float64().tobytes()), value)
    return same


def _key(node: Node, same: Mapping[Value, Value]) -> Hashable:
    """Equal for nodes that compute the same; ``None`` for a node that is like no other."""
    parts: list[Hashable] = [tuple(same.get(v, v) if v is not None else None for v in node.inputs)]
    if isinstance(node.op, Opaque):
        if not node.op.pure or not node.op.signature:
            return None
        parts += [node.op.signature, tuple(v.host is None for v in node.outputs)]
    # Unlike equality, the representation tells -0.0 from 0.0.
    return (*parts, repr(node.op), _is_inner(node))


def _may_replace(first: Node, node: Node) -> bool:
    """Whether the results of one node can take the place of those of an equal one."""
    return all(
        new.type.accepts(old.type) and not (new.is_output and old.is_output)
        for old, new in zip(node.outputs, first.outputs, strict=True)
    )
