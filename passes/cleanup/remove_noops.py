"""``remove-noops``: remove nodes that give back what they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import (
    Cast,
    Concat,
    Div,
    DType,
    Expand,
    Flatten,
    Graph,
    Mul,
    Node,
    Pad,
    Reshape,
    Rewriter,
    Scale,
    Slice,
    Split,
    Squeeze,
    Sub,
    Transpose,
    Unsqueeze,
    Value,
)
from ...ir.analysis.sizes import SizeRoots
from ..infra.contract import Context, Pass
from ..infra.registry import register
from .zero_states import drop_zero_states


@register
@dataclass(frozen=True)
class RemoveNoops(Pass):
    """Remove casts, reshapes, transposes, slices, pads, scales by one and others that give back what they read, and initial states of zero; exact.

    Nodes of traced modules stay if only the sizes of the example make them needless. Where a size is not known, a node goes only if it cannot change it: a reshape that copies all sizes but one, say.
    """

    name = "remove-noops"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        roots = SizeRoots()
        # The sizes of a traced module are those of an example: another batch may differ in them.
        rules = {op: r for op, r in _RULES.items() if op not in _BY_SIZE or ctx.target != "fx"}
        for node in graph.nodes:
            rule = rules.get(type(node.op))
            if rule is None or len(node.outputs) != 1 or node.output.data is not None:
                continue
            source = rule(node, roots)
            if source is not None and source.data is None:
                bypass(node, source, rw)
        if ctx.target != "fx":
            drop_zero_states(graph, rw)


def bypass(node: Node, source: Value, rw: Rewriter) -> bool:
    """Let the readers of a node that gives back ``source`` read that; returns whether they do.

    A graph output that is an input, a constant or another output needs a node of its own.
    """
    result = node.output
    if not result.type.accepts(source.type) or not result.use_count:
        return False
    if result.is_output and (source.producer is None or source.is_output):
        rw.skip(node, "an output that is an input or another output needs a node of its own")
        return False
    with rw.rewrite(f"remove needless {node.op.name}", node):
        # The type of an input is part of the signature and must not be narrowed.
        if source.producer is not None:
            source.type = source.type.refined(result.type)
        rw.replace_uses(result, source)
        rw.erase(node)
    return True


def same_shape(result: Value, source: Value, roots: SizeRoots) -> bool:
    """Whether two values certainly have the same shape."""
    a, b = result.type.shape, source.type.shape
    if a is None or b is None or len(a) != len(b):
        return False
    return all(
        (isinstance(p, int) and p == q) or roots.root(result, i) == roots.root(source, i)
        for i, (p, q) in enumerate(zip(a, b, strict=True))
    )


def _if_same_shape(node: Node, roots: SizeRoots) -> Value | None:
    source = node.required(0)
    return source if same_shape(node.output, source, roots) else None


def _reshape(node: Node, roots: SizeRoots) -> Value | None:
    """The input of a reshape to the same shape; one size may be left over, since the number of elements is the same."""
    source, result = node.required(0), node.output
    a, b = result.type.shape, source.type.shape
    if a is None or b is None or len(a) != len(b) or 0 in a or 0 in b:
        return None
    open_ = [
        i
        for i, (p, q) in enumerate(zip(a, b, strict=True))
        if not (isinstance(p, int) and p == q) and roots.root(result, i) != roots.root(source, i)
    ]
    if len(open_) > 1:
        return None
    if open_:
        # With a size of zero among the others, the open one could change; a size that is left over (-1) has no value then.
        others = [d for i, d in enumerate(b) if i != open_[0]]
        is_left = isinstance(node.op, Reshape) and node.op.shape[open_[0]] == -1
        if not is_left and not all(isinstance(d, int) for d in others):
            return None
    return source


def _cast(node: Node, _: SizeRoots) -> Value | None:
    assert isinstance(node.op, Cast)
    source = node.required(0)
    return source if source.type.dtype is DType(node.op.to) else None


def _only_input(node: Node, _: SizeRoots) -> Value | None:
    return node.input(0) if len(node.inputs) == 1 else None


def _pad(node: Node, _: SizeRoots) -> Value | None:
    assert isinstance(node.op, Pad)
    return None if any(node.op.pads) else node.input(0)


def _transpose(node: Node, _: SizeRoots) -> Value | None:
    assert isinstance(node.op, Transpose)
    return node.input(0) if node.op.perm == tuple(range(len(node.op.perm))) else None


def _slice(node: Node, _: SizeRoots) -> Value | None:
    """The input of a slice that keeps every axis whole."""
    assert isinstance(node.op, Slice)
    source, op = node.required(0), node.op
    for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
        size = source.type.dim(axis)
        whole = end >= 2**31 - 1 if size is None else end >= size or size == 0
        if step != 1 or not whole or (start != 0 and (size is None or start > -size)):
            return None
    return source


def _squeeze(node: Node, _: SizeRoots) -> Value | None:
    assert isinstance(node.op, Squeeze | Unsqueeze)
    return None if node.op.axes else node.input(0)


def _neutral(number: int, places: tuple[int, ...]) -> Callable[[Node, SizeRoots], Value | None]:
    """A rule for an operation that a constant operand full of ``number`` leaves without effect, bit by bit."""

    def rule(node: Node, roots: SizeRoots) -> Value | None:
        for place in places:
            constant, other = node.required(place), node.required(1 - place)
            if constant.data is None or constant.data.size > _MOST:
                continue
            if _is_full_of(constant.data.numpy(), number) and same_shape(node.output, other, roots):
                return other
        return None

    return rule


_MOST = 1 << 16
"""Larger constants are not read to find out whether they have an effect."""


def _is_full_of(array: Any, number: int) -> bool:
    if array.dtype.kind not in "iuf":
        return False
    # Adding -0.0 would be needless as well, but x - (-0.0) changes the sign of a zero.
    return bool(np.all(array == number) and not np.signbit(array).any())


def _scale(node: Node, _: SizeRoots) -> Value | None:
    """The input of a scale by one, without a shift or with one of -0.0; adding 0.0 would change the sign of a zero."""
    source, factor, shift = node.required(0), node.input(1), node.input(2)
    for constant, number, negative in ((factor, 1, False), (shift, 0, True)):
        data = constant.data if constant is not None else None
        if constant is None:
            continue
        if data is None or data.size > _MOST or not data.dtype.is_wide_float:
            return None
        array = data.float64()
        if not np.all(array == number) or not np.all(np.signbit(array) == negative):
            return None
    return source


_RULES: dict[type, Callable[[Node, SizeRoots], Value | None]] = {
    Cast: _cast,
    Concat: _only_input,
    Div: _neutral(1, (1,)),
    Expand: _if_same_shape,
    Flatten: _reshape,
    Mul: _neutral(1, (0, 1)),
    Pad: _pad,
    Reshape: _reshape,
    Scale: _scale,
    Slice: _slice,
    Split: _only_input,
    Squeeze: _squeeze,
    Sub: _neutral(0, (1,)),
    Transpose: _transpose,
    Unsqueeze: _squeeze,
}

_BY_SIZE = (Div, Expand, Flatten, Mul, Reshape, Scale, Slice, Sub)
"""The ops whose rules compare sizes, and scales, which are modules in torch."""
