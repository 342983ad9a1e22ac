"""Names of ONNX operators that are one op of the IR."""

from __future__ import annotations

from ... import ir

_OTHER_NAMES = {"isnan": "IsNaN", "isinf": "IsInf"}
"""The operators whose names differ from the kind in more than the first letter."""

FUNCTIONS: dict[str, str] = {
    _OTHER_NAMES.get(kind, kind.capitalize()): kind for kind in ir.UNARY if kind != "rsqrt"
}
"""ONNX's operators of one number, and their kinds."""
