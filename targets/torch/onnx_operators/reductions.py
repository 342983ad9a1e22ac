"""How ONNX's reductions, running sums and products are written in torch, where the IR's ops do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .operator import Operator, writes

_Reduce = Callable[[Operator, fx.Node, tuple[int, ...], bool], fx.Node]


def _same_type(function: Callable[..., Any]) -> _Reduce:
    """A reduction that torch would compute of integers in int64."""

    def rule(o: Operator, x: fx.Node, axes: tuple[int, ...], keep: bool) -> fx.Node:
        made = o.call(function, x, axes, keep)
        whole = o.dtype is not None and not o.dtype.is_float
        return o.call("to", made, o.dtype_of(o.dtype)) if whole and o.dtype else made

    return rule


def _prod(o: Operator, x: fx.Node, axes: tuple[int, ...], keep: bool) -> fx.Node:
    for axis in sorted((o.axis(a) for a in axes), reverse=True):
        x = o.call(torch.prod, x, axis, keep)
    return o.call("to", x, o.dtype_of(o.dtype)) if o.dtype else x


def _mean(o: Operator, x: fx.Node, axes: tuple[int, ...], keep: bool) -> fx.Node:
    if o.dtype is None or not o.dtype.is_float:
        raise o.refuse_operator("torch has no mean of integers")
    return o.call(torch.mean, x, axes, keep)


def _extremum(function: Callable[..., Any]) -> _Reduce:
    def rule(o: Operator, x: fx.Node, axes: tuple[int, ...], keep: bool) -> fx.Node:
        if any(o.size(0, axis) == 0 for axis in axes):
            raise o.refuse_operator("torch has no extremum of no numbers")
        return o.call(function, x, axes, keep)

    return rule


_SUM = _same_type(torch.sum)

_REDUCTIONS: dict[str, _Reduce] = {
    "ReduceSum": _SUM,
    "ReduceMean": _mean,
    "ReduceMax": _extremum(torch.amax),
    "ReduceMin": _extremum(torch.amin),
    "ReduceProd": _prod,
    "ReduceL1": lambda o, x, axes, keep: _SUM(o, o.call(torch.abs, x), axes, keep),
    "ReduceSumSquare": lambda o, x, axes, keep: _SUM(o, o.call(torch.mul, x, x), axes, keep),
    "ReduceL2": lambda o, x, axes, keep: o.call(torch.sqrt, _SUM(o, o.call(torch.mul, x, x), axes, keep)),
    "ReduceLogSum": lambda o, x, axes, keep: o.call(torch.log, _SUM(o, x, axes, keep)),
    "ReduceLogSumExp": lambda o, x, axes, keep: o.call(torch.logsumexp, x, axes, keep),
}  # fmt: skip


def _register(name: str, function: _Reduce) -> None:
    @writes(name)
    def rule(o: Operator) -> fx.Node:
        axes, keep = o.axes(), bool(o.attributes.get("keepdims", 1))
        if not axes and o.attributes.get("noop_with_empty_axes", 0):
            return o.call(torch.clone, o.value())
        found = tuple(axes) if axes else tuple(range(len(o.shape())))
        return function(o, o.value(), found, keep) if found else o.call(torch.clone, o.value())


for _name, _function in _REDUCTIONS.items():
    _register(_name, _function)


@writes("CumSum", "CumProd")
def running(o: Operator) -> fx.Node:
    """``torch.cumsum`` or ``torch.cumprod`` along a constant axis."""
    product = o.node.op.attributes()["kind"].endswith("CumProd")
    axis, x = o.constants(1)[0], o.value()
    if o.dtype is None:
        raise o.refuse_operator("its element type is not known")
    behind = len(o.shape()) - 1 - axis % len(o.shape())
    if o.attributes.get("reverse", 0):
        x = o.call(torch.flip, x, (axis,))
    if o.attributes.get("exclusive", 0):
        x = o.call(F.pad, x, [0, 0] * behind + [1, -1], "constant", 1 if product else 0)
    made = o.call(torch.cumprod if product else torch.cumsum, x, axis, dtype=o.dtype_of(o.dtype))
    return o.call(torch.flip, made, (axis,)) if o.attributes.get("reverse", 0) else made


@writes("Einsum")
def einsum(o: Operator) -> fx.Node:
    """``torch.einsum``."""
    return o.call(torch.einsum, o.text("equation", ""), *o.values())


@writes("Det")
def determinant(o: Operator) -> fx.Node:
    """``torch.linalg.det``."""
    return o.call(torch.linalg.det, o.value())


@writes("DFT")
def fourier(o: Operator) -> fx.Node:
    """``torch.fft``; complex numbers are pairs along the last axis."""
    x, rank = o.value(), len(o.shape())
    axis = (
        o.constants(2)[0] if o.is_given(2) else o.attributes.get("axis", 1 if o.opset < 20 else -2)
    )
    axis %= rank
    length = o.numbers(1)[0] if o.is_given(1) else None
    pairs = o.node.required(0).type.dim(-1)
    inverse, onesided = (bool(o.attributes.get(n, 0)) for n in ("inverse", "onesided"))
    if pairs not in (1, 2) or (inverse and onesided) or (onesided and pairs == 2):
        raise o.refuse_operator("torch has no such Fourier transform")
    whole = (
        o.call(torch.view_as_complex, o.call("contiguous", x))
        if pairs == 2
        else o.call(torch.squeeze, x, -1)
    )
    function = torch.fft.rfft if onesided else torch.fft.ifft if inverse else torch.fft.fft
    made = o.call(function, whole, length, axis)
    return o.call(torch.view_as_real, made)
