"""Every op with broadcasting, at every rank and in every form of a broadcast, before something that asks for an axis.

LiteRT gives a result as many axes as its largest operand has, whatever the file says. Whether the emitter and the runtime agree
shows only behind it: in a reduction, a slice, a join. All cases of an op are outputs of one model, so that this stays quick.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.passes import Pipeline
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.emitter import Emitter
from graphshrink.targets.tflite.write import to_bytes
from support.litert import KERNELS, check_shapes, compared, model_of, run
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

SIZES = (2, 3, 4, 5, 2)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """An operator to be tried.

    Attributes:
        op: Its ONNX name.
        most: The highest rank at which LiteRT broadcasts it.
        dtypes: What it is tried on.
        operands: How many operands it has.
    """

    op: str
    most: int
    dtypes: tuple[str, ...] = ("float32", "int32", "int64")
    operands: int = 2


KINDS = [
    Kind("Add", 6), Kind("Sub", 6), Kind("Mul", 6), Kind("Div", 5, ("float32", "int32")),
    Kind("Pow", 4, ("float32",)), Kind("Max", 5), Kind("Min", 5), Kind("Max", 5, ("float32",), 3),
    Kind("Equal", 4, ("float32", "int32", "int64", "bool")), Kind("Less", 4), Kind("LessOrEqual", 4),
    Kind("Greater", 4), Kind("GreaterOrEqual", 4),
    Kind("And", 4, ("bool",)), Kind("Or", 4, ("bool",)), Kind("Xor", 4, ("bool",)),
    Kind("Where", 5, ("float32", "int32", "int64"), 3),
]  # fmt: skip
BOOLEAN = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"}


def forms(rank: int) -> list[tuple[Shape, Shape]]:
    """Pairs of shapes whose broadcast has this rank."""
    full = SIZES[:rank]
    found: list[tuple[Shape, Shape]] = [(full, full), (full, ()), ((), full)]
    for low in sorted({1, rank - 1} & set(range(1, rank))):
        tail, ones = full[rank - low :], (1,) * (rank - low)
        # Of lower rank; with axes of size 1 in their place; and of lower rank beside these axes alone.
        found += [(full, tail), (tail, full), (full, ones + tail), (ones + tail, full)]
        found += [(tail, ones + tail), (ones + tail, tail), (tail, (*ones, *(1,) * low))]
    for odd in (0, 1):
        holes = tuple(1 if i % 2 == odd else d for i, d in enumerate(full))
        others = tuple(d if i % 2 == odd else 1 for i, d in enumerate(full))
        found += [(full, holes), (holes, full), (holes, others)]
    return list(dict.fromkeys(found))


class Batch:
    """A model of many cases, each an output of its own."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.feeds: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.outputs: list[str] = []
        self.rng, self.turn = np.random.default_rng(0), itertools.count()
        self.inputs: dict[tuple[Any, ...], str] = {}

    def numbers(self, shape: Shape, dtype: str = "float32") -> Any:
        if dtype == "bool":
            return self.rng.integers(0, 2, shape).astype(bool)
        if dtype == "float32":
            return self.rng.uniform(0.5, 2, shape).astype(np.float32)
        return self.rng.integers(1, 4, shape).astype(dtype)

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        self.weights[name := f"c{len(self.weights)}"] = np.asarray(array)
        return name

    def operand(self, shape: Shape, dtype: str = "float32", constant: bool = False) -> str:
        """A constant; or an input as it is, or one that is stored in another order of axes."""
        if constant:
            return self.constant(self.numbers(shape, dtype))
        turned = len(shape) > 1 and next(self.turn) % 2 == 1
        key = (shape, dtype, turned)
        if key not in self.inputs:
            stored = (*shape[1:], shape[0]) if turned else shape
            name = f"x{len(self.feeds)}"
            self.feeds[name] = self.numbers(stored, dtype)
            rank = len(shape)
            self.inputs[key] = (
                self.add("Transpose", [name], perm=[rank - 1, *range(rank - 1)]) if turned else name
            )
        return self.inputs[key]

    def asked(self, value: str, shape: Shape, dtype: str = "float32") -> None:
        """An output that depends on where the axes of a value are."""
        rank, turn = len(shape), next(self.turn)
        axis = turn % rank if rank else 0
        choices = ["slice", "gather", "concat", "transpose", "sum"]
        choices += ["softmax"] if dtype == "float32" and rank < 5 else []
        choices += ["conv"] if dtype == "float32" and rank == 4 else []
        choice = choices[turn // 2 % len(choices)] if rank else ""
        if dtype == "bool" and choice in ("sum", ""):
            value = self.add("Cast", [value], to=TensorProto.FLOAT)
        match choice:
            case "sum":
                value = self.add("ReduceSum", [value, self.constant([axis])], keepdims=0)
            case "slice" if shape[axis] > 1:
                ends = [self.constant([n]) for n in (1, shape[axis], axis)]
                value = self.add("Slice", [value, *ends])
            case "gather":
                value = self.add("Gather", [value, self.constant([0, -1, 0])], axis=axis)
            case "concat":
                value = self.add("Concat", [value, value], axis=axis)
            case "softmax":
                value = self.add("Softmax", [value], axis=axis)
            case "conv":
                kernel = self.numbers((3, shape[1], 1, 1))
                value = self.add("Conv", [value, self.constant(kernel)])
            case _ if rank:
                value = self.add("Transpose", [value], perm=[*range(1, rank), 0])
        self.outputs.append(value)

    @property
    def model(self) -> ModelProto:
        return model_of(self.nodes, self.feeds, self.outputs, self.weights)

    def compared(self) -> None:
        """Hold LiteRT's numbers and shapes of every output against onnxruntime's."""
        model = self.model
        graph = from_onnx(model)
        Pipeline("fold-constants,prune-dead").run(graph)
        flat, _, orders = flat_model(graph, Options())
        content, wanted = to_bytes(flat), outputs_of(model, self.feeds, plain=True)
        check_shapes(flat, content)
        makers = {node.output[0]: node for node in self.nodes}
        for kernels in KERNELS:
            got = run(content, self.feeds, kernels, orders)
            wrong = [
                f"{name} = {makers[name].op_type} of {makers[makers[name].input[0]].op_type}"
                for name, want in zip(self.outputs, wanted, strict=True)
                if got[name].shape != want.shape
                or not np.allclose(got[name], want, rtol=1e-5, atol=1e-6)
            ]
            assert not wrong, kernels


def cases(
    kind: Kind, ranks: Iterable[int]
) -> Iterator[tuple[int, tuple[Shape, ...], tuple[bool, ...]]]:
    """Ranks, shapes of operands and which of them are constants."""
    turn = itertools.count(KINDS.index(kind))
    for rank in ranks:
        for pair in forms(rank):
            number = next(turn)
            shapes: tuple[Shape, ...] = pair
            if kind.operands == 3:
                third = (pair[0], pair[1], ())[number % 3]
                shapes = (*pair, third) if number % 2 else (third, *pair)
            constants = [(), (0,), (1,), (), (1, 2), (2,), (0, 1)] if kind.operands == 3 else [(), (0,), (1,)]  # fmt: skip
            constant = constants[number % len(constants)]
            yield rank, shapes, tuple(i in constant for i in range(kind.operands))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.op}-{k.operands}")
