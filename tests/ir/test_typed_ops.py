"""Ops whose operands or results are booleans or integers: types, what does not fit, and which axes move together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graphshrink import ir
from graphshrink.ir import DType, Graph, InferenceError, Op, TensorType
from support.evaluate import run_node

F, I64, B = DType.F32, DType.I64, DType.BOOL


def typed(dtype: DType | None, *shape: int | str | None) -> TensorType:
    return TensorType(dtype, shape)


CASES: list[tuple[Op, list[TensorType], TensorType]] = [
    (ir.Compare("less"), [typed(F, 2, 3), typed(F, 3)], typed(B, 2, 3)),
    (ir.Compare("equal"), [typed(I64, 2, 1), typed(I64, 1, 3)], typed(B, 2, 3)),
    (ir.Logical("and"), [typed(B, 2, 3), typed(B, 3)], typed(B, 2, 3)),
    (ir.Unary("not"), [typed(B, 4, 3)], typed(B, 4, 3)),
    (ir.Unary("isnan"), [typed(F, 4, 3)], typed(B, 4, 3)),
    (ir.Where(), [typed(B, 3), typed(F, 2, 1), typed(F)], typed(F, 2, 3)),
    (ir.Where(), [typed(B, 2, 3, 4), typed(F, 3, 4), typed(F, 2, 1, 1)], typed(F, 2, 3, 4)),
    (ir.Gather(1), [typed(F, 3, 5, 4), typed(I64, 2, 6)], typed(F, 3, 2, 6, 4)),
    (ir.Gather(-1), [typed(F, 3, 5), typed(I64)], typed(F, 3)),
    (ir.ArgReduce("max", 1), [typed(F, 3, 5, 4)], typed(I64, 3, 1, 4)),
    (ir.ArgReduce("min", -2, False, True), [typed(F, 3, 5, 4)], typed(I64, 3, 4)),
    (ir.Quantize("i8", 1), [typed(F, 2, 3, 4), typed(F, 3)], typed(DType.I8, 2, 3, 4)),
    (ir.Quantize("u8"), [typed(F, 2, 3), typed(F), typed(DType.U8)], typed(DType.U8, 2, 3)),
    (ir.Dequantize(0), [typed(DType.I8, 3, 4), typed(F, 3), typed(DType.I8, 3)], typed(F, 3, 4)),
    (ir.Dequantize(), [typed(DType.I32, 3, 4), typed(F, 1)], typed(F, 3, 4)),
]


def random(type_: TensorType, high: int = 2) -> torch.Tensor:
    shape = type_.static_shape
    assert shape is not None
    if type_.dtype is B:
        return torch.rand(shape) < 0.5
    if type_.dtype is not None and type_.dtype.is_int:
        return torch.randint(0, high, shape)
    return torch.rand(shape, dtype=torch.float64) + 0.1


@pytest.mark.parametrize(("op", "inputs", "result"), CASES, ids=str)
def test_types_and_ties(op: Op, inputs: list[TensorType], result: TensorType) -> None:
    (found,) = op.infer(inputs) or ()
    assert found == result
    graph = Graph()
    node = graph.append(op, [graph.add_input("x", t) for t in inputs])
    torch.manual_seed(0)
    operands = [random(t) for t in inputs]
    (want,) = run_node(node, operands)
    assert tuple(want.shape) == result.static_shape
    assert (want.dtype is torch.bool) == (result.dtype is B)
    ties = op.channels(inputs)
    assert ties
    for tie in ties:
        moved, expected = list(operands), want
        size = next(
            operands[a.operand].shape[a.axis] if a.operand >= 0 else want.shape[a.axis] for a in tie
        )
        order = torch.randperm(size)
        for axis in tie:
            if axis.operand >= 0:
                moved[axis.operand] = moved[axis.operand].index_select(axis.axis, order)
            else:
                expected = expected.index_select(axis.axis, order)
        assert torch.equal(run_node(node, moved)[0], expected), tie


@pytest.mark.parametrize(("op", "inputs"), [
    (ir.Compare("less"), [typed(F, 2), typed(I64, 2)]),
    (ir.Compare("less"), [typed(F, 2), typed(F, 3)]),
    (ir.Logical("or"), [typed(F, 2), typed(F, 2)]),
    (ir.Unary("not"), [typed(F, 2)]),
    (ir.Unary("exp"), [typed(B, 2)]),
    (ir.Where(), [typed(F, 2), typed(F, 2), typed(F, 2)]),
    (ir.Where(), [typed(B, 2), typed(F, 2), typed(I64, 2)]),
    (ir.Max(), [typed(F, 2), typed(I64, 2)]),
    (ir.Gather(0), [typed(F, 2), typed(F, 2)]),
    (ir.Gather(1), [typed(F, 2), typed(I64, 2)]),
    (ir.Expand((-1, 2)), [typed(F, 2)]),
    (ir.Expand((3,)), [typed(F, 2)]),
    (ir.ArgReduce("max", 1), [typed(F, 2)]),
    (ir.CumSum(1), [typed(F, 2)]),
    (ir.LogSoftmax(1), [typed(F, 2)]),
    (ir.Resize("linear", "half_pixel", (1.0, 2.0)), [typed(F, 2)]),
    (ir.DepthToSpace(2), [typed(F, 1, 6, 2, 2)]),
    (ir.DepthToSpace(2), [typed(F, 1, 8, 2)]),
    (ir.SpaceToDepth(2), [typed(F, 1, 6, 3, 2)]),
    (ir.Quantize("i8"), [typed(F, 2, 3), typed(F, 2)]),
    (ir.Quantize("i8"), [typed(F, 2, 3), typed(F, 2, 3)]),
    (ir.Quantize("i8"), [typed(F, 2, 3), typed(F), typed(DType.U8)]),
    (ir.Dequantize(), [typed(F, 2, 3), typed(F)]),
    (ir.Dequantize(), [typed(DType.I8, 2, 3), typed(F), typed(DType.U8)]),
])  # fmt: skip
def test_what_does_not_fit(op: Op, inputs: list[TensorType]) -> None:
    with pytest.raises(InferenceError):
        op.infer(inputs)


@pytest.mark.parametrize("make", [
    lambda: ir.Unary("cube"), lambda: ir.Compare("near"), lambda: ir.Logical("nand"),
    lambda: ir.ArgReduce("mean"), lambda: ir.Quantize("f32"), lambda: ir.DepthToSpace(0),
    lambda: ir.SpaceToDepth(2, "RCD"), lambda: ir.Resize("linear", "half_pixel"),
    lambda: ir.Resize("linear", "half_pixel", (1.0,), (2,)),
    lambda: ir.Resize("linear", "half_pixel", (0.0,)), lambda: ir.Resize("area", "half_pixel", (1.0,)),
    lambda: ir.Resize("linear", "corners", (1.0,)),
    lambda: ir.Resize("nearest", "half_pixel", (1.0,), rounding="up"),
])  # fmt: skip
def test_payloads_that_make_no_sense(make: Callable[[], Op]) -> None:
    with pytest.raises(
        ValueError, match=r"known are|is not one of|takes|blocks of|it is max or min"
    ):
        make()


def test_axes_that_stay_in_order() -> None:
    """What is told by number, cumulated or interpolated is in no tie."""
    x = typed(F, 2, 4, 6, 6)
    for op, fixed in (
        (ir.ArgReduce("max", 1), {1}), (ir.CumSum(1), {1}), (ir.DepthToSpace(2), {1, 2, 3}),
        (ir.Resize("linear", "half_pixel", (1.0, 1.0, 2.0, 2.0)), {2, 3}),
        (ir.Resize("nearest", "asymmetric", sizes=(None, 4, 3, 6)), {2}),
    ):  # fmt: skip
        ties = op.channels([x])
        assert ties is not None
        tied = {a.axis for tie in ties for a in tie if a.operand == 0}
        assert tied == set(range(4)) - fixed, op
    picked = ir.Gather(1).channels([x, typed(I64, 3)])
    assert picked is not None
    assert not any(ir.Axis(0, 1) in tie for tie in picked)


def test_unknown_sizes_claim_nothing() -> None:
    unknown = TensorType()
    for op in (ir.Unary("exp"), ir.Pow(), ir.Where(), ir.Gather(0), ir.Expand((2,)), ir.CumSum(0),
               ir.ArgReduce("max"), ir.Quantize("i8"), ir.Dequantize()):  # fmt: skip
        low, high = op.arity
        inputs = [unknown] * (high or low)
        assert op.channels(inputs) is None, op
    assert ir.Where().channels([typed(B, "n"), typed(F, "n"), typed(F, "m")]) == ()
    per_axis = ir.Quantize("i8").channels([typed(F, 2, 3), typed(F, None)])
    assert per_axis is None
