"""Attention, in the same ops as torch.onnx writes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import ir
from ....ir import ArrayTensor, Tensor, Value
from ...lowering import Steps
from ...lowering.base import Builder
from ..call import Call
from ..registry import reads


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
    made, scale = Builder(), _root(given, width, dtype)
    turned = made.add(ir.Transpose((*range(rank - 2), rank - 1, rank - 2)), k)
    products = made.add(
        ir.MatMul(), made.add(ir.Scale(1), q, scale), made.add(ir.Scale(1), turned, scale)
    )
    if causal:
        rows, columns = q.type.dim(-2), k.type.dim(-2)
        if rows is None or columns is None:
            return None
        mask = _causal(rows, columns, dtype)
    if isinstance(mask, Value) and mask.type.dtype is ir.DType.BOOL:
        ends = [ArrayTensor(np.array(n, dtype.numpy)) for n in (0.0, -np.inf)]
        products = made.add(ir.Add(), products, made.add(ir.Where(), mask, *ends))
    elif mask is not None:
        if not isinstance(mask, (Value, Tensor)) or mask.type.dtype is not dtype:
            return None
        products = made.add(ir.Add(), products, mask)
    made.add(ir.MatMul(), made.add(ir.Softmax(rank - 1), products), v)
    return made.steps()


def _root(given: Any, width: int, dtype: ir.DType) -> Tensor | None:
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
