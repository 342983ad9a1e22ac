"""Operators that prepare inputs: ``Scaler`` of ai.onnx.ml and the old ``ImageScaler``."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....ir import ArrayTensor, DType
from ...lowering import Lowered, Steps
from ...lowering.base import Builder
from ..node import OnnxNode
from ..registry import reads


@reads("ai.onnx.ml.Scaler", makes=[ir.Scale, ir.Cast], several=True)
def _scaler(node: OnnxNode) -> Steps | None:
    """``(x - offset) * scale`` in float32, along the last axis."""
    offset, scale = node.attribute("offset", ()), node.attribute("scale", ())
    dtype, rank = node.type().dtype, node.type().rank
    if (
        not rank
        or dtype is None
        or dtype not in (DType.F32, DType.I32, DType.I64)
        or not offset
        or not scale
    ):
        return None
    if any(len(v) not in (1, node.type().dim(-1)) for v in (offset, scale)):
        return None
    made = Builder()
    x = node.required(0)
    wide = x if dtype is DType.F32 else made.add(ir.Cast("f32"), x)
    axis = ir.Scale(rank - 1)
    moved = made.add(axis, wide, None, ArrayTensor(-np.array(offset, np.float32)))
    made.add(axis, moved, ArrayTensor(np.array(scale, np.float32)))
    return made.steps()


@reads("ImageScaler", makes=ir.Scale, note="of images")
def _image_scaler(node: OnnxNode) -> Lowered | None:
    """``x * scale + bias``, with a bias for each channel."""
    bias, channels, dtype = node.attribute("bias", ()), node.type().dim(1), node.type().dtype
    if node.type().rank != 4 or dtype is not DType.F32 or len(bias) != channels:
        return None
    scale = np.full(len(bias), node.number("scale", 1.0), np.float32)
    shift = np.array(bias, np.float32)
    return ir.Scale(1), [node.required(0), ArrayTensor(scale), ArrayTensor(shift)]
