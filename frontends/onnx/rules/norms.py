"""ONNX's normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .... import ir
from ....ir import ArrayTensor, DerivedTensor, SplatTensor, Tensor
from ....ir.batch_norm import BatchNorm
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Steps
from ...lowering.base import Builder
from ...lowering.norms import Array64, batch_norm_scale
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads


@reads(
    "BatchNormalization",
    makes=[ir.Scale, ir.Mul, ir.Add, ir.Sub, ir.Div, (ir.Unary, "sqrt")],
    note="in evaluation mode",
    several=True,
)
def _batch_norm(node: OnnxNode) -> Lowered | Steps | None:
    # Below opset 7, training mode was the default.
    if node.opset < 7 and not node.flag("is_test"):
        return None
    if node.outputs != 1 or node.flag("training_mode") or node.type().rank in (0, 1):
        return None
    tensors = [node.data(i) for i in range(1, 5)]
    by_channel = node.flag("spatial", 1)
    return _by_channel(node, tensors) if by_channel else _by_element(node, tensors)


def _by_channel(node: OnnxNode, tensors: Sequence[Tensor | None]) -> Lowered | Steps | None:
    if any(node.type(i).rank != 1 for i in range(1, 5)):
        return None
    if any(t is None for t in tensors):
        return _computed(node)
    return ir.Scale(1), [node.input(0), *_scale(node, tensors)]


def _computed(node: OnnxNode) -> Steps | None:
    """Read a batch norm whose statistics, scale or shift are computed."""
    dtype = node.type().dtype
    if (
        dtype is None
        or not dtype.is_wide_float
        or any(node.type(i).dtype is not dtype for i in range(1, 5))
    ):
        return None
    x, gamma, beta, mean, variance = (node.required(i) for i in range(5))
    made = Builder()
    epsilon = ArrayTensor(np.full(1, node.number("epsilon", 1e-5), dtype.numpy))
    root = made.add(ir.Unary("sqrt"), made.add(ir.Add(), variance, epsilon))
    scale = made.add(ir.Div(), gamma, root)
    shift = made.add(ir.Sub(), beta, made.add(ir.Mul(), mean, scale))
    made.add(ir.Scale(1), x, scale, shift)
    return made.steps()


def _by_element(node: OnnxNode, tensors: Sequence[Tensor | None]) -> Steps | None:
    """Read a batch norm with statistics for each element: ``spatial=0`` below opset 9."""
    shape = (node.type().shape or ())[1:]
    if not shape or any(t is None or t.shape != shape for t in tensors):
        return None
    scale, shift = _scale(node, tensors)
    made = Builder()
    made.add(ir.Add(), made.add(ir.Mul(), node.input(0), scale), shift)
    return made.steps()


def _scale(node: OnnxNode, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (t for t in tensors if t is not None)
    # onnx stores epsilon as float32; the shortest decimal recovers the intended number.
    eps = node.number("epsilon", 1e-5)
    norm = BatchNorm(gamma, beta, mean, var, eps)
    return batch_norm_scale(norm, node.type().dtype or gamma.dtype)


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


@reads("GroupNormalization", makes=ir.GroupNorm, note="below opset 21, with constant vectors")
def _group_norm(node: OnnxNode) -> Lowered | None:
    x, groups = node.type(), node.attribute("num_groups")
    if x.rank in (None, 0, 1) or node.attribute("stash_type", 1) != 1:
        return None
    op = ir.GroupNorm(groups, node.number("epsilon", 1e-5))
    if node.opset >= 21:
        return op, node.inputs
    # Below opset 21, the vectors have one number per group.
    channels, vectors = x.dim(1), [node.data(1), node.data(2)]
    if not isinstance(channels, int) or groups <= 0 or channels % groups:
        return None
    if any(v is None or v.shape != (groups,) for v in vectors):
        return None
    return op, [
        node.input(0),
        *(_repeated(v, channels // groups) for v in vectors if v is not None),
    ]


def _repeated(data: Tensor, times: int) -> Tensor:
    def numbers() -> Array64:
        return np.repeat(data.float64(), times)

    return DerivedTensor((data.shape[0] * times,), data.dtype, numbers, sources=(data,))


@reads("LRN", makes=ir.LocalResponseNorm, note="over an odd number of channels")
def _local_response_norm(node: OnnxNode) -> Lowered | None:
    size = node.attribute("size")
    if size is None or node.type().rank in (None, 0, 1):
        return None
    if size % 2 == 0:
        # ONNX and torch differ in which channel is the middle one.
        raise LeftAlone("its even number of channels has no middle")
    alpha, beta = node.number("alpha", 1e-4), node.number("beta", 0.75)
    return ir.LocalResponseNorm(size, alpha, beta, node.number("bias", 1.0)), node.inputs


@reads(
    "LpNormalization",
    makes=[(ir.Reduce, "l1"), (ir.Reduce, "l2"), (ir.Compare, "equal"), ir.Where, ir.Div],
    note="of floats",
    several=True,
)
def _lp_normalization(node: OnnxNode) -> Steps | None:
    """The quotient by the norm; zeros, not NaN, where the norm is 0."""
    axis, p, x = node.attribute("axis", -1), node.attribute("p", 2), node.type()
    if not x.rank or x.dtype is None or not x.dtype.is_wide_float or p not in (1, 2):
        return None
    axis = axis_of(axis, x.rank)
    if x.dim(axis) == 0:
        raise LeftAlone("it normalises nothing")
    made = Builder()
    zero, one = (SplatTensor((), x.dtype, number) for number in (0.0, 1.0))
    norm = made.add(ir.Reduce(f"l{p}", (axis,)), node.input(0))
    safe = made.add(ir.Where(), made.add(ir.Compare("equal"), norm, zero), one, norm)
    made.add(ir.Div(), node.input(0), safe)
    return made.steps()


@reads(
    "MeanVarianceNormalization",
    makes=[(ir.Reduce, "mean"), ir.Sub, ir.Mul, (ir.Unary, "sqrt"), ir.Div],
    note="of floats",
    several=True,
)
def _mean_variance_normalization(node: OnnxNode) -> Steps | None:
    """``(x - mean) / (sqrt(variance) + 1e-9)``."""
    x, axes = node.type(), node.ints("axes") or (0, 2, 3)
    if not x.rank or x.dtype is None or x.dtype.value not in ("f32", "f64"):
        return None
    axes = tuple(sorted(node.axes(axes, x.rank)))
    if any(x.dim(axis) == 0 for axis in axes):
        raise LeftAlone("it normalises nothing")
    made, mean = Builder(), ir.Reduce("mean", axes)
    centred = made.add(ir.Sub(), node.input(0), made.add(mean, node.input(0)))
    variance = made.add(mean, made.add(ir.Mul(), centred, centred))
    deviation = made.add(ir.Unary("sqrt"), variance)
    made.add(ir.Div(), centred, made.add(ir.Add(), deviation, SplatTensor((), x.dtype, 1e-9)))
    return made.steps()
