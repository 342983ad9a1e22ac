"""Helpers for the patterns of :mod:`.patterns`: producers with one reader, and tests of constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir import Node, Op, Scale, Value

Found = tuple[Op, Sequence[Value | None], Sequence[Node]]
"""The new op, its inputs, and the nodes before the matched one that it replaces, producers first."""

_DIGITS = {"f64": 1e-12, "f32": 1e-6, "f16": 1e-3}
"""Relative precision of each storage type; all others are taken as bfloat16."""


def producer(value: Value | None) -> Node | None:
    """The producer of a value that has exactly one reader; ``None`` if there is none, or it reads nothing."""
    node = value.producer if value is not None and value.has_one_use else None
    return node if node is not None and node.inputs and len(node.outputs) == 1 else None


def near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether numbers are the same in float32."""
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True))


def is_number(value: Value | None, wanted: float) -> bool:
    """Whether a value is one constant number, within the precision of its storage type; whole numbers exactly."""
    if value is None or value.data is None or value.data.size != 1:
        return False
    found = float(value.data.float64().reshape(-1)[0])
    digits = 0.0 if wanted.is_integer() else _DIGITS.get(value.data.dtype.value, 4e-3)
    return math.isclose(found, wanted, rel_tol=digits)


def scales_by(node: Node | None, scale: float | None, shift: float | None = None) -> bool:
    """Whether a node is a Scale by these numbers."""
    if node is None or not isinstance(node.op, Scale):
        return False
    for value, wanted in ((node.input(1), scale), (node.input(2), shift)):
        if (value is None) != (wanted is None):
            return False
        if wanted is not None and not is_number(value, wanted):
            return False
    return True
