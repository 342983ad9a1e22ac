"""Where a size comes from: axes of different values whose sizes are equal for all inputs.

Equal sizes get one canonical (value, axis), that of the earliest value, so that graphs from torch and from ONNX print alike.
"""

from __future__ import annotations

from ..graph import Value
from ..ops import Axis, Conv, ConvTranspose, Expand, Flatten, Reshape

Place = tuple[Value, int]
"""One axis of a value, counted from the front."""


class SizeRoots:
    """A cache of canonical axes; valid as long as nodes are only added."""

    def __init__(self) -> None:
        self._known: dict[Place, Place] = {}

    def root(self, value: Value, axis: int) -> Place:
        """The earliest axis that is known to have the same size."""
        pending: list[Place] = [(value, axis)]
        while pending:
            place = pending[-1]
            sources = [] if place in self._known else _sources(*place)
            missing = [s for s in sources if s not in self._known]
            if missing:
                pending += missing
                continue
            pending.pop()
            roots = {self._known[s] for s in sources}
            # If sources have several roots, one of them may be of size 1 and be broadcast.
            self._known.setdefault(place, roots.pop() if len(roots) == 1 else place)
        return self._known[value, axis]


def _sources(value: Value, axis: int) -> list[Place]:
    """The axes of a node's inputs that have the same size as this axis of its result."""
    node = value.producer
    if node is None or value.data is not None:
        return []
    op, first = node.op, node.input(0)
    if isinstance(op, Reshape):
        copied = axis < len(op.shape) and op.shape[axis] is None
        return [(first, axis)] if copied and first is not None else []
    batches = isinstance(op, (Conv, ConvTranspose)) or op == Flatten(1)
    if batches and axis == 0 and first is not None:
        return [(first, 0)]
    if isinstance(op, Expand) and op.like and value.type.rank is not None:
        at = axis - value.type.rank + len(op.shape)
        second = node.input(1)
        if at >= 0 and op.shape[at] is None and second is not None:
            return [(second, op.like[op.shape[:at].count(None)])]
    if op.broadcasts:
        rank = value.type.rank or 0
        read = [
            (v, axis - rank + v.type.rank) for v in node.inputs if v is not None and v.type.rank
        ]
        return _computed([(v, a) for v, a in read if a >= 0])
    own = Axis(-1 - node.outputs.index(value), axis)
    tie = next((t for t in op.channels(node.input_types) or () if own in t), frozenset[Axis]())
    tied = [(node.input(place.operand), place.axis) for place in tie if place.operand >= 0]
    return _computed([(v, a) for v, a in tied if v is not None])


def _computed(places: list[Place]) -> list[Place]:
    """The places in values that are not constant; none if a constant has a size other than 1, because the rest may be 1 then."""
    known = [v.type.dim(a) for v, a in places if v.data is not None]
    return [] if any(d != 1 for d in known) else [(v, a) for v, a in places if v.data is None]


__all__ = ["Place", "SizeRoots"]
