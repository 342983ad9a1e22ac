"""N:M patterns of arrays against plain loops, and which weights of a graph can have one."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from zoo.exports import example, exported, small

from graphshrink import ir
from graphshrink.api import load
from graphshrink.ir import ArrayTensor, DType, Graph, TensorType, Value
from graphshrink.ir.analysis.weights import NmWeight, nm_weights
from graphshrink.ir.masks.nm_pattern import Pattern, Reduction, unstructured_mask

PATTERNS = [Pattern(*p) for p in ((2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (5, 32))]


def loop_mask(row: list[float], n: int, m: int) -> list[bool]:
    """The n largest of every m numbers, the first among equals."""
    kept: list[bool] = []
    for start in range(0, len(row), m):
        group = row[start : start + m]
        best = sorted(range(m), key=lambda i: (-group[i], i))[:n]
        kept += [i in best for i in range(m)]
    return kept


@settings(deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans())
def test_mask_keeps_the_largest(pattern: Pattern, seed: int, groups: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((3, 2, groups * pattern.m))
    if ties:
        scores = np.round(scores * 3)
    mask = pattern.mask(scores)
    want = [loop_mask(row, pattern.n, pattern.m) for row in scores.reshape(6, -1).tolist()]
    assert mask.reshape(6, -1).tolist() == want
    assert pattern.holds(np.where(mask, scores, 0))
    assert pattern.kept_score(scores) == pytest.approx(float(scores[mask].sum()))


def test_mask_of_numbers_that_are_odd() -> None:
    p = Pattern()
    assert p.mask(np.array([np.nan, 1, np.inf, 2])).tolist() == [True, False, True, False]
    assert p.mask(np.array([1, np.nan, np.nan, np.nan])).tolist() == [False, True, True, False]
    assert p.mask(np.array([3, 1, 2, 0], np.uint8)).tolist() == [True, False, True, False]
    half = np.array([3, 1, 2, 0]).astype(DType.BF16.numpy)
    assert p.mask(half).tolist() == [True, False, True, False]
    assert p.mask(np.zeros((2, 0))).shape == (2, 0)


@settings(deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1))
def test_holds_is_what_a_loop_finds(pattern: Pattern, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 2, (2, 2 * pattern.m)) * (rng.random((2, 2 * pattern.m)) < 0.7)
    loop = all(
        sum(x != 0 for x in row[i : i + pattern.m]) <= pattern.n
        for row in array.tolist()
        for i in range(0, len(row), pattern.m)
    )
    assert pattern.holds(array) == loop


def test_patterns_and_their_texts() -> None:
    assert Pattern.of(" 2:4") == Pattern(2, 4)
    assert str(Pattern(1, 8)) == "1:8"
    assert Pattern(1, 4).density == 0.25
    for text in ("2", "2:", "2:4:8", "-2:4", "a:b"):
        with pytest.raises(ValueError, match="is not a pattern like 2:4"):
            Pattern.of(text)
    for text in ("4:4", "0:4", "5:4"):
        with pytest.raises(ValueError, match="1 <= n < m"):
            Pattern.of(text)
    with pytest.raises(ValueError, match="2:4 along an axis of size 6"):
        Pattern().mask(np.ones((2, 6)))
    assert not Pattern().holds(np.zeros((2, 6)))
    assert not Pattern().holds(np.zeros(()))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_unstructured_mask(density: float) -> None:
    scores = np.round(np.random.default_rng(0).random((5, 7)) * 6)
    order = sorted(range(35), key=lambda i: (-scores.reshape(-1)[i], i))
    best = set(order[: int(density * 35 + 0.5)])
    got = unstructured_mask(scores, density).reshape(-1).tolist()
    assert got == [i in best for i in range(35)]
    with pytest.raises(ValueError, match="between 0 and 1"):
        unstructured_mask(scores, 1.5)


# Weights as rows.


@pytest.mark.parametrize(("shape", "axis", "blocks"), [
    ((6, 4), 1, 1), ((6, 8, 3, 2), 1, 1), ((8, 3, 2, 2), 0, 2), ((8, 3), 0, 1), ((2, 8, 5), 1, 1), ((2, 3, 4), 2, 1),
    ((8,), 0, 1),
])  # fmt: skip
def test_rows_run_along_the_reduction_axis(shape: tuple[int, ...], axis: int, blocks: int) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    view = Reduction(shape, axis, blocks)
    rows = view.rows(array)
    assert rows.shape == (view.count, view.length)
    assert (view.restore(rows) == array).all()
    # Every run of the axis within a block is a row, whatever the other indices are.
    runs = set()
    for index in product(*(range(d) for a, d in enumerate(shape) if a != axis)):
        for block in range(blocks):
            run = [
                int(array[(*index[:axis], block * view.length + k, *index[axis:])])
                for k in range(view.length)
            ]
            runs.add(tuple(run))
    assert {tuple(row) for row in rows.tolist()} == runs


def test_a_kernel_is_masked_tap_by_tap() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 8, 2, 2))
    view = Reduction(weight.shape, 1)
    mask = view.mask(np.abs(weight), Pattern())
    for k, r, s in product(range(3), range(2), range(2)):
        want = loop_mask(np.abs(weight[k, :, r, s]).tolist(), 2, 4)
        assert mask[k, :, r, s].tolist() == want
    assert view.holds(weight * mask, Pattern())
    assert not view.holds(weight, Pattern())
    # Flattened over C, R and S the pattern is another one.
    assert not Pattern().holds((weight * mask).reshape(3, -1))


def test_torch_takes_what_is_masked() -> None:
    """torch's own conversion keeps every number of a valid weight, and loses some of another."""
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass as compress,
    )
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_to_dense_cutlass as expand,
    )

    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float16)
    valid = torch.from_numpy(weight * Pattern().mask(np.abs(weight)))
    assert torch.equal(expand(*compress(valid)), valid)
    dense = torch.from_numpy(weight)
    assert not torch.equal(expand(*compress(dense)), dense)


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an array of shape \(6, 4\), found \(4, 6\)"):
        Reduction((6, 4), 1).rows(np.zeros((4, 6)))
    with pytest.raises(ValueError, match="does not divide into 1 blocks"):
        Reduction((6, 4), 2)
    with pytest.raises(ValueError, match="does not divide into 4 blocks"):
        Reduction((6, 4), 0, 4)


