"""How functions, comparisons, picks and resolutions are called in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ....ir import ModelError, Node, Value


class Calls(Protocol):
    """What the rules need of the emitter."""

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of a method by name."""

    def _value(self, value: Value) -> fx.Node: ...


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{kind: getattr(torch, kind) for kind in ir.UNARY if kind != "not"},
    "not": torch.logical_not,
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le,
    "greater": torch.gt, "greater_equal": torch.ge,
}  # fmt: skip
_LOGIC: dict[str, Callable[..., Any]] = {
    "and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor,
}  # fmt: skip


def _operands(e: Calls, node: Node) -> list[fx.Node]:
    return [e._value(v) for v in node.inputs if v is not None]


def _of(function: Callable[..., Any]) -> Callable[[Calls, Node, Any], fx.Node]:
    return lambda e, node, op: e.call(function, *_operands(e, node))


def _extremum(e: Calls, node: Node, op: ir.Max | ir.Min) -> fx.Node:
    function = torch.maximum if isinstance(op, ir.Max) else torch.minimum
    first, *rest = _operands(e, node)
    for other in rest:
        first = e.call(function, first, other)
    return first if rest else e.call(torch.clone, first)


def _gather(e: Calls, node: Node, op: ir.Gather) -> fx.Node:
    data, indices = _operands(e, node)
    whole = (slice(None),) * op.axis
    if op.axis < 0:
        raise ModelError(f"{node.name}: a Gather counted from the last axis needs the rank")
    return e.call(operator.getitem, data, (*whole, indices) if whole else indices)


def _expand(e: Calls, node: Node, op: ir.Expand) -> fx.Node:
    x = node.inputs[0]
    rank = x.type.rank if x is not None else None
    if rank is None:
        raise ModelError(f"{node.name}: an Expand of unknown rank has no spelling in torch")
    new = max(len(op.shape) - rank, 0)
    wide = (1,) * (rank + new - len(op.shape)) + op.shape
    first, *second = _operands(e, node)
    like = iter([e.call("size", second[0], axis) for axis in op.like])
    # What the axes in front become must be said, even when it is 1.
    sizes = [
        next(like) if d is None else d if a < new or d != 1 else -1 for a, d in enumerate(wide)
    ]
    return e.call("expand", first, *sizes)


def _arg(e: Calls, node: Node, op: ir.ArgReduce) -> fx.Node:
    if op.last:
        raise ModelError(f"{node.name}: the last of several places has no spelling in torch")
    function = torch.argmax if op.kind == "max" else torch.argmin
    return e.call(function, _operands(e, node)[0], op.axis, op.keepdims)


def _cumsum(e: Calls, node: Node, op: ir.CumSum) -> fx.Node:
    if op.exclusive or op.reverse:
        raise ModelError(f"{node.name}: this CumSum has no spelling in torch")
    return e.call(torch.cumsum, _operands(e, node)[0], op.axis)


def _resize(e: Calls, node: Node, op: ir.Resize) -> fx.Node:
    x = node.inputs[0]
    rank = x.type.rank if x is not None else None
    given = op.scales or op.sizes
    corners = op.coordinates == "align_corners"
    plain = (
        op.coordinates == "asymmetric" and op.rounding == "floor"
        if op.mode == "nearest"
        else op.coordinates in ("half_pixel", "align_corners")
    )
    exact = op.coordinates == "half_pixel" and op.rounding == "round_prefer_ceil"
    mode = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}.get(rank or 0), "cubic": "bicubic"}.get(op.mode, "nearest")  # fmt: skip
    if op.mode == "nearest" and exact:
        mode, plain = "nearest-exact", True
    kept = x is not None and {0, 1} <= set(op.kept([x.type]))
    if rank is None or not plain or not kept or mode is None or op.exclude_outside:
        raise ModelError(f"{node.name}: this Resize has no spelling in torch")
    if op.mode == "cubic" and (rank != 4 or op.cubic != -0.75):
        raise ModelError(f"{node.name}: this cubic Resize has no spelling in torch")
    rest: dict[str, Any] = {"mode": mode}
    if op.mode != "nearest":
        rest |= {"align_corners": corners, "antialias": op.antialias}
    spatial = tuple(given[2:])
    if op.scales:
        return e.call(F.interpolate, _operands(e, node)[0], scale_factor=spatial, **rest)
    sizes = [
        d if d is not None else e.call("size", _operands(e, node)[0], 2 + i)
        for i, d in enumerate(spatial)
    ]
    return e.call(F.interpolate, _operands(e, node)[0], size=tuple(sizes), **rest)


def _depth_to_space(e: Calls, node: Node, op: ir.DepthToSpace | ir.SpaceToDepth) -> fx.Node:
    if op.mode == "CRD" or op.block == 1:
        deep = isinstance(op, ir.DepthToSpace)
        function = torch.pixel_shuffle if deep else torch.pixel_unshuffle
        return e.call(function, _operands(e, node)[0], op.block)
    raise ModelError(f"{node.name}: {op.name} in mode DCR has no spelling in torch")


MATH_RULES: dict[type[ir.Op], Callable[[Any, Node, Any], fx.Node]] = {
    ir.ArgReduce: _arg,
    ir.Compare: lambda e, n, op: e.call(_COMPARISONS[op.kind], *_operands(e, n)),
    ir.CumSum: _cumsum,
    ir.DepthToSpace: _depth_to_space,
    ir.Expand: _expand,
    ir.Gather: _gather,
    ir.LogSoftmax: lambda e, n, op: e.call(torch.log_softmax, *_operands(e, n), op.axis),
    ir.Logical: lambda e, n, op: e.call(_LOGIC[op.kind], *_operands(e, n)),
    ir.Max: _extremum,
    ir.Min: _extremum,
    ir.Pow: _of(torch.pow),
    ir.Resize: _resize,
    ir.SpaceToDepth: _depth_to_space,
    ir.Unary: lambda e, n, op: e.call(_FUNCTIONS[op.kind], *_operands(e, n)),
    ir.Where: _of(torch.where),
}
"""The rules, by op."""
