"""Raising: patterns that hosts spell with several nodes become one op.

Works on the IR, so that every frontend gets the same result. What lies inside a pattern must have no
other reader; the raised node keeps the origins of all its parts, so that it can be emitted as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir import (
    Activation,
    Compare,
    Div,
    DType,
    GlobalAveragePool,
    Graph,
    GroupNorm,
    InferenceError,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Op,
    Reduce,
    Reshape,
    Rewriter,
    Scale,
    Select,
    Slice,
    Split,
    Squeeze,
    Sub,
    Tensor,
    Transpose,
    Unary,
    Value,
)
from ...ir.ops.base import axis_of
from ..lowering.activations import HARD_SIGMOID
from ..support import reads_pattern
from .gelu import gelu, gelu_halved, is_square
from .matching import Found, near, producer, scales_by

Combine = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
"""Makes one origin from the origins of the parts, the host inputs and the host outputs."""


def raise_patterns(graph: Graph, combine: Combine) -> None:
    """Raise SiLU, GELU, HardSwish, norms written out, the bias of a dense layer and picks of one index, in place.

    Args:
        graph: A freshly imported graph.
        combine: Joins origins; called with (origins, ``Value.host`` of inputs, of outputs).
    """
    rw, refined = Rewriter(graph), False
    for node in graph.nodes:
        if any(v.data is not None for v in node.outputs):
            continue  # Skip nodes that compute constants.
        if isinstance(node.op, Split):
            _unbind(rw, node, node.op, combine)
        for rule in _RULES.get(type(node.op), ()):
            found = rule(node)
            if found is not None and not any(_is_part(n) for n in (*found[2], node)):
                known = node.output.type
                _apply(rw, node, *found, combine)
                refined |= node.output.type != known
                break
    if refined:
        _refine(graph)


def _is_part(node: Node) -> bool:
    """Whether a node is one of several that came from one host node, which is copied with all of them or not at all."""
    return getattr(node.origin, "parts", 1) > 1


def _refine(graph: Graph) -> None:
    """Re-infer types downstream of nodes whose result types became more precise."""
    for node in graph.nodes:
        try:
            inferred = node.op.infer(node.input_types)
        except InferenceError:
            continue
        for value, type_ in zip(node.outputs, inferred or (), strict=False):
            if value.type.accepts(type_):
                value.type = value.type.refined(type_)


def _apply(
    rw: Rewriter,
    node: Node,
    op: Op,
    inputs: Sequence[Value | None],
    inner: Sequence[Node],
    combine: Combine,
) -> None:
    name = next((n.name for n in inner if isinstance(n.op, Linear)), node.name)
    _become(rw, node, op, inputs, [*inner, node], combine, name)
    for dead in reversed(inner):
        rw.erase(dead)


def _become(
    rw: Rewriter,
    node: Node,
    op: Op,
    inputs: Sequence[Value | None],
    parts: Sequence[Node],
    combine: Combine,
    name: str | None = None,
) -> None:
    """Replace a node by an op that covers several nodes, and give it the origins of all of them."""
    origins = [n.origin for n in parts]
    rw.replace(node, op, inputs, name=name)
    node.origin = combine(
        origins,
        [v.host if v is not None else None for v in node.inputs],
        [v.host for v in node.outputs],
    )


def _unbind(rw: Rewriter, split: Node, op: Split, combine: Combine) -> None:
    """Turn pieces of size 1 whose axis is squeezed into one Select each, the form of ``unbind``."""
    rank = split.outputs[0].type.rank
    if set(op.sizes) != {1} or rank is None:
        return
    axis, taken = axis_of(op.axis, rank), {}
    for index, piece in enumerate(split.outputs):
        if piece.use_count == 0:
            continue
        squeeze = piece.users[0] if piece.has_one_use else None
        if squeeze is None or not isinstance(squeeze.op, Squeeze):
            return
        if [axis_of(a, rank) for a in squeeze.op.axes] != [axis]:
            return
        taken[index] = squeeze
    for index, squeeze in taken.items():
        _become(rw, squeeze, Select(axis, index), split.inputs, [split, squeeze], combine)
    if taken:
        rw.erase(split)


def _selected(node: Node) -> Found | None:
    """A slice of one index whose axis is dropped."""
    cut = producer(node.inputs[0])
    if cut is None or not isinstance(cut.op, Slice) or not isinstance(node.op, Squeeze):
        return None
    x, op = cut.inputs[0], cut.op
    if x is None or x.type.rank is None or len(op.axes) != 1:
        return None
    axis = axis_of(op.axes[0], x.type.rank)
    if [axis_of(a, x.type.rank) for a in node.op.axes] != [axis]:
        return None
    start, end, size = op.starts[0], op.ends[0], x.type.dim(axis)
    if size is None:
        return (Select(axis, start), [x], [cut]) if 0 <= start == end - 1 else None
    places = range(size)[start : end : op.steps[0]]
    return (Select(axis, places[0]), [x], [cut]) if len(places) == 1 else None


def _gated(node: Node) -> Found | None:
    """``x * sigmoid(x)``, ``x * hard_sigmoid(x)`` and ``x * tanh(softplus(x))``."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        inner = producer(gate)
        if inner is None or not isinstance(inner.op, Activation):
            continue
        soft = producer(inner.inputs[0]) if inner.op == Activation("tanh") else None
        if soft and soft.op == Activation("softplus") and soft.inputs[0] is x:
            return Activation("mish"), [x], [soft, inner]
        if inner.inputs[0] is not x:
            continue
        if inner.op.kind == "sigmoid":
            return Activation("silu"), [x], [inner]
        if inner.op.kind == "hard_sigmoid" and near(inner.op.params, (1 / 6, 0.5)):
            return Activation("hard_swish"), [x], [inner]
    return None


