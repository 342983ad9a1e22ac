"""Nodes as affine maps, and affine maps as nodes again.

A node takes part when its element type is a floating-point type of 16 bits or more, its weights are known,
and it has one data input. What axes it works on is its *domain*: a convolution of rank n works on
channels at axis 1 with n spatial axes, a dense layer on the last axis (rank 0), a scale on the axis it
names, and a scale by one number or an identity on any.
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
    Identity,
    Linear,
    Node,
    Op,
    Pad,
    Scale,
    SplatTensor,
    Sub,
    Tensor,
    Value,
)
from ....ir.analysis.dequantized import is_dequantized
from .affine import Affine, Refused, Sizes
from .tensors import Array64, Derived, exact, read_vector

ANY = None
"""The domain of what fits everywhere: scales by one number and identities."""

CONV = "conv"
"""The domain of what works on axis 1 of a value whose rank is not known."""

Domain = int | str | None
"""``ANY``, ``CONV``, the spatial rank, 0 for the last axis, or ``-1 - axis`` for another axis."""


def data_input(node: Node) -> Value | None:
    """The value that an affine node maps; ``None`` when the node is not an affine map."""
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
        case AveragePool() | Pad() | Identity():
            found = node.inputs[0]
        case Add() | Sub():
            found = _map_operand(node)
        case _:
            return None
    if found is None or found.data is not None or node.output.data is not None:
        return None
    dtype = node.output.type.dtype
    return found if dtype is not None and dtype.is_wide_float else None


def weight_problem(node: Node) -> str | None:
    """Why a linear op is not an affine map here, when it is for its weights."""
    if isinstance(node.op, Conv | ConvTranspose | Linear | Scale):
        dtype = node.output.type.dtype
        if dtype is not None and dtype.is_wide_float:
            for value in node.inputs[1:]:
                if value is not None and value.data is None:
                    return f"its weight %{value.name} is not a constant"
                if value is not None and is_dequantized(value):
                    return f"its weight %{value.name} is quantised, and would not be any more"
    return None


def _map_operand(node: Node) -> Value | None:
    """The data operand of an Add of a constant ``(1, C, *spatial)``."""
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
            rank_ = node.output.type.rank
            assert rank_ is not None
            return rank_ - 2
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


def meet(a: Domain, b: Domain) -> Domain | Refused:
    """The domain that two neighbours share."""
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
    """The input channels of every node of a run, each from itself or from its neighbours."""
    if domain is ANY:
        return [1] * len(nodes)
    axis = -1 if domain == 0 else -1 - domain if isinstance(domain, int) and domain < 0 else 1
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
    """The input and the output channels of a node, as far as the node itself tells."""
    match node.op:
        case Conv(groups=groups):
            shape = _shape(node, 1)
            return shape[1] * groups, shape[0]
        case ConvTranspose(groups=groups):
            shape = _shape(node, 1)
            return shape[0], shape[1] * groups
        case Linear():
            shape = _shape(node, 1)
            return shape[1], shape[0]
        case Scale():
            for vector in node.inputs[1:]:
                if vector is not None and vector.data is not None and vector.data.size > 1:
                    return vector.data.size, vector.data.size
    axis = -1 if domain == 0 else -1 - domain if isinstance(domain, int) and domain < 0 else 1
    found = node.output.type.dim(axis)
    if found is None and node.inputs[0] is not None:
        found = node.inputs[0].type.dim(axis)
    return found, found


def _shape(node: Node, index: int) -> tuple[int, ...]:
    value = node.inputs[index]
    assert value is not None
    assert value.data is not None
    return value.data.shape


def affine_of(node: Node, rank: int, channels: int, source: Value) -> Affine | Refused:
    """A node as a map of spatial rank ``rank`` on ``channels`` input channels."""
    dtype = node.output.type.dtype
    assert dtype is not None
    identity = identity_map(rank, channels, source, dtype)
    size = identity.size
    match node.op:
        case Conv(strides, pads, dilations, groups):
            if min(pads, default=0) < 0:
                return Refused("a negative padding does not merge")
            weight, bias = _weights(node)
            made = Affine(weight, bias, strides, pads, dilations, groups, size=size)
        case ConvTranspose(strides, pads, dilations, groups, extra):
            if min(pads, default=0) < 0:
                return Refused("a negative padding does not merge")
            weight, bias = _weights(node)
            made = Affine(weight, bias, strides, pads, dilations, groups, True, extra, size=size)
        case Linear():
            weight, bias = _weights(node)
            made = Affine(weight, bias, (), (), ())
        case Scale():
            return _from_scale(node, identity)
        case AveragePool():
            return _from_pool(node.op, identity, source, node)
        case Pad(pads=pads):
            half = len(pads) // 2
            return replace(identity, pads=(*pads[2:half], *pads[half + 2 :]))
        case Add() | Sub():
            return _from_map(node, identity)
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
    """The map that changes nothing."""
    shape = source.type.shape
    size: Sizes = (None,) * rank
    if shape is not None and rank and len(shape) == rank + 2:
        size = tuple(d if isinstance(d, int) else None for d in shape[2:])
    ones, zeros = (1,) * rank, (0,) * (2 * rank)
    one = SplatTensor((channels, 1, *ones), dtype, 1.0)
    return Affine(one, None, ones, zeros, ones, channels, size=size)


def _weights(node: Node) -> tuple[Tensor, Tensor | None]:
    weight, bias = node.inputs[1], node.input(2)
    assert weight is not None
    assert weight.data is not None
    return weight.data, None if bias is None else bias.data


def _vector(tensor: Tensor, channels: int) -> Tensor | Refused | None:
    """A constant vector of ``channels`` numbers; ``None`` when all are zero."""
    array = read_vector(tensor)
    if array is None:
        return tensor
    if not np.isfinite(array).all():
        return Refused("it has constants that are not finite")
    if not array.any():
        return None
    if array.shape != (channels,):
        array = np.broadcast_to(array, (channels,))
    return exact(array, tensor.dtype, tensor)


def _from_scale(node: Node, identity: Affine) -> Affine | Refused:
    factors, shift = node.input(1), node.input(2)
    channels, weight, const = identity.inputs, identity.weight, None
    if factors is not None:
        assert factors.data is not None
        tensor, shape = factors.data, weight.shape
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
            weight = exact(full, identity.dtype, tensor)
    if shift is not None:
        assert shift.data is not None
        found = _vector(shift.data, channels)
        if isinstance(found, Refused):
            return found
        const = found
    return replace(identity, weight=weight, const=const)


def _from_pool(op: AveragePool, identity: Affine, source: Value, node: Node) -> Affine | Refused:
    if any(op.pads) and not op.count_include_pad:
        return Refused("an average pool that does not count its padding is not linear-shift")
    if op.ceil_mode:
        plain = replace(op, ceil_mode=False).infer([source.type])[0]
        if plain.static_shape is None or plain.shape != op.infer([source.type])[0].shape:
            return Refused("an average pool in ceil mode divides its last window by less")
    shape = (identity.inputs, 1, *op.kernel)
    part = 1.0 / float(np.prod(op.kernel))
    weight = Derived(shape, identity.dtype, lambda: np.full(shape, part))
    return replace(
        identity, weight=weight, strides=op.strides, pads=op.pads, dilations=op.dilations
    )


def _from_map(node: Node, identity: Affine) -> Affine:
    a, b = node.inputs
    assert a is not None
    assert b is not None
    constant = a.data if a.data is not None else b.data
    assert constant is not None
    if isinstance(node.op, Add):
        return replace(identity, const=constant)
    minus = Derived(constant.shape, constant.dtype, lambda: -constant.float64(), (constant,))
    return replace(identity, const=minus)


def op_of(affine: Affine) -> Op:
    """The op that computes a map (without a bias map)."""
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
