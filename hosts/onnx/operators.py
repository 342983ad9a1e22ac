"""Names of the ONNX operators for the IR's ``Unary`` op."""

from __future__ import annotations

from ... import ir

_OTHER_NAMES = {"isnan": "IsNaN", "isinf": "IsInf"}
"""Operators whose name differs from the kind in more than the first letter."""

FUNCTIONS: dict[str, str] = {
    _OTHER_NAMES.get(kind, kind.capitalize()): kind for kind in ir.UNARY if kind != "rsqrt"
}
"""The kind of each elementwise ONNX operator, by its name."""
