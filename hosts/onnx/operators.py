"""The operators of ONNX's own domain: its names, the IR's ``Unary`` op, and those that ONNX defines by functions."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from ... import ir

DOMAINS = ("", "ai.onnx")
"""The names of ONNX's own domain."""

_OTHER_NAMES = {"isnan": "IsNaN", "isinf": "IsInf"}
"""Operators whose name differs from the kind in more than the first letter."""

FUNCTIONS: dict[str, str] = {
    _OTHER_NAMES.get(kind, kind.capitalize()): kind for kind in ir.UNARY if kind != "rsqrt"
}
"""The kind of each elementwise ONNX operator, by its name."""


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators in a model."""
    return next((o.version for o in model.opset_import if o.domain in DOMAINS), 1)


def function_schema(name: str, opset: int) -> Any:
    """The schema of an operator that ONNX defines by a function of others; ``None`` for any other operator."""
    try:
        schema: Any = onnx.defs.get_schema(name, opset)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def write_defaults(node: NodeProto, schema: Any) -> None:
    """Write default attributes into a node: onnx's inliner passes on written attributes only."""
    given = {a.name for a in node.attribute}
    for name, attribute in sorted(schema.attributes.items()):
        default = attribute.default_value
        if name not in given and default is not None and default.type:
            node.attribute.append(default)
