"""torch's reductions, places of extrema and running sums."""

from __future__ import annotations

from .... import ir
from ....ir import Value
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Steps
from ...lowering.pools import reduce
from ...lowering.reductions import log_sum_exp
from ..call import Call, ints
from ..registry import reads


@reads("mean", makes=[(ir.Reduce, "mean"), ir.GlobalAveragePool])
def _mean(call: Call) -> Lowered | None:
    """``(x, dim, keepdim)``."""
    return _along("mean", call)


def _reduction(name: str, kind: str) -> None:
    """Register ``(x, dim, keepdim)``."""

    @reads(name, makes=(ir.Reduce, kind), note="floats")
    def rule(call: Call) -> Lowered | None:
        dtype = call.value(0).type.dtype
        # torch adds integers up in a wider type.
        return _along(kind, call) if dtype is not None and dtype.is_float else None


for _name, _kind in (("sum", "sum"), ("amax", "max"), ("amin", "min"), ("prod", "prod")):
    _reduction(_name, _kind)


def _along(kind: str, call: Call) -> Lowered | None:
    x, dim = call.value(0), call.get(1, "dim")
    rank = x.type.rank
    if rank is None or call.kwargs.get("dtype") is not None:
        return None
    axes = ints(dim, 1) if dim not in (None, (), []) else tuple(range(rank))
    keep = bool(call.get(2, "keepdim", False))
    return reduce(kind, x, [axis_of(a, rank) for a in axes], keep)


@reads(
    "logsumexp",
    makes=[(ir.Reduce, "max"), (ir.Reduce, "sum"), (ir.Unary, "exp"), (ir.Unary, "log")],
    note="floats",
    several=True,
)
def _log_sum_exp(call: Call) -> Steps | None:
    """``(x, dim, keepdim)``."""
    x, dim = call.value(0), call.get(1, "dim")
    rank = x.type.rank
    if not rank or any(x.type.dim(a) == 0 for a in range(rank)):
        return None
    axes = [axis_of(a, rank) for a in ints(dim, 1)] or range(rank)
    return log_sum_exp(x, axes, bool(call.get(2, "keepdim", False)))


def _norm(call: Call, x: Value, order: object) -> Lowered | None:
    """A norm along axes: the sum of sizes, or the root of the sum of squares."""
    kind = {1: "l1", 2: "l2"}.get(order) if type(order) in (int, float) else None  # type: ignore[call-overload]
    floats = x.type.dtype is not None and x.type.dtype.is_wide_float
    return _along(kind, call) if kind is not None and floats else None


@reads("linalg_vector_norm", makes=[(ir.Reduce, "l1"), (ir.Reduce, "l2")], note="order 1 or 2")
def _vector_norm(call: Call) -> Lowered | None:
    """``(x, ord, dim, keepdim)``."""
    x, order = call.value(0, "x"), call.get(1, "ord", 2)
    again = call.again(x, call.get(2, "dim"), call.get(3, "keepdim", False), **_dtype(call))
    return _norm(again, x, order)


@reads("norm", makes=[(ir.Reduce, "l1"), (ir.Reduce, "l2")], note="order 1 or 2")
def _plain_norm(call: Call) -> Lowered | None:
    """``(x, p, dim, keepdim)``."""
    x, order = call.value(0), call.get(1, "p", 2)
    again = call.again(x, call.get(2, "dim"), call.get(3, "keepdim", False), **_dtype(call))
    return _norm(again, x, order)


def _dtype(call: Call) -> dict[str, object]:
    return {"dtype": call.kwargs.get("dtype")}


def _place(name: str, kind: str) -> None:
    """Register ``(x, dim, keepdim)``."""

    @reads(name, makes=(ir.ArgReduce, kind), note="along one axis")
    def rule(call: Call) -> Lowered | None:
        x, dim = call.value(0), call.get(1, "dim")
        if not x.type.rank or type(dim) is not int:
            return None
        keep = bool(call.get(2, "keepdim", False))
        return ir.ArgReduce(kind, axis_of(dim, x.type.rank), keep), [x]


_place("argmax", "max")
_place("argmin", "min")


@reads("cumsum", makes=ir.CumSum, note="floats")
def _cumsum(call: Call) -> Lowered | None:
    """``(x, dim)``."""
    x, dim = call.value(0), call.get(1, "dim")
    dtype = x.type.dtype
    if not x.type.rank or type(dim) is not int or dtype is None or not dtype.is_wide_float:
        return None
    plain = call.kwargs.get("dtype") is None
    return (ir.CumSum(axis_of(dim, x.type.rank)), [x]) if plain else None
