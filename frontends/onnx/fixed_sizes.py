"""Fixed sizes for a model's inputs, in place of symbols and unknown sizes.

With a size fixed, whatever the model computes from it (``Shape`` and what follows) is a constant, bias maps become possible, and
targets that need static sizes take the model. Sizes that the model states inside are forgotten, so that they are
inferred anew; those of outputs follow where they are the same symbol, and are inferred elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from ...ir import UsageError
from ...ir.errors import check_input_name

Fixed = Mapping[str, Sequence[int | None]]
"""Shapes by input name; ``None`` leaves a size as it is."""


def fix_shapes(model: ModelProto, shapes: Fixed) -> None:
    """Fix input sizes of a model, in place.

    Args:
        model: The model.
        shapes: What is fixed.

    Raises:
        UsageError: If there is no such input, a shape does not fit it, or a symbol would get two sizes.
    """
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inputs = {v.name: v for v in graph.input if v.name not in constants}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        check_input_name(name, inputs)
        _fix(inputs[name], shape, symbols)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
            elif value.name not in inputs and not dim.HasField("dim_value"):
                # An expression of symbols, perhaps of one that is fixed now.
                dim.Clear()
    del graph.value_info[:]


def _fix(value: ValueInfoProto, shape: Sequence[int | None], symbols: dict[str, int]) -> None:
    tensor = value.type.tensor_type
    known = tensor.HasField("shape")
    dims = list(tensor.shape.dim)
    shown = "x".join(_shown(d) for d in dims)
    given = "x".join("?" if d is None else str(d) for d in shape)
    if not value.type.HasField("tensor_type") or (known and len(dims) != len(shape)):
        raise UsageError(f"input {value.name!r} takes {shown or 'no tensor'}, not {given}")
    if not known:
        dims = [tensor.shape.dim.add() for _ in shape]
    for dim, size in zip(dims, shape, strict=True):
        if size is None:
            continue
        if dim.HasField("dim_value") and dim.dim_value not in (size, -1):
            raise UsageError(f"input {value.name!r} takes {shown}, not {given}")
        symbol = dim.dim_param
        if symbol not in ("", "?") and symbols.setdefault(symbol, size) != size:
            raise UsageError(f"input {value.name!r}: {symbol} is both {symbols[symbol]} and {size}")
        dim.dim_value = size


def _shown(dim: TensorShapeProto.Dimension) -> str:
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


__all__ = ["Fixed", "fix_shapes"]