# Weights of graphs.


class Builder:
    """A graph whose constants are never read."""

    def __init__(self, *shape: int) -> None:
        self.graph = Graph()
        self.x = self.graph.add_input("x", TensorType(DType.F32, shape))

    def weight(self, *shape: int, dtype: DType = DType.F32) -> Value:
        return self.graph.add_constant(ir.ElidedTensor(shape, dtype), "w")

    def __call__(self, op: ir.Op, *inputs: Value | None) -> Value:
        return self.graph.append(op, inputs, name=f"n{len(self.graph)}").output

    def found(self, *outputs: Value) -> tuple[NmWeight, ...]:
        for value in outputs:
            self.graph.add_output(value)
        return nm_weights(self.graph)


def reason(op: ir.Op, x: tuple[int, ...], w: tuple[int, ...], **given: Any) -> str | None:
    b = Builder(*x)
    weight = b.weight(*w)
    (found,) = b.found(b(op, b.x, weight))
    return found.reason(given.pop("pattern", Pattern()), **given)


def conv(groups: int = 1) -> ir.Conv:
    return ir.Conv((1, 1), (1, 1, 1, 1), (1, 1), groups)


def transposed(groups: int = 1) -> ir.ConvTranspose:
    return ir.ConvTranspose((1, 1), (0, 0, 0, 0), (1, 1), groups)


IMAGE = (1, 16, 5, 5)


