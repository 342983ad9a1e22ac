"""The parts of random ONNX models: each entry appends one node, or a common pattern of several nodes, to the graph.

Entries may propose nodes that onnxruntime refuses; the builder then drops them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from .onnx_graphs import FLOAT, WEIGHT, Array, Builder

Entry = Callable[[Builder], object]


def weight(b: Builder, *shape: int, scale: float | None = None) -> str:
    """A weight: stored directly, stored in another form with nodes that undo it, or shared with another layer."""
    draw = b.draw
    alike = [n for n in b.values if n.startswith(WEIGHT) and b.shape(n) == shape]
    if alike and draw.chance(0.15):
        return draw.pick(alike)
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    array = np.asarray(draw.normal(*shape, scale=(fan**-0.5 if scale is None else scale)))
    if shape and shape[0] > 1 and draw.chance(0.08):
        array[draw.whole(0, shape[0] - 1)] = 0
    if draw.chance(0.03):
        array[...] = draw.pick([0.0, 1.0])
    how = draw.weighted({"plain": 16, "reshape": 1, "transpose": 1, "mul": 1, "identity": 1, "dequantize": 1, "cast": 0.5})  # fmt: skip
    made: str | None = None
    match how:
        case "reshape":
            kept = b.constant(array.reshape(-1), prefix=WEIGHT)
            made = b.node("Reshape", [kept, b.constant(list(shape), np.int64)])
        case "transpose":
            perm = draw.shuffled(range(array.ndim))
            kept = b.constant(array.transpose(np.argsort(perm)).copy(), prefix=WEIGHT)
            made = b.node("Transpose", [kept], perm=perm) if perm else None
        case "mul":
            factor = b.constant(draw.uniform(0.5, 1.5, *([1] * array.ndim)), prefix=WEIGHT)
            made = b.node("Mul", [b.constant(array, prefix=WEIGHT), factor])
        case "identity":
            made = b.node("Identity", [b.constant(array, prefix=WEIGHT)])
        case "cast":
            made = b.node("Cast", [b.constant(array.astype(np.float64))], to=FLOAT)
        case "dequantize" if b.opset >= 13 and array.ndim:
            axis = draw.whole(0, array.ndim - 1)
            stored = np.clip(np.rint(array * 60), -128, 127).astype(np.int8)
            scale_of = draw.uniform(0.01, 0.02, array.shape[axis])
            points = draw.integers(-3, 4, array.shape[axis]).astype(np.int8) * (not b.plain)
            made = b.node(
                "DequantizeLinear", [b.constant(stored), b.constant(scale_of), b.constant(points)],
                axis=axis,
            )  # fmt: skip
    if made is not None:
        # Layers must not read a computed weight as an activation.
        b.fresh.remove(made)
        return made
    return b.constant(array, prefix=WEIGHT)


def _spatial(b: Builder) -> str | None:
    return b.pick(b.floats(3, 4, 4, 5))


def _pads(b: Builder, n: int, most: int = 2) -> list[int]:
    draw = b.draw
    match draw.weighted({"none": 3, "same": 4, "uneven": 2}):
        case "none":
            return [0] * (2 * n)
        case "same":
            return [draw.whole(1, most)] * (2 * n)
        case _:
            return [draw.whole(0, most) for _ in range(2 * n)]


def conv(b: Builder) -> object:
    x = _spatial(b)
    if x is None:
        return None
    draw, (_, c, *size) = b.draw, b.shape(x)
    n = len(size)
    groups = draw.pick([1, 1, 1, c, *(g for g in (2, 3) if c % g == 0)])
    out = groups * draw.pick([1, 1, 2, 3]) if groups > 1 else draw.pick([1, 2, 3, 4, 6, c, c])
    one = draw.chance(0.3)
    kernel = [1 if one else draw.pick([1, 2, 3, 3]) for _ in size]
    options: dict[str, Any] = {"group": groups if groups > 1 or draw.chance(0.5) else None}
    if draw.chance(0.15):
        options["auto_pad"] = draw.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif draw.chance(0.5) and not one:
        options["pads"] = [k // 2 for k in kernel] * 2
    else:
        options["pads"] = _pads(b, n)
    if draw.chance(0.3):
        options["strides"] = [draw.pick([1, 2, 2, 3]) for _ in size]
    if draw.chance(0.2) and "auto_pad" not in options:
        options["dilations"] = [draw.pick([1, 2]) for _ in size]
    if draw.chance(0.7):
        options["kernel_shape"] = kernel
    given = [x, weight(b, out, c // groups, *kernel)]
    if draw.chance(0.5):
        given.append(weight(b, out, scale=0.5))
    return b.node("Conv", given, **options)


def conv_transpose(b: Builder) -> object:
    x = _spatial(b)
    if x is None:
        return None
    draw, (_, c, *size) = b.draw, b.shape(x)
    groups = draw.pick([1, 1, c])
    kernel = [draw.whole(1, 3) for _ in size]
    strides = [draw.pick([1, 2]) for _ in size]
    options: dict[str, Any] = {"group": groups, "strides": strides, "kernel_shape": kernel}
    if draw.chance(0.2):
        options["auto_pad"] = draw.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    else:
        options["pads"] = [draw.whole(0, max(0, k - 1) // 2) for k in kernel] * 2
        if draw.chance(0.3):
            options["output_padding"] = [draw.whole(0, s - 1) for s in strides]
        if draw.chance(0.2):
            options["dilations"] = [draw.pick([1, 2]) for _ in size]
    given = [x, weight(b, c, draw.pick([1, 2, 3]), *kernel, scale=0.4)]
    if draw.chance(0.5):
        given.append(weight(b, b.shape(given[1])[1] * groups, scale=0.5))
    return b.node("ConvTranspose", given, **options)


def batch_norm(b: Builder) -> object:
    x = b.pick(b.floats(2, 3, 4, 4, 5))
    if x is None:
        return None
    draw, c = b.draw, b.shape(x)[1]
    variance = draw.uniform(0.2, 2.0, c)
    if draw.chance(0.15):
        # The variance of a dead channel: zero, tiny, or negative by rounding.
        odd = draw.pick([0, 0, 1e-12, 1e-30, 1e-39, -5e-6, -1e-12, 1e12, 1e30])
        variance[draw.whole(0, c - 1)] = odd
    given = [x, weight(b, c, scale=1), weight(b, c, scale=0.5), weight(b, c, scale=0.5), b.constant(variance)]  # fmt: skip
    return b.node("BatchNormalization", given, epsilon=draw.pick([1e-5, 1e-3, 0.1]))


def _binary(b: Builder, left: str, right: str) -> object:
    op = b.draw.weighted(
        {"Add": 5, "Mul": 4, "Sub": 3, "Div": 1, "Max": 1, "Min": 1, "Mean": 0.3, "Sum": 0.5}
    )
    op = "Add" if b.plain and op in ("Mean", "Sum") else op
    if op == "Div" and np.abs(b.values[right]).min(initial=1) < 0.1:
        op = "Mul"
    first, second = (left, right) if b.draw.chance(0.75) or op == "Div" else (right, left)
    return b.node(op, [first, second])


def with_constant(b: Builder) -> object:
    x = b.pick(b.floats())
    if x is None:
        return None
    draw, shape = b.draw, b.shape(x)
    match draw.weighted({"number": 3, "channel": 5, "map": 1, "part": 3, "raise": 1.5}):
        case "number":
            other: tuple[int, ...] = draw.pick([(), (1,)])
        case "channel" if len(shape) > 1:
            other = (shape[1], *([1] * (len(shape) - 2)))
            if draw.chance(0.3):
                other = (1, *other)
        case "map":
            other = shape
        case "raise":
            other = (
                draw.pick([1, 1, 2]),
                *([1] * draw.whole(0, 1)),
                *(draw.pick([1, s]) for s in shape),
            )
        case _:
            other = tuple(draw.pick([1, s]) for s in shape)
            other = other[draw.whole(0, len(other)) :]
    return _binary(b, x, weight(b, *other, scale=1))


def far_factors(b: Builder) -> object:
    """Factors near the limits of float32, undone one or two nodes later."""
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    far = draw.pick([1e-45, 1e-40, 1e-39, 2e-38, 1e-30, 1e-20, 1e20, 1e30, 2e38])
    first, second = draw.pick([("Mul", "Div"), ("Div", "Mul"), ("Mul", "Mul"), ("Div", "Div")])
    other = far if first != second else 1 / far
    if abs(other) > 3e38:
        return None
    shape = draw.pick([(), (1,), tuple([1] * len(b.shape(x)))])

    def factor(value: float) -> str:
        return b.constant(np.full(shape, value), np.float32, WEIGHT)

    limit, b.largest = b.largest, np.inf
    before = len(b.fresh)
    y = b.node(first, [x, factor(far)])
    if y is not None and draw.chance(0.5):
        between = draw.pick(["Neg", "Relu", "Identity", "Reshape"])
        sizes = [b.constant(list(b.shape(x)), np.int64)] if between == "Reshape" else []
        y = b.node(between, [y, *sizes])
    b.largest = limit
    z = y and b.node(second, [y, factor(other)])
    # What lies between is no size to go on with.
    b.fresh[before:] = [z] if z else []
    return z


def given_sizes(b: Builder) -> object:
    """A reshape to sizes that are an input: no rank is known after it."""
    x = b.pick(b.floats(low=1))
    if x is None or sum(n.startswith("s") for n in b.inputs) > 1:
        return None
    sizes = list(b.shape(x))
    if b.draw.chance(0.3):
        sizes = [*sizes, 1]
    name = b.name("s")
    b.values[name] = np.array(sizes, np.int64)
    b.inputs.append(name)
    made = b.node("Reshape", [x, name])
    if made is None:
        b.inputs.remove(name)
    return made


def two_values(b: Builder) -> object:
    x = b.pick(b.floats())
    if x is None:
        return None
    shape = b.shape(x)
    same = [n for n in b.floats() if b.shape(n) == shape]
    if b.draw.chance(0.75):
        return _binary(b, x, b.draw.pick(same))
    fitting = [n for n in b.floats() if _broadcast(b.shape(n), shape)]
    return _binary(b, x, b.draw.pick(fitting))


def _broadcast(a: tuple[int, ...], c: tuple[int, ...]) -> bool:
    return all(p == q or 1 in (p, q) for p, q in zip(reversed(a), reversed(c), strict=False))


def residual(b: Builder) -> object:
    """A residual block: a branch that keeps the shape, and a skip."""
    x = _spatial(b)
    if x is None:
        return None
    draw, (_, c, *size) = b.draw, b.shape(x)
    y: str | None = x
    for _ in range(draw.whole(1, 3)):
        if y is None:
            return None
        match draw.weighted({"conv": 4, "norm": 2, "act": 1}):
            case "conv":
                k = draw.pick([1, 3])
                given = [y, weight(b, c, c, *([k] * len(size)))]
                if draw.chance(0.5):
                    given.append(weight(b, c, scale=0.3))
                y = b.node("Conv", given, pads=[k // 2] * (2 * len(size)))
            case "norm":
                y = b.node("BatchNormalization", [y, weight(b, c, scale=1), *(weight(b, c, scale=0.3) for _ in "ab"), b.constant(draw.uniform(0.5, 1.5, c))])  # fmt: skip
            case _:
                y = b.node("Relu", [y])
    return None if y is None or y == x else b.node("Add", draw.shuffled([x, y]))


def pool(b: Builder) -> object:
    x = _spatial(b)
    if x is None:
        return None
    draw, (_, _, *size) = b.draw, b.shape(x)
    kind = draw.weighted(
        {
            "AveragePool": 4,
            "MaxPool": 3,
            "GlobalAveragePool": 2,
            "GlobalMaxPool": 0.5,
            "LpPool": 0.2,
        }
    )
    if kind.startswith("Global"):
        return b.node(kind, [x])
    kernel = [draw.whole(1, 3) for _ in size]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": [draw.whole(1, 2) for _ in size]}
    if draw.chance(0.2):
        options["auto_pad"] = draw.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    else:
        options["pads"] = [draw.whole(0, k // 2) for k in (*kernel, *kernel)]
    if b.opset >= 10 and kind != "LpPool":
        options["ceil_mode"] = draw.pick([None, None, 0, 1])
    if kind == "AveragePool":
        options["count_include_pad"] = draw.pick([None, 0, 1])
    return b.node(kind, [x], **options)


ACTIVATIONS: dict[str, list[dict[str, float]]] = {
    "Relu": [{}], "Sigmoid": [{}], "Tanh": [{}], "LeakyRelu": [{}, {"alpha": 0.2}], "Elu": [{}, {"alpha": 0.5}],
    "Selu": [{}, {"alpha": 1.2, "gamma": 0.8}], "Softplus": [{}], "Softsign": [{}], "HardSigmoid": [{}, {"alpha": 0.3, "beta": 0.4}],
    "HardSwish": [{}], "Mish": [{}], "Celu": [{}, {"alpha": 0.7}], "ThresholdedRelu": [{}, {"alpha": 0.3}], "Gelu": [{}],
    "Abs": [{}], "Neg": [{}], "Exp": [{}], "Erf": [{}], "Sin": [{}], "Floor": [{}], "Sign": [{}], "Identity": [{}], "Dropout": [{}],
    "Shrink": [{"lambd": 0.3, "bias": 0.1}], "Atan": [{}],
}  # fmt: skip


def activation(b: Builder) -> object:
    x = b.pick(b.floats())
    if x is None:
        return None
    op = b.draw.weighted(
        {
            k: 0
            if b.plain and k in ("Selu", "Shrink", "ThresholdedRelu")
            else 6
            if k in ("Relu", "Sigmoid", "LeakyRelu")
            else 1
            for k in ACTIVATIONS
        }
    )
    return b.node(op, [x], **b.draw.pick(ACTIVATIONS[op]))


def clip(b: Builder) -> object:
    x = b.pick(b.floats())
    if x is None:
        return None
    low, high = b.draw.pick(
        [(0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 0.5), (0.0, 1.0), (0.5, -0.5)]
    )
    if b.opset < 11:
        return b.node("Clip", [x], min=low, max=high)
    ends = ["" if v is None else b.constant(v, np.float32) for v in (low, high)]
    return b.node("Clip", [x, *ends])


def prelu(b: Builder) -> object:
    x = b.pick(b.floats(2, 3, 4))
    if x is None:
        return None
    shape = b.shape(x)
    slope = b.draw.pick([(1,), (shape[1], *([1] * (len(shape) - 2))), shape[1:]])
    return b.node("PRelu", [x, weight(b, *slope, scale=0.3)])


def written_out(b: Builder) -> object:
    """An activation or a norm in the form of old exporters."""
    draw, x = b.draw, b.pick(b.floats())
    if x is None:
        return None

    def number(value: float) -> str:
        return b.constant(value, np.float32)

    match draw.pick(["silu", "gelu", "gelu_tanh", "hardswish", "mish", "norm", "l2", "relu6"]):
        case "silu":
            s = b.node("Sigmoid", [x])
            return s and b.node("Mul", draw.shuffled([x, s]))
        case "gelu":
            y = b.node("Div", [x, number(2**0.5)])
            y = y and b.node("Erf", [y])
            y = y and b.node("Add", [y, number(1)])
            y = y and b.node("Mul", draw.shuffled([x, y]))
            return y and b.node("Mul", [y, number(0.5)])
        case "gelu_tanh":
            y = b.node("Pow", [x, number(3)])
            y = y and b.node("Mul", [y, number(0.044715)])
            y = y and b.node("Add", [x, y])
            y = y and b.node("Mul", [y, number((2 / np.pi) ** 0.5)])
            y = y and b.node("Tanh", [y])
            y = y and b.node("Add", [y, number(1)])
            y = y and b.node("Mul", [x, y])
            return y and b.node("Mul", [y, number(0.5)])
        case "hardswish":
            y = b.node("Add", [x, number(3)])
            y = y and _clipped(b, y, 0.0, 6.0)
            y = y and b.node("Mul", [x, y])
            return y and b.node("Div", [y, number(6)])
        case "mish":
            y = b.node("Softplus", [x])
            y = y and b.node("Tanh", [y])
            return y and b.node("Mul", [x, y])
        case "relu6":
            return _clipped(b, x, 0.0, 6.0)
        case "l2":
            y = b.node("ReduceL2", [x], axes=[-1]) if 11 <= b.opset < 18 else None
            y = y and b.node("Add", [y, number(0.5)])
            return y and b.node("Div", [x, y])
        case _:
            if not b.shape(x) or b.shape(x)[-1] < 2:
                return None
            mean = _reduced(b, "ReduceMean", x, [-1], 1)
            d = mean and b.node("Sub", [x, mean])
            q = d and b.node("Pow", [d, number(2)])
            v = q and _reduced(b, "ReduceMean", q, [-1], 1)
            v = v and b.node("Add", [v, number(0.1)])
            v = v and b.node("Sqrt", [v])
            y = v and b.node("Div", [d or x, v])
            y = y and b.node("Mul", [y, weight(b, b.shape(x)[-1], scale=1)])
            return y and b.node("Add", [y, weight(b, b.shape(x)[-1], scale=0.5)])


def _clipped(b: Builder, x: str, low: float, high: float) -> str | None:
    if b.opset < 11:
        return b.node("Clip", [x], min=low, max=high)
    return b.node("Clip", [x, b.constant(low, np.float32), b.constant(high, np.float32)])


def _reduced(b: Builder, op: str, x: str, axes: list[int] | None, keep: int | None) -> str | None:
    since = 13 if op == "ReduceSum" else 18
    if b.opset >= since:
        given = [x] if axes is None else [x, b.constant(axes, np.int64)]
        return b.node(op, given, keepdims=keep)
    if b.opset < 11 and axes is not None:
        axes = [a % b.values[x].ndim for a in axes]
    return b.node(op, [x], axes=axes, keepdims=keep)


def reduce(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    op = draw.weighted({"ReduceMean": 5, "ReduceSum": 3, "ReduceMax": 1, "ReduceMin": 1, "ReduceL1": 0.5, "ReduceL2": 0.5, "ReduceProd": 0.3, "ReduceLogSumExp": 0.2, "ReduceSumSquare": 0.2})  # fmt: skip
    rank = b.values[x].ndim
    axes = draw.pick([None, [rank - 1], [-1], draw.some(range(rank)), list(range(2, rank)) or [0]])
    return _reduced(b, op, x, axes, draw.pick([None, 0, 1]))


def softmax(b: Builder) -> object:
    x = b.pick(b.floats(low=1))
    if x is None:
        return None
    rank = b.values[x].ndim
    op = b.draw.weighted({"Softmax": 5, "LogSoftmax": 2, "Hardmax": 0.3})
    low = -1 if b.opset < 11 else -rank
    return b.node(op, [x], axis=b.draw.pick([None, -1, 1 % rank, b.draw.whole(low, rank - 1)]))


def matmul(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=2))
    if x is None:
        return None
    shape = b.shape(x)
    out = draw.pick([1, 2, 4, 5, shape[-1]])
    match draw.weighted({"right": 6, "stack": 1, "left": 1, "vector": 0.5, "values": 1}):
        case "right":
            y = b.node("MatMul", [x, weight(b, shape[-1], out, scale=shape[-1] ** -0.5)])
        case "stack":
            y = b.node(
                "MatMul", [x, weight(b, *shape[:-2], shape[-1], out, scale=shape[-1] ** -0.5)]
            )
        case "left":
            y = b.node("MatMul", [weight(b, out, shape[-2]), x])
        case "vector":
            y = b.node("MatMul", [x, weight(b, shape[-1], scale=0.5)])
        case _:
            perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            other = b.node("Transpose", [x], perm=perm)
            y = other and b.node("MatMul", [x, other])
    if y is not None and b.shape(y) and draw.chance(0.6):
        return b.node("Add", draw.shuffled([y, weight(b, b.shape(y)[-1], scale=0.5)]))
    return y


def gemm(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(2))
    if x is None:
        x = _flat(b)
        if x is None:
            return None
    rows, inner = b.shape(x)
    trans_a = int(draw.chance(0.2))
    if trans_a:
        rows, inner = inner, rows
    trans_b, out = int(draw.chance(0.6)), draw.pick([1, 2, 4, 5, inner])
    given = [x, weight(b, out, inner) if trans_b else weight(b, inner, out, scale=inner**-0.5)]
    if draw.chance(0.7) or b.opset < 11:
        given.append(
            weight(
                b,
                *draw.pick([(out,), (out,), (1, out), (1,), (rows, 1), (rows, out), ()]),
                scale=0.5,
            )
        )
    alpha, beta = (draw.pick([None, 0.5, 1.0]) for _ in "ab")
    return b.node("Gemm", given, transA=trans_a or None, transB=trans_b, alpha=alpha, beta=beta)


def _flat(b: Builder) -> str | None:
    x = b.pick(b.floats(3, 4, 5))
    return x and b.node("Flatten", [x], axis=b.draw.pick([None, 1, 1, 2]))


def reshape(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    shape = list(b.shape(x))
    wanted: list[int]
    match draw.weighted({"flat": 2, "zeros": 2, "merge": 2, "split": 3, "any": 1}):
        case "flat":
            wanted = [shape[0] if draw.chance(0.5) else 0, -1]
        case "zeros":
            wanted = [0] * (len(shape) - 1) + [-1]
        case "merge":
            axis = draw.whole(0, len(shape) - 1)
            wanted = [*shape[:axis], int(np.prod(shape[axis : axis + 2])), *shape[axis + 2 :]]
        case "split":
            axis = draw.whole(0, len(shape) - 1)
            by = draw.pick([1, 1, 2, 3, shape[axis]])
            if by == 0 or shape[axis] % by:
                by = 1
            pair = draw.shuffled([by, shape[axis] // by])
            wanted = [*shape[:axis], *pair, *shape[axis + 1 :]]
        case _:
            wanted = draw.shuffled(shape)
    if draw.chance(0.3) and -1 not in wanted and 0 not in wanted:
        wanted[draw.whole(0, len(wanted) - 1)] = -1
    return b.node("Reshape", [x, b.constant(wanted, np.int64)])


def computed_reshape(b: Builder) -> object:
    """A reshape to sizes that are read off the value at run time, as torch exports ``view(x.shape[0], -1)``."""
    draw, x = b.draw, b.pick(b.floats(3, 4))
    if x is None:
        return None
    before = len(b.fresh)
    sizes = b.node("Shape", [x])
    index = b.constant(0 if draw.chance(0.6) else [0], np.int64)
    first = sizes and b.node("Gather", [sizes, index], axis=0)
    if first is not None and not b.shape(first):
        first = _unsqueezed(b, first, [0])
    rest = draw.pick([[-1], [b.shape(x)[1], -1]])
    whole = first and b.node("Concat", [first, b.constant(rest, np.int64)], axis=0)
    del b.fresh[before:]
    return whole and b.node("Reshape", [x, whole])


def _unsqueezed(b: Builder, x: str, axes: list[int]) -> str | None:
    if b.opset < 13:
        return b.node("Unsqueeze", [x], axes=axes)
    return b.node("Unsqueeze", [x, b.constant(axes, np.int64)])


def view(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    shape = b.shape(x)
    rank = len(shape)
    match draw.weighted({"transpose": 4, "back": 2, "squeeze": 1, "unsqueeze": 1.5, "flatten": 1}):
        case "transpose":
            return b.node("Transpose", [x], perm=draw.pick([None, draw.shuffled(range(rank))]))
        case "back":
            perm = draw.shuffled(range(rank))
            y = b.node("Transpose", [x], perm=perm)
            y = y and draw.pick(
                [y, b.node("Relu", [y]), b.node("Add", [y, weight(b, b.shape(y)[-1], scale=1)])]
            )
            return y and b.node("Transpose", [y], perm=[int(i) for i in np.argsort(perm)])
        case "squeeze":
            axes = [i for i, s in enumerate(shape) if s == 1]
            if not axes:
                return None
            axes = draw.some(axes)
            if draw.chance(0.2):
                return b.node("Squeeze", [x])
            if b.opset < 13:
                return b.node("Squeeze", [x], axes=axes)
            return b.node("Squeeze", [x, b.constant(axes, np.int64)])
        case "unsqueeze":
            return _unsqueezed(b, x, draw.pick([[0], [rank], [1 % (rank + 1)], [0, 2]]))
        case _:
            low = 0 if b.opset < 11 else -rank
            return b.node("Flatten", [x], axis=draw.whole(low, rank))


def cut(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    axis = draw.whole(0, b.values[x].ndim - 1)
    size = b.shape(x)[axis]
    match draw.weighted({"slice": 4, "split": 3, "gather": 2, "rejoin": 2}):
        case "slice":
            step = draw.pick([1, 1, 1, 2, -1, -2]) if b.opset >= 10 else 1
            start = draw.pick([0, 1, -2, -1, size - 1])
            end = draw.pick([size, -1, 2**31 - 1, max(1, size // 2), 1])
            if step < 0:
                start, end = (
                    draw.pick([-1, size - 1, 2**31 - 1]),
                    draw.pick([-(2**31), 0, -size - 1]),
                )
            if b.opset < 10:
                return b.node("Slice", [x], starts=[start], ends=[end], axes=[axis])
            return b.node(
                "Slice", [x, *(b.constant([v], np.int64) for v in (start, end, axis, step))]
            )
        case "gather":
            index = draw.pick(
                [0, -1, [0], [size - 1, 0], list(range(size))[::-1], [[0, 0], [0, size - 1]]]
            )
            return b.node("Gather", [x, b.constant(index, np.int64)], axis=axis)
        case how:
            if size < 2:
                return None
            first = draw.whole(1, size - 1)
            sizes = [first, size - first]
            pieces = _split(b, x, axis, sizes)
            if how == "split" or not pieces:
                return pieces
            kept = [draw.pick([p, p, b.node("Relu", [p]) or p]) for p in pieces]
            return b.node("Concat", draw.pick([kept, kept, kept[::-1]]), axis=axis)


def _split(b: Builder, x: str, axis: int, sizes: list[int]) -> list[str]:
    if b.opset < 13:
        return b.nodes_of("Split", [x], len(sizes), axis=axis, split=sizes)
    return b.nodes_of("Split", [x, b.constant(sizes, np.int64)], len(sizes), axis=axis)


def concat(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    axis = draw.pick([1 % b.values[x].ndim, draw.whole(0, b.values[x].ndim - 1)])
    shape = b.shape(x)
    rest = shape[:axis] + shape[axis + 1 :]
    fitting = [
        n for n in b.floats(len(shape)) if b.shape(n)[:axis] + b.shape(n)[axis + 1 :] == rest
    ]
    others = [draw.pick(fitting) for _ in range(draw.whole(1, 2))]
    if draw.chance(0.15):
        others.append(weight(b, *shape[:axis], 1, *shape[axis + 1 :], scale=1))
    return b.node("Concat", [x, *others], axis=axis)


def pad(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(3, 4, 4, 5, 2))
    if x is None:
        return None
    rank = b.values[x].ndim
    pads = [
        draw.pick([0, 0, 1, 2]) if a % rank >= 2 or draw.chance(0.1) else 0 for a in range(2 * rank)
    ]
    if draw.chance(0.1):
        pads[draw.whole(0, 2 * rank - 1)] = -1
    mode = draw.weighted({"constant": 6, "reflect": 1, "edge": 0 if b.plain else 1})
    value = draw.pick([None, 0.0, 0.0, 1.5]) if mode == "constant" else None
    if b.opset < 11:
        return b.node("Pad", [x], pads=pads, mode=mode, value=value)
    given = [x, b.constant(pads, np.int64)]
    if value is not None:
        given.append(b.constant(value, np.float32))
    return b.node("Pad", given, mode=mode)


def resize(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(3, 4, 4, 5))
    if x is None or b.opset < 9:
        return None
    rank = b.values[x].ndim
    scale = [1.0, 1.0, *(draw.pick([1.0, 2.0, 2.0, 1.5, 0.5]) for _ in range(rank - 2))]
    mode = draw.pick(
        ["nearest", "nearest", "linear", "linear" if b.plain else "cubic"]
        if b.opset >= 11
        else ["nearest", "linear"]
    )
    factors = b.constant(scale, np.float32)
    if b.opset == 9:
        return b.node("Upsample", [x, factors], mode=mode)
    if b.opset == 10:
        return b.node("Resize", [x, factors], mode=mode)
    way = draw.pick([None, "asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel"])
    near = draw.pick([None, "floor", "ceil", "round_prefer_ceil"]) if mode == "nearest" else None
    options = {"mode": mode, "coordinate_transformation_mode": way, "nearest_mode": near}
    if draw.chance(0.4):
        sizes = [int(s * f) for s, f in zip(b.shape(x), scale, strict=True)]
        empty = "" if b.opset >= 13 else b.constant([], np.float32)
        return b.node("Resize", [x, "", empty, b.constant(sizes, np.int64)], **options)
    roi = "" if b.opset >= 13 else b.constant([], np.float32)
    return b.node("Resize", [x, roi, factors], **options)


def quantize(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None or b.opset < 10:
        return None
    signed, rank = b.plain or draw.chance(0.5), b.values[x].ndim
    kind, low, high = (np.int8, -10, 10) if signed else (np.uint8, 110, 140)
    axis = None
    if b.plain:
        scale, point = np.float32(draw.real(0.02, 0.1)), np.asarray(0)
    elif b.opset >= 13 and draw.chance(0.3):
        axis = draw.whole(0, rank - 1)
        scale, point = (
            draw.uniform(0.02, 0.1, b.shape(x)[axis]),
            draw.integers(low, high, b.shape(x)[axis]),
        )
    else:
        scale, point = np.float32(draw.real(0.02, 0.1)), np.asarray(draw.whole(low, high))
    ends = [b.constant(scale, np.float32), b.constant(point, kind)]
    q = b.node("QuantizeLinear", [x, *ends], axis=axis)
    return q and b.node("DequantizeLinear", [q, *ends], axis=axis)


def choose(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats())
    if x is None:
        return None
    same = [n for n in b.floats() if b.shape(n) == b.shape(x)]
    y = draw.pick([*same, weight(b, 1, scale=1)])
    op = draw.pick(
        ["Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"]
        if b.opset >= 12
        else ["Less", "Greater"]
    )
    kept = b.node(op, [x, y]) if b.opset >= 9 else None
    if kept is not None and draw.chance(0.2):
        kept = b.node("Not", [kept])
    if kept is not None and draw.chance(0.3):
        return b.node("Cast", [kept], to=FLOAT)
    return kept and b.node("Where", [kept, *draw.shuffled([x, y])])


def arg(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None:
        return None
    y = b.node(
        draw.pick(["ArgMax", "ArgMin"]),
        [x],
        axis=draw.whole(0, b.values[x].ndim - 1),
        keepdims=draw.pick([None, 0, 1]),
    )
    return y and b.node("Cast", [y], to=FLOAT)


def norm(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats(3, 4))
    if x is None:
        return None
    c = b.shape(x)[1]
    match draw.pick(["InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"]):
        case "LRN":
            return b.node("LRN", [x], size=3)
        case "LayerNormalization":
            axis = draw.pick([-1, -2, 1])
            shape = b.shape(x)[axis:]
            given = [
                x,
                weight(b, *shape, scale=1),
                *([weight(b, *shape, scale=0.5)] if draw.chance(0.7) else []),
            ]
            return b.node("LayerNormalization", given, axis=axis)
        case "GroupNormalization":
            groups = draw.pick([1, c])
            size = c if b.opset >= 21 else groups
            return b.node(
                "GroupNormalization",
                [x, weight(b, size, scale=1), weight(b, size, scale=0.5)],
                num_groups=groups,
            )
        case op:
            return b.node(op, [x, weight(b, c, scale=1), weight(b, c, scale=0.5)], epsilon=1e-2)


def shuffle(b: Builder) -> object:
    """Channels shuffled, or moved between depth and space."""
    draw, x = b.draw, b.pick(b.floats(4))
    if x is None:
        return None
    n, c, h, w = b.shape(x)
    match draw.pick(["groups", "deep", "flat"]):
        case "groups":
            g = draw.pick([2, 3, c])
            if c % g:
                return None
            y = b.node("Reshape", [x, b.constant([n, g, c // g, h, w], np.int64)])
            y = y and b.node("Transpose", [y], perm=[0, 2, 1, 3, 4])
            return y and b.node("Reshape", [y, b.constant([n, c, h, w], np.int64)])
        case "deep":
            return b.node("SpaceToDepth", [x], blocksize=2)
        case _:
            return b.node(
                "DepthToSpace",
                [x],
                blocksize=2,
                mode=draw.pick([None, "DCR", "CRD"]) if b.opset >= 11 else None,
            )


def expand(b: Builder) -> object:
    draw, x = b.draw, b.pick(b.floats())
    if x is None:
        return None
    shape = [draw.pick([s, 1]) if s > 1 else draw.pick([1, 2, 3]) for s in b.shape(x)]
    if draw.chance(0.2):
        shape = [draw.pick([1, 2]), *shape]
    if draw.chance(0.3) and b.shape(x):
        return b.node("Tile", [x, b.constant([draw.pick([1, 1, 2]) for _ in b.shape(x)], np.int64)])
    return b.node("Expand", [x, b.constant(shape, np.int64)]) if b.opset >= 8 else None


def twice(b: Builder) -> object:
    """A copy of a node, with the same operands."""
    if not b.nodes:
        return None
    old = b.draw.pick(b.nodes[-6:])
    new = type(old)()
    new.CopyFrom(old)
    new.name = b.name("n")
    new.output[:] = [b.name("v") if n else "" for n in old.output]
    return None if old.op_type in ("If", "Loop", "Scan") else b.append(new)


def other(b: Builder) -> object:
    """Operators that the IR knows little about."""
    draw, x = b.draw, b.pick(b.floats(2, 3))
    if x is None:
        return None
    shape = b.shape(x)
    match draw.pick(["cumsum", "einsum", "topk", "range", "cast", "pow", "lstm"]):
        case "cumsum":
            return b.node(
                "CumSum",
                [x, b.constant(draw.whole(0, len(shape) - 1), np.int64)],
                exclusive=draw.pick([None, 1]),
                reverse=draw.pick([None, 1]),
            )
        case "einsum":
            letters = "abc"[: len(shape)]
            return b.node(
                "Einsum",
                [x, weight(b, shape[-1], 3)],
                equation=f"{letters},{letters[-1]}d->{letters[:-1]}d",
            )
        case "topk":
            made = (
                b.nodes_of("TopK", [x, b.constant([1], np.int64)], 2, axis=-1)
                if b.opset >= 10
                else []
            )
            return made and b.node("Add", [x, made[0]])
        case "cast":
            y = b.node("Cast", [x], to=11)
            return y and b.node("Cast", [y], to=FLOAT)
        case "pow":
            return b.node("Pow", [x, b.constant(draw.pick([1.0, 2.0, 3.0]), np.float32)])
        case "lstm" if len(shape) == 3:
            h, way = 2, draw.pick(["forward", "reverse", "bidirectional"])
            d = 2 if way == "bidirectional" else 1
            op, gates = draw.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
            given = [x, weight(b, d, gates * h, shape[2]), weight(b, d, gates * h, h)]
            if draw.chance(0.6):
                given.append(weight(b, d, 2 * gates * h, scale=0.3))
            return b.nodes_of(op, given, draw.pick([1, 2]), hidden_size=h, direction=way)
        case _:
            return None


def affine_run(b: Builder) -> object:
    """Several linear layers in a row, with nothing between them, which merge."""
    for _ in range(b.draw.whole(2, 4)):
        before = len(b.fresh)
        b.draw.weighted({conv: 5, batch_norm: 3, with_constant: 3, pool: 0.5, pad: 0.5})(b)
        if len(b.fresh) == before:
            break
    return None


def dense_run(b: Builder) -> object:
    """As :func:`affine_run`, of dense layers."""
    for entry, following in pairwise([matmul, gemm, with_constant, matmul, gemm]):
        b.draw.pick([entry, following])(b)
    return None


MENU: dict[Entry, float] = {
    conv: 9, affine_run: 5, batch_norm: 5, with_constant: 6, two_values: 5, residual: 4, pool: 3, activation: 4, clip: 1.5, prelu: 1,
    conv_transpose: 2, written_out: 2, reduce: 2.5, softmax: 1.5, matmul: 4, gemm: 3, dense_run: 1, reshape: 3,
    computed_reshape: 1, view: 4, cut: 3, concat: 2.5, pad: 2.5, resize: 1.5, quantize: 1.5, choose: 1.5, arg: 0.4, norm: 1.2,
    shuffle: 1.5, expand: 1, twice: 0.7, other: 1, far_factors: 0.8, given_sizes: 0.25,
}  # fmt: skip


def start(b: Builder) -> Array:
    """The first input: images, signals, volumes, sequences, rows."""
    draw = b.draw
    shape = draw.weighted({
        (draw.pick([1, 1, 2]), draw.pick([1, 2, 3, 4, 6, 8]), draw.whole(3, 8), draw.whole(3, 8)): 6,
        (draw.pick([1, 2]), draw.pick([1, 2, 4]), draw.whole(4, 12)): 2,
        (1, draw.pick([1, 2]), draw.whole(3, 5), draw.whole(3, 4), draw.whole(3, 5)): 0 if b.plain else 1.5,
        (draw.pick([1, 2, 3]), draw.pick([2, 4, 6, 8])): 2,
        (draw.whole(1, 5),): 0.3,
        (): 0.1,
        (1, 1, 1, 1): 0.3,
        (0 if draw.chance(0.2) else 1, 3, 2, 4): 0.3,
    })  # fmt: skip
    return draw.normal(*shape)
