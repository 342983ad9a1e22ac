"""Attention, in the same ops as torch.onnx writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from .... import ir
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
    added: Value | Tensor | Step | None = mask
    if mask is not None and mask.type.dtype is ir.DType.BOOL:
        ends = [ArrayTensor(np.array(n, scale.dtype.numpy)) for n in (0.0, -np.inf)]
        added = made.add(ir.Where(), mask, *ends)
    elif mask is not None and mask.type.dtype is not scale.dtype:
        raise LeftAlone("its mask has another element type")
    return made.add(ir.MatMul(), _weights(made, operands[:2], rank, scale, added), operands[2])


def _weights(
    made: Builder,
    operands: tuple[Value | Step, Value | Step],
    rank: int,
    scale: Tensor,
    mask: Value | Tensor | Step | None,
) -> Step:
    """The softmax of scaled products of queries and keys, to which a mask is added."""
    q, k = operands
    turned = made.add(ir.Transpose((*range(rank - 2), rank - 1, rank - 2)), k)
    products = made.add(
        ir.MatMul(), made.add(ir.Scale(1), q, scale), made.add(ir.Scale(1), turned, scale)
    )
    if mask is not None:
        products = made.add(ir.Add(), products, mask)
    return made.add(ir.Softmax(rank - 1), products)


@reads_pieces(
    nn.MultiheadAttention,
    makes=[
        ir.Linear, ir.Split, ir.Reshape, ir.Unsqueeze, ir.Transpose, ir.MatMul, ir.Softmax, ir.Scale, ir.Add, ir.Where,
        (ir.Reduce, "mean"),
    ],
    note="a known number of axes, masks of bool or of the type of queries, no learned or zero keys",
    several=True,
)  # fmt: skip
def _multi_head(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)`` gives ``(y, weights)``.

    A mask that is said to be causal is added like any other.
    """
    module: Any = call.module
    q, k, v = call.value(0, "query"), call.value(1, "key"), call.value(2, "value")
    dtype, rank = q.type.dtype, q.type.rank
    if module.bias_k is not None or module.add_zero_attn:
        raise LeftAlone("it adds learned or zero keys")
    if hooked(module.out_proj) or type(module.out_proj) is not _OUT:
        raise LeftAlone("its last projection is not a plain one")
    if module.dropout and module.training:
        raise LeftAlone("it is in training mode")
    if rank not in (2, 3) or {k.type.rank, v.type.rank} != {rank} or dtype is None:
        raise LeftAlone("the number of axes of its inputs is not known")
    if not taken or not set(taken) <= {(0,), (1,)} or ((1,) in taken and not _needs_weights(call)):
        raise LeftAlone("its results are not read as a pair")
    made, heads = Builder(), module.num_heads
    perm, back = _orders(rank, module.batch_first)
    split = [
        made.add(ir.Transpose(perm), made.add(ir.Reshape(_free(rank, heads, module.head_dim)), x))
        for x in _projected(made, call, (q, k, v), module)
    ]
    scale = _root(None, module.head_dim, dtype)
    mask = _masks(made, call, dtype, heads, batched=rank == 3)
    weights = _weights(made, (split[0], split[1]), rank + 1, scale, mask)
    results: dict[Path, Step] = {}
    if (0,) in taken:
        turned = made.add(ir.Transpose(back), made.add(ir.MatMul(), weights, split[2]))
        joined = made.add(ir.Reshape(_free(rank, module.embed_dim)), turned)
        last = (call.tensor("out_proj.weight"), call.tensor("out_proj.bias"))
        results[(0,)] = _dense(made, joined, *last, name="out_proj")
    if (1,) in taken:
        mean = ir.Reduce("mean", (rank - 2,), keepdims=False)
        own = call.get(6, "average_attn_weights", True)
        results[(1,)] = made.add(mean, weights) if own else weights
    return made.steps(results)


_OUT = nn.modules.linear.NonDynamicallyQuantizableLinear
"""The class of the last projection of torch's attention."""


def _needs_weights(call: Call) -> bool:
    return bool(call.get(4, "need_weights", True))


def _free(rank: int, *sizes: int) -> tuple[int | None, ...]:
    """The target of a reshape that leaves all axes but the last one as they are."""
    return (*[None] * (rank - 1), *sizes)


def _orders(rank: int, batch_first: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of axes that makes (batch, heads, time, width) from the inputs' own, and the one back."""
    if rank == 2:
        return (1, 0, 2), (1, 0, 2)
    return ((0, 2, 1, 3), (0, 2, 1, 3)) if batch_first else ((1, 2, 0, 3), (2, 0, 1, 3))


def _masks(
    made: Builder, call: Call, dtype: ir.DType, heads: int, *, batched: bool
) -> Value | Step | None:
    """What is added to the products of queries and keys: the mask of pairs, that of padding, or both."""
    pairs, padding = call.get(5, "attn_mask"), call.get(3, "key_padding_mask")
    found: list[Value | Step] = []
    if pairs is not None:
        mask = _added(made, pairs, dtype)
        if pairs.type.rank == 3 and batched:
            # (batch * heads, rows, columns)
            mask = made.add(ir.Reshape((-1, heads, None, None)), made.add(ir.Unsqueeze((1,)), mask))
        elif pairs.type.rank not in (2, 3):
            raise LeftAlone("the number of axes of its mask is not known")
        found.append(mask)
    if padding is not None:
        mask = _added(made, padding, dtype)
        if padding.type.rank != (2 if batched else 1):
            raise LeftAlone("its mask of padding has another number of axes")
        found.append(made.add(ir.Unsqueeze((1, 2)), mask) if batched else mask)
    return made.add(ir.Add(), *found) if len(found) == 2 else found[0] if found else None


def _added(made: Builder, mask: Any, dtype: ir.DType) -> Value | Step:
    """A mask as numbers to add: minus infinity where one of bool hides something."""
    if not isinstance(mask, Value):
        raise LeftAlone("its mask is no tensor")
    if mask.type.dtype is ir.DType.BOOL:
        ends = [ArrayTensor(np.array(n, dtype.numpy)) for n in (-np.inf, 0.0)]
        return made.add(ir.Where(), mask, *ends)
    if mask.type.dtype is not dtype:
        raise LeftAlone("its mask has another element type")
    return mask


def _projected(
    made: Builder, call: Call, inputs: tuple[Value, Value, Value], module: Any
) -> list[Step]:
    """Queries, keys and values: of one dense layer where all three are made from the same."""
    width = module.embed_dim
    bias = call.tensor("in_proj_bias")
    if not module._qkv_same_embed_dim:
        return [
            _dense(
                made, x, call.tensor(f"{own}_weight"), _rows(bias, i * width, width), name=own
            )
            for i, (x, own) in enumerate(zip(inputs, _OWN, strict=True))
        ]  # fmt: skip
    weight = call.tensor("in_proj_weight")
    if inputs[0] is inputs[1] is inputs[2]:
        dense = _dense(made, inputs[0], weight, bias, name="in_proj")
        pieces = made.add(
            ir.Split((width, width, width), len(call.value(0).type.shape or ()) - 1), dense
        )
        return [pieces.of(i) for i in range(3)]
    return [
        _dense(made, x, _rows(weight, i * width, width), _rows(bias, i * width, width), name=own)
        for i, (x, own) in enumerate(zip(inputs, _OWN, strict=True))
    ]


_OWN = ("q_proj", "k_proj", "v_proj")


def _dense(made: Builder, x: Value | Step, weight: Any, bias: Any, name: str) -> Step:
    return made.add(ir.Linear(), x, weight, *([] if bias is None else [bias]), name=name)


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
