"""ONNX's normalisations."""

from __future__ import annotations

from .... import ir
from ...lowering import Lowered
from ...lowering.norms import batch_norm_scale
from ..node import OnnxNode
from ..registry import reads


@reads(
    "BatchNormalization",
    makes=ir.Scale,
    note="in evaluation mode, with constant statistics",
    since=7,
)
def _batch_norm(node: OnnxNode) -> Lowered | None:
    # Below opset 7 it was in training mode by default.
    tensors = [node.data(i) for i in range(1, 5)]
    x = node.type()
    if any(t is None or len(t.shape) != 1 for t in tensors) or node.outputs != 1:
        return None
    if node.flag("training_mode") or not node.flag("spatial", 1) or x.rank in (0, 1):
        return None
    gamma, beta, mean, var = (t for t in tensors if t is not None)
    # onnx writes eps as float32; the shortest decimal is what its author meant.
    eps = node.number("epsilon", 1e-5)
    dtype = x.dtype or gamma.dtype
    return ir.Scale(1), [node.input(0), *batch_norm_scale(gamma, beta, mean, var, eps, dtype)]


@reads("LayerNormalization", makes=ir.LayerNorm, idle_results=True)
def _layer_norm(node: OnnxNode) -> Lowered | None:
    axis, rank = node.attribute("axis", -1), node.type().rank
    if node.outputs != 1 or rank is None or node.attribute("stash_type", 1) != 1:
        return None
    (axis,) = node.axes([axis], rank)
    for index in (1, 2):
        if node.input(index) is not None and node.type(index).rank != rank - axis:
            return None
    return ir.LayerNorm(axis, node.number("epsilon", 1e-5)), node.inputs


@reads("InstanceNormalization", makes=ir.GroupNorm)
def _instance_norm(node: OnnxNode) -> Lowered | None:
    if node.type().rank in (None, 0, 1):
        return None
    return ir.GroupNorm(0, node.number("epsilon", 1e-5)), node.inputs


@reads("GroupNormalization", makes=ir.GroupNorm, since=21)
def _group_norm(node: OnnxNode) -> Lowered | None:
    # Below opset 21 the vectors had one number a group.
    if node.type().rank in (None, 0, 1) or node.attribute("stash_type", 1) != 1:
        return None
    groups = node.attribute("num_groups")
    return ir.GroupNorm(groups, node.number("epsilon", 1e-5)), node.inputs
