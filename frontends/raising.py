"""Raising: patterns that hosts spell with several nodes become one op.

Works on the IR, so that every frontend gets the same result. What lies inside a pattern must have no
other reader; the raised node keeps the origins of all its parts, so that it can be emitted as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import (
    Activation,
    Compare,
    Div,
    DType,
    GlobalAveragePool,
    Graph,
    GroupNorm,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Op,
    Pow,
    Reduce,
    Reshape,
    Rewriter,
    Scale,
    Sub,
    Tensor,
    Transpose,
    Unary,
    Value,
)

Combine = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
"""Makes one origin from the origins of the parts, the host inputs and the host outputs."""


def raise_patterns(graph: Graph, combine: Combine) -> None:
    """Raise SiLU, GELU (erf), HardSwish, norms written out and the bias of a dense layer, in place.

    Args:
        graph: A freshly imported graph.
        combine: Joins origins; called with (origins, ``Value.host`` of inputs, of outputs).
    """
    rw = Rewriter(graph)
    for node in graph.nodes:
        for rule in _RULES.get(type(node.op), ()):
            found = rule(node)
            if found is not None:
                _apply(rw, node, *found, combine)
                break


def _apply(
    rw: Rewriter,
    node: Node,
    op: Op,
    inputs: Sequence[Value | None],
    inner: Sequence[Node],
    combine: Combine,
) -> None:
    origins = [n.origin for n in (*inner, node)]
    name = next((n.name for n in inner if isinstance(n.op, Linear)), node.name)
    rw.replace(node, op, inputs, name=name)
    node.origin = combine(
        origins,
        [v.host if v is not None else None for v in node.inputs],
        [v.host for v in node.outputs],
    )
    for dead in reversed(inner):
        rw.erase(dead)


Found = tuple[Op, Sequence[Value | None], Sequence[Node]]
"""The op, its inputs, and the nodes before the matched one that it stands for, producers first."""


def _producer(value: Value | None) -> Node | None:
    """The node that makes a value which nobody else reads."""
    if value is None or not value.has_one_use or value.producer is None:
        return None
    return value.producer if len(value.producer.outputs) == 1 else None


def _gated(node: Node) -> Found | None:
    """``x * sigmoid(x)`` and ``x * hard_sigmoid(x)``."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        inner = _producer(gate)
        if inner is None or not isinstance(inner.op, Activation) or inner.inputs[0] is not x:
            continue
        if inner.op.kind == "sigmoid":
            return Activation("silu"), [x], [inner]
        if inner.op.kind == "hard_sigmoid" and _near(inner.op.params, (1 / 6, 0.5)):
            return Activation("hard_swish"), [x], [inner]
    return None


def _near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True))


def _constant(node: Node | None, scale: float | None, shift: float | None) -> bool:
    """Whether a node is a Scale by these scalars."""
    if node is None or not isinstance(node.op, Scale):
        return False
    for index, wanted in ((1, scale), (2, shift)):
        value = node.input(index)
        if (value is None) != (wanted is None):
            return False
        if value is not None and wanted is not None:
            if value.data is None or value.data.size != 1:
                return False
            if not math.isclose(float(value.data.float64()[0]), wanted, rel_tol=1e-3):
                return False
    return True


def _exact(node: Node, wanted: float) -> bool:
    """Whether a Scale's factor is ``wanted`` to the last digits of its storage type."""
    value = node.input(1)
    assert value is not None
    assert value.data is not None
    digits = {"f64": 1e-12, "f32": 1e-6}.get(value.data.dtype.value, 1e-2)
    return math.isclose(float(value.data.float64()[0]), wanted, rel_tol=digits)


def _erf_gate(value: Value | None) -> tuple[Value, list[Node]] | None:
    """``1 + erf(x / sqrt(2))``: x and the nodes."""
    add = _producer(value)
    if add is None or not _constant(add, None, 1.0):
        return None
    erf = _producer(add.inputs[0])
    if erf is None or erf.op != Unary("erf"):
        return None
    inner = _producer(erf.inputs[0])
    if inner is None or not _constant(inner, math.sqrt(0.5), None):
        return None
    if not _exact(inner, math.sqrt(0.5)) or inner.inputs[0] is None:
        return None
    return inner.inputs[0], [inner, erf, add]


def _gelu(node: Node) -> Found | None:
    """``x * (1 + erf(x / sqrt 2)) / 2`` with the half on either factor."""
    for plain, gated in (node.inputs, node.inputs[::-1]):
        gate = _erf_gate(gated)
        half = _producer(plain)
        if gate and half and _constant(half, 0.5, None) and half.inputs[0] is gate[0]:
            return Activation("gelu"), [gate[0]], [half, *gate[1]]
        scaled = _producer(gated)
        if scaled is not None and _constant(scaled, 0.5, None):
            gate = _erf_gate(scaled.inputs[0])
            if gate is not None and gate[0] is plain:
                return Activation("gelu"), [plain], [*gate[1], scaled]
    return None