def test_numbers_and_axes(kind: Kind) -> None:
    for dtype in kind.dtypes:
        batch, large = Batch(), Batch()
        dtypes = ["bool" if kind.op == "Where" else dtype, *[dtype] * (kind.operands - 1)]
        result = "bool" if kind.op in BOOLEAN else dtype
        # Whole numbers take the same way as others: one rank tells.
        for rank, shapes, fixed in cases(kind, range(6) if dtype == kind.dtypes[0] else (3,)):
            into = large if rank > kind.most and len(set(shapes)) > 1 else batch
            operands = [into.operand(*o) for o in zip(shapes, dtypes, fixed, strict=True)]
            made = into.add(kind.op, operands)
            if into is batch:
                batch.asked(made, np.broadcast_shapes(*shapes), result)
            else:
                large.outputs.append(made)
        batch.compared()
        if large.outputs:
            # What LiteRT cannot broadcast is refused with that reason; few can be made equal, and those are right.
            emitter = Emitter(from_onnx(large.model))
            emitter.run()
            assert all("LiteRT supports at most" in p.reason for p in emitter.refusals)
            refused = {p.node for p in emitter.refusals}
            large.outputs = [name for name in large.outputs if name not in refused]
            assert len(refused) > 2 * len(large.outputs)
            if large.outputs:
                large.compared()


