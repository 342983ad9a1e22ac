"""The operators of ONNX's own domain: its names, the IR's ``Unary`` op, and those that ONNX defines by functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from ... import ir
from ...ir import DType
from .tensors import code_of

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


def types_problem(
    kind: str, opset: int, inputs: Sequence[DType | None], results: Sequence[DType | None]
) -> str:
    """Why ONNX's specification does not let an operator read and give these element types; empty if it does, or has no such operator.

    Args:
        kind: The operator.
        opset: The version of the operators.
        inputs: The element types of the inputs; ``None`` for one that is left out or not known.
        results: Those of the results.
    """
    bound: dict[str, DType] = {}
    for formals, dtypes in zip(_formals(kind, opset), (inputs, results), strict=True):
        for place, dtype in enumerate(dtypes):
            if dtype is None or not formals:
                continue
            variable, accepted, alike = formals[min(place, len(formals) - 1)]
            if _TYPES[dtype] not in accepted:
                return f"{kind} of {dtype.value} does not exist in opset {opset}"
            if alike and bound.setdefault(variable, dtype) is not dtype:
                return f"{kind} of {bound[variable].value} and {dtype.value} does not exist in opset {opset}"
    return ""


_Formal = tuple[str, frozenset[str], bool]
"""The type variable of an input or a result, the types that it may have, and whether all of that variable are alike."""


@cache
def _formals(kind: str, opset: int) -> tuple[tuple[_Formal, ...], tuple[_Formal, ...]]:
    """The inputs and the results of an operator, none if it does not exist."""
    if not onnx.defs.has(kind, opset, ""):
        return (), ()
    schema = onnx.defs.get_schema(kind, opset, "")
    inputs, results = (
        tuple((f.type_str, frozenset(f.types), f.is_homogeneous) for f in formals)
        for formals in (schema.inputs, schema.outputs)
    )
    return inputs, results


_TYPES = {
    dtype: f"tensor({onnx.TensorProto.DataType.Name(code_of(dtype)).lower()})" for dtype in DType
}
"""How ONNX's specification writes element types."""


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