def _hard_sigmoid(node: Node) -> Found | None:
    """``relu6(x + 3) / 6`` and ``x * relu6(x + 3) / 6``."""
    before = producer(node.inputs[0])
    if before is None or not scales_by(node, 1 / 6):
        return None
    if isinstance(before.op, Mul):
        for x, gate in (before.inputs, before.inputs[::-1]):
            found = _clipped_sum(producer(gate))
            if found is not None and found[0] is x:
                return Activation("hard_swish"), [x], [*found[1], before]
        return None
    found = _clipped_sum(before)
    if found is None:
        return None
    return Activation("hard_sigmoid", HARD_SIGMOID), [found[0]], found[1]


def _clipped_sum(clip: Node | None) -> tuple[Value, list[Node]] | None:
    """``relu6(x + 3)``: x and the nodes."""
    shifted = producer(clip.inputs[0]) if clip and clip.op == Activation("relu6") else None
    if clip is None or shifted is None or not scales_by(shifted, None, 3.0):
        return None
    return shifted.required(0), [shifted, clip]


def _softsign(node: Node) -> Found | None:
    """``x / (1 + abs(x))``."""
    x, below = node.inputs
    shifted = producer(below)
    size = producer(shifted.inputs[0]) if scales_by(shifted, None, 1.0) and shifted else None
    if node.op != Div() or shifted is None or size is None or size.op != Unary("abs"):
        return None
    return (Activation("softsign"), [x], [size, shifted]) if size.inputs[0] is x else None


def _not_equal(node: Node) -> Found | None:
    """``not (a == b)``."""
    equal = producer(node.inputs[0])
    if node.op != Unary("not") or equal is None or equal.op != Compare("equal"):
        return None
    return Compare("not_equal"), equal.inputs, [equal]


def _rsqrt(node: Node) -> Found | None:
    """``1 / sqrt(x)``."""
    root = producer(node.inputs[0])
    if node.op != Unary("reciprocal") or root is None or root.op != Unary("sqrt"):
        return None
    return Unary("rsqrt"), root.inputs, [root]


def _bias(node: Node) -> Found | None:
    """A dense layer without a bias, and a constant vector added to it."""
    if not isinstance(node.op, Scale) or node.input(1) is not None or node.input(2) is None:
        return None
    x, shift = node.required(0), node.required(2)
    linear = producer(x)
    if linear is None or not isinstance(linear.op, Linear) or linear.input(2) is not None:
        return None
    if x.type.rank is None or node.op.axis != x.type.rank - 1:
        return None
    if shift.type.dim(0) != x.type.dim(-1):
        return None
    return Linear(), [*linear.inputs[:2], shift], [linear]


