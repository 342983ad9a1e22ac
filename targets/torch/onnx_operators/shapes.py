"""How ONNX operators on shapes are written in torch: sizes as ints where they can be followed, else read from tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import fx

from ....hosts.onnx.tensors import dtype_of
from ....ir import DType
from ..sizes import product
from ..speller import Size, torch_dtype
from .operator import Operator, writes


@writes("Shape")
def shape(o: Operator) -> fx.Node:
    """A tensor of sizes; readers that need ints get these."""
    start, end = o.attributes.get("start", 0), o.attributes.get("end")
    sizes = o.shape()[start:end]
    o.known.note(o.node.output, sizes)
    return o.vector(sizes)


@writes("Size")
def size(o: Operator) -> fx.Node:
    """The number of elements."""
    total = product(o.known, o.shape())
    o.known.note(o.node.output, [total], scalar=True)
    return o.call(torch.full, (), total, dtype=torch.int64, **o.device())


@writes("ConstantOfShape")
def constant_of_shape(o: Operator) -> fx.Node:
    """``torch.full``."""
    proto = o.attributes.get("value")
    dtype = DType.F32 if proto is None else dtype_of(proto.data_type)
    if dtype is None:
        raise o.refuse_operator("torch has no such element type")
    number = 0.0 if proto is None else numpy_helper.to_array(proto).reshape(-1)[0].item()
    sizes = o.numbers(0)
    if dtype in (DType.I32, DType.I64) and len(sizes) == 1 and isinstance(sizes[0], int):
        o.known.note(o.node.output, [int(number)] * sizes[0])
    return o.call(torch.full, tuple(sizes), number, dtype=o.dtype_of(dtype), **o.device())


@writes("Reshape")
def reshape(o: Operator) -> fx.Node:
    """``torch.reshape``; zeros that are numbers copy a size."""
    x, sizes = o.value(), o.numbers(1)
    copies = not o.attributes.get("allowzero", 0)
    if copies and o.out.as_sizes(o.node.required(1)) is None:
        sizes = _with_copies(o, sizes)
    elif copies:
        sizes = [o.size(0, i) if n == 0 else n for i, n in enumerate(sizes)]
    return o.call(torch.reshape, x, tuple(sizes))


def _with_copies(o: Operator, sizes: list[Size]) -> list[Size]:
    """Sizes that are read from a tensor, in which a 0 stands for the size of the input."""
    own: list[Size] = [*o.shape(), *[0] * len(sizes)][: len(sizes)]
    target = o.call(torch.reshape, o.value(1), (-1,))
    chosen = o.call(torch.where, o.call(torch.eq, target, 0), o.vector(own), target)
    listed = o.call("tolist", chosen)
    return [o.call(operator.getitem, listed, i) for i in range(len(sizes))]


@writes("Expand")
def expand(o: Operator) -> fx.Node:
    """``Tensor.expand``; where neither size of an axis is known, an empty view of the target shape broadcasts with it."""
    x, target, own = o.value(), o.numbers(1), o.known.shape(o.node.required(0))
    sizes = None if own is None else _broadcast(own, target)
    if sizes is not None:
        return o.call("expand", x, *sizes)
    like = o.call("expand", o.call("new_empty", x, ()), tuple(target))
    return o.call(operator.getitem, o.call(torch.broadcast_tensors, x, like), 0)


def _broadcast(own: list[Size], target: list[Size]) -> list[Size] | None:
    """What ``Tensor.expand`` is given for a target that ONNX broadcasts both ways; ``None`` where sizes that are computed decide."""
    found: list[Size] = []
    rank = max(len(own), len(target))
    for axis in range(rank):
        place, new = axis - rank + len(own), axis - rank + len(target)
        size = own[place] if place >= 0 else 1
        wanted = target[new] if new >= 0 else 1
        if place >= 0 and (wanted == 1 or (isinstance(size, int) and size != 1)):
            found.append(-1)
        elif isinstance(size, int) or isinstance(wanted, int):
            found.append(wanted)
        else:
            return None
    return found


@writes("Tile")
def tile(o: Operator) -> fx.Node:
    """``Tensor.repeat``."""
    return o.call("repeat", o.value(), tuple(o.numbers(1)))


@writes("Squeeze")
def squeeze(o: Operator) -> fx.Node:
    """``torch.squeeze`` of all axes of size 1, or of some that are read from a tensor."""
    if not o.is_given(1) and o.ints("axes") is None:
        return o.call(torch.squeeze, o.value())
    return o.call(torch.squeeze, o.value(), tuple(o.axes() or ()))


@writes("CastLike")
def cast_like(o: Operator) -> fx.Node:
    """``Tensor.to``."""
    dtype = o.node.required(1).type.dtype
    if dtype is None:
        raise o.refuse_operator("the element type of its second input is not known")
    return o.call("to", o.value(), o.dtype_of(dtype))


@writes("Cast")
def cast(o: Operator) -> fx.Node:
    """``Tensor.to``."""
    dtype = dtype_of(o.attributes.get("to", 0))
    if dtype is None:
        raise o.refuse_operator("torch has no such element type")
    return o.call("to", o.value(), o.dtype_of(dtype))


@writes("BitCast")
def bit_cast(o: Operator) -> fx.Node:
    """``Tensor.view`` as another element type."""
    dtype = dtype_of(o.attributes.get("to", 0))
    if dtype is None or o.dtype is None or dtype.bits != o.dtype.bits:
        raise o.refuse_operator("its element types have different sizes, or torch lacks one")
    return o.call("view", o.value(), o.dtype_of(dtype))


@writes("Pad")
def pad(o: Operator) -> fx.Node:
    """``F.pad`` with computed amounts, or of integers."""
    mode = o.text("mode", "constant")
    given = o.numbers(1) if o.is_given(1) else list[Size](o.ints("pads") or ())
    rank = len(o.shape())
    axes = [a % rank for a in o.constants(3)] if o.is_given(3) else list(range(rank))
    begins: list[Size] = [0] * rank
    ends: list[Size] = [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = given[place], given[len(axes) + place]
    rest: tuple[Any, ...] = ("constant", _number(o, 2, o.attributes.get("value", 0.0)))
    if mode != "constant":
        modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
        if mode not in modes or rank < 3 or any(n != 0 for n in (*begins[:2], *ends[:2])):
            raise o.refuse_operator(f"torch has no padding of these axes in mode {mode}")
        begins, ends, rest = begins[2:], ends[2:], (modes[mode],)
    pairs = [p for pair in reversed(list(zip(begins, ends, strict=True))) for p in pair]
    return o.call(F.pad, o.value(), pairs, *rest)


def _number(o: Operator, index: int, default: float) -> Any:
    """A constant number that is an input, or one that is read at run time."""
    if not o.is_given(index):
        return default
    data = o.data(index)
    if data is not None:
        return data.numpy().reshape(-1)[0].item()
    return o.call("item", o.value(index))


@writes("Split")
def split(o: Operator) -> Any:
    """``torch.split`` into computed sizes."""
    axis = o.attributes.get("axis", 0)
    sizes = o.numbers(1) if o.is_given(1) else None
    if sizes is None:
        raise o.refuse_operator("the size of the axis that it splits is not known")
    made = o.call(torch.split, o.value(), list(sizes), axis)
    return [o.call(operator.getitem, made, i) for i in range(len(o.node.outputs))]


@writes("Range")
def range_(o: Operator) -> fx.Node:
    """``torch.arange``; the number of elements is computed in float64, as onnxruntime does."""
    dtype = o.dtype
    if dtype is None:
        raise o.refuse_operator("its element type is not known")
    start, limit, delta = (o.value(i) for i in range(3))
    wide = o.call("to", o.call(torch.sub, limit, start), torch.float64)
    span = o.call(torch.div, wide, delta)
    count = o.call("item", o.call("clamp", o.call(torch.ceil, span), min=0))
    places = o.call(torch.arange, o.call(int, count), dtype=o.dtype_of(dtype), **o.device(0))
    return o.call(torch.add, o.call(torch.mul, places, delta), start)


@writes("EyeLike")
def eye_like(o: Operator) -> fx.Node:
    """Ones where column and row differ by ``k``."""
    to = o.attributes.get("dtype")
    dtype = o.dtype if to is None else dtype_of(to)
    if dtype is None:
        raise o.refuse_operator("its element type is not known")
    rows, columns = o.shape()
    k = o.attributes.get("k", 0)
    i = o.call(torch.unsqueeze, o.call(torch.arange, rows, **o.device(0)), 1)
    j = o.call(torch.arange, columns, **o.device(0))
    return o.call("to", o.call(torch.eq, o.call(torch.sub, j, i), k), torch_dtype(dtype))


@writes("Trilu")
def triangle(o: Operator) -> fx.Node:
    """``torch.triu`` or ``torch.tril``."""
    k = o.numbers(1)[0] if o.is_given(1) else 0
    return o.call(torch.triu if o.attributes.get("upper", 1) else torch.tril, o.value(), k)
