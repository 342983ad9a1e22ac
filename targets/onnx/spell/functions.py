"""How functions, comparisons, picks, resolutions and quantisation are spelled in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from .... import ir
from ....hosts.onnx.operators import FUNCTIONS
from ....hosts.onnx.tensors import code_of
from ....ir import ArrayTensor, DType
from ..speller import Speller

_FUNCTIONS = {kind: name for name, kind in FUNCTIONS.items()}
_SINCE = {
    **dict.fromkeys(("Sin", "Cos", "Tan", "Asin", "Acos", "Atan"), 7),
    **dict.fromkeys(("Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Erf", "Sign", "IsNaN"), 9),
    "Round": 11, "Where": 9, "Expand": 8, "CumSum": 11, "LessOrEqual": 12, "GreaterOrEqual": 12,
    "QuantizeLinear": 10, "DequantizeLinear": 10,
}  # fmt: skip
"""The opset in which an operator came."""
_SHAPE_OF_SOME = 15
"""From this opset on, Shape can give the sizes of some axes."""


def _emit(s: Speller, kind: str, **attrs: Any) -> None:
    if s.opset < _SINCE.get(kind, 1):
        raise s.refuse(f"needs {kind}, which does not exist")
    s.emit(kind, s.inputs, s.outputs[0], **attrs)


def _unary(s: Speller, op: ir.Unary) -> None:
    if op.kind == "rsqrt":
        s.emit("Reciprocal", [s.emit("Sqrt", s.inputs)], s.outputs[0])
    else:
        _emit(s, _FUNCTIONS[op.kind])


def _extremum(s: Speller, op: ir.Max | ir.Min) -> None:
    shapes = {v.type.shape if v is not None else None for v in s.node.inputs}
    if s.opset < 8 and (len(shapes) > 1 or None in shapes):
        raise s.refuse("of different shapes does not exist")
    _emit(s, op.name)


_COMPARISONS = {
    "equal": "Equal", "not_equal": "Equal", "less": "Less", "less_equal": "LessOrEqual",
    "greater": "Greater", "greater_equal": "GreaterOrEqual",
}  # fmt: skip


def _compare(s: Speller, op: ir.Compare) -> None:
    first = s.node.inputs[0]
    dtype = first.type.dtype if first is not None else None
    kind = _COMPARISONS[op.kind]
    if kind == "Equal" and s.opset < 11 and (dtype is None or dtype.is_float):
        raise s.refuse("of floating-point numbers does not exist")
    if op.kind == "not_equal":
        s.emit("Not", [s.emit("Equal", s.inputs)], s.outputs[0])
    else:
        _emit(s, kind)


def _gather(s: Speller, op: ir.Gather) -> None:
    s.emit("Gather", s.inputs, s.outputs[0], axis=op.axis)


def _expand(s: Speller, op: ir.Expand) -> None:
    if s.opset < _SINCE["Expand"]:
        raise s.refuse("does not exist")
    known = [d for d in op.shape if d is not None]
    if not op.like:
        shape = s.ints(known, "shape")
    elif s.opset < _SHAPE_OF_SOME:
        # The numbers, then all sizes of the second input: picked in order.
        numbers, axes = iter(range(len(known))), iter(op.like)
        sizes = s.emit("Concat", [s.ints(known, "known"), s.emit("Shape", [s.inputs[1]])], axis=0)
        places = [next(numbers) if d is not None else len(known) + next(axes) for d in op.shape]
        shape = s.emit("Gather", [sizes, s.ints(places, "places")], axis=0)
    else:
        parts, axes = [], iter(op.like)
        for open_, run in groupby(op.shape, lambda d: d is None):
            if not open_:
                parts.append(s.ints([d for d in run if d is not None], "known"))
                continue
            for _ in run:
                axis = next(axes)
                parts.append(s.emit("Shape", [s.inputs[1]], start=axis, end=axis + 1))
        shape = s.emit("Concat", parts, axis=0) if len(parts) > 1 else parts[0]
    s.emit("Expand", [s.inputs[0], shape], s.outputs[0])


def _arg(s: Speller, op: ir.ArgReduce) -> None:
    attrs: dict[str, Any] = {"axis": op.axis, "keepdims": int(op.keepdims)}
    if op.last:
        if s.opset < 12:
            raise s.refuse("of the last place does not exist")
        attrs["select_last_index"] = 1
    s.emit(f"Arg{op.kind.capitalize()}", s.inputs, s.outputs[0], **attrs)


def _cumsum(s: Speller, op: ir.CumSum) -> None:
    axis = s.new_constant(ArrayTensor(np.array(op.axis, np.int64)), "axis")
    attrs = {"exclusive": int(op.exclusive), "reverse": int(op.reverse)}
    s.emit("CumSum", [s.inputs[0], axis], s.outputs[0], **attrs)


def _resize(s: Speller, op: ir.Resize) -> None:
    if s.opset < 11:
        _resize_older(s, op)
        return
    attrs: dict[str, Any] = {"mode": op.mode, "coordinate_transformation_mode": op.coordinates}
    if op.coordinates == "half_pixel_symmetric" and s.opset < 19:
        raise s.refuse("with half_pixel_symmetric does not exist")
    if op.mode == "nearest":
        attrs["nearest_mode"] = op.rounding
    if op.mode == "cubic":
        attrs["cubic_coeff_a"] = op.cubic
    if op.exclude_outside:
        attrs["exclude_outside"] = 1
    if op.antialias:
        if s.opset < 18:
            raise s.refuse("with antialias does not exist")
        attrs["antialias"] = 1
    # Opset 11 asks for a region even where it means nothing.
    region = "" if s.opset >= 13 else s.new_constant(ArrayTensor(np.zeros(0, np.float32)), "roi")
    if op.scales:
        s.emit("Resize", [s.inputs[0], region, _scales(s, op.scales)], s.outputs[0], **attrs)
        return
    sizes = list(op.sizes)
    x = s.node.inputs[0]
    if x is not None:
        sizes = [x.type.dim(a) if size is None else size for a, size in enumerate(sizes)]
    axes = [a for a, size in enumerate(sizes) if size is not None]
    if len(axes) < len(sizes):
        if s.opset < 18:
            raise s.refuse("of an axis of unknown size does not exist")
        attrs["axes"] = axes
    empty = "" if s.opset >= 13 else s.new_constant(ArrayTensor(np.zeros(0, np.float32)), "scales")
    known = s.ints([d for d in sizes if d is not None], "sizes")
    s.emit("Resize", [s.inputs[0], region, empty, known], s.outputs[0], **attrs)


def _scales(s: Speller, scales: Sequence[float]) -> str:
    return s.new_constant(ArrayTensor(np.array(scales, np.float32)), "scales")


def _resize_older(s: Speller, op: ir.Resize) -> None:
    scales = op.scales or _scales_of_sizes(s, op)
    smaller = any(scale < 1.0 for scale in scales)
    rounding = "ceil" if smaller else "floor"
    mixed = smaller and any(scale > 1.0 for scale in scales)
    nearest = op.mode == "nearest" and op.rounding == rounding and not mixed
    if not scales or op.coordinates != "asymmetric" or not (op.mode == "linear" or nearest):
        raise s.refuse("of this kind does not exist")
    kind = "Resize" if s.opset == 10 else "Upsample"
    if kind == "Upsample" and smaller:
        raise s.refuse("to a smaller size does not exist")
    if s.opset < 9:
        s.emit(kind, s.inputs, s.outputs[0], mode=op.mode, scales=list(scales))
    else:
        s.emit(kind, [s.inputs[0], _scales(s, scales)], s.outputs[0], mode=op.mode)


def _scales_of_sizes(s: Speller, op: ir.Resize) -> tuple[float, ...]:
    """The scales that lead to the sizes of a Resize; none where they are not known, or would be rounded to others."""
    x = s.node.inputs[0]
    found = []
    for axis, size in enumerate(op.sizes):
        own = x.type.dim(axis) if x is not None and size is not None else 1
        goal = 1 if size is None else size
        if not own or int(np.float32(goal / own) * np.float32(own)) != goal:
            return ()
        found.append(goal / own)
    return tuple(found)


def _depth_to_space(s: Speller, op: ir.DepthToSpace) -> None:
    attrs = {} if op.mode == "DCR" else {"mode": op.mode}
    if attrs and s.opset < 11:
        raise s.refuse("in mode CRD does not exist")
    s.emit("DepthToSpace", s.inputs, s.outputs[0], blocksize=op.block, **attrs)


def _space_to_depth(s: Speller, op: ir.SpaceToDepth) -> None:
    if op.mode == "DCR":
        s.emit("SpaceToDepth", s.inputs, s.outputs[0], blocksize=op.block)
        return
    x = s.node.inputs[0]
    shape = x.type.shape if x is not None else None
    c, h, w = (d if isinstance(d, int) else None for d in (shape or (None,) * 4)[1:])
    if c is None or h is None or w is None:
        raise s.refuse("in mode CRD of unknown sizes does not exist")
    b = op.block
    parts = s.ints((-1, c, h // b, b, w // b, b), "blocks")
    cut = s.emit("Reshape", [s.inputs[0], parts])
    turned = s.emit("Transpose", [cut], perm=[0, 1, 3, 5, 2, 4])
    shape_out = s.ints((-1, c * b * b, h // b, w // b), "shape")
    s.emit("Reshape", [turned, shape_out], s.outputs[0])


def _quantize(s: Speller, op: ir.Quantize) -> None:
    inputs = list(s.inputs)
    scale = s.node.inputs[1]
    if len(inputs) < 3 or not inputs[2]:
        shape = scale.type.static_shape if scale is not None else None
        if op.dtype != "u8" and s.opset < 21:
            # The zero point alone says the type of the result.
            if shape is None:
                raise s.refuse("of unknown scales cannot say its type")
            zero = ArrayTensor(np.zeros(shape, DType(op.dtype).numpy))
            inputs = [*inputs[:2], s.new_constant(zero, "zero")]
    attrs = _quantized_axis(s, op.axis)
    if len(inputs) < 3 and op.dtype != "u8":
        attrs["output_dtype"] = code_of(DType(op.dtype))
    s.emit("QuantizeLinear", inputs, s.outputs[0], **attrs)


def _dequantize(s: Speller, op: ir.Dequantize) -> None:
    s.emit("DequantizeLinear", s.inputs, s.outputs[0], **_quantized_axis(s, op.axis))


def _quantized_axis(s: Speller, axis: int) -> dict[str, Any]:
    scale = s.node.inputs[1]
    shape = scale.type.static_shape if scale is not None else None
    if s.opset < 10:
        raise s.refuse("does not exist")
    if s.opset < 13:
        if shape not in ((), (1,)):
            raise s.refuse("along an axis does not exist")
        return {}
    return {"axis": axis} if shape not in ((), (1,)) else {}


def _named(kind: str) -> Callable[[Speller, Any], None]:
    return lambda s, op: _emit(s, kind)


MATH_SPELLINGS: dict[type[ir.Op], Callable[[Speller, Any], None]] = {
    ir.ArgReduce: _arg,
    ir.Compare: _compare,
    ir.CumSum: _cumsum,
    ir.DepthToSpace: _depth_to_space,
    ir.Dequantize: _dequantize,
    ir.Expand: _expand,
    ir.Gather: _gather,
    ir.Logical: lambda s, op: _emit(s, op.kind.capitalize()),
    ir.Max: _extremum,
    ir.Min: _extremum,
    ir.Pow: _named("Pow"),
    ir.Quantize: _quantize,
    ir.Resize: _resize,
    ir.SpaceToDepth: _space_to_depth,
    ir.Unary: _unary,
    ir.Where: _named("Where"),
}
"""The rules, by op."""
