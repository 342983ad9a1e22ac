"""The straight lines that take the place of activations, fitted on calibration data; see :mod:`.affine_fit`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...ir import Gate, Graph, Node, Rewriter, Scale, Tensor, Value
from ..infra.contract import Context, PassError
from ..merge.algebra.tensors import Array64, from_float64, out_of_range
from ..statistics.moments import ActivationMoments, channel_axis
from .affine_fit import best_line


@dataclass(frozen=True)
class ChannelLines:
    """``scale * x + shift`` for each channel; both are vectors along ``axis``."""

    axis: int
    scale: Tensor
    shift: Tensor

    def constants(self, rw: Rewriter, name: str) -> tuple[Value, Value]:
        """Scale and shift as constants of a graph."""
        return rw.constant(self.scale, f"{name}.scale"), rw.constant(self.shift, f"{name}.shift")


def gate_value(node: Node) -> float | None:
    """The value of a gate; ``None`` for a plain activation, or if the value is not a constant."""
    number = node.inputs[1] if isinstance(node.op, Gate) else None
    return None if number is None or number.data is None else float(number.data.float64()[0])


def own_line(node: Node) -> tuple[Value, Value] | None:
    """The scale and shift that a closed gate computes; ``None`` for the identity and for plain activations."""
    found = node.input(3), node.input(4)
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def fitted_lines(nodes: Iterable[Node], graph: Graph, ctx: Context, what: str) -> dict[Node, ChannelLines]:  # fmt: skip
    """The best lines of activations, and of gates whose value is a constant that is not 0.

    Args:
        nodes: The activations and gates.
        graph: The graph that has them.
        ctx: The context, with calibration data.
        what: The pass, for errors.

    Raises:
        PassError: If there is no calibration data, or an activation has no line.
    """
    if ctx.calibration is None:
        raise PassError(f"{what}: by=affine needs calibration data")
    requests = {node: ActivationMoments(node) for node in nodes}
    for node in requests:
        shape = node.output.type.shape
        if shape is not None and node.output.type.dim(channel_axis(node)) is None:
            raise PassError(f"{what}: the number of channels of {node.name} is not known")
    found = ctx.calibration.collect(graph, requests.values())
    lines = {}
    for node, request in requests.items():
        moments = found[request]
        try:
            scale, shift = best_line(moments)
        except ValueError as error:
            raise PassError(f"{what}: {node.name} has no best line: {error}") from error
        value = gate_value(node)
        if value is not None and value != 1:
            rest = _numbers(node, scale)
            scale, shift = (value * a + (1 - value) * b for a, b in zip((scale, shift), rest, strict=True))  # fmt: skip
        dtype = node.output.type.dtype
        if dtype is None or not dtype.is_wide_float:
            raise PassError(f"{what}: the element type of {node.name} is not known")
        line = ChannelLines(moments.axis, from_float64(scale, dtype), from_float64(shift, dtype))
        if out_of_range(line.scale) or out_of_range(line.shift):
            raise PassError(
                f"{what}: the best line of {node.name} leaves the range of {dtype.value}: name others, or use by=identity"
            )
        lines[node] = line
    return lines


def _numbers(node: Node, like: Array64) -> tuple[Array64, Array64]:
    """What a closed gate computes, as numbers.

    Raises:
        PassError: If its line is computed by the graph.
    """
    line = own_line(node)
    if line is None:
        return like * 0 + 1, like * 0
    scale, shift = (v.data for v in line)
    if scale is None or shift is None:
        raise PassError(f"the line of gate {node.name} is not a constant")
    return scale.float64(), shift.float64()


def replace_by_line(node: Node, rw: Rewriter, axis: int, line: tuple[Value, Value]) -> None:
    """Replace an activation by a line along an axis."""
    rw.replace(node, Scale(axis), [node.inputs[0], *line])
