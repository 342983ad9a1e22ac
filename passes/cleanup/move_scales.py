"""``move-scales``: bring scales and batch norms next to the linear layers that can absorb them."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import (
    Concat,
    Conv,
    ConvTranspose,
    DerivedTensor,
    Flatten,
    Graph,
    Linear,
    Node,
    Reshape,
    Rewriter,
    Scale,
    Squeeze,
    Value,
    sketch,
)
from ..infra.contract import Context, Pass
from ..infra.registry import register
from ..merge.algebra.nodes import data_input


@register
@dataclass(frozen=True)
class MoveScales(Pass):
    """Move scales through a concatenation of linear layers, in front of a reshape behind one, or past a flattening before one; exact.

    ``merge-linear`` merges them there. A scale stays where one of the layers could not absorb its part.
    """

    name = "move-scales"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        for node in graph.nodes:
            if not isinstance(node.op, Scale) or data_input(node) is None:
                continue
            before = node.required(0)
            joined = before.producer
            if joined is not None and isinstance(joined.op, Concat):
                _through_concat(node, joined, rw)
            elif joined is not None and _channels_in_front(node, joined) is not None:
                _in_front_of_reshape(node, joined, rw)
            elif node.output.has_one_use:
                _past_flattening(node, node.output.users[0], rw)


def _through_concat(node: Node, joined: Node, rw: Rewriter) -> None:
    assert isinstance(node.op, Scale)
    assert isinstance(joined.op, Concat)
    rank = joined.output.type.rank
    if rank is None or node.op.axis % rank != joined.op.axis % rank:
        return None
    if not joined.output.has_one_use:
        return rw.skip(node, "others read the concatenation in front of it")
    axis = joined.op.axis % rank
    parts = [joined.required(i) for i in range(len(joined.inputs))]
    sizes = [part.type.dim(axis) for part in parts]
    if not all(_absorbs(part, axis) for part in parts) or len(set(parts)) < len(parts):
        return rw.skip(node, "not all parts of the concatenation are linear layers of their own")
    ends, total = [], 0
    for size in sizes:
        if size is None:
            return rw.skip(node, "the sizes of the concatenation's parts are not known")
        ends.append((total, total + size))
        total += size
    reason = rw.unwritable(sketch(node.op, node.inputs))
    if reason is not None:
        return rw.skip(node, reason)
    with rw.rewrite("scale each part of a concatenation", node, joined):
        for place, (part, (start, end)) in enumerate(zip(parts, ends, strict=True)):
            vectors = [_piece(v, start, end, total, rw) for v in node.inputs[1:]]
            made = rw.insert(Scale(axis), [part, *vectors], before=joined, name=node.name)
            rw.set_input(joined, place, made.output)
        rw.replace(node, joined.op, joined.inputs)
        rw.erase(joined)
    return None


def _absorbs(value: Value, axis: int) -> bool:
    """Whether a value is the result of a linear layer, read once, with its channels along ``axis``."""
    maker = value.producer
    if maker is None or not value.has_one_use or data_input(maker) is None:
        return False
    if isinstance(maker.op, Linear):
        return value.type.rank == axis + 1
    return isinstance(maker.op, Conv | ConvTranspose) and axis == 1


def _piece(vector: Value | None, start: int, end: int, total: int, rw: Rewriter) -> Value | None:
    """The part of a constant vector for some channels; a single number is for all."""
    if vector is None or vector.data is None or (vector.data.size == 1 and total != 1):
        return vector
    data = vector.data
    piece = DerivedTensor(
        (end - start,), data.dtype, lambda: data.float64()[start:end], sources=(data,)
    )
    return rw.constant(piece, vector.name)


def _channels_in_front(node: Node, view: Node) -> int | None:
    """The axis of a linear layer's result that a scale behind a reshape works on.

    The last axes of equal size are the same, whatever the reshape does to those in front.
    """
    assert isinstance(node.op, Scale)
    if not isinstance(view.op, Flatten | Reshape) or not view.output.has_one_use:
        return None
    source, result = view.required(0).type, view.output.type
    if source.rank is None or result.rank is None or node.op.axis % result.rank != result.rank - 1:
        return None
    size, axis = source.dim(-1), source.rank - 1
    same = isinstance(size, int) and size == result.dim(-1)
    return axis if same and _absorbs(view.required(0), axis) else None


def _in_front_of_reshape(node: Node, view: Node, rw: Rewriter) -> None:
    """Let a scale behind a reshape work on the result of the linear layer in front of it."""
    axis, source = _channels_in_front(node, view), view.required(0)
    assert axis is not None
    reason = rw.unwritable(sketch(Scale(axis), [source, *node.inputs[1:]]))
    if reason is not None:
        return rw.skip(node, reason)
    with rw.rewrite("scale in front of the reshape", node, view):
        made = rw.insert(Scale(axis), [source, *node.inputs[1:]], before=view, name=node.name)
        rw.set_input(view, 0, made.output)
        rw.replace_uses(node.output, view.output)
        rw.erase(node)
    return None


def _past_flattening(node: Node, view: Node, rw: Rewriter) -> None:
    """Let the scale of channels without further sizes work on the flattened value that a dense layer reads."""
    assert isinstance(node.op, Scale)
    source, result = node.required(0), view.output
    shape, flat = source.type.shape, result.type.shape
    if not isinstance(view.op, Flatten | Reshape | Squeeze) or not result.has_one_use:
        return
    user, index = result.uses[0]
    if not isinstance(user.op, Linear) or index != 0 or shape is None or flat is None:
        return
    if node.op.axis % len(shape) != 1 or len(flat) != 2 or len(shape) < 3:
        return
    channels = source.type.dim(1)
    if channels is None or result.type.dim(1) != channels or any(d != 1 for d in shape[2:]):
        return
    scale = Scale(1)
    reason = rw.unwritable(sketch(scale, [result, *node.inputs[1:]]))
    if reason is not None or data_input(user) is None:
        return
    with rw.rewrite("scale behind the flattening", node, view):
        rw.set_input(view, 0, source)
        made = rw.insert(scale, [result, *node.inputs[1:]], after=view, name=node.name)
        rw.set_input(user, 0, made.output)
        rw.erase(node)