def _transposed(node: Node) -> Found | None:
    """Reshape, Transpose and Reshape that together swap the last two axes."""
    turn = producer(node.inputs[0])
    flat = producer(turn.inputs[0]) if turn is not None else None
    if turn is None or flat is None or not isinstance(flat.op, Reshape):
        return None
    x = flat.inputs[0]
    if turn.op != Transpose((0, 2, 1)) or x is None:
        return None
    before, joined, after = x.type.shape, flat.output.type.shape, node.output.type.shape
    if before is None or len(before) < 3 or joined is None or after is None or None in before:
        return None
    *lead, rows, columns = before
    rank, goal = len(before), (*lead, columns, rows)
    # If one size is unknown, it follows from the others.
    open_ = sum(not isinstance(d, int) for d in after) == 1
    if joined[1:] != (rows, columns) or len(after) != rank or not all(
        a == b or (open_ and not isinstance(a, int)) for a, b in zip(after, goal, strict=True)
    ):  # fmt: skip
        return None
    return Transpose((*range(rank - 2), rank - 1, rank - 2)), [x], [flat, turn]


def _group_norm(node: Node) -> Found | None:
    """Reshape to one channel a group, instance norm, and reshape back: a group norm."""
    norm = producer(node.inputs[0])
    if norm is None or not isinstance(norm.op, GroupNorm) or norm.op.groups:
        return None
    split = producer(norm.inputs[0])
    if split is None or not isinstance(split.op, Reshape) or split.inputs[0] is None:
        return None
    x, parts = split.inputs[0], split.output.type
    groups = parts.dim(1)
    if groups is None or x.type.rank is None or x.type.rank < 2 or parts.rank != 3:
        return None
    # The split shape is (batch, groups, everything else).
    if x.type != node.output.type or x.type.shape is None or parts.shape is None:
        return None
    if parts.shape[0] is None or parts.shape[0] != x.type.shape[0]:
        return None
    if (x.type.dim(1) or 1) % groups:
        return None
    for index, wanted in ((1, 1.0), (2, 0.0)):
        vector = norm.input(index)
        if vector is not None and not _all(vector, wanted):
            return None
    return GroupNorm(groups, norm.op.epsilon), [x], [split, norm]


def _layer_norm(node: Node) -> Found | None:
    """``(x - mean) / sqrt(mean((x - mean) ** 2) + eps)`` over the last axis, or times ``rsqrt``."""
    for centred, spread in (node.inputs, node.inputs[::-1]):
        if (
            centred is None
            or spread is None
            or (node.op == Div() and centred is not node.inputs[0])
        ):
            continue
        root = producer(spread)
        if root is None or root.op != Unary("sqrt" if node.op == Div() else "rsqrt"):
            continue
        # Every node inside must have one reader: a variance that is read elsewhere must stay.
        shifted = producer(root.inputs[0])
        if shifted is None or not _shift_only(shifted):
            continue
        variance = producer(shifted.inputs[0])
        squared = producer(variance.inputs[0]) if variance is not None else None
        difference = centred.producer
        if variance is None or squared is None or difference is None or difference.op != Sub():
            continue
        x, mean = difference.inputs
        average = producer(mean)
        if (
            x is None
            or average is None
            or average.inputs[0] is not x
            or not is_square(squared, centred)
        ):
            continue
        if not (_over_last(variance) and _over_last(average)):
            continue
        epsilon = shifted.required(2).data
        inner = [average, difference, squared, variance, shifted, root]
        if centred.is_output or any(user not in (squared, node) for user in centred.users):
            continue
        if epsilon is not None:
            return LayerNorm((x.type.rank or 0) - 1, _shortest(epsilon)), [x], inner
    return None


