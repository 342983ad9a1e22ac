"""The signature of a graph on a device: a hash of everything that its latency depends on.

It covers the device with its runtime, the ops with their attributes, shapes and element types, and which results are
shared. Names, the stored order of nodes, and the values of weights are left out, so that equal graphs in different models share
one signature.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ...ir import DType, Graph, MaskedTensor, ModelError, Node, Opaque, Tensor, Value
from ...ir.errors import listed

if TYPE_CHECKING:
    from .devices import Device

_SMALL = 64
"""Integer constants of up to this many numbers may be shapes, axes or bounds, so their values are part of the signature."""


def signature(graph: Graph, device: Device) -> str:
    """The SHA-256 of :func:`canonical_text`, in hexadecimal digits.

    Raises:
        ModelError: If the shape of an input is not known, or the graph has ops that the IR does not express.
    """
    return hashlib.sha256(canonical_text(graph, device).encode()).hexdigest()


def canonical_text(graph: Graph, device: Device) -> str:
    """One line for the device and for each value that the outputs depend on.

    Values are numbered in the order in which a depth-first search from the outputs finishes them.

    Raises:
        ModelError: If the shape of an input is not known, or the graph has ops that the IR does not express.
    """
    check_measurable(graph)
    lines = [f"device {device.identity}"]
    numbers: dict[Value, int] = {}
    for value in finished(graph):
        if value in numbers:
            continue
        node = value.producer
        if value.data is not None:
            numbers[value] = len(numbers)
            lines.append(f"{numbers[value]} constant {_constant_text(value.data)}")
        elif node is None:
            numbers[value] = len(numbers)
            lines.append(f"{numbers[value]} input {value.type}")
        else:
            read = " ".join("none" if v is None else str(numbers[v]) for v in node.inputs)
            for result in node.outputs:
                numbers[result] = len(numbers)
            made = ", ".join(f"{numbers[v]} {v.type}" for v in node.outputs)
            lines.append(f"{made} = {_op_text(node)} {read}")
    lines.append(f"return {' '.join(str(numbers[v]) for v in graph.outputs)}")
    return "\n".join(lines)


def check_measurable(graph: Graph) -> None:
    """Check that a graph can be timed alone: sizes are known, and it can be written without its host.

    Only what the outputs depend on is checked.

    Raises:
        ModelError: If it cannot be timed.
    """
    needed = [v for v in finished(graph) if v.data is None]
    ops = [v.producer.op for v in needed if v.producer is not None]
    opaque = sorted({op.kind for op in ops if isinstance(op, Opaque)})
    if opaque:
        raise ModelError(
            f"{graph.name}: {listed(opaque)} cannot be timed: the IR does not express it"
        )
    for value in needed:
        if value.producer is not None:
            continue
        if not value.type.is_static or value.type.dtype in (None, DType.STRING):
            raise ModelError(
                f"{graph.name}: input {value.name!r} is {value.type}; only graphs with known sizes can be timed "
                "(--fix-shape gives them)"
            )
    if not graph.outputs:
        raise ModelError(f"{graph.name} has no outputs: there is nothing to time")


def finished(graph: Graph) -> list[Value]:
    """The values that the outputs depend on, in the order in which a depth-first search from the outputs finishes them."""
    found: list[Value] = []
    seen: set[Value] = set()
    stack = [(v, False) for v in reversed(graph.outputs)]
    while stack:
        value, done = stack.pop()
        if done:
            found.append(value)
            continue
        if value in seen:
            continue
        seen.add(value)
        stack.append((value, True))
        if value.producer is not None and value.data is None:
            stack += [(v, False) for v in reversed(value.producer.inputs) if v is not None]
    return found


def _op_text(node: Node) -> str:
    parts = ", ".join(f"{name}={value!r}" for name, value in node.op.attributes().items())
    return f"{node.op.name}({parts})"


def _constant_text(data: Tensor) -> str:
    text = str(data.type)
    if isinstance(data, MaskedTensor):
        # Some runtimes have special kernels for the pattern.
        text += f" masked {data.pattern}"
    if keeps_value(data):
        text += f" {np.asarray(data.numpy()).tolist()}"
    return text


def keeps_value(data: Tensor) -> bool:
    """Whether the values of a constant are part of the signature: integers that may be shapes, axes or bounds."""
    dtype = data.dtype
    return (dtype.is_int or dtype is DType.BOOL) and dtype.bits > 8 and data.size <= _SMALL