@pytest.mark.parametrize(("op", "x", "w", "view", "outputs"), [
    (conv(), IMAGE, (6, 16, 3, 3), Reduction((6, 16, 3, 3), 1), 6),
    (conv(4), IMAGE, (8, 4, 3, 3), Reduction((8, 4, 3, 3), 1), 8),
    (transposed(), IMAGE, (16, 6, 3, 3), Reduction((16, 6, 3, 3), 0), 6),
    (transposed(4), IMAGE, (16, 6, 3, 3), Reduction((16, 6, 3, 3), 0, 4), 24),
    (ir.Linear(), (2, 16), (6, 16), Reduction((6, 16), 1), 6),
    (ir.MatMul(), (2, 3, 16), (2, 16, 6), Reduction((2, 16, 6), 1), 6),
    (ir.MatMul(), (2, 3, 16), (16,), Reduction((16,), 0), 1),
])  # fmt: skip
def test_reduction_axes(
    op: ir.Op, x: tuple[int, ...], w: tuple[int, ...], view: Reduction, outputs: int
) -> None:
    b = Builder(*x)
    (found,) = b.found(b(op, b.x, b.weight(*w)))
    assert found.reduction == view
    assert found.outputs == outputs
    assert found.reason(Pattern()) is None
    assert not found.likely()


def test_a_constant_on_the_left() -> None:
    b = Builder(2, 16, 3)
    (found,) = b.found(b(ir.MatMul(), b.weight(2, 6, 16), b.x))
    assert found.reduction == Reduction((2, 6, 16), 2)
    assert found.outputs == 6
    assert found.reason(Pattern()) is None


@pytest.mark.parametrize(("op", "x", "w", "given", "why"), [
    (conv(), (1, 3, 5, 5), (8, 3, 3, 3), {}, "it sums over 3 channels, which is no multiple of 4"),
    (conv(16), IMAGE, (16, 1, 3, 3), {},
     "each of its 16 groups sums over 1 channel, which is no multiple of 4"),
    (conv(8), IMAGE, (16, 2, 3, 3), {},
     "each of its 8 groups sums over 2 channels, which is no multiple of 4"),
    # Two groups of 2 stand in one run of 4 along axis 0, and do not count.
    (transposed(8), IMAGE, (16, 2, 3, 3), {},
     "each of its 8 groups sums over 2 channels, which is no multiple of 4"),
    (ir.Linear(), (2, 20), (6, 20), {"pattern": Pattern(2, 8)},
     "it sums over 20 channels, which is no multiple of 8"),
    (ir.Linear(), (2, 16), (6, 16), {"min_size": 97}, "it has 96 numbers, fewer than 97"),
    (ir.Linear(), (2, 16), (6, 16), {"min_size": 96}, None),
])  # fmt: skip
def test_reasons_of_sizes(op: ir.Op, x: Any, w: Any, given: dict[str, Any], why: str) -> None:
    assert reason(op, x, w, **given) == why


def test_what_tensorrt_is_likely_to_pick() -> None:
    def likely(op: ir.Op, x: tuple[int, ...], w: tuple[int, ...]) -> bool:
        b = Builder(*x)
        (found,) = b.found(b(op, b.x, b.weight(*w)))
        return found.likely()

    assert likely(ir.Linear(), (1, 256), (256, 256))
    assert likely(conv(), (1, 256, 4, 4), (256, 256, 1, 1))
    assert not likely(conv(2), (1, 512, 4, 4), (256, 256, 1, 1))
    assert not likely(ir.Linear(), (1, 256), (128, 256))
    assert not likely(ir.Linear(), (1, 128), (256, 128))