def _shift_only(node: Node) -> bool:
    """Whether a node adds one number above zero."""
    if not isinstance(node.op, Scale) or node.input(1) is not None:
        return False
    shift = node.input(2)
    return (
        shift is not None
        and shift.data is not None
        and shift.data.size == 1
        and float(shift.data.float64()[0]) > 0
    )


def _shortest(data: Tensor) -> float:
    number = data.float64().reshape(-1)[0]
    return float(str(np.float32(number))) if data.dtype is DType.F32 else float(number)


def _over_last(node: Node) -> bool:
    """Whether a node is the mean over the last axis, which stays."""
    rank = node.output.type.rank
    if isinstance(node.op, GlobalAveragePool):
        return rank == 3
    op = node.op
    if not isinstance(op, Reduce) or op.kind != "mean" or not op.keepdims or not rank:
        return False
    return [a % rank for a in op.axes] == [rank - 1]


def _layer_affine(node: Node) -> Found | None:
    """A layer norm over the last axis, and a scale or a shift for each of its features."""
    norm = producer(node.inputs[0])
    if norm is None or not isinstance(norm.op, LayerNorm) or not isinstance(node.op, Scale):
        return None
    rank, size = norm.output.type.rank, norm.output.type.dim(-1)
    if not rank or size is None or {norm.op.axis % rank, node.op.axis % rank} != {rank - 1}:
        return None
    scale, shift = norm.input(1), norm.input(2)
    if shift is not None or (scale is not None and node.input(1) is not None):
        return None
    vectors = [scale if scale is not None else node.input(1), node.input(2)]
    if vectors[0] is None or any(v is not None and v.type.dim(0) != size for v in vectors):
        return None  # ONNX has no layer norm with a shift alone.
    while vectors[-1] is None:
        vectors.pop()
    return norm.op, [norm.inputs[0], *vectors], [norm]


def _all(value: Value, wanted: float) -> bool:
    return value.data is not None and bool((value.data.float64() == wanted).all())


def _group_affine(node: Node) -> Found | None:
    """A group norm, and a scale or shift for each channel."""
    norm = producer(node.inputs[0])
    if norm is None or not isinstance(norm.op, GroupNorm) or not isinstance(node.op, Scale):
        return None
    rank, scale, shift = norm.output.type.rank, norm.input(1), norm.input(2)
    if rank is None or node.op.axis % rank != 1 or shift is not None:
        return None
    if scale is not None and node.input(1) is not None:
        return None
    vectors = [scale if scale is not None else node.input(1), node.input(2)]
    if any(v is not None and v.type.dim(0) != norm.output.type.dim(1) for v in vectors):
        return None
    while vectors[-1] is None:
        vectors.pop()
    return norm.op, [norm.inputs[0], *vectors], [norm]


_RULES: dict[type[Op], tuple[Callable[[Node], Found | None], ...]] = {
    Div: (_layer_norm, _softsign),
    Mul: (_gated, gelu, _layer_norm),
    Reshape: (_group_norm, _transposed),
    Scale: (_layer_affine, _group_affine, _bias, gelu_halved, _hard_sigmoid),
    Squeeze: (_selected,),
    Unary: (_not_equal, _rsqrt),
}

for _form, _makes in (
    ("x * sigmoid(x)", (Activation, "silu")),
    ("x * hard_sigmoid(x)", (Activation, "hard_swish")),
    ("relu6(x + 3) / 6", (Activation, "hard_sigmoid")),
    ("x * relu6(x + 3) / 6", (Activation, "hard_swish")),
    ("x * tanh(softplus(x))", (Activation, "mish")),
    ("x / (1 + abs(x))", (Activation, "softsign")),
    ("x * (1 + erf(x / sqrt(2))) / 2", (Activation, "gelu")),
    ("x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2", (Activation, "gelu_tanh")),
    ("1 / sqrt(x)", (Unary, "rsqrt")),
    ("not (a == b)", (Compare, "not_equal")),
):
    reads_pattern(_form, _makes)
reads_pattern("(x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon)", LayerNorm)
reads_pattern("groups of channels, normalised as one channel each", GroupNorm)
reads_pattern("x @ w + b", Linear)
reads_pattern("x[i : i + 1] without its axis", Select)
