"""Attention, in the same ops as torch.onnx writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from .... import ir
from ....hosts.torch.modules.masks import plain_type
from ....ir import ArrayTensor, DerivedTensor, Tensor, Value
from ...lowering import Path, Step, Steps
from ...lowering.base import Builder
from ...support import LeftAlone
from ..call import Call
from ..modules import hooked
from ..registry import reads, reads_pieces


@reads(
    "scaled_dot_product_attention",
    makes=[ir.MatMul, ir.Softmax, ir.Scale, ir.Transpose, ir.Add, ir.Where],
    note="no dropout, as many heads of keys as of queries",
    several=True,
)
def _attention(call: Call) -> Steps | None:
    """``(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)``.

    Softmax of scaled products, the scale shared out between both factors.
    """
    q, k, v = call.value(0, "query"), call.value(1, "key"), call.value(2, "value")
    mask, causal = call.get(3, "attn_mask"), bool(call.get(5, "is_causal", False))
    given = call.get(6, "scale")
    dtype, rank, width = q.type.dtype, q.type.rank, q.type.dim(-1)
    if dtype is None or not dtype.is_wide_float or rank is None or rank < 2 or width is None:
        return None
    if call.get(4, "dropout_p", 0.0) != 0.0 or call.get(7, "enable_gqa", False):
        return None
    if {k.type.rank, v.type.rank} != {rank} or (mask is not None and causal):
        return None
    if k.type.dtype is not dtype or v.type.dtype is not dtype:
        return None
    if causal:
        rows, columns = q.type.dim(-2), k.type.dim(-2)
        if rows is None or columns is None:
            return None
        mask = _causal(rows, columns, dtype)
    if mask is not None and not isinstance(mask, (Value, Tensor)):
        return None
    made = Builder()
    _weighted(made, (q, k, v), rank, _root(given, width, dtype), mask)
    return made.steps()


def _weighted(
    made: Builder,
    operands: tuple[Value | Step, Value | Step, Value | Step],
    rank: int,
    scale: Tensor,
    mask: Value | Tensor | None,
) -> Step:
    """The softmax of scaled products of queries and keys, times the values."""
    q, k, v = operands
    turned = made.add(ir.Transpose((*range(rank - 2), rank - 1, rank - 2)), k)
    products = made.add(
        ir.MatMul(), made.add(ir.Scale(1), q, scale), made.add(ir.Scale(1), turned, scale)
    )
    if mask is not None and mask.type.dtype is ir.DType.BOOL:
        ends = [ArrayTensor(np.array(n, scale.dtype.numpy)) for n in (0.0, -np.inf)]
        products = made.add(ir.Add(), products, made.add(ir.Where(), mask, *ends))
    elif mask is not None:
        if mask.type.dtype is not scale.dtype:
            raise LeftAlone("its mask has another element type")
        products = made.add(ir.Add(), products, mask)
    return made.add(ir.MatMul(), made.add(ir.Softmax(rank - 1), products), v)


@reads_pieces(
    nn.MultiheadAttention,
    makes=[ir.Linear, ir.Split, ir.Reshape, ir.Transpose, ir.MatMul, ir.Softmax, ir.Scale, ir.Add],
    note="batched, its weights unread, keys and values of the width of queries, a mask that is added",
    several=True,
)
def _multi_head(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(query, key, value, key_padding_mask, need_weights, attn_mask)`` gives ``(y, weights)``."""
    module: Any = call.module
    q, k, v = call.value(0, "query"), call.value(1, "key"), call.value(2, "value")
    mask, dtype = call.get(5, "attn_mask"), q.type.dtype
    if list(taken) != [(0,)]:
        raise LeftAlone("its weights are read")
    if call.get(3, "key_padding_mask") is not None or call.get(7, "is_causal", False):
        raise LeftAlone("it has a mask of padding, or is causal")
    plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    if (
        not plain
        or hooked(module.out_proj)
        or plain_type(module.out_proj) is not type(module.out_proj)
    ):
        raise LeftAlone("its projections are not those of a plain attention")
    if module.dropout and module.training:
        raise LeftAlone("it is in training mode")
    if {q.type.rank, k.type.rank, v.type.rank} != {3} or dtype is None:
        raise LeftAlone("its inputs are not batched")
    if isinstance(mask, Value) and (mask.type.dtype is not dtype or mask.type.rank != 2):
        raise LeftAlone("its mask is not one that is added to all products")
    made, heads = Builder(), module.num_heads
    # (batch, heads, time, width), whichever of batch and time comes first.
    perm = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
    back = (0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3)
    split = [
        made.add(ir.Transpose(perm), made.add(ir.Reshape((None, None, heads, module.head_dim)), x))
        for x in _projected(made, call, (q, k, v), module.embed_dim)
    ]
    scale = _root(None, module.head_dim, dtype)
    heads_out = _weighted(made, (split[0], split[1], split[2]), 4, scale, mask)
    turned = made.add(ir.Transpose(back), heads_out)
    joined = made.add(ir.Reshape((None, None, module.embed_dim)), turned)
    y = _dense(made, joined, call.tensor("out_proj.weight"), call.tensor("out_proj.bias"))
    return made.steps({(0,): y})


def _projected(
    made: Builder, call: Call, inputs: tuple[Value, Value, Value], width: int
) -> list[Step]:
    """Queries, keys and values: of one dense layer where all three are made from the same."""
    weight, bias = call.tensor("in_proj_weight"), call.tensor("in_proj_bias")
    if inputs[0] is inputs[1] is inputs[2]:
        pieces = made.add(ir.Split((width, width, width), 2), _dense(made, inputs[0], weight, bias))
        return [pieces.of(i) for i in range(3)]
    return [
        _dense(made, x, _rows(weight, i * width, width), _rows(bias, i * width, width))
        for i, x in enumerate(inputs)
    ]


def _dense(made: Builder, x: Value | Step, weight: Any, bias: Any) -> Step:
    return made.add(ir.Linear(), x, weight, *([] if bias is None else [bias]))


def _rows(value: Value | None, start: int, count: int) -> Tensor | None:
    """Some rows of a constant."""
    if value is None or value.data is None:
        return None
    data = value.data
    shape = (count, *data.shape[1:])
    return DerivedTensor(
        shape, data.dtype, lambda: data.float64()[start : start + count], sources=(data,)
    )


def _root(given: Any, width: int, dtype: ir.DType) -> Tensor:
    """The square root of the scale, rounded at every step as torch.onnx writes it down."""
    kind = dtype.numpy.type
    if given is not None and type(given) not in (int, float):
        raise TypeError("the scale is no number")
    scale = kind(given) if given is not None else kind(1) / np.sqrt(kind(width))
    return ArrayTensor(np.sqrt(scale).astype(dtype.numpy).reshape(1))


def _causal(rows: int, columns: int, dtype: ir.DType) -> Tensor | None:
    """Zeros where a row may look, minus infinity behind it."""

    def load() -> Any:
        seen = np.tril(np.ones((rows, columns), bool))
        return np.where(seen, 0.0, -np.inf).astype(dtype.numpy)

    return ir.LazyTensor((rows, columns), dtype, load)
