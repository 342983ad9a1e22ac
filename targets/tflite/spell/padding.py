"""Padding of any axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import Node, Pad
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, FlatTensor
from ..layout import Layout
from .convolutions import pad
from .slices import strided_slice


@spells(Pad)
def pad_(e: Emitter, node: Node, op: Pad) -> None:
    """PAD, PADV2 or MIRROR_PAD, and a GATHER along each axis that repeats or wraps; negative pads crop."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    rank = layout.rank
    pads = [(op.pads[axis], op.pads[rank + axis]) for axis in layout.perm]
    for d, (begin, end) in zip(tensor.shape, pads, strict=True):
        if d == DYNAMIC and (begin, end) != (0, 0):
            raise Unsupported("it pads an axis whose size is not known")
    cropped = strided_slice(
        e, tensor, [max(0, -b) for b, _ in pads],
        [None if t >= 0 else d + t for d, (_, t) in zip(tensor.shape, pads, strict=True)],
        [1] * rank,
    )  # fmt: skip
    grown = [(max(0, b), max(0, t)) for b, t in pads]
    if op.mode == "constant":
        made = pad(e, cropped, grown, None if op.value == 0 else op.value)
    elif op.mode == "reflect":
        made = _mirror(e, cropped, grown)
    else:
        made = _gathered(e, cropped, grown, op.mode)
    e.put(node.output, made, layout)


def _mirror(e: Emitter, tensor: FlatTensor, pads: Sequence[tuple[int, int]]) -> FlatTensor:
    if not any(map(any, pads)):
        return tensor
    shape = [d if d == DYNAMIC else d + b + t for d, (b, t) in zip(tensor.shape, pads, strict=True)]
    return e.op("MIRROR_PAD", [tensor, e.constant(np.array(pads), "INT32")], shape, tensor.dtype,
                ("MirrorPadOptions", {"mode": 0}))  # fmt: skip


def _gathered(
    e: Emitter, tensor: FlatTensor, pads: Sequence[tuple[int, int]], mode: str
) -> FlatTensor:
    """Pad by picking numbers along each axis: the nearest for ``edge``, from the other side for ``wrap``."""
    for axis, (begin, end) in enumerate(pads):
        size = tensor.shape[axis]
        if (begin, end) == (0, 0):
            continue
        if size == 0:
            raise Unsupported("it pads an axis without elements")
        places = np.arange(-begin, size + end)
        places = np.clip(places, 0, size - 1) if mode == "edge" else places % size
        shape = (*tensor.shape[:axis], len(places), *tensor.shape[axis + 1 :])
        made = e.op("GATHER", [tensor, e.constant(places, "INT32")], shape, tensor.dtype,
                    ("GatherOptions", {"axis": axis, "batchDims": 0}))  # fmt: skip
        made.quantization = tensor.quantization
        tensor = made
    return tensor
