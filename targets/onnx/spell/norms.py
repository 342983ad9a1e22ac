"""How layer and group normalisation are written in ONNX."""

from __future__ import annotations

from typing import Any

from .... import ir
from ....ir import ModelError, SplatTensor
from ..speller import Speller, spells
from .reductions import reduce_mean


@spells(
    ir.LayerNorm,
    writes="LayerNormalization Sub ReduceMean Mul Add Sqrt Div",
    note="without a scale, or before opset 17, as arithmetic",
)
def layer_norm(s: Speller, op: ir.LayerNorm) -> None:
    """LayerNormalization, which needs a scale; else its arithmetic."""
    x, scale, shift = s.inputs[0], s.given(1), s.given(2)
    if s.opset >= 17 and scale:
        attrs = {"axis": op.axis, "epsilon": op.epsilon}
        s.emit("LayerNormalization", [x, scale, shift], s.outputs[0], **attrs)
        return
    rank = s.rank
    if rank is None:
        raise s.refuse("of unknown rank cannot be decomposed")
    axes = list(range(op.axis % rank, rank))
    centred = s.emit("Sub", [x, reduce_mean(s, x, axes)])
    variance = reduce_mean(s, s.emit("Mul", [centred, centred]), axes)
    deviation = s.emit("Sqrt", [s.emit("Add", [variance, s.scalar(op.epsilon, "epsilon")])])
    steps = [("Div", deviation), ("Mul", scale), ("Add", shift)]
    kept = [(kind, operand) for kind, operand in steps if operand]
    current = centred
    for i, (kind, operand) in enumerate(kept):
        current = s.emit(kind, [current, operand], s.outputs[0] if i == len(kept) - 1 else None)


@spells(
    ir.GroupNorm,
    writes="GroupNormalization InstanceNormalization",
    note="before opset 21, groups are reshaped to channels",
)
def group_norm(s: Speller, op: ir.GroupNorm) -> None:
    """GroupNormalization or InstanceNormalization, whose vectors are mandatory."""
    channels = s.node.required(0).type.dim(1)
    whole = op.groups == 0 or s.opset >= 21
    size = channels if whole else op.groups
    given = [s.given(1), s.given(2)]
    vectors = []
    for index, (name, hint) in enumerate(zip(given, ("ones", "zeros"), strict=True)):
        if name and whole:
            vectors.append(name)
        elif size is None:
            raise ModelError(f"{s.node.name}: GroupNorm of unknown size has no ONNX spelling")
        else:
            constant = SplatTensor((size,), s.dtype, 1.0 - index)
            vectors.append(s.new_constant(constant, hint))
    if not whole:
        _group_by_group(s, op, given, vectors)
        return
    attrs: dict[str, Any] = {"epsilon": op.epsilon}
    kind = "InstanceNormalization"
    if op.groups:
        kind, attrs["num_groups"] = "GroupNormalization", op.groups
    s.emit(kind, [s.inputs[0], *vectors], s.outputs[0], **attrs)


def _group_by_group(s: Speller, op: ir.GroupNorm, given: list[str], vectors: list[str]) -> None:
    """Each group as one channel of an InstanceNormalization, then scale and shift."""
    rank = s.rank
    if rank is None:
        raise ModelError(f"{s.node.name}: GroupNorm of unknown rank has no ONNX spelling")
    flat = s.emit("Reshape", [s.inputs[0], s.ints((0, op.groups, -1), "groups")])
    flat = s.emit("InstanceNormalization", [flat, *vectors], epsilon=op.epsilon)
    shape = s.emit("Shape", [s.inputs[0]])
    left = [(kind, name) for kind, name in zip(("Mul", "Add"), given, strict=True) if name]
    made = s.emit("Reshape", [flat, shape], None if left else s.outputs[0])
    for number, (kind, name) in enumerate(left):
        last = number == len(left) - 1
        wide = s.emit("Reshape", [name, s.ints((1, -1, *[1] * (rank - 2)), "wide")])
        made = s.emit(kind, [made, wide], s.outputs[0] if last else None)


@spells(ir.LocalResponseNorm, writes="LRN")
def local_response_norm(s: Speller, op: ir.LocalResponseNorm) -> None:
    """LRN."""
    s.plain("LRN", size=op.size, alpha=op.alpha, beta=op.beta, bias=op.bias)
