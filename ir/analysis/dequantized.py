"""Which constants are dequantised integers: a pass that replaced one of them would make it a float."""

from __future__ import annotations

from ..graph import Node, Value
from ..ops import Dequantize, Opaque


def dequantized_from(value: Value) -> str | None:
    """The element type of the integers that a constant is computed from, ``"integers"`` if unknown; ``None`` where there are none.

    The result is cached in the graph until a node that computes constants changes.
    """
    if value.producer is None and not value.bases:
        return None
    makers = (v.producer for v in (value, *value.bases))
    graph = next((m.graph for m in makers if m is not None), None)
    known: dict[Value, str | None] = {} if graph is None else graph.derived
    pending = [value]
    while pending:
        found = pending[-1]
        producer = found.producer
        if found in known:
            pending.pop()
        elif producer is not None and _dequantizes(producer):
            source = producer.input(0)
            dtype = source.type.dtype if source is not None else None
            known[found] = "integers" if dtype is None else dtype.value
        else:
            read = (*found.bases, *(producer.inputs if producer is not None else ()))
            # Shapes of values are constants, but do not depend on their numbers.
            floats = [v for v in read if v and v.data is not None and v.data.dtype.is_float]
            missing = [v for v in floats if v not in known]
            pending += missing
            if not missing:
                known[found] = next((known[v] for v in floats if known[v] is not None), None)
    return known[value]


def is_dequantized(value: Value) -> bool:
    """Whether a constant is dequantised from integers, perhaps in another shape."""
    return dequantized_from(value) is not None


def _dequantizes(node: Node) -> bool:
    op = node.op
    # A form that the IR does not know is opaque.
    return isinstance(op, Dequantize) or (
        isinstance(op, Opaque) and op.kind.endswith("DequantizeLinear")
    )
