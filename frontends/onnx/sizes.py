"""Shape arithmetic of ONNX models: ``Shape``, ``Gather``, ``Concat`` and others, followed number by number.

A size that is open is represented by the axis that has it, so that target shapes with open sizes can be read: a reshape
copies the size, an expand refers to the value. The nodes stay; once nothing reads them, ``prune-dead`` removes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper, numpy_helper

from ... import ir
from ...ir import Node, Value
from ...ir.analysis.sizes import Place, SizeRoots

Size = int | Place | None
"""A number; the earliest axis of which it is the size; ``None`` where it is anything else."""

Sizes = npt.NDArray[np.object_]

MOST = 64
"""Longer vectors are not taken for shapes."""


class KnownSizes:
    """The sizes that values hold, as far as known.

    Args:
        roots: What is known of the sizes of values.
    """

    def __init__(self, roots: SizeRoots) -> None:
        self.roots = roots
        self._found: dict[Value, Sizes] = {}

    def of(self, value: Value | None) -> tuple[Size, ...] | None:
        """The numbers of a vector, if it is known to hold sizes."""
        found = self._numbers(value)
        return None if found is None else tuple(found.reshape(-1))

    def see(self, node: Node, proto: NodeProto) -> None:
        """Follow sizes through a node (host node ``proto``); a result of numbers only becomes a constant."""
        if len(node.outputs) != 1 or node.output.data is not None:
            return
        if isinstance(node.op, ir.Opaque):
            rule = {"onnx:Shape": self._shape, "onnx:ConstantOfShape": self._filled}.get(
                node.op.kind
            )
            found = rule(node, proto) if rule is not None else None
        elif self._found.keys().isdisjoint(node.inputs):
            return
        else:
            found = self._through(node)
        if isinstance(node.op, ir.Opaque) and node.op.kind in _TARGETS:
            self._shape_known(node, self.of(node.inputs[_TARGETS[node.op.kind]]))
        if found is None or found.size > MOST:
            return
        node.output.type = node.output.type.refined(ir.TensorType(None, found.shape))
        dtype = node.output.type.dtype
        if dtype is not None and all(isinstance(n, int) for n in found.flat):
            data = ir.ArrayTensor(found.astype(dtype.numpy))
            if node.output.type.accepts(data.type):
                node.output.data, node.output.type = data, data.type
        else:
            self._found[node.output] = found

    @staticmethod
    def _shape_known(node: Node, sizes: tuple[Size, ...] | None) -> None:
        """Refine the result's shape where only some sizes of the target shape are numbers."""
        if sizes is not None and len(sizes) <= MOST:
            shape = tuple(n if isinstance(n, int) and n > 0 else None for n in sizes)
            node.output.type = node.output.type.refined(ir.TensorType(None, shape))

    def _numbers(self, value: Value | None) -> Sizes | None:
        if value is None or value.data is None:
            return self._found.get(value) if value is not None else None
        data = value.data
        if data.size > MOST or not (data.dtype.is_int or data.dtype is ir.DType.BOOL):
            return None
        made: Sizes = np.empty(data.shape, object)
        for place, number in np.ndenumerate(data.numpy()):
            made[place] = number.item()
        return made

    def _shape(self, node: Node, proto: NodeProto) -> Sizes | None:
        value = node.inputs[0]
        if value is None or value.type.shape is None:
            return None
        cut = {a.name: a.i for a in proto.attribute}
        part = range(len(value.type.shape))[cut.get("start", 0) : cut.get("end")]
        made: Sizes = np.empty(len(part), object)
        for place, axis in enumerate(part):
            known = value.type.dim(axis)
            made[place] = self.roots.root(value, axis) if known is None else known
        return made

    def _filled(self, node: Node, proto: NodeProto) -> Sizes | None:
        """Value of an integer ``ConstantOfShape`` with a short, known shape."""
        shape = self.of(node.inputs[0])
        value = [helper.get_attribute_value(a) for a in proto.attribute]
        number = numpy_helper.to_array(value[0]) if value else np.zeros(1, np.float32)
        if shape is None or number.dtype.kind not in "iub":
            return None
        sizes = [n for n in shape if isinstance(n, int) and n >= 0]
        if len(sizes) < len(shape) or math.prod(sizes) > MOST:
            return None
        return np.full(sizes, number.item(), object)

    def _through(self, node: Node) -> Sizes | None:
        operands = [self._numbers(v) for v in node.inputs]
        rule = _RULES.get(type(node.op))
        if rule is None or any(o is None for o in operands):
            return None
        try:
            return rule(node.op, *operands)
        except (IndexError, TypeError, ValueError):
            return None  # Shapes that do not fit: the model itself could not run.


_TARGETS = {"onnx:ConstantOfShape": 0, "onnx:Reshape": 1}
"""Opaque nodes that read a target shape, and the index of that input; sizes below 1 are unknown."""


def _each(function: Callable[..., Any]) -> Callable[..., Sizes]:
    """A rule that applies a function element by element, with broadcasting."""
    many = np.frompyfunc(function, function.__code__.co_argcount, 1)

    def rule(op: ir.Op, *operands: Sizes) -> Sizes:
        made: Sizes = np.empty(np.broadcast_shapes(*(o.shape for o in operands)), object)
        made[...] = many(*operands)
        return made

    return rule


def _times(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else None


def _equal(a: Size, b: Size) -> bool | None:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if a is None or b is None:
        return None
    if a == b:
        return True
    # A size is never below zero.
    number = a if isinstance(a, int) else b
    return False if isinstance(number, int) and number < 0 else None


def _picked(condition: bool | None, a: Size, b: Size) -> Size:
    return (a if a == b else None) if condition is None else a if condition else b


_RULES: dict[type[ir.Op], Callable[..., Sizes | None]] = {
    ir.Cast: lambda op, x: x if ir.DType(op.to) in (ir.DType.I32, ir.DType.I64) else None,
    ir.Compare: lambda op, a, b: _each(_equal)(op, a, b) if op.kind == "equal" else None,
    ir.Concat: lambda op, *parts: np.concatenate(parts, op.axis),
    ir.Gather: lambda op, x, index: x.take(index.astype(np.int64), op.axis),
    ir.Identity: lambda op, x: x,
    ir.Mul: _each(_times),
    ir.Reshape: lambda op, x: x.reshape([x.shape[i] if d is None else d for i, d in enumerate(op.shape)]),
    ir.Select: lambda op, x: x.take([op.index], op.axis).reshape(np.delete(x.shape, op.axis)),
    ir.Slice: lambda op, x: x[op.index(x.ndim)],
    ir.Squeeze: lambda op, x: x.squeeze(op.axes),
    ir.Unsqueeze: lambda op, x: np.expand_dims(x, op.axes),
    ir.Where: _each(_picked),
}  # fmt: skip
"""How each op transforms sizes."""
