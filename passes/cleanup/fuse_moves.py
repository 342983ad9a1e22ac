"""``fuse-moves``: two nodes in a row that only move, cut or join elements become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...ir import (
    Cast,
    Concat,
    DType,
    Flatten,
    Graph,
    Node,
    Op,
    Reshape,
    Rewriter,
    Slice,
    Squeeze,
    Transpose,
    Unary,
    Unsqueeze,
    Value,
    sketch,
)
from ...ir.analysis.sizes import SizeRoots
from ..infra.contract import Context, Pass
from ..infra.registry import register
from .cancel_reshapes import RESHAPES
from .remove_noops import bypass, same_shape


@register
@dataclass(frozen=True)
class FuseMoves(Pass):
    """Fuse chains of transposes, reshapes, slices, casts, concatenations and of functions such as negation; exact.

    Reshapes of traced modules stay, since other batches have other sizes than the example. A pair that together gives back what it read is removed, even if others read the value between the two.
    """

    name = "fuse-moves"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        # The sizes of a traced module are those of an example: another batch may differ in them.
        roots = SizeRoots() if ctx.target != "fx" else None
        for node in graph.nodes:
            while node.graph is graph and _step(node, rw, roots):
                pass


def _step(node: Node, rw: Rewriter, roots: SizeRoots | None) -> bool:
    """Fuse a node with one that it reads; returns whether the node may fuse with another one."""
    if isinstance(node.op, Concat):
        return _flatten_concat(node, rw)
    found = _fused(node, roots)
    if found is None:
        return False
    between = node.required(0)
    first = between.producer
    assert first is not None
    if isinstance(found, Value):
        fused = bypass(node, found, rw)
    elif between.is_output or any(_fused(user, roots) is None for user in between.users):
        # Somebody else reads the value between the two: one node would only take the place of another.
        return False
    else:
        fused = _replace(node, first, found, [first.required(0)], rw)
    if fused and not between.use_count:
        with rw.rewrite(f"remove unused {first.op.name}", first):
            rw.erase(first)
    return fused and node.graph is not None


def _fused(node: Node, roots: SizeRoots | None) -> Op | Value | None:
    """What a node and the one before it are together: one op, or the value that the first one reads."""
    if len(node.outputs) != 1 or node.output.data is not None or not node.inputs:
        return None
    between = node.inputs[0]
    first = between.producer if between is not None else None
    if between is None or first is None or between.data is not None or not first.inputs:
        return None
    source = first.inputs[0]
    if source is None or source.data is not None:
        return None
    kinds = (type(first.op), type(node.op))
    if kinds[0] is kinds[1] and kinds[0] in _RULES:
        return _RULES[kinds[0]](node, first, roots)
    return _views(node, first, roots) if _is_view(first) and _is_view(node) else None


def _is_view(node: Node) -> bool:
    """Whether a node keeps the elements in order: reshapes, and transposes that only move axes of size 1."""
    if not isinstance(node.op, Transpose):
        return isinstance(node.op, RESHAPES)
    moved = [p for p in node.op.perm if node.required(0).type.dim(p) != 1]
    return moved == sorted(moved)


def _replace(node: Node, first: Node, op: Op, inputs: list[Value], rw: Rewriter) -> bool:
    reason = rw.unwritable(sketch(op, inputs))
    if reason is not None:
        rw.skip(node, reason)
        return False
    made = op.infer([v.type for v in inputs])
    if made is None or not node.output.type.accepts(made[0]):
        return False
    with rw.rewrite(f"fuse {first.op.name} into {node.op.name}", first, node):
        rw.replace(node, op, inputs)
    return True


def _transposes(node: Node, first: Node, _: SizeRoots | None) -> Op | Value | None:
    assert isinstance(node.op, Transpose)
    assert isinstance(first.op, Transpose)
    perm = tuple(first.op.perm[p] for p in node.op.perm)
    return first.required(0) if perm == tuple(range(len(perm))) else Transpose(perm)


def _slices(node: Node, first: Node, _: SizeRoots | None) -> Op | Value | None:
    """One slice for two that cut different axes."""
    a, b = first.op, node.op
    assert isinstance(a, Slice)
    assert isinstance(b, Slice)
    rank = first.required(0).type.rank
    if rank is None:
        return None
    if {x % rank for x in a.axes} & {x % rank for x in b.axes}:
        return None
    return Slice(a.starts + b.starts, a.ends + b.ends, a.axes + b.axes, a.steps + b.steps)


_FLOATS = (DType.F16, DType.F32, DType.F64)


def _casts(node: Node, first: Node, _: SizeRoots | None) -> Op | Value | None:
    """One cast for two, if the first one loses nothing."""
    assert isinstance(node.op, Cast)
    source, between, to = first.required(0).type.dtype, node.required(0).type.dtype, node.op.to
    if source is None or between is None or not _is_wider(source, between):
        return None
    if source is DType(to):
        return first.required(0)
    # Numbers that are out of range of an integer type come out as the runtime likes.
    wanted = DType(to)
    same_kind = source.is_int and wanted.is_int
    return Cast(to) if wanted.is_wide_float or wanted is DType.BOOL or same_kind else None


def _is_wider(narrow: DType, wide: DType) -> bool:
    """Whether a type holds all numbers of another one."""
    if narrow is wide:
        return True
    if narrow in _FLOATS and wide in _FLOATS:
        return _FLOATS.index(narrow) < _FLOATS.index(wide)
    if narrow is DType.BF16:
        return wide in (DType.F32, DType.F64)
    both = narrow.is_int and wide.is_int and narrow.value[0] == wide.value[0]
    return both and narrow.bits < wide.bits


def _views(node: Node, first: Node, roots: SizeRoots | None) -> Op | Value | None:
    """One reshape for two nodes that keep the elements in order, or their input if the shape is the same."""
    source, result = first.required(0), node.output
    squeezed = _squeezes(node, first)
    if squeezed is not None or roots is None:
        return squeezed
    if same_shape(result, source, roots):
        return source
    shape = result.type.shape
    if shape is None or 0 in shape:
        return None
    target: list[int | None] = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            target.append(size)
        elif axis < (source.type.rank or 0) and roots.root(result, axis) == roots.root(
            source, axis
        ):
            target.append(None)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and None in target):
        return None
    if -1 in target and not _holds_elements(source, target):
        return None
    return Reshape(tuple(target))


def _holds_elements(source: Value, target: list[int | None]) -> bool:
    """Whether one size that is left over comes out right, also where there are no elements: nothing else is open."""
    return (
        all(isinstance(d, int) and d > 0 for d in target if d != -1)
        and source.type.rank is not None
    )


def _squeezes(node: Node, first: Node) -> Op | Value | None:
    """One node for two squeezes or unsqueezes, told by axes alone."""
    rank = first.required(0).type.rank
    if rank is None:
        return None
    kept: list[int | None] = list(range(rank))
    for op in (first.op, node.op):
        if isinstance(op, Squeeze):
            gone = {a % len(kept) for a in op.axes}
            kept = [axis for i, axis in enumerate(kept) if i not in gone]
        elif isinstance(op, Unsqueeze):
            total = len(kept) + len(op.axes)
            new = {a % total for a in op.axes}
            rest = iter(kept)
            kept = [None if i in new else next(rest) for i in range(total)]
        else:
            return None
    lost = tuple(i for i in range(rank) if i not in kept)
    added = tuple(i for i, axis in enumerate(kept) if axis is None)
    if lost and added:
        return None
    if lost:
        return Squeeze(lost)
    return Unsqueeze(added) if added else first.required(0)


def _unaries(node: Node, first: Node, _: SizeRoots | None) -> Op | Value | None:
    """What two equal functions in a row give: the input, or what one of them gives."""
    assert isinstance(node.op, Unary)
    if node.op != first.op:
        return None
    if node.op.kind in _INVERSE:
        return first.required(0)
    return node.required(0) if node.op.kind in _IDEMPOTENT else None


_INVERSE = ("neg", "not")
"""Functions that undo themselves, to the bit."""

_IDEMPOTENT = ("abs", "ceil", "floor", "round", "sign")
"""Functions that change nothing the second time."""


def _flatten_concat(node: Node, rw: Rewriter) -> bool:
    """Let a concatenation read the parts of one that it reads, along the same axis."""
    assert isinstance(node.op, Concat)
    rank = node.output.type.rank
    parts: list[Value] = []
    inner: list[Node] = []
    for value in node.inputs:
        assert value is not None
        maker = value.producer
        if (
            rank is not None
            and maker is not None
            and isinstance(maker.op, Concat)
            and value.has_one_use
            and value.data is None
            and maker.op.axis % rank == node.op.axis % rank
        ):
            inner.append(maker)
            parts += [maker.required(i) for i in range(len(maker.inputs))]
        else:
            parts.append(value)
    if not inner or not _replace(node, inner[0], node.op, parts, rw):
        return False
    for maker in inner:
        with rw.rewrite("remove unused Concat", maker):
            rw.erase(maker)
    return True


_RULES: dict[type, Callable[[Node, Node, SizeRoots | None], Op | Value | None]] = {
    Cast: _casts,
    Flatten: _views,
    Reshape: _views,
    Slice: _slices,
    Squeeze: _views,
    Transpose: _transposes,
    Unary: _unaries,
    Unsqueeze: _views,
}
"""The rules for two nodes of one kind."""
