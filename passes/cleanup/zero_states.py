"""Recurrent layers that start from zero need no initial state: part of ``remove-noops``."""

from __future__ import annotations

from ...ir import (
    Concat,
    Expand,
    Graph,
    Identity,
    Node,
    Opaque,
    Reshape,
    Rewriter,
    Select,
    Slice,
    Squeeze,
    Transpose,
    Unsqueeze,
    Value,
    sketch,
)
from ...ir.ops.recurrent import _Recurrent

MOST = 1 << 16
"""Larger constants are not tested for zero."""

_MOVING = (Concat, Expand, Identity, Reshape, Select, Slice, Squeeze, Transpose, Unsqueeze)
"""Ops whose result has only numbers of their inputs; of the second input of an Expand only sizes are used."""


def drop_zero_states(graph: Graph, rw: Rewriter) -> None:
    """Let recurrent layers whose initial state is certainly zero read none; exact.

    The state may be computed for a batch of unknown size.
    """
    if not any(_states(node) for node in graph.nodes):
        return
    zeros: dict[Value, bool] = {}
    for node in graph.nodes:
        if isinstance(node.op, _MOVING):
            read = node.inputs[:1] if isinstance(node.op, Expand) else node.inputs
            zeros[node.output] = all(v is not None and _is_zero(v, zeros) for v in read)
        elif _states(node):
            _drop(node, zeros, rw)


_OPAQUE = {"onnx:LSTM": (5, 6), "onnx:GRU": (5,), "onnx:RNN": (5,)}
"""Where recurrent layers of other forms read their initial states; ONNX starts from zero without them."""


def _states(node: Node) -> tuple[int, ...]:
    """Which inputs of a node are initial states; none for one that is not a recurrent layer."""
    if isinstance(node.op, _Recurrent):
        return tuple(range(5, 5 + node.op.states))
    return _OPAQUE.get(node.op.kind, ()) if isinstance(node.op, Opaque) else ()


def _is_zero(value: Value, zeros: dict[Value, bool]) -> bool:
    if value not in zeros:
        data = value.data
        small = data is not None and data.size <= MOST and data.dtype.is_wide_float
        zeros[value] = small and data is not None and not data.float64().any()
    return zeros[value]


def _drop(node: Node, zeros: dict[Value, bool], rw: Rewriter) -> None:
    states = [node.input(place) for place in _states(node)]
    zero = [p for p, v in zip(_states(node), states, strict=True) if v and _is_zero(v, zeros)]
    others = {v for place, v in enumerate(node.inputs) if place not in zero}
    # A host node is copied by names: one name cannot be both read and left out.
    if not zero or not others.isdisjoint(node.input(place) for place in zero):
        return
    inputs = [None if place in zero else v for place, v in enumerate(node.inputs)]
    while inputs[-1] is None:
        inputs.pop()
    if isinstance(node.op, _Recurrent) and (reason := rw.unwritable(sketch(node.op, inputs))):
        rw.skip(node, reason)
        return
    with rw.rewrite("start from zero without an initial state", node):
        if isinstance(node.op, _Recurrent):
            rw.replace(node, node.op, inputs)
        else:
            for place in zero:
                rw.set_input(node, place, None)
