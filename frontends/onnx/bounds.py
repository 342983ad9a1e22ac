"""Limits on the size of an ONNX model, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from ...hosts.onnx.scopes import bodies
from ...hosts.onnx.tensors import dtype_of
from ...ir import ModelError

MOST_INLINED = 100_000
"""Nodes that a model may gain when all calls of its local functions are inlined."""


def check_bounds(model: ModelProto, name: str, file_bytes: int | None = None) -> None:
    """Check that a model stays within the limits.

    Args:
        model: The model.
        name: What errors call it.
        file_bytes: The size of its file, if it came from one.

    Raises:
        ModelError: If tensors claim more numbers than the file has bytes, or local functions call themselves or become
            too many nodes.
    """
    if model.functions:
        _check_functions(model, name)
    if file_bytes is None:
        return
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        dtype = dtype_of(tensor.data_type)
        count = math.prod(tensor.dims)
        # Small numbers may be stored in one byte each, whatever their type.
        if count * min(dtype.bits if dtype and dtype.bits else 8, 8) // 8 > file_bytes:
            shape = "x".join(map(str, tensor.dims))
            raise ModelError(
                f"{name} is damaged: tensor {tensor.name!r} claims {shape} numbers, the file has {file_bytes} bytes"
            )


def _check_functions(model: ModelProto, name: str) -> None:
    """Count the nodes that calls become, callees first."""
    functions = {(f.domain, f.name): f for f in model.functions}
    counts: dict[tuple[str, str], int] = {}
    for start in functions:
        stack, open_ = [start], set()
        while stack:
            key = stack[-1]
            called = dict.fromkeys(_calls(functions[key].node))
            waiting = [k for k in called if k in functions and k not in counts]
            if key in counts or not waiting:
                stack.pop()
                open_.discard(key)
                counts[key] = counts.get(key) or _count(functions[key], counts)
                continue
            open_.add(key)
            again = next((k for k in waiting if k in open_), None)
            if again is not None:
                raise ModelError(f"{name} is not valid ONNX: function {again[1]!r} calls itself")
            stack += waiting
    gained = _count(model.graph, counts) - _count(model.graph, {})
    if gained > MOST_INLINED:
        # Python refuses to print numbers of thousands of digits.
        shown = f"{gained:,}" if gained < 10**18 else "more than 10^18"
        raise ModelError(
            f"{name}: calls of its local functions expand to {shown} nodes, at most {MOST_INLINED:,} can be "
            "worked on; export it without functions"
        )


def _count(holder: GraphProto | FunctionProto, counts: dict[tuple[str, str], int]) -> int:
    """The nodes of a graph or function, calls inlined."""
    return sum(counts.get(key, 1) for key in _calls(holder.node))


def _calls(nodes: list[NodeProto]) -> Iterator[tuple[str, str]]:
    """Domain and name of all nodes, those in bodies included."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node.domain, node.op_type
        pending += [n for body in bodies(node) for n in body.node]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All dense tensors of a model: initializers and attributes, in bodies and functions too."""
    graphs: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        if isinstance(graph, GraphProto):
            yield from graph.initializer
        for node in graph.node:
            graphs += bodies(node)
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.TENSORS:
                    yield from attribute.tensors


__all__ = ["MOST_INLINED", "check_bounds"]
