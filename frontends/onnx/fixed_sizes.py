"""Fixed sizes for a model's inputs, in place of symbols and unknown sizes.

With a size fixed, whatever the model computes from it (``Shape`` and what follows) is a constant, bias maps become possible, and
targets that need static sizes take the model. Sizes that the model states inside are forgotten, so that they are
inferred anew; those of outputs follow where they are the same symbol, and are inferred elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from ...ir import Graph, UsageError
from ...ir.errors import check_input_name

Fixed = Mapping[str, Sequence[int | None]]
"""Shapes by input name; ``None`` leaves a size as it is."""


def fix_shapes(model: ModelProto, shapes: Fixed) -> dict[str, dict[int, int]]:
    """Fix input sizes of a model, in place.

    Args:
        model: The model.
        shapes: What is fixed.

    Returns:
        The sizes that the model states for outputs, by name and axis. They are cleared in the model: files state wrong sizes and
        symbols for outputs, which must not contradict what is inferred.

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
    stated: dict[str, dict[int, int]] = {}
    for value in (*graph.input, *graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            known = symbols.get(dim.dim_param) if dim.dim_param else None
            if value.name in inputs:
                if known is not None:
                    dim.dim_value = known
            else:
                # A number, a symbol, or an expression of symbols, perhaps of one that is fixed now.
                known = dim.dim_value if dim.HasField("dim_value") else known
                if known is not None and known >= 0:
                    stated.setdefault(value.name, {})[axis] = known
                dim.Clear()
    del graph.value_info[:]
    return stated


def state_outputs(graph: Graph, stated: Mapping[str, Mapping[int, int]]) -> None:
    """State the sizes of outputs in the host model: those that were inferred, else those that were stated.

    Args:
        graph: The graph, right after its import.
        stated: What :func:`fix_shapes` returned.
    """
    for item, value in zip(graph.host.model.graph.output, graph.outputs, strict=True):
        dims = item.type.tensor_type.shape.dim
        found = value.type.shape
        if found is None or len(found) != len(dims):
            continue
        own = stated.get(item.name, {})
        sizes = tuple(own.get(i) if size is None else size for i, size in enumerate(found))
        value.type = value.type.with_shape(sizes)
        for dim, size in zip(dims, sizes, strict=True):
            if isinstance(size, int) and not dim.HasField("dim_value"):
                dim.dim_value = size


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


__all__ = ["Fixed", "fix_shapes", "state_outputs"]
