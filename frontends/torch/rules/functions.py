"""What torch's functions, comparisons, picks and interpolations are in the IR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .... import ir
from ....hosts.torch.dtypes import DTYPES
from ....ir import ArrayTensor, DerivedTensor, DType, SplatTensor, Tensor, Value
from ....ir.ops.base import axis_of
from ...lowering import OF_ANY_NUMBER, Lowered, Operand, expanding, resizing
from ..call import Call, Free, ints

Rule = Callable[[Call], Lowered | None]


def number(found: Any, dtype: DType | None) -> Tensor | None:
    """A Python number as a constant of an element type; ``None`` where that would change it."""
    if dtype is None or not isinstance(found, (bool, int, float)):
        return None
    kind = "bool" if isinstance(found, bool) else "int" if isinstance(found, int) else "float"
    fits = dtype is DType.BOOL if kind == "bool" else dtype.is_wide_float or dtype.is_int
    if not fits or (kind == "float" and dtype.is_int):
        return None
    if dtype.is_float and not _representable(float(found), dtype):
        return None
    made = np.array(found).astype(dtype.numpy)
    return ArrayTensor(made) if kind != "int" or int(made) == found else None


def factor(found: int | float, dtype: DType) -> Tensor | None:
    """A Python number as torch computes with it, which is in float32 where the tensor has 16 bits.

    Returns:
        A constant without axes; ``None`` where the element type cannot hold the number.
    """
    if not dtype.is_wide_float or not _representable(float(found), dtype):
        return None
    if dtype in (DType.F32, DType.F64):
        return SplatTensor((), dtype, float(found))
    return DerivedTensor((), dtype, lambda: np.array(np.float32(found), np.float64), sources=())


def _representable(found: float, dtype: DType) -> bool:
    """Whether a number is none that overflows, nor one of so few digits that torch may make zero of it."""
    if found == 0 or not math.isfinite(found):
        return True
    return dtype.smallest_normal <= abs(found) <= dtype.largest


def _operands(found: Sequence[Any]) -> list[Operand] | None:
    """Tensors of one element type, and numbers beside them."""
    types = {v.type.dtype for v in found if isinstance(v, Value)}
    if len(types) != 1 or None in types:
        return None  # torch promotes; the IR does not.
    (dtype,) = types
    made = [v if isinstance(v, Value) else number(v, dtype) for v in found]
    return None if None in made else list(made)


def function(kind: str) -> Rule:
    """A function of one number."""

    def rule(call: Call) -> Lowered | None:
        x = call.value(0)
        dtype = x.type.dtype
        if dtype is None or (kind == "not") != (dtype is DType.BOOL):
            return None
        plain = kind == "not" or dtype.is_wide_float or (dtype.is_int and kind in OF_ANY_NUMBER)
        return (ir.Unary(kind), [x]) if plain and len(call.args) + len(call.kwargs) == 1 else None

    return rule


def power(call: Call) -> Lowered | None:
    """``(base, exponent)``, one of them may be a number."""
    base, exponent = call.get(0, "input"), call.get(1, "exponent")
    operands = _operands([base, exponent])
    first = next(v for v in (base, exponent) if isinstance(v, Value))
    if operands is None or first.type.dtype is None or not first.type.dtype.is_wide_float:
        return None
    return ir.Pow(), operands


def joined(op: ir.Op) -> Rule:
    """``(a, b)``: tensors of one type, or a tensor and a number."""

    def rule(call: Call) -> Lowered | None:
        second = call.get(1, "other")
        if second is None or len(call.args) + len(call.kwargs) != 2:
            return None
        operands = _operands([call.get(0, "input"), second])
        return None if operands is None else (op, operands)

    return rule


def logical(kind: str) -> Rule:
    """``a & b`` and its kin, of booleans."""

    def rule(call: Call) -> Lowered | None:
        a, b = call.value(0), call.value(1, "other")
        return (ir.Logical(kind), [a, b]) if a.type.dtype is b.type.dtype is DType.BOOL else None

    return rule


def where(call: Call) -> Lowered | None:
    """``(condition, x, y)``."""
    condition = call.value(0, "condition")
    operands = _operands([call.get(1, "input"), call.get(2, "other")])
    if operands is None or condition.type.dtype is not DType.BOOL:
        return None
    return ir.Where(), [condition, *operands]


def masked_fill(call: Call) -> Lowered | None:
    """``(x, mask, value)``."""
    x, mask, value = call.value(0), call.value(1, "mask"), call.get(2, "value")
    operands = _operands([value, x])
    if operands is None or mask.type.dtype is not DType.BOOL:
        return None
    return ir.Where(), [mask, *operands]


def extremum(op: ir.Max | ir.Min) -> Rule:
    """``torch.max(a, b)`` of two tensors, or ``torch.max(x)`` over everything."""
    kind = op.name.lower()

    def rule(call: Call) -> Lowered | None:
        x, other = call.value(0), call.get(1, "other")
        if isinstance(other, Value):
            return joined(op)(call)
        if x.type.rank is None or len(call.args) + len(call.kwargs) != 1:
            return None  # Along one axis torch gives the places as well.
        return ir.Reduce(kind, tuple(range(x.type.rank)), False), [x]

    return rule


def expand(call: Call) -> Lowered | None:
    """``(x, *sizes)``; -1 keeps a size."""
    found = call.args[1:] if len(call.args) > 2 else (call.get(1, "size"),)
    sizes = found[0] if len(found) == 1 and isinstance(found[0], (list, tuple)) else found
    targets = [d.place if isinstance(d, Free) else ints(d, 1)[0] for d in sizes]
    return expanding(call.value(0), [1 if d == -1 else d for d in targets], call.roots)


def expand_as(call: Call) -> Lowered | None:
    """``(x, other)``: the size of batches, and what is not known, is that of the other one."""
    other = call.value(1, "other")
    if other.type.shape is None:
        return None
    targets = [
        d if axis > 0 and isinstance(d, int) else call.roots.root(other, axis)
        for axis, d in enumerate(other.type.shape)
    ]
    return expanding(call.value(0), targets, call.roots)


def arg(kind: str) -> Rule:
    """``(x, dim, keepdim)``."""

    def rule(call: Call) -> Lowered | None:
        x, dim = call.value(0), call.get(1, "dim")
        if not x.type.rank or type(dim) is not int:
            return None
        keep = bool(call.get(2, "keepdim", False))
        return ir.ArgReduce(kind, axis_of(dim, x.type.rank), keep), [x]

    return rule


def cumsum(call: Call) -> Lowered | None:
    """``(x, dim)``."""
    x, dim = call.value(0), call.get(1, "dim")
    dtype = x.type.dtype
    if not x.type.rank or type(dim) is not int or dtype is None or not dtype.is_wide_float:
        return None
    plain = call.kwargs.get("dtype") is None
    return (ir.CumSum(axis_of(dim, x.type.rank)), [x]) if plain else None


def index_select(call: Call) -> Lowered | None:
    """``(x, dim, index)``."""
    x, dim, index = call.value(0), call.get(1, "dim"), call.value(2, "index")
    if not x.type.rank or type(dim) is not int or index.type.rank != 1:
        return None
    return ir.Gather(axis_of(dim, x.type.rank)), [x, index]


def interpolate(call: Call) -> Lowered | None:
    """``(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)``."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    size, factor, mode, corners, again, antialias = (
        call.get(i + 1, n, "nearest" if n == "mode" else None) for i, n in enumerate(names)
    )
    if again and factor is not None:
        return None
    return resized(call.value(0), size, factor, str(mode), bool(corners), bool(antialias))


