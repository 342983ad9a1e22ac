"""Axes that an op ties: permuting all of them alike must leave what it computes unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import Axis, DType, Graph, InferenceError, Op, TensorType
from support.evaluate import run_node
from support.sites import Site, sites


def node_of(op: Op, shapes: list[tuple[int, ...] | None]) -> ir.Node:
    graph = Graph()
    values = [None if s is None else graph.add_input("x", TensorType(DType.F64, s)) for s in shapes]
    return graph.append(op, values)


@settings(max_examples=270)
@given(sites(), st.integers(0, 2**31))
def test_tied_axes_move_together(site: Site, seed: int) -> None:
    op, shapes = site
    try:
        node = node_of(op, shapes)
    except InferenceError:
        assume(False)
    found = op.channels(node.input_types)
    assume(found is not None)
    assert found is not None
    torch.manual_seed(seed)
    operands = [None if s is None else torch.rand(s, dtype=torch.float64) + 0.1 for s in shapes]
    try:
        want = run_node(node, operands)
    except RuntimeError:
        assume(False)
    seen: set[Axis] = set()
    for tie in found:
        # An axis belongs to one tie only, and the axes of a tie are equally long.
        assert not seen & tie
        seen |= tie
        sizes = set()
        for axis in tie:
            tensor = operands[axis.operand] if axis.operand >= 0 else want[-1 - axis.operand]
            assert tensor is not None
            assert 0 <= axis.axis < tensor.ndim
            sizes.add(tensor.shape[axis.axis])
        assert len(sizes) == 1, f"{op} ties axes of sizes {sizes}"
        perm = torch.randperm(sizes.pop())
        moved = list(operands)
        expected = list(want)
        for axis in tie:
            if axis.operand >= 0:
                tensor = moved[axis.operand]
                assert tensor is not None
                moved[axis.operand] = tensor.index_select(axis.axis, perm)
            else:
                place = -1 - axis.operand
                expected[place] = expected[place].index_select(axis.axis, perm)
        for got, right in zip(run_node(node, moved), expected, strict=True):
            np.testing.assert_allclose(got.numpy(), right.numpy(), rtol=1e-9, atol=1e-12)


def ties_of(op: Op, *shapes: tuple[int | str | None, ...] | None) -> set[frozenset[Axis]] | None:
    types = [None if s is None else TensorType(DType.F32, s) for s in shapes]
    found = op.channels(types)
    return None if found is None else set(found)


def tie(*axes: tuple[int, int]) -> frozenset[Axis]:
    return frozenset(Axis(o, a) for o, a in axes)


def test_channels_of_convolutions() -> None:
    conv = ir.Conv((1, 1), (1, 1, 1, 1), (1, 1))
    dense = ties_of(conv, (1, 4, 8, 8), (6, 4, 3, 3), (6,))
    assert dense is not None
    assert {tie((0, 1), (1, 1)), tie((1, 0), (2, 0), (-1, 1))} <= dense
    depthwise = ir.Conv((1, 1), (1, 1, 1, 1), (1, 1), 4)
    through = ties_of(depthwise, (1, 4, 8, 8), (4, 1, 3, 3))
    assert through is not None
    assert tie((0, 1), (1, 0), (-1, 1)) in through
    assert ties_of(ir.Conv((1, 1), (1, 1, 1, 1), (1, 1), 2), (1, 4, 8, 8), (4, 2, 3, 3)) is None


def test_channels_of_joins() -> None:
    # A per-channel constant moves with its channels.
    found = ties_of(ir.Add(), (2, 3, 4, 4), (3, 1, 1))
    assert found is not None
    assert tie((0, 1), (1, 0), (-1, 1)) in found
    assert tie((0, 2), (-1, 2)) in found
    # Whether two unknown sizes are equal or one of them is 1, nobody knows.
    assert ties_of(ir.Add(), (None, 4), (None, 4)) == {tie((0, 1), (1, 1), (-1, 1))}
    assert ties_of(ir.Add(), ("n", 4), ("n", 4)) == {
        tie((0, 0), (1, 0), (-1, 0)), tie((0, 1), (1, 1), (-1, 1)),
    }  # fmt: skip
    assert ties_of(ir.Add(), ("n", 4), ("m", 4)) == {tie((0, 1), (1, 1), (-1, 1))}
    # The joined axis keeps its order; the others are common to all parts.
    assert ties_of(ir.Concat(1), (2, 3), (2, 5)) == {tie((0, 0), (1, 0), (-1, 0))}


def test_channels_of_norms() -> None:
    found = ties_of(ir.LayerNorm(-1), (2, 7, 8), (8,), (8,))
    assert found is not None
    assert tie((0, 2), (1, 0), (2, 0), (-1, 2)) in found
    # A scale that is broadcast does not follow.
    assert ties_of(ir.LayerNorm(1), (2, 7, 8), (8,)) is None
    assert ties_of(ir.LayerNorm(-1), (2, 7, 8), (1,)) is None
    assert ties_of(ir.Scale(1), (2, 8), (None,)) is None


@pytest.mark.parametrize("op", [
    ir.Opaque("k"), ir.Flatten(1), ir.Reshape((2, -1)), ir.MatMul(), ir.Activation("relu"),
    ir.Transpose((1, 0)), ir.Squeeze((0,)), ir.Reduce("sum", (0,)), ir.Split((1, 1)),
])  # fmt: skip
def test_nothing_known_means_no_claims(op: Op) -> None:
    unknown = TensorType()
    inputs = [unknown, unknown] if isinstance(op, ir.MatMul) else [unknown]
    found = op.channels(inputs)
    if isinstance(op, ir.Transpose):
        assert found is not None  # The permutation itself says how many axes there are.
    else:
        assert found is None
