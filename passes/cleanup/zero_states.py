"""Recurrent layers that start from zero need no initial state: part of ``remove-noops``."""

from __future__ import annotations

from ...ir import (
    Concat,
    Expand,
    Graph,
    Identity,
    Node,
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
    if not any(isinstance(node.op, _Recurrent) for node in graph.nodes):
        return
    zeros: dict[Value, bool] = {}
    for node in graph.nodes:
        if isinstance(node.op, _MOVING):
            read = node.inputs[:1] if isinstance(node.op, Expand) else node.inputs
            zeros[node.output] = all(v is not None and _is_zero(v, zeros) for v in read)
        elif isinstance(node.op, _Recurrent):
            _drop(node, node.op, zeros, rw)


def _is_zero(value: Value, zeros: dict[Value, bool]) -> bool:
    if value not in zeros:
        data = value.data
        small = data is not None and data.size <= MOST and data.dtype.is_wide_float
        zeros[value] = small and data is not None and not data.float64().any()
    return zeros[value]


def _drop(node: Node, op: _Recurrent, zeros: dict[Value, bool], rw: Rewriter) -> None:
    inputs = list(node.inputs)
    for place in range(5, 5 + op.states):
        value = node.input(place)
        if value is not None and _is_zero(value, zeros):
            inputs[place] = None
    if inputs == list(node.inputs):
        return
    while inputs[-1] is None:
        inputs.pop()
    reason = rw.unwritable(sketch(node.op, inputs))
    if reason is not None:
        rw.skip(node, reason)
        return
    with rw.rewrite("start from zero without an initial state", node):
        rw.replace(node, node.op, inputs)
