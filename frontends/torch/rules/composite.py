"""torch calls that are several ops: attention and stacks, in the same ops as torch.onnx writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import ir
from ....ir import ArrayTensor, Tensor, Value
from ....ir.ops.base import axis_of
from ...lowering import Operand
from ..call import Call, Step, Steps

_Part = tuple[ir.Op, Sequence[Operand | Step]]


def attention(call: Call) -> Steps | None:
    """``(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)``.

    Softmax of scaled products, the scale shared out between both factors.
    """
    q, k, v = call.value(0, "query"), call.value(1, "key"), call.value(2, "value")
    mask, causal = call.get(3, "attn_mask"), bool(call.get(5, "is_causal", False))
    given = call.kwargs.get("scale", call.args[6] if len(call.args) > 6 else None)
    shared = call.kwargs.get("enable_gqa", call.args[7] if len(call.args) > 7 else False)
    dtype, rank, width = q.type.dtype, q.type.rank, q.type.dim(-1)
    if dtype is None or not dtype.is_wide_float or rank is None or rank < 2 or width is None:
        return None
    if call.get(4, "dropout_p", 0.0) != 0.0 or shared or {k.type.rank, v.type.rank} != {rank}:
        return None
    if k.type.dtype is not dtype or v.type.dtype is not dtype or (mask is not None and causal):
        return None
    perm = (*range(rank - 2), rank - 1, rank - 2)
    scale = _root(given, width, dtype)
    parts: list[_Part] = [(ir.Transpose(perm), [k])]
    parts += [(ir.Scale(1 if rank > 1 else 0), [x, scale]) for x in (q, Step(0))]
    parts.append((ir.MatMul(), [Step(1), Step(2)]))
    if causal:
        rows, columns = q.type.dim(-2), k.type.dim(-2)
        if rows is None or columns is None:
            return None
        mask = _causal(rows, columns, dtype)
    if isinstance(mask, Value) and mask.type.dtype is ir.DType.BOOL:
        ends = [ArrayTensor(np.array(n, dtype.numpy)) for n in (0.0, -np.inf)]
        parts.append((ir.Where(), [mask, *ends]))
        parts.append((ir.Add(), [Step(len(parts) - 2), Step(len(parts) - 1)]))
    elif mask is not None:
        if not isinstance(mask, (Value, Tensor)) or mask.type.dtype is not dtype:
            return None
        parts.append((ir.Add(), [Step(len(parts) - 1), mask]))
    parts.append((ir.Softmax(rank - 1), [Step(len(parts) - 1)]))
    parts.append((ir.MatMul(), [Step(len(parts) - 1), v]))
    return Steps(tuple(parts))


def _root(given: Any, width: int, dtype: ir.DType) -> Tensor | None:
    """The square root of the scale, rounded at every step as torch.onnx writes it down."""
    kind = dtype.numpy.type
    if given is not None and type(given) not in (int, float):
        raise TypeError("the scale is no number")
    scale = kind(given) if given is not None else kind(1) / np.sqrt(kind(width))
    return ArrayTensor(np.sqrt(scale).astype(dtype.numpy).reshape(1))


def _causal(rows: int, columns: int, dtype: ir.DType) -> Tensor:
    """Zeros where a row may look, minus infinity behind it."""

    def load() -> Any:
        seen = np.tril(np.ones((rows, columns), bool))
        return np.where(seen, 0.0, -np.inf).astype(dtype.numpy)

    return ir.LazyTensor((rows, columns), dtype, load)


def stack(call: Call) -> Steps | None:
    """``(tensors, dim)``: a new axis in each, and a concatenation along it."""
    tensors, dim = call.get(0, "tensors"), call.get(1, "dim", 0)
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Value) for t in tensors):
        return None
    rank = tensors[0].type.rank
    if rank is None or len({t.type.dtype for t in tensors}) != 1:
        return None
    axis = axis_of(dim, rank + 1)
    parts: list[_Part] = [(ir.Unsqueeze((axis,)), [t]) for t in tensors]
    parts.append((ir.Concat(axis), [Step(i) for i in range(len(tensors))]))
    return Steps(tuple(parts))


COMPOSITE_CALLS = {"scaled_dot_product_attention": attention, "stack": stack}
"""The rules, by the plain name of the call."""