def _gelu_halved(node: Node) -> Found | None:
    """``(x * (1 + erf(x / sqrt 2))) * 0.5``."""
    if not _constant(node, 0.5, None):
        return None
    product = _producer(node.inputs[0])
    if product is None or not isinstance(product.op, Mul):
        return None
    for plain, gated in (product.inputs, product.inputs[::-1]):
        gate = _erf_gate(gated)
        if gate is not None and gate[0] is plain:
            return Activation("gelu"), [plain], [*gate[1], product]
    return None


def _not_equal(node: Node) -> Found | None:
    """``not (a == b)``."""
    equal = _producer(node.inputs[0])
    if node.op != Unary("not") or equal is None or equal.op != Compare("equal"):
        return None
    return Compare("not_equal"), equal.inputs, [equal]


def _rsqrt(node: Node) -> Found | None:
    """``1 / sqrt(x)``."""
    root = _producer(node.inputs[0])
    if node.op != Unary("reciprocal") or root is None or root.op != Unary("sqrt"):
        return None
    return Unary("rsqrt"), root.inputs, [root]


def _bias(node: Node) -> Found | None:
    """A dense layer without a bias, and a constant vector added to it."""
    if node.input(1) is not None or node.input(2) is None:
        return None
    linear, x, shift = _producer(node.inputs[0]), node.inputs[0], node.inputs[2]
    if linear is None or not isinstance(linear.op, Linear) or linear.input(2) is not None:
        return None
    assert isinstance(node.op, Scale)
    assert x is not None
    assert shift is not None
    if x.type.rank is None or node.op.axis != x.type.rank - 1:
        return None
    if shift.type.dim(0) != x.type.dim(-1):
        return None
    return Linear(), [*linear.inputs[:2], shift], [linear]


def _transposed(node: Node) -> Found | None:
    """All axes but two as one, those two exchanged, and the axes as they were."""
    turn = _producer(node.inputs[0])
    flat = _producer(turn.inputs[0]) if turn is not None else None
    if turn is None or flat is None or not isinstance(flat.op, Reshape):
        return None
    x = flat.inputs[0]
    if turn.op != Transpose((0, 2, 1)) or x is None:
        return None
    before, joined, after = x.type.static_shape, flat.output.type.shape, node.output.type.shape
    if before is None or len(before) < 3 or joined is None or after is None:
        return None
    *lead, rows, columns = before
    if joined[1:] != (rows, columns) or after != (*lead, columns, rows):
        return None
    rank = len(before)
    return Transpose((*range(rank - 2), rank - 1, rank - 2)), [x], [flat, turn]


def _group_norm(node: Node) -> Found | None:
    """Groups of channels that are normalised as one channel each, and the shape as it was."""
    norm = _producer(node.inputs[0])
    if norm is None or not isinstance(norm.op, GroupNorm) or norm.op.groups:
        return None
    split = _producer(norm.inputs[0])
    if split is None or not isinstance(split.op, Reshape) or split.inputs[0] is None:
        return None
    x, parts = split.inputs[0], split.output.type
    groups = parts.dim(1)
    if groups is None or x.type.rank is None or x.type.rank < 2 or parts.rank != 3:
        return None
    # One batch axis, channels cut into groups, and all the rest with them.
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
        root = _producer(spread)
        if root is None or root.op != Unary("sqrt" if node.op == Div() else "rsqrt"):
            continue
        # The root of a multi-use variance is somebody else's as well.
        shifted = _producer(root.inputs[0])
        if shifted is None or not _shift_only(shifted):
            continue
        variance = _producer(shifted.inputs[0])
        squared = _producer(variance.inputs[0]) if variance is not None else None
        difference = centred.producer
        if variance is None or squared is None or difference is None or difference.op != Sub():
            continue
        x, mean = difference.inputs
        average = _producer(mean)
        if (
            x is None
            or average is None
            or average.inputs[0] is not x
            or not _is_square(squared, centred)
        ):
            continue
        if not (_over_last(variance) and _over_last(average)):
            continue
        inner = [average, difference, squared, variance, shifted, root]
        if centred.is_output or any(user not in (squared, node) for user in centred.users):
            continue
        shift = shifted.inputs[2]
        assert shift is not None
        assert shift.data is not None
        epsilon = _shortest(shift.data)
        return LayerNorm((x.type.rank or 0) - 1, epsilon), [x], inner
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


def _is_square(node: Node, value: Value) -> bool:
    if node.op == Mul():
        return node.inputs[0] is value and node.inputs[1] is value
    if node.op != Pow() or node.inputs[0] is not value:
        return False
    exponent = node.inputs[1]
    data = exponent.data if exponent is not None else None
    return data is not None and data.size == 1 and float(data.numpy().reshape(())) == 2.0


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
    norm = _producer(node.inputs[0])
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
    norm = _producer(node.inputs[0])
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
    Div: (_layer_norm,),
    Mul: (_gated, _gelu, _layer_norm),
    Reshape: (_group_norm, _transposed),
    Scale: (_layer_affine, _group_affine, _bias, _gelu_halved),
    Unary: (_not_equal, _rsqrt),
}