def test_embeddings_and_recurrent_layers() -> None:
    b = Builder(5, 2, 8)
    ids = b.graph.add_input("ids", TensorType(DType.I64, (3,)))
    table = b.weight(8, 16)
    looked = b(ir.Embedding(), ids, table)
    lstm = b(ir.Lstm(4), b.x, b.weight(1, 16, 8), b.weight(1, 16, 4))
    gru = b(ir.Gru(4), b.x, b.weight(1, 12, 8), b.weight(1, 12, 4))
    found = b.found(looked, lstm, gru)
    assert [w.reason(Pattern()) for w in found] == [
        "it is an embedding table, which is looked up and not multiplied",
        *[None] * 4,
    ]
    assert [w.reduction and w.reduction.axis for w in found] == [None, 2, 2, 2, 2]
    assert [w.uses[0][1] for w in found] == [1, 1, 2, 1, 2]
    assert not any(w.likely() for w in found)


def test_weights_with_several_readers() -> None:
    b = Builder(2, 16)
    ids = b.graph.add_input("ids", TensorType(DType.I64, (3,)))
    both, tied, turned, added, out = (b.weight(16, 16) for _ in range(5))
    y = b(ir.Linear(), b(ir.Linear(), b.x, both), both)
    y = b(ir.MatMul(), b(ir.Linear(), y, turned), turned)
    y = b(ir.Linear(), y, tied)
    z = b(ir.Embedding(), ids, tied)
    a = b(ir.Add(), b(ir.Linear(), b.weight(16, 16), added), added)
    u = b(ir.Linear(), y, added)
    t = b(ir.Linear(), u, out)
    found = {w.value: w for w in b.found(y, z, a, t, out)}
    assert found[both].reason(Pattern()) is None
    assert [n.name for n in found[both].readers] == ["n0", "n1"]
    assert found[tied].reason(Pattern()) == (
        "Embedding n5 reads it too: it is an embedding table, which is looked up and not multiplied"
    )
    assert found[turned].reason(Pattern()) == "n2 and n3 sum over different axes of it"
    assert found[added].reason(Pattern()) == "Add n7 reads it too, and not as a weight"
    assert found[out].reason(Pattern()) == "it is an output of the graph"


def test_computed_weights() -> None:
    b = Builder(2, 16)
    w = b.graph.add_input("w", TensorType(DType.F32, (6, 16)))
    (found,) = b.found(b(ir.Linear(), b.x, w))
    assert found.reason(Pattern()) == "the graph computes it from its inputs"


def test_quantized_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 127, (8, 16), np.int8)
    tensors = [
        numpy_helper.from_array(weight.T.copy(), "q"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.int8(3), "z"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "q.onnx")
    (found,) = nm_weights(load(tmp_path / "q.onnx")[0])
    assert found.reduction == Reduction((8, 16), 1)
    assert found.reason(Pattern()) == (
        "it is dequantized from i8: make it sparse before it is quantized"
    )


def test_integer_weights() -> None:
    b = Builder(2, 16)
    x = b.graph.add_input("i", TensorType(DType.I8, (2, 3, 16)))
    (found,) = b.found(b(ir.MatMul(), x, b.weight(2, 16, 8, dtype=DType.I8)))
    assert found.reason(Pattern()) == "its numbers are i8: make it sparse before it is quantized"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "bert"])
def test_planning_reads_no_weights_and_finds_all(
    name: str, onnx_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every convolution and dense layer of well-known networks, the same from torch and from ONNX."""
    model = small(name)
    graphs = [load(model, (example(name),))[0], load(exported(name, onnx_files))[0]]
    want = sorted(
        (m.weight.shape[1], m.weight.numel())
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    )

    def refuse(self: object) -> None:
        raise AssertionError("a weight was read")

    for cls in (ir.Tensor, ir.LazyTensor, ir.DerivedTensor, ArrayTensor):
        monkeypatch.setattr(cls, "numpy", refuse)
        monkeypatch.setattr(cls, "float64", refuse)
    for graph in graphs:
        found = [w for w in nm_weights(graph) if w.reduction is not None]
        views = [w.reduction for w in found if w.reduction is not None]
        assert sorted((v.length, v.count * v.length) for v in views) == want
        assert all((w.reason(Pattern()) is None) == (v.length % 4 == 0) for w, v in zip(found, views, strict=True))  # fmt: skip
