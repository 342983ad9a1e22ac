"""How ops that pick or repeat elements along axes are written in ONNX."""

from __future__ import annotations

from functools import partial
from itertools import groupby

from .... import ir
from ..speller import Speller, spells

_SHAPE_OF_SOME = 15
"""From this opset on, Shape can give the sizes of some axes."""


@spells(ir.Gather, writes="Gather")
def gather(s: Speller, op: ir.Gather) -> None:
    """Gather."""
    s.plain("Gather", axis=op.axis)


@spells(ir.Expand, writes="Expand Shape Concat")
def expand(s: Speller, op: ir.Expand) -> None:
    """Expand to a shape whose open sizes are taken from the second input when the network runs."""
    if s.opset < 8:
        raise s.refuse("does not exist")
    if not op.like:
        shape = s.ints([d for d in op.shape if d is not None], "shape")
    else:
        write = _shape_by_gather if s.opset < _SHAPE_OF_SOME else _shape_by_parts
        shape = s.once((s.inputs[1], op.shape, op.like), lambda: write(s, op))
    s.emit("Expand", [s.inputs[0], shape], s.outputs[0])


def _shape_by_gather(s: Speller, op: ir.Expand) -> str:
    """The known sizes, then all sizes of the second input: picked in order."""
    known = [d for d in op.shape if d is not None]
    numbers, axes = iter(range(len(known))), iter(op.like)
    sizes = s.emit("Concat", [s.ints(known, "known"), s.emit("Shape", [s.inputs[1]])], axis=0)
    places = [next(numbers) if d is not None else len(known) + next(axes) for d in op.shape]
    return s.emit("Gather", [sizes, s.ints(places, "places")], axis=0)


def _shape_by_parts(s: Speller, op: ir.Expand) -> str:
    """Runs of known sizes and single sizes of the second input, joined."""
    like, parts, axes = s.inputs[1], [], iter(op.like)
    for is_open, run in groupby(op.shape, lambda d: d is None):
        if not is_open:
            parts.append(s.ints([d for d in run if d is not None], "known"))
            continue
        for _ in run:
            axis = next(axes)
            size = partial(s.emit, "Shape", [like], start=axis, end=axis + 1)
            parts.append(s.once((like, axis), size))
    return s.emit("Concat", parts, axis=0) if len(parts) > 1 else parts[0]


@spells(ir.GatherElements, writes="GatherElements")
def gather_elements(s: Speller, op: ir.GatherElements) -> None:
    """GatherElements."""
    s.plain("GatherElements", axis=op.axis)


@spells(ir.GatherNd, writes="GatherND")
def gather_nd(s: Speller, op: ir.GatherNd) -> None:
    """GatherND, which has batch axes from opset 12 on."""
    if op.batch_axes and s.opset < 12:
        raise s.refuse("with batch axes does not exist")
    s.plain("GatherND", **({"batch_dims": op.batch_axes} if op.batch_axes else {}))


@spells(ir.TopK, writes="TopK")
def top_k(s: Speller, op: ir.TopK) -> None:
    """TopK, whose number is an input from opset 10 on; it finds the smallest from opset 11 on."""
    if not op.largest and s.opset < 11:
        raise s.refuse("of the smallest numbers does not exist")
    attrs: dict[str, int] = {"axis": op.axis, **({} if op.largest else {"largest": 0})}
    if s.opset < 10:
        s.many("TopK", s.inputs, s.outputs, k=op.k, **attrs)
    else:
        s.many("TopK", [s.inputs[0], s.ints([op.k], "k")], s.outputs, **attrs)


@spells(ir.Range, writes="Range")
def range_(s: Speller, _: ir.Range) -> None:
    """Range."""
    s.plain("Range")