def test_prelu() -> None:
    batch = Batch()
    for rank in range(2, 6):
        full = SIZES[:rank]
        for slope in ((), (1,), (full[1], *[1] * (rank - 2)), (1, full[1], *[1] * (rank - 2))):
            for number in range(3):
                x = batch.operand(full)
                less = batch.add("Sub", [x, batch.constant(np.float32(1.2 + number / 10))])
                made = batch.add("PRelu", [less, batch.constant(batch.numbers(slope))])
                batch.asked(made, full)
    batch.compared()


def test_expand() -> None:
    batch = Batch()
    for dtype, ranks in (("float32", range(1, 6)), ("int32", (3,)), ("bool", (3,))):
        for a, b in (pair for rank in ranks for pair in forms(rank)):
            sizes = batch.constant(np.array(b, np.int64))
            made = batch.add("Expand", [batch.operand(a, dtype), sizes])
            batch.asked(made, np.broadcast_shapes(a, b), dtype)
    batch.compared()


def test_matrices() -> None:
    batch = Batch()
    heads: list[tuple[Shape, Shape]] = [pair for rank in range(4) for pair in forms(rank)]
    # LiteRT's kernel takes five axes.
    heads += [(lead, lead) for lead in ((2, 1, 2, 3), (1, 1, 1, 1), (1, 2, 1, 2, 2))]
    for number, (a, b) in enumerate(heads):
        constant = number % 3
        left = batch.operand((*a, 2, 3), constant=constant == 1)
        right = batch.operand((*b, 3, 4), constant=constant == 2)
        made = batch.add("MatMul", [left, right])
        batch.asked(made, (*np.broadcast_shapes(a, b), 2, 4))
    batch.compared()


def test_open_sizes() -> None:
    """Two sizes are known only when the model runs; the constant has axes of size 1 in front."""
    feeds = {"x": np.random.default_rng(0).uniform(0.5, 2, (5, 2, 3)).astype(np.float32)}
    weights = {"c": np.full((1, 1, 1, 3), 2, np.float32), "axis": np.array([1])}
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["m"]),
        helper.make_node("Greater", ["m", "c"], ["g"]),
        helper.make_node("Where", ["g", "x", "c"], ["w"]),
        helper.make_node("ReduceSum", ["w", "axis"], ["y"], keepdims=0),
    ]
    compared(model_of(nodes, feeds, ["y"], weights, {"x": ["n", "m", 3]}), feeds)


def test_scalars() -> None:
    """Values without axes: as inputs, behind every op that takes the last axis away, and between them."""
    feeds = {"s": np.array(1.5, np.float32), "x": np.array([[0.5, 2, 3]], np.float32)}
    tables = {"one": np.array(1), "first": np.array([0]), "none": np.zeros(0, np.int64)}
    nodes = [
        helper.make_node("Exp", ["s"], ["y0"]),
        helper.make_node("ReduceMax", ["x"], ["y1"], keepdims=0),
        helper.make_node("Squeeze", ["x", "first"], ["v"]),
        helper.make_node("Gather", ["v", "one"], ["y2"]),
        helper.make_node("Slice", ["v", "first", "last"], ["v1"]),
        helper.make_node("Squeeze", ["v1"], ["y3"]),
        helper.make_node("Reshape", ["v1", "none"], ["y4"]),
        helper.make_node("Mul", ["y3", "y4"], ["y5"]),
        helper.make_node("Add", ["y5", "x"], ["y6"]),
    ]
    tables["last"] = np.array([1])
    compared(model_of(nodes, feeds, [f"y{i}" for i in range(7)], tables), feeds)
