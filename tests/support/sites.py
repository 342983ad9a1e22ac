"""Every op with random attributes and operands that fit it, as a hypothesis strategy."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import Op

Shape = tuple[int, ...]
Site = tuple[Op, list[Shape | None]]
"""An op and the shapes of its operands."""


def _sizes(draw: Any, count: int, low: int = 1, high: int = 7) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(count))


def _shape(draw: Any, low: int = 1, high: int = 4) -> Shape:
    return _sizes(draw, draw(st.integers(low, high)), 1, 4)


def _window(draw: Any, rank: int, pad: int = 2) -> dict[str, Any]:
    return {
        "strides": _sizes(draw, rank, 1, 3),
        "pads": _sizes(draw, 2 * rank, 0, pad),
        "dilations": _sizes(draw, rank, 1, 2),
    }


@st.composite
def convs(draw: Any) -> Site:
    """Convolutions of rank 1 to 3."""
    rank = draw(st.integers(1, 3))
    groups, per_in, per_out = _sizes(draw, 3, 1, 3)
    x = (draw(st.integers(1, 2)), groups * per_in, *_sizes(draw, rank, 1, 8))
    w = (groups * per_out, per_in, *_sizes(draw, rank, 1, 3))
    bias = [(groups * per_out,)] if draw(st.booleans()) else []
    return ir.Conv(**_window(draw, rank), groups=groups), [x, w, *bias]


@st.composite
def transposed_convs(draw: Any) -> Site:
    """Transposed convolutions of rank 1 to 3."""
    rank = draw(st.integers(1, 3))
    groups, per_in, per_out = _sizes(draw, 3, 1, 3)
    x = (draw(st.integers(1, 2)), groups * per_in, *_sizes(draw, rank, 1, 5))
    w = (groups * per_in, per_out, *_sizes(draw, rank, 1, 3))
    bias = [(groups * per_out,)] if draw(st.booleans()) else []
    window = _window(draw, rank)
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1))
        for s, d in zip(window["strides"], window["dilations"], strict=True)
    )
    op = ir.ConvTranspose(
        **window, groups=groups, output_padding=draw(st.sampled_from([(), extra]))
    )
    return op, [x, w, *bias]


@st.composite
def pools(draw: Any) -> Site:
    """Average and maximum pools; pads are at most half of the window, as torch requires."""
    rank = draw(st.integers(1, 3))
    kernel = _sizes(draw, rank, 1, 4)
    # Equal pads at both ends, because torch supports only these.
    pads = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    kind = draw(st.sampled_from([ir.AveragePool, ir.MaxPool]))
    options: dict[str, Any] = {"ceil_mode": draw(st.booleans())}
    dilations = (1,) * rank
    if kind is ir.AveragePool:
        options["count_include_pad"] = draw(st.booleans())
    else:
        dilations = _sizes(draw, rank, 1, 2)
    op = kind(_sizes(draw, rank, 1, 3), pads * 2, dilations, kernel=kernel, **options)
    return op, [(draw(st.integers(1, 2)), draw(st.integers(1, 3)), *_sizes(draw, rank, 1, 9))]


@st.composite
def matrices(draw: Any) -> Site:
    """Dense layers and matrix products, vectors and broadcast batches included."""
    rows, inner, columns = _sizes(draw, 3, 1, 4)
    lead = draw(st.lists(st.integers(1, 3), max_size=2).map(tuple))
    if draw(st.booleans()):
        bias = [(columns,)] if draw(st.booleans()) else []
        return ir.Linear(), [(*lead, inner), (columns, inner), *bias]
    other = tuple(d if draw(st.booleans()) else 1 for d in lead)[draw(st.integers(0, len(lead))) :]
    a: Shape = (*lead, rows, inner)
    b: Shape = (*other, inner, columns)
    return ir.MatMul(), draw(
        st.sampled_from([[a, b], [(inner,), b], [a, (inner,)], [(inner,), (inner,)]])
    )


@st.composite
def elementwise(draw: Any) -> Site:
    """Ops that work element by element."""
    x = _shape(draw)
    axis = draw(st.integers(-len(x), len(x) - 1))
    kind = draw(
        st.sampled_from(
            ["act", "binary", "unary", "many", "scale", "prelu", "gate", "softmax", "norm", "group",
             "same"]
        )
    )  # fmt: skip
    match kind:
        case "act":
            name = draw(st.sampled_from(sorted(ir.ACTIVATIONS)))
            return ir.Activation(name, (0.25, 0.75)[: ir.ACTIVATIONS[name]]), [x]
        case "binary":
            y = tuple(d if draw(st.booleans()) else 1 for d in x)[draw(st.integers(0, len(x))) :]
            op = draw(st.sampled_from([ir.Add(), ir.Sub(), ir.Mul(), ir.Div(), ir.Pow()]))
            return op, draw(st.sampled_from([[x, y], [y, x], [x, x]]))
        case "unary":
            return ir.Unary(
                draw(st.sampled_from([k for k in ir.UNARY if k not in ir.PREDICATES]))
            ), [x]
        case "many":
            count = draw(st.integers(1, 3))
            parts = [tuple(d if draw(st.booleans()) else 1 for d in x) for _ in range(count)]
            return draw(st.sampled_from([ir.Max(), ir.Min()])), parts
        case "scale":
            vector = (draw(st.sampled_from([1, x[axis]])),)
            given = draw(
                st.sampled_from([[vector, None], [None, vector], [vector, vector], [vector]])
            )
            return ir.Scale(axis), [x, *given]
        case "prelu":
            return ir.PRelu(axis), [x, (draw(st.sampled_from([1, x[axis]])),)]
        case "gate":
            name = draw(st.sampled_from(["prelu", *sorted(ir.ACTIVATIONS)]))
            slope = [(draw(st.sampled_from([1, x[axis]])),)] if name == "prelu" else []
            params = (0.25, 0.75)[: ir.ACTIVATIONS.get(name, 0)]
            return ir.Gate(name, params, axis, draw(st.sampled_from(ir.GATE_MODES))), [
                x,
                (1,),
                *slope,
            ]
        case "softmax":
            return draw(st.sampled_from([ir.Softmax, ir.LogSoftmax, ir.CumSum]))(axis), [x]
        case "group":
            groups, each = draw(st.integers(0, 3)), draw(st.integers(1, 3))
            wide = (*x[:1], max(groups, 1) * each, *x[1:])
            vector = wide[1:2]
            given = draw(st.sampled_from([[], [vector], [vector, vector], [None, vector]]))
            return ir.GroupNorm(groups, 0.1), [wide, *given]
        case "norm":
            tail = x[axis % len(x) :]
            given = draw(st.sampled_from([[], [tail], [tail, tail], [None, tail]]))
            return ir.LayerNorm(axis, 0.1), [x, *given]
        case _:
            return draw(st.sampled_from([ir.Identity(), ir.Cast("f64")])), [x]


@st.composite
def movers(draw: Any) -> Site:
    """Ops that move elements, and reductions."""
    x = _shape(draw)
    rank = len(x)
    axis = draw(st.integers(-rank, rank - 1))
    axes = tuple(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
    axes = tuple(a - rank if draw(st.booleans()) else a for a in axes)
    kind = draw(
        st.sampled_from(
            ["reshape", "flatten", "transpose", "squeeze", "unsqueeze", "concat", "split", "slice",
             "select", "reduce", "pad", "global", "expand", "resize", "blocks"]
        )
    )  # fmt: skip
    match kind:
        case "reshape":
            y = list(draw(st.permutations(x)))
            if draw(st.booleans()) and rank > 1:
                y = [y[0] * y[1], *y[2:]]
            shape: list[int | None] = list(y)
            for i, d in enumerate(shape):
                if i < rank and d == x[i] and draw(st.booleans()):
                    shape[i] = None
            if draw(st.booleans()):
                shape[draw(st.integers(0, len(shape) - 1))] = -1
            return ir.Reshape(tuple(shape)), [x]
        case "flatten":
            return ir.Flatten(draw(st.integers(-rank, rank))), [x]
        case "transpose":
            return ir.Transpose(tuple(draw(st.permutations(range(rank))))), [x]
        case "squeeze":
            gone = {a % rank for a in axes}
            return ir.Squeeze(axes), [tuple(1 if i in gone else d for i, d in enumerate(x))]
        case "unsqueeze":
            wide = rank + draw(st.integers(1, 2))
            new = draw(
                st.sets(st.integers(0, wide - 1), min_size=wide - rank, max_size=wide - rank)
            )
            places = tuple(a - wide if draw(st.booleans()) else a for a in sorted(new))
            return ir.Unsqueeze(places), [x]
        case "concat":
            parts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
            own = axis % rank
            return ir.Concat(axis), [(*x[:own], p, *x[own + 1 :]) for p in parts]
        case "split":
            sizes = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
            own = axis % rank
            return ir.Split(sizes, axis), [(*x[:own], sum(sizes), *x[own + 1 :])]
        case "slice":
            ends = st.one_of(st.integers(-6, 6), st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1]))
            starts, stops = (tuple(draw(ends) for _ in axes) for _ in range(2))
            return ir.Slice(starts, stops, axes, _sizes(draw, len(axes), 1, 3)), [x]
        case "select":
            return ir.Select(axis, draw(st.integers(-x[axis], x[axis] - 1))), [x]
        case "reduce":
            return ir.Reduce(draw(st.sampled_from(ir.REDUCTIONS)), axes, draw(st.booleans())), [x]
        case "expand":
            wide = draw(st.lists(st.integers(1, 3), max_size=2).map(tuple))
            kept = [draw(st.sampled_from([1, d])) for d in x]
            small = tuple(draw(st.sampled_from([1, d])) for d in x)
            if draw(st.booleans()):
                return ir.Expand((*wide, *kept)), [small]
            # Sizes of a second input, in any order.
            sizes = [*wide, *kept]
            taken = sorted(draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
            order = draw(st.permutations(range(len(taken))))
            other = tuple(sizes[taken[k]] for k in order)
            shape = tuple(None if a in taken else d for a, d in enumerate(sizes))
            like = tuple(order.index(k) for k in range(len(taken)))
            return ir.Expand(shape, like), [small, other]
        case "resize":
            mode = draw(st.sampled_from(ir.RESIZE_MODES))
            coordinates = draw(st.sampled_from(ir.COORDINATES))
            form: dict[str, Any] = {"rounding": draw(st.sampled_from(ir.ROUNDINGS))}
            if draw(st.booleans()):
                form["scales"] = tuple(draw(st.sampled_from([1.0, 2.0, 0.5, 1.5])) for _ in x)
            else:
                form["sizes"] = tuple(draw(st.sampled_from([None, 1, d, d + 1])) for d in x)
            return ir.Resize(mode, coordinates, **form), [tuple(2 * d if d == 1 else d for d in x)]
        case "blocks":
            op = draw(st.sampled_from([ir.DepthToSpace, ir.SpaceToDepth]))
            return op(2, draw(st.sampled_from(["DCR", "CRD"]))), [(2, 4, 2, 6)]
        case "global":
            return ir.GlobalAveragePool(), [(2, 3, *x[:3])]
        case _:
            low = tuple(draw(st.integers(-min(1, d - 1), 2)) for d in x)
            high = tuple(draw(st.integers(0, 2)) for _ in x)
            return ir.Pad((*low, *high), "constant", draw(st.sampled_from([0.0, 1.5]))), [x]


def sites() -> st.SearchStrategy[Site]:
    """Any op with operands of fitting ranks and channels; windows may be larger than the input."""
    return st.one_of(convs(), transposed_convs(), pools(), matrices(), elementwise(), movers())
