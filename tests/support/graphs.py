"""Random graphs of canonical ops, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, Graph, Op, Opaque, TensorType, Value

WEIRD = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = st.one_of(
    st.sampled_from(
        ["x", "output:0", "12/conv:0", "a:", ":", "inf", "nan", "inf.x", "-1", "1.$", "return", "graph",
         "none", "true", "dense", "a b", 'say "hi"', "back\\slash", "\\n", "line\nbreak", "\r", "é", "名",
         "%x", "x=", "//no comment", "layer.0.conv1", "1e5", "0x10"]
    ),
    WEIRD,
)  # fmt: skip
SYMBOLS = st.one_of(
    st.sampled_from(["batch", "N", "inf", "nan", "H+1", "a b", '"', "?", "*"]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
)
DTYPES = [d for d in DType if d is not DType.STRING]
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def constants() -> st.SearchStrategy[ArrayTensor]:
    """Constants of every element type, infinities and NaNs included."""

    @st.composite
    def build(draw: Any) -> ArrayTensor:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape, dtype=int))
        dtype = draw(st.sampled_from(list(DType)))
        if dtype is DType.STRING:
            words = draw(st.lists(WEIRD, min_size=size, max_size=size))
            return ArrayTensor(np.array(words, object).reshape(shape))
        if dtype is DType.BOOL or dtype.is_int:
            low, high = (0, 1) if dtype is DType.BOOL else bounds(dtype)
            items: list[Any] = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        elif dtype.is_float:
            items = draw(st.lists(FLOATS, min_size=size, max_size=size))
        else:
            parts = draw(st.lists(st.tuples(FLOATS, FLOATS), min_size=size, max_size=size))
            items = [complex(*p) for p in parts]
        with np.errstate(all="ignore"):
            return ArrayTensor(np.array(items).astype(dtype.numpy).reshape(shape))

    return build()


def bounds(dtype: DType) -> tuple[int, int]:
    if dtype.value[0] == "u":
        return 0, 2**dtype.bits - 1
    return -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1


def types() -> st.SearchStrategy[TensorType]:
    """Types with sizes, symbols and unknown sizes; also types of which nothing is known."""
    dims = st.one_of(st.none(), st.integers(0, 2**40), SYMBOLS)
    shapes = st.one_of(st.none(), st.lists(dims, max_size=4).map(tuple))
    return st.builds(TensorType, st.one_of(st.none(), st.sampled_from(list(DType))), shapes)


def loose_ops() -> st.SearchStrategy[Op]:
    """Ops that accept any type, for tests of odd attributes and types."""
    finite = st.floats(allow_nan=False)
    return st.one_of(
        st.builds(Opaque, NAMES, st.booleans()),
        st.just(ir.Identity()),
        st.builds(ir.Cast, st.sampled_from([d.value for d in DType])),
        st.builds(lambda p: ir.Activation("clip", p), st.tuples(finite, finite)),
        st.builds(lambda a: ir.Activation("leaky_relu", (a,)), finite),
        st.sampled_from([ir.Activation("relu"), ir.Activation("gelu"), ir.Activation("silu")]),
    )


@st.composite
def odd_graphs(draw: Any) -> Graph:
    """Graphs with odd names, types, constants and outputs; not meant to be run."""
    graph = Graph(draw(NAMES))
    values: list[Value] = [
        graph.add_input(draw(NAMES), draw(types())) for _ in range(draw(st.integers(0, 3)))
    ]
    values += [
        graph.add_constant(draw(constants()), draw(NAMES)) for _ in range(draw(st.integers(0, 3)))
    ]
    for _ in range(draw(st.integers(0, 5))):
        op = draw(loose_ops())
        pool = st.sampled_from(values) if values else st.none()
        if isinstance(op, Opaque):
            inputs = draw(st.lists(st.one_of(st.none(), pool), max_size=3))
            made = draw(st.lists(types(), max_size=3))
        elif not values:
            continue
        else:
            inputs, made = [draw(pool)], None  # type: ignore[assignment]
        hints = draw(st.lists(NAMES, max_size=3))
        node = graph.append(op, inputs, name=draw(NAMES), types=made, output_names=hints)
        values += node.outputs
    if values:
        for value in draw(st.lists(st.sampled_from(values), max_size=4)):
            graph.add_output(value, draw(st.one_of(st.none(), NAMES)))
    return graph


@st.composite
def networks(draw: Any, size: int = 8) -> Graph:
    """Graphs that can be run: convolutions, scales, activations, pools and joins on images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    graph = Graph("network")

    def weight(*shape: int) -> Value:
        return graph.add_constant(ArrayTensor(rng.standard_normal(shape) * 0.5), "w")

    def channels(value: Value) -> int:
        assert value.type.static_shape is not None
        return value.type.static_shape[1]

    values = [graph.add_input("x", TensorType(DType.F64, (1, 2, 6, 6)))]
    for _ in range(draw(st.integers(1, size))):
        x = draw(st.sampled_from(values[-3:]))
        kind = draw(st.sampled_from(["conv", "scale", "act", "add", "concat", "split", "identity"]))
        inputs: list[Value | None] = [x]
        op: Op = ir.Identity()
        match kind:
            case "conv":
                k = draw(st.sampled_from([1, 3]))
                op = ir.Conv((1, 1), (k // 2,) * 4, (1, 1))
                inputs += [weight(draw(st.integers(1, 3)), channels(x), k, k)]
                bias = draw(st.booleans())
                assert inputs[1] is not None
                inputs += [weight(inputs[1].type.dim(0) or 1)] if bias else []
            case "scale":
                op = ir.Scale(1)
                scale, shift = draw(st.sampled_from([(1, 1), (1, 0), (0, 1)]))
                inputs.append(weight(channels(x)) if scale else None)
                inputs += [weight(channels(x))] if shift else []
            case "act":
                op = draw(st.sampled_from([ir.Activation("relu"), ir.Activation("silu")]))
            case "add":
                same = [v for v in values if v.type == x.type]
                op, inputs = ir.Add(), [x, draw(st.sampled_from(same))]
            case "concat":
                op, inputs = ir.Concat(1), [x, draw(st.sampled_from(values))]
            case "split" if channels(x) > 1:
                op = ir.Split((1, channels(x) - 1), 1)
        values += graph.append(op, inputs).outputs
    chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    for value in chosen:
        graph.add_output(value)
    return graph