_MODES = {"nearest": "nearest", "nearest-exact": "nearest", "linear": "linear", "bilinear": "linear",
          "trilinear": "linear", "bicubic": "cubic"}  # fmt: skip


def resized(
    x: Value, size: Any, factor: Any, mode: str, corners: bool = False, antialias: bool = False
) -> Lowered | None:
    """What ``interpolate`` computes, in torch's own terms."""
    rank, dtype = x.type.rank, x.type.dtype
    if rank is None or rank < 3 or mode not in _MODES or dtype is None or not dtype.is_wide_float:
        return None
    n = rank - 2
    scales: tuple[float, ...] = ()
    sizes: tuple[int | None, ...] = ()
    if factor is not None:
        found = factor if isinstance(factor, (list, tuple)) else (factor,) * n
        if len(found) != n or not all(type(f) in (int, float) for f in found):
            return None
        scales = (1.0, 1.0, *map(float, found))
    else:
        sizes = (None, None, *ints(size, n))
    kind = _MODES[mode]
    coordinates = "align_corners" if corners else "half_pixel"
    more: dict[str, Any] = {}
    if kind == "nearest":
        coordinates = "half_pixel" if mode == "nearest-exact" else "asymmetric"
        more["rounding"] = "round_prefer_ceil" if mode == "nearest-exact" else "floor"
    else:
        more["antialias"] = antialias
    if corners and scales:
        # Corners are aligned by the sizes, whatever the factor was.
        out = ir.Resize(kind, coordinates, scales).infer([x.type])[0]
        wanted = [out.dim(a) for a in range(2, rank)]
        if None in wanted:
            return None
        scales, sizes = (), (None, None, *wanted)
    return resizing(x.type, kind, coordinates, scales, sizes, **more), [x]


