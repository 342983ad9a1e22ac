"""Conversion of nodes to affine maps, and of affine maps to ops.

A node is an affine map if its element type is a floating-point type of at least 16 bits, its weights are constants, and
it has one data input. Its *domain* is the set of axes that it works on: a convolution of rank n works on channels at
axis 1 and n spatial axes, a dense layer on the last axis (rank 0), a scale on its own axis, and a scale by a single
number or an identity on any axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ....ir import (
    Add,
    AveragePool,
    Conv,
    ConvTranspose,
    DType,
    GraphError,
    Identity,
    Linear,
    Node,
    Op,
    Pad,
    Scale,
    SplatTensor,
    Sub,
    Tensor,
    Unary,
    Value,
)
from ....ir.analysis.dequantized import is_dequantized
from .affine import Affine, Refused, Sizes
from .tensors import Array64, Derived, from_float64, read_vector

ANY = None
"""The domain of nodes that fit any axis: scales by a single number, and identities."""

CONV = "conv"
"""The domain of nodes that work on axis 1 of a value of unknown rank."""

Domain = int | str | None
"""``ANY``, ``CONV``, the spatial rank, 0 for the last axis, or ``-1 - axis`` for another axis."""


def data_input(node: Node) -> Value | None:
    """The data input of an affine node; ``None`` if the node is not an affine map."""
    match node.op:
        case Conv() | ConvTranspose() | Linear():
            weight = node.inputs[1]
            if weight is None or weight.data is None or is_dequantized(weight):
                return None
            bias = node.input(2)
            if bias is not None and (bias.data is None or is_dequantized(bias)):
                return None
            found = node.inputs[0]
        case Scale():
            if any(
                v is not None and (v.data is None or is_dequantized(v)) for v in node.inputs[1:]
            ):
                return None
            found = node.inputs[0]
        case AveragePool() | Pad() | Identity() | Unary(kind="neg"):
            found = node.inputs[0]
        case Add() | Sub():
            found = _bias_map_operand(node)
        case _:
            return None
    if found is None or found.data is not None or node.output.data is not None:
        return None
    dtype = node.output.type.dtype
    return found if dtype is not None and dtype.is_wide_float else None


def weight_problem(node: Node) -> str | None:
    """The reason why the weights of a linear op prevent it from being an affine map; ``None`` if they do not."""
    if isinstance(node.op, Conv | ConvTranspose | Linear | Scale):
        dtype = node.output.type.dtype
        if dtype is not None and dtype.is_wide_float:
            for value in node.inputs[1:]:
                if value is not None and value.data is None:
                    return f"its weight %{value.name} is not a constant"
                if value is not None and is_dequantized(value):
                    return (
                        f"its weight %{value.name} is quantised, and the result would be floating-point; "
                        "requantize{...} makes it integers again"
                    )
    return None


def _bias_map_operand(node: Node) -> Value | None:
    """The data operand of an addition or subtraction of a constant ``(1, C, *spatial)``; ``None`` for any other."""
    a, b = node.inputs
    if a is None or b is None:
        return None
    if a.data is not None and isinstance(node.op, Add):
        a, b = b, a
    if b.data is None or a.data is not None or is_dequantized(b):
        return None
    shape = a.type.shape
    if shape is None or len(shape) < 3:
        return None
    return a if b.data.shape == (1, *shape[1:]) else None


def domain_of(node: Node) -> Domain | Refused:
    """The domain of an affine node."""
    match node.op:
        case Conv(strides=strides) | ConvTranspose(strides=strides) | AveragePool(strides=strides):
            return len(strides)
        case Pad(pads=pads, mode=mode, value=value):
            rank = len(pads) // 2
            if mode != "constant" or value != 0.0:
                return Refused(f"only padding by constant zeros merges, not {mode} {value:g}")
            if any(pads[:2]) or any(pads[rank : rank + 2]) or rank < 3:
                return Refused("only the padding of spatial axes merges")
            return rank - 2
        case Linear():
            return 0
        case Add() | Sub():
            result_rank = node.output.type.rank
            if result_rank is None:
                return Refused("the rank of its result is not known")
            return result_rank - 2
        case Scale(axis=axis):
            if all(v is None or v.type.shape == (1,) for v in node.inputs[1:]):
                return ANY
            known = node.output.type.rank
            if known is None:
                if axis not in (1, -1):
                    return Refused("the rank of its input is not known")
                return CONV if axis == 1 else 0
            axis %= known
            if axis == known - 1:
                return 0
            return known - 2 if axis == 1 else -1 - axis
        case _:
            return ANY


def common_domain(a: Domain, b: Domain) -> Domain | Refused:
    """The domain in which two neighbours both work; :class:`Refused` if there is none."""
    if a == b or b is ANY:
        return a
    if a is ANY:
        return b
    if a == CONV and isinstance(b, int) and b > 0:
        return b
    if b == CONV and isinstance(a, int) and a > 0:
        return a
    return Refused("they work along different axes")


def channels_of(nodes: Sequence[Node], domain: Domain, source: Value) -> list[int] | None:
    """The number of input channels of every node of a run; ``None`` if one is not known.

    A node that does not determine the number itself gets it from its neighbours.

    Args:
        nodes: The nodes of the run.
        domain: Their common domain.
        source: The input of the run.
    """
    if domain is ANY:
        return [1] * len(nodes)
    axis = _channel_axis(domain)
    ends = [known_channels(node, domain) for node in nodes]
    before = source.type.dim(axis)
    found: list[int | None] = []
    for own, after in ends:
        found.append(own if own is not None else before)
        before = after if after is not None else found[-1]
    later: int | None = None
    for i in reversed(range(len(nodes))):
        if found[i] is None:
            found[i] = later
        later = found[i]
    known = [c for c in found if c is not None]
    return known if len(known) == len(nodes) else None


def known_channels(node: Node, domain: Domain) -> tuple[int | None, int | None]:
    """The numbers of input and output channels, as far as the node itself determines them."""
    match node.op:
        case Conv(groups=groups):
            shape = _weight_shape(node)
            return shape[1] * groups, shape[0]
        case ConvTranspose(groups=groups):
            shape = _weight_shape(node)
            return shape[0], shape[1] * groups
        case Linear():
            shape = _weight_shape(node)
            return shape[1], shape[0]
        case Scale():
            for vector in node.inputs[1:]:
                if vector is not None and vector.data is not None and vector.data.size > 1:
                    return vector.data.size, vector.data.size
    axis = _channel_axis(domain)
    found = node.output.type.dim(axis)
    if found is None and node.inputs[0] is not None:
        found = node.inputs[0].type.dim(axis)
    return found, found


def _channel_axis(domain: Domain) -> int:
    if domain == 0:
        return -1
    return -1 - domain if isinstance(domain, int) and domain < 0 else 1


def _weight_shape(node: Node) -> tuple[int, ...]:
    return _weight_and_bias(node)[0].shape


def affine_of(node: Node, rank: int, channels: int) -> Affine | Refused:
    """A node as an affine map of spatial rank ``rank`` on ``channels`` input channels."""
    source, dtype = data_input(node), node.output.type.dtype
    if source is None or dtype is None:
        return Refused("it is not an affine map")
    identity = identity_map(rank, channels, source, dtype)
    size = identity.size
    match node.op:
        case Conv(strides, pads, dilations, groups):
            if min(pads, default=0) < 0:
                return Refused("a negative padding does not merge")
            weight, bias = _weight_and_bias(node)
            made = Affine(weight, bias, strides, pads, dilations, groups, size=size)
        case ConvTranspose(strides, pads, dilations, groups, extra):
            if min(pads, default=0) < 0:
                return Refused("a negative padding does not merge")
            weight, bias = _weight_and_bias(node)
            made = Affine(weight, bias, strides, pads, dilations, groups, True, extra, size=size)
        case Linear():
            weight, bias = _weight_and_bias(node)
            made = Affine(weight, bias, (), (), ())
        case Scale():
            return _from_scale(node, identity)
        case AveragePool():
            return _from_pool(node.op, identity, source)
        case Pad(pads=pads):
            half = len(pads) // 2
            return replace(identity, pads=(*pads[2:half], *pads[half + 2 :]))
        case Unary():
            minus = SplatTensor(identity.weight.shape, identity.dtype, -1.0)
            return replace(identity, weight=minus)
        case Add() | Sub():
            return _from_constant_add(node, identity)
        case _:
            return identity
    if made.const is not None:
        bias_ = _vector(made.const, made.outputs)
        if isinstance(bias_, Refused):
            return bias_
        made = replace(made, const=bias_)
    if made.dtype is not dtype:
        return Refused("its weight has another element type than its result")
    return made


def identity_map(rank: int, channels: int, source: Value, dtype: DType) -> Affine:
    """The identity as a map.

    Args:
        rank: The spatial rank.
        channels: The number of channels.
        source: The value that it is applied to, which gives the spatial size.
        dtype: The element type.
    """
    shape = source.type.shape
    size: Sizes = (None,) * rank
    if shape is not None and rank and len(shape) == rank + 2:
        size = tuple(d if isinstance(d, int) else None for d in shape[2:])
    ones, zeros = (1,) * rank, (0,) * (2 * rank)
    one = SplatTensor((channels, 1, *ones), dtype, 1.0)
    return Affine(one, None, ones, zeros, ones, channels, size=size)


def _weight_and_bias(node: Node) -> tuple[Tensor, Tensor | None]:
    bias = node.input(2)
    return _data(node.required(1)), None if bias is None else bias.data


def _data(value: Value) -> Tensor:
    """The tensor of a constant input of an affine node."""
    if value.data is None:
        raise GraphError(f"%{value.name} is not a constant")
    return value.data


def _vector(tensor: Tensor, channels: int) -> Tensor | Refused | None:
    """A constant broadcast to ``channels`` numbers; ``None`` if all are zero."""
    array = read_vector(tensor)
    if array is None:
        return tensor
    if not np.isfinite(array).all():
        return Refused("it has constants that are not finite")
    if not array.any():
        return None
    if array.shape != (channels,):
        array = np.broadcast_to(array, (channels,))
    return from_float64(array, tensor.dtype, tensor)


def _from_scale(node: Node, identity: Affine) -> Affine | Refused:
    factors, shift = node.input(1), node.input(2)
    channels, weight, const = identity.inputs, identity.weight, None
    if factors is not None:
        tensor, shape = _data(factors), weight.shape
        array = read_vector(tensor)
        if array is None:
            weight = Derived(
                shape, identity.dtype, lambda: tensor.float64().reshape(shape), (tensor,)
            )
            if tensor.size != channels:
                return Refused("its vector does not fit its input")
        else:
            if not np.isfinite(array).all():
                return Refused("it has factors that are not finite")
            full: Array64 = np.broadcast_to(array, (channels,)).reshape(shape)
            weight = from_float64(full, identity.dtype, tensor)
    if shift is not None:
        found = _vector(_data(shift), channels)
        if isinstance(found, Refused):
            return found
        const = found
    return replace(identity, weight=weight, const=const)


def _from_pool(op: AveragePool, identity: Affine, source: Value) -> Affine | Refused:
    if any(op.pads) and not op.count_include_pad:
        return Refused("an average pool that does not count its padding is not a convolution")
    if op.ceil_mode:
        plain = replace(op, ceil_mode=False).infer([source.type])[0]
        if plain.static_shape is None or plain.shape != op.infer([source.type])[0].shape:
            return Refused(
                "an average pool in ceil mode divides its last window by a smaller count"
            )
    shape = (identity.inputs, 1, *op.kernel)
    part = 1.0 / float(np.prod(op.kernel))
    weight = Derived(shape, identity.dtype, lambda: np.full(shape, part))
    return replace(
        identity, weight=weight, strides=op.strides, pads=op.pads, dilations=op.dilations
    )


def _from_constant_add(node: Node, identity: Affine) -> Affine:
    left, right = node.required(0), node.required(1)
    constant = left.data if left.data is not None else _data(right)
    if isinstance(node.op, Add):
        return replace(identity, const=constant)
    minus = Derived(constant.shape, constant.dtype, lambda: -constant.float64(), (constant,))
    return replace(identity, const=minus)


def op_of(affine: Affine) -> Op:
    """The op that computes a map, without its bias map."""
    if affine.transposed:
        return ConvTranspose(
            affine.strides,
            affine.pads,
            affine.dilations,
            affine.groups,
            affine.output_padding,
        )
    if affine.rank == 0:
        return Linear()
    return Conv(affine.strides, affine.pads, affine.dilations, affine.groups)
