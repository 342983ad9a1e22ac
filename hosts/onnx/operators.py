"""Names of ONNX operators that are one op of the IR."""

from __future__ import annotations

from ... import ir

FUNCTIONS: dict[str, str] = {
    **{kind.capitalize(): kind for kind in ir.UNARY if kind not in ("rsqrt", "isnan")},
    "IsNaN": "isnan",
}
"""ONNX's operators of one number, and their kinds."""