def upsample(mode: str) -> Rule:
    """ATen's ``(x, output_size, align_corners?, scale_factors)``, or with one scale an axis at the end."""

    def rule(call: Call) -> Lowered | None:
        x, size, *rest = call.args
        corners = bool(rest.pop(0)) if rest and not mode.startswith("nearest") else False
        factors = [f for f in rest if f is not None]
        if not isinstance(x, Value) or (factors and not isinstance(factors[0], (list, tuple))):
            return None
        return resized(x, size, factors[0] if factors else None, mode, corners)

    return rule


def cast(dtype: torch.dtype | None = None) -> Rule:
    """``(x, dtype)``, or a method that is named for its type; what is of that type already is the value itself."""

    def rule(call: Call) -> Lowered | None:
        x = call.value(0)
        wanted = dtype if dtype is not None else call.get(1, "dtype")
        number = 1 if dtype is not None else 2
        to = DTYPES.get(wanted) if isinstance(wanted, torch.dtype) else None
        if to is None or x.type.dtype is None or len(call.args) + len(call.kwargs) != number:
            return None
        return ir.Identity() if to is x.type.dtype else ir.Cast(to.value), [x]

    return rule


def pixel_shuffle(call: Call) -> Lowered | None:
    """``(x, factor)``."""
    x, block = call.value(0), call.get(1, "upscale_factor")
    return (ir.DepthToSpace(block, "CRD"), [x]) if x.type.rank == 4 else None


def pixel_unshuffle(call: Call) -> Lowered | None:
    """``(x, factor)``."""
    x, block = call.value(0), call.get(1, "downscale_factor")
    return (ir.SpaceToDepth(block, "CRD"), [x]) if x.type.rank == 4 else None


MATH_CALLS: dict[str, Rule] = {
    **{kind: function(kind) for kind in ir.UNARY if kind != "not"},
    "negative": function("neg"), "absolute": function("abs"), "logical_not": function("not"), "bitwise_not": function("not"),
    "invert": function("not"), "pow": power, "square": lambda c: power(Call((c.value(0), 2))),
    **{name: joined(ir.Compare(kind)) for name, kind in (
        ("eq", "equal"), ("ne", "not_equal"), ("lt", "less"), ("le", "less_equal"),
        ("gt", "greater"), ("ge", "greater_equal"))},
    **{f"{prefix}{kind}": logical(kind) for prefix in ("logical_", "bitwise_", "", "__")
       for kind in ir.LOGIC},
    "maximum": joined(ir.Max()), "minimum": joined(ir.Min()), "max": extremum(ir.Max()),
    "min": extremum(ir.Min()), "where": where, "masked_fill": masked_fill, "expand": expand, "expand_as": expand_as,
    "argmax": arg("max"), "argmin": arg("min"), "cumsum": cumsum, "index_select": index_select,
    "interpolate": interpolate, "upsample_nearest2d": upsample("nearest"),
    "upsample_bilinear2d": upsample("bilinear"), "upsample_bicubic2d": upsample("bicubic"),
    "upsample_nearest1d": upsample("nearest"), "upsample_linear1d": upsample("linear"),
    "upsample_nearest3d": upsample("nearest"), "upsample_trilinear3d": upsample("trilinear"),
    "_upsample_nearest_exact2d": upsample("nearest-exact"),
    "to": cast(), "float": cast(torch.float32), "double": cast(torch.float64),
    "half": cast(torch.float16), "bfloat16": cast(torch.bfloat16), "int": cast(torch.int32),
    "long": cast(torch.int64), "bool": cast(torch.bool),
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
}  # fmt: skip
"""The rules, by the plain name of the call."""

MATH_ALLOCATES = frozenset(MATH_CALLS) - {
    "expand", "expand_as", "pixel_shuffle", "pixel_unshuffle", "to", "float", "double", "half", "bfloat16", "int",
    "long", "bool",
}  # fmt: skip
"""Calls among them whose result is new memory."""
