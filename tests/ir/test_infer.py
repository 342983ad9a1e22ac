"""Inferred types against torch and against onnx's own shape inference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphshrink import ir
from graphshrink.ir import DType, Graph, InferenceError, Op, TensorType
from support.evaluate import run_node
from support.sites import Site, convs, pools, sites, transposed_convs

SITES = settings(max_examples=200)


def types_of(shapes: list[tuple[int, ...] | None]) -> list[TensorType | None]:
    return [None if s is None else TensorType(DType.F64, s) for s in shapes]


def torch_pool(op: ir.AveragePool | ir.MaxPool, x: torch.Tensor) -> torch.Tensor:
    n = op.spatial_rank
    window = (x, op.kernel, op.strides, op.pads[:n])
    if isinstance(op, ir.MaxPool):
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
        return pool(*window, op.dilations, ceil_mode=op.ceil_mode)
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    return average(*window, ceil_mode=op.ceil_mode, count_include_pad=op.count_include_pad)


def torch_shapes(op: Op, shapes: list[tuple[int, ...] | None]) -> list[tuple[int, ...]]:
    """What torch makes of operands of these shapes."""
    operands = [None if s is None else torch.rand(s, dtype=torch.float64) for s in shapes]
    if isinstance(op, (ir.AveragePool, ir.MaxPool)):
        assert operands[0] is not None
        return [tuple(torch_pool(op, operands[0]).shape)]
    graph = Graph()
    values = [v and graph.add_input("x", v) for v in types_of(shapes)]
    node = graph.append(op, values)
    return [tuple(r.shape) for r in run_node(node, operands)]


@SITES
@given(sites())
def test_equal_to_torch(site: Site) -> None:
    op, shapes = site
    try:
        found = op.infer(types_of(shapes))
    except InferenceError:
        # Nothing is refused that torch would run, but for a window that hangs over in ceil mode.
        if not getattr(op, "ceil_mode", False):
            with pytest.raises((RuntimeError, IndexError, InferenceError)):
                torch_shapes(op, shapes)
        return
    assert found is not None
    try:
        want = torch_shapes(op, shapes)
    except RuntimeError as error:
        # torch refuses empty results of windows, and avg_pool3d looks at its input before it is padded.
        if isinstance(op, ir.AveragePool) and "smaller than kernel size" in str(error):
            return
        assert any(0 in (t.static_shape or ()) for t in found)
        return
    assert [t.static_shape for t in found] == want
    assert all(t.dtype is DType.F64 for t in found)


@SITES
@given(sites(), st.data())
def test_less_knowledge_never_contradicts(site: Site, data: st.DataObject) -> None:
    op, shapes = site
    known = types_of(shapes)
    try:
        full = op.infer(known)
    except InferenceError:
        assume(False)
    assert full is not None

    # One symbol stands for one size wherever it appears.
    def blur(dim: int) -> int | str | None:
        return data.draw(st.sampled_from([dim, dim, f"s{dim}", None]))

    partial = []
    for t in known:
        if t is None or t.shape is None:
            partial.append(t)
            continue
        shape = data.draw(st.sampled_from([tuple(map(blur, t.shape)), None]))
        partial.append(TensorType(data.draw(st.sampled_from([t.dtype, None])), shape))
    found = op.infer(partial)
    assert found is not None
    assert len(found) == len(full)
    for less, more in zip(found, full, strict=True):
        assert less.accepts(more)
        if less.shape is None:
            continue
        assert more.static_shape is not None
        for d, size in zip(less.shape, more.static_shape, strict=True):
            assert not isinstance(d, str) or d == f"s{size}", f"{less} beside {more}"


def onnx_shape(kind: str, shapes: list[tuple[int, ...]], **attributes: object) -> tuple[int, ...]:
    names = [f"i{i}" for i in range(len(shapes))]
    node = helper.make_node(kind, names, ["y"], **attributes)
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in zip(names, shapes, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph([node], "g", inputs, [out]), opset_imports=[helper.make_opsetid("", 22)]
    )
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    return tuple(d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim)


@settings(max_examples=70)
@given(st.one_of(convs(), transposed_convs(), pools()), st.data())
def test_windows_equal_onnx(site: Site, data: st.DataObject) -> None:
    op, given_shapes = site
    shapes = [s for s in given_shapes if s is not None]
    assert isinstance(op, (ir.Conv, ir.ConvTranspose, ir.AveragePool, ir.MaxPool))
    n = op.spatial_rank
    attributes: dict[str, object] = {
        "strides": op.strides, "pads": op.pads, "dilations": op.dilations
    }  # fmt: skip
    if isinstance(op, (ir.Conv, ir.ConvTranspose)):
        attributes |= {"group": op.groups, "kernel_shape": shapes[1][2:]}
    else:
        attributes |= {"kernel_shape": op.kernel, "ceil_mode": int(op.ceil_mode)}
    if isinstance(op, ir.ConvTranspose) and op.output_padding:
        attributes["output_padding"] = op.output_padding
    try:
        (found,) = op.infer(types_of(shapes))
    except InferenceError:
        assume(False)
    assert found.static_shape is not None
    assume(min(found.static_shape) > 0)
    assert found.static_shape == onnx_shape(type(op).__name__, shapes, **attributes)
    assert len(found.static_shape) == n + 2


def dims(*shape: int | str | None) -> TensorType:
    return TensorType(DType.F32, shape)


@pytest.mark.parametrize(("op", "x", "want"), [
    (ir.Reshape((None, -1)), dims("batch", 8, 2, 2), ("batch", 32)),
    (ir.Reshape((None, -1)), dims(None, 8, 2, 2), (None, 32)),
    (ir.Reshape((None, None, -1)), dims("n", None, 4, 3), ("n", None, 12)),
    (ir.Reshape((None, 4, -1)), dims("n", 8, "n"), ("n", 4, None)),
    (ir.Reshape((-1, 4)), dims("n", 4), ("n", 4)),
    (ir.Reshape((-1, 8)), dims("n", 4), (None, 8)),
    (ir.Reshape((2, -1)), dims("n", 4), (2, None)),
    (ir.Reshape((-1,)), dims(2, 0, 3), (0,)),
    (ir.Reshape((0, 7)), dims(2, 0), (0, 7)),
    (ir.Reshape(()), dims(1, 1), ()),
    (ir.Reshape((-1,)), dims(), (1,)),
    (ir.Reshape((2, 2)), dims("n", 2), (2, 2)),
    (ir.Flatten(1), dims("n", 2, 3), ("n", 6)),
    (ir.Flatten(2), dims("n", 2, 3), (None, 3)),
    (ir.Flatten(0), dims(), (1, 1)),
    (ir.Slice((1,), (2**63 - 1,), (1,), (1,)), dims(2, 5), (2, 4)),
    (ir.Slice((-100,), (100,), (1,), (2,)), dims(2, 5), (2, 3)),
    (ir.Slice((4,), (2,), (1,), (1,)), dims(2, 5), (2, 0)),
    (ir.Slice((0,), (2**63 - 1,), (0,), (1,)), dims("n", 5), ("n", 5)),
    (ir.Slice((1,), (3,), (0,), (1,)), dims("n", 5), (None, 5)),
    (ir.Conv((1, 1), (1, 1, 1, 1), (1, 1)), dims("n", 3, "h", "w"), ("n", 4, "h", "w")),
    (ir.Conv((2, 1), (1, 1, 1, 1), (1, 1)), dims("n", 3, "h", "w"), ("n", 4, None, "w")),
    (ir.GlobalAveragePool(), dims("n", 3, "h", "w"), ("n", 3, 1, 1)),
    (ir.Pad((0, 0, 1, 0, 0, 1)), dims("n", 3, "l"), ("n", 3, None)),
    (ir.Squeeze((0,)), dims("n", 3), (3,)),
    (ir.Reduce("sum", (0, -1), False), dims("n", 3, 4), (3,)),
])  # fmt: skip
def test_symbols(op: Op, x: TensorType, want: tuple[object, ...]) -> None:
    weight = dims(4, 3, 3, 3) if isinstance(op, ir.Conv) else None
    found = op.infer([x] if weight is None else [x, weight])
    assert found is not None
    assert found[0] == TensorType(DType.F32, want)  # type: ignore[arg-type]


def test_broadcast_of_symbols() -> None:
    def add(a: TensorType, b: TensorType) -> TensorType:
        return ir.Add().infer([a, b])[0]

    assert add(dims("n", 3), dims("n", 1)) == dims("n", 3)
    assert add(dims("n", 3), dims("m", 3)) == dims(None, 3)
    assert add(dims("n", 3), dims(5, 3)) == dims(5, 3)
    assert add(dims(None, 3), dims(1, 3)) == dims(None, 3)
    assert add(dims(0), dims(1)) == dims(0)
    assert add(dims("n", 3), TensorType(DType.F32)) == TensorType(DType.F32)


@pytest.mark.parametrize(("op", "inputs"), [
    (ir.Add(), [dims(2), dims(3)]),
    (ir.Add(), [dims(2), TensorType(DType.F64, (2,))]),
    (ir.MatMul(), [dims(2, 3), dims(4, 5)]),
    (ir.MatMul(), [dims(3), dims(4, 5)]),
    (ir.MatMul(), [dims(2, 3), dims(4)]),
    (ir.MatMul(), [dims(), dims(4)]),
    (ir.Linear(), [dims(2, 3), dims(5, 4)]),
    (ir.Linear(), [dims(2, 4), dims(5, 4), dims(4)]),
    (ir.Linear(), [dims(), dims(5, 4)]),
    (ir.Conv((1,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 2, 1)]),
    (ir.Conv((1,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 3, 1), dims(3)]),
    (ir.Conv((1,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 3, 1), dims(2, 1)]),
    (ir.Conv((1,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 3, 5)]),
    (ir.Conv((1,), (0, 0), (1,)), [dims(1, 3, 4, 4), dims(2, 3, 1, 1)]),
    (ir.Conv((1,), (0, 0), (1,), 2), [dims(1, 4, 4), dims(3, 2, 1)]),
    (ir.Conv((0,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 3, 1)]),
    (ir.Conv((1,), (0, 0), (1,), 0), [dims(1, 3, 4), dims(2, 3, 1)]),
    (ir.Conv((), (), ()), [dims(1, 3), dims()]),
    (ir.Conv((1,), (0, 0), (1,)), [TensorType(DType.F32), dims(2, 3)]),
    (ir.ConvTranspose((), (), ()), [dims(1, 3), dims()]),
    (ir.ConvTranspose((1,), (0, 0), (1,)), [TensorType(DType.F32), dims(2, 3, 1, 1)]),
    (ir.ConvTranspose((1,), (0, 0), (1,)), [dims(1, 3, 4), dims(2, 3, 1)]),
    (ir.ConvTranspose((1,), (9, 9), (1,)), [dims(1, 3, 4), dims(3, 3, 1)]),
    (ir.ConvTranspose((1,), (0, 0), (1,), 2), [dims(1, 3, 4), dims(3, 3, 1)]),
    (ir.Scale(1), [dims(1, 3), dims(4)]),
    (ir.Scale(1), [dims(1, 3), dims(3, 1)]),
    (ir.Scale(2), [dims(1, 3), dims(3)]),
    (ir.Pad((0, -2, 0, -2)), [dims(1, 3)]),
    (ir.Pad((0, 0, 0)), [dims(1)]),
    (ir.Pad((0, 0), "mirror"), [dims(1)]),
    (ir.Pad((0, 0, 0)), [TensorType(DType.F32)]),
    (ir.Pad((0, 0), "mirror"), [TensorType(DType.F32)]),
    (ir.Reshape((-1, -1)), [dims(4)]),
    (ir.Reshape((-2,)), [dims(4)]),
    (ir.Reshape((3, -1)), [dims(4)]),
    (ir.Reshape((3,)), [dims(4)]),
    (ir.Reshape((None, -1)), [dims(0, 4)]),
    (ir.Reshape((0, -1)), [dims(0, 4)]),
    (ir.Reshape((4, None)), [dims(4)]),
    (ir.Transpose((0, 0)), [dims(2, 2)]),
    (ir.Transpose((1, 0)), [dims(2)]),
    (ir.Squeeze((0,)), [dims(2)]),
    (ir.Concat(0), [dims(2, 3), dims(2, 4)]),
    (ir.Concat(0), [dims(2, 3), dims(2)]),
    (ir.Split((1, 2), 0), [dims(4)]),
    (ir.Slice((0,), (1,), (0,), (0,)), [dims(4)]),
    (ir.Slice((0, 1), (1,), (0,), (1,)), [dims(4)]),
    (ir.Slice((0,), (1,), (0,), (1, 1)), [TensorType(DType.F32)]),
    (ir.Slice((0,), (1,), (0,), (0,)), [TensorType(DType.F32)]),
    (ir.Select(0, 4), [dims(4)]),
    (ir.Select(1, 0), [dims(4)]),
    (ir.Softmax(1), [dims(4)]),
    (ir.GlobalAveragePool(), [dims(1, 4)]),
    (ir.Activation("relu"), [None]),
    (ir.Linear(), [dims(2, 3)]),
    (ir.Gate("relu"), [dims(2, 3)]),
    (ir.Gate("relu"), [dims(2, 3), dims(3)]),
    (ir.Gate("relu"), [dims(2, 3), dims()]),
    (ir.Gate("relu"), [dims(2, 3), dims(1), dims(1)]),
    (ir.Gate("prelu"), [dims(2, 3), dims(1)]),
])  # fmt: skip
def test_what_does_not_fit(op: Op, inputs: list[TensorType | None]) -> None:
    with pytest.raises(InferenceError):
        op.infer(inputs)


@settings(max_examples=100)
@given(sites())
def test_macs_count_what_is_multiplied(site: Site) -> None:
    """Against a count by hand: every output element takes one product for each tap."""
    op, shapes = site
    try:
        outputs = op.infer(types_of(shapes))
    except InferenceError:
        assume(False)
    assert outputs is not None
    macs = op.macs(types_of(shapes), outputs)
    size = int(np.prod(outputs[0].static_shape or (), dtype=np.int64))
    first, second = shapes[0], shapes[1] if len(shapes) > 1 else None
    assert first is not None
    match op:
        case ir.Conv():
            assert second is not None
            assert macs == size * int(np.prod(second[1:]))
        case ir.ConvTranspose():
            assert second is not None
            assert macs == int(np.prod(first)) * int(np.prod(second[1:]))
        case ir.Linear() | ir.MatMul():
            assert macs == size * first[-1]
        case _:
            assert macs == 0


def test_macs_of_a_recurrent_layer_are_those_of_one_sample_if_the_batch_is_open() -> None:
    layer = ir.Lstm(4, "bidirectional")
    w, r = ir.TensorType(ir.DType.F32, (2, 16, 3)), ir.TensorType(ir.DType.F32, (2, 16, 4))

    def macs(*sizes: int | str) -> int | None:
        graph = ir.Graph()
        x = graph.add_input("x", ir.TensorType(ir.DType.F32, sizes))
        weights = [graph.add_input(n, t) for n, t in (("w", w), ("r", r))]
        return graph.append(layer, [x, *weights]).macs

    assert macs(5, 1, 3) == 5 * 2 * 4 * 4 * (3 + 4)
    assert macs(5, 6, 3) == 6 * macs(5, 1, 3)
    assert macs(5, "n", 3) == macs(5, 1, 3)
