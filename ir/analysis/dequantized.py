"""Which constants are numbers that quantised integers stand for: another constant in their place would be floats."""

from __future__ import annotations

from ..graph import Node, Value
from ..ops import Dequantize, Opaque
from ..types import DType


def dequantized_from(value: Value) -> DType | None:
    """The element type of the integers that a constant is computed from; ``None`` where there are none."""
    pending, seen = [value], {value}
    while pending:
        found = pending.pop()
        producer = found.producer
        if producer is not None and _dequantizes(producer):
            source = producer.input(0)
            return (source.type.dtype if source is not None else None) or DType.I8
        for read in (*found.bases, *(producer.inputs if producer is not None else ())):
            # Shapes of things are constants, but no numbers of them.
            if read is None or read in seen or read.data is None or not read.data.dtype.is_float:
                continue
            seen.add(read)
            pending.append(read)
    return None


def is_dequantized(value: Value) -> bool:
    """Whether a constant is what integers stand for, perhaps in another shape."""
    return dequantized_from(value) is not None


def _dequantizes(node: Node) -> bool:
    op = node.op
    # A form that the IR does not know is opaque.
    return isinstance(op, Dequantize) or (
        isinstance(op, Opaque) and op.kind.endswith("DequantizeLinear")
    )
