"""Runs an IR graph with torch: the oracle of the pass tests.

Everything is computed in float64 (bool and integer values keep their type) with torch's own functional
operators, one node at a time, from the unrounded numbers of the constants. Of the code under
test it uses only the graph's structure and its tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphshrink import ir
from graphshrink.ir import Graph, Node, Value

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

_ACTIVATIONS: dict[str, Any] = {
    "relu": lambda x: F.relu(x),
    "relu6": lambda x: F.relu6(x),
    "clip": lambda x, lo, hi: torch.clamp(x, lo, hi),
    "leaky_relu": lambda x, a: F.leaky_relu(x, a),
    "elu": lambda x, a: F.elu(x, a),
    "celu": lambda x, a: F.celu(x, a),
    "selu": lambda x, a, g: g * torch.where(x > 0, x, a * torch.expm1(x)),
    "sigmoid": lambda x: torch.sigmoid(x),
    "hard_sigmoid": lambda x, a, b: torch.clamp(a * x + b, 0, 1),
    "silu": lambda x: F.silu(x),
    "hard_swish": lambda x: F.hardswish(x),
    "tanh": lambda x: torch.tanh(x),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": lambda x: F.softplus(x),
    "softsign": lambda x: F.softsign(x),
    "mish": lambda x: F.mish(x),
    "thresholded_relu": lambda x, a: torch.where(x > a, x, torch.zeros_like(x)),
}


_COMPARE: dict[str, Any] = {
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le, "greater": torch.gt,
    "greater_equal": torch.ge,
}  # fmt: skip


def random_inputs(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> list[Any]:
    """Standard normal inputs (small integers for integer types).

    The size of a symbol is that in ``sizes``; otherwise 2 if the symbol first occurs on axis 0, else 7.
    """
    rng = np.random.default_rng(seed)
    known = dict(sizes or {})
    made = []
    for value in graph.inputs:
        assert value.type.shape is not None, f"{value!r} has no rank"
        shape = [
            d if isinstance(d, int) else known.setdefault(str(d), 7 if axis else 2)
            for axis, d in enumerate(value.type.shape)
        ]
        dtype = value.type.dtype
        if dtype is not None and dtype.is_int:
            made.append(rng.integers(0, 4, shape))
        elif dtype is not None and dtype.value == "bool":
            made.append(rng.integers(0, 2, shape).astype(bool))
        else:
            made.append(rng.standard_normal(shape))
    return made


def evaluate(graph: Graph, inputs: Sequence[Any] | None = None, seed: int = 0) -> list[Any]:
    """The outputs of ``graph`` as NumPy arrays, floats in float64.

    Args:
        graph: A graph of canonical ops (no Opaque).
        inputs: One array for each graph input; random ones when not given.
        seed: The seed of the random ones.
    """
    given = random_inputs(graph, seed) if inputs is None else inputs
    known: dict[Value, Tensor] = {}
    for value, array in zip(graph.inputs, given, strict=True):
        known[value] = _tensor(np.asarray(array))
    for value in graph.constants:
        if value.use_count:
            known[value] = _constant(value)
    with torch.no_grad(), _one_thread():
        for node in graph.nodes:
            operands = [None if v is None else known[v] for v in node.inputs]
            results = run_node(node, operands)
            for value, result in zip(node.outputs, results, strict=True):
                shape = value.type.static_shape
                assert shape is None or tuple(result.shape) == shape, (
                    f"{node!r} gave {tuple(result.shape)}"
                )
                known[value] = result
    return [known[value].numpy() for value in graph.outputs]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: for small tensors, starting threads costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _constant(value: Value) -> Tensor:
    assert value.data is not None
    dtype = value.data.dtype
    return _tensor(value.data.float64() if dtype.is_float else value.data.numpy())


def _tensor(array: Any) -> Tensor:
    if array.dtype.kind == "f" or array.dtype.kind == "V":
        array = array.astype(np.float64)
    # A copy: torch accepts neither read-only arrays nor negative strides.
    return torch.from_numpy(np.array(array))


def run_node(node: Node, operands: Sequence[Tensor | None]) -> list[Tensor]:
    """The results of one node."""
    x = operands[0]
    second = operands[1] if len(operands) > 1 else None
    third = operands[2] if len(operands) > 2 else None
    op = node.op
    assert x is not None
    match op:
        case ir.Conv():
            n = op.spatial_rank
            padded = _pad_spatial(x, op.pads)
            y = _CONV[n](padded, second, third, op.strides, 0, op.dilations, op.groups)
        case ir.ConvTranspose():
            y = _conv_transpose(op, x, second, third)
        case ir.Linear():
            y = F.linear(x, second, third)
        case ir.Embedding():
            assert second is not None
            y = second[x]
        case ir.Scale():
            y = x
            if second is not None:
                y = y * _along(second, x.ndim, op.axis)
            if third is not None:
                y = y + _along(third, x.ndim, op.axis)
        case ir.AveragePool():
            y = _average_pool(op, x)
        case ir.MaxPool():
            n = op.spatial_rank
            padded = _pad_spatial(x, op.pads, float("-inf"))
            y = _MAX_POOL[n](padded, op.kernel, op.strides, 0, op.dilations, ceil_mode=op.ceil_mode)
        case ir.GlobalAveragePool():
            y = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        case ir.Pad():
            n = len(op.pads) // 2
            flat = [p for a in reversed(range(n)) for p in (op.pads[a], op.pads[n + a])]
            if op.mode == "constant":
                y = F.pad(x, flat, value=op.value)
            else:
                while len(flat) > 2 and flat[-2:] == [0, 0]:
                    flat = flat[:-2]
                modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
                y = F.pad(x, flat, mode=modes[op.mode])
        case ir.Activation():
            y = _ACTIVATIONS[op.kind](x, *op.params)
        case ir.PRelu():
            assert second is not None
            y = torch.where(x > 0, x, x * _along(second, x.ndim, op.axis))
        case ir.Gate():
            assert second is not None
            if op.kind == "prelu":
                assert third is not None
                y = torch.where(x > 0, x, x * _along(third, x.ndim, op.axis))
            else:
                y = _ACTIVATIONS[op.kind](x, *op.params)
            vectors = [None if v is None else _along(v, x.ndim, op.axis) for v in operands[3:]]
            scale, shift = vectors or (None, None)
            rest = x if scale is None or shift is None else scale * x + shift
            y = second * y + (1 - second) * rest
        case ir.Add():
            y = x + second
        case ir.Sub():
            y = x - second
        case ir.Mul():
            y = x * second
        case ir.Div():
            y = x / second if x.is_floating_point() else torch.div(x, second, rounding_mode="trunc")
        case ir.Identity():
            y = x
        case ir.Cast():
            kinds = {"bool": torch.bool, "i64": torch.int64, "i32": torch.int32}
            y = x.to(kinds.get(op.to, torch.float64))
        case ir.Softmax():
            y = torch.softmax(x, op.axis)
        case ir.LogSoftmax():
            y = torch.log_softmax(x, op.axis)
        case ir.Unary():
            y = torch.logical_not(x) if op.kind == "not" else getattr(torch, op.kind)(x)
        case ir.Pow():
            assert second is not None
            y = torch.pow(x, second).to(x.dtype)
        case ir.Mod():
            y = (torch.remainder if op.kind == "floor" else torch.fmod)(x, second)
        case ir.Max():
            y = reduce(torch.maximum, [t for t in operands if t is not None])
        case ir.Min():
            y = reduce(torch.minimum, [t for t in operands if t is not None])
        case ir.Compare():
            y = _COMPARE[op.kind](x, second)
        case ir.Logical():
            y = {"and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor}[
                op.kind
            ](x, second)
        case ir.Where():
            y = torch.where(x, second, third)
        case ir.Gather():
            assert second is not None
            places = second.to(torch.int64) % x.shape[op.axis]
            y = x.movedim(op.axis, 0)[places]
            start = op.axis % x.ndim
            for axis in range(start):
                y = y.movedim(second.ndim + axis, axis)
        case ir.Expand():
            sizes = iter([second.shape[axis] for axis in op.like])
            ones = torch.ones([next(sizes) if d is None else d for d in op.shape], dtype=x.dtype)
            y = x & ones if x.dtype == torch.bool else x * ones
        case ir.ArgReduce():
            turned = x.flip(op.axis) if op.last else x
            picked = torch.argmax if op.kind == "max" else torch.argmin
            y = picked(turned, op.axis, op.keepdims)
            y = x.shape[op.axis] - 1 - y if op.last else y
        case ir.CumSum():
            turned = x.flip(op.axis) if op.reverse else x
            y = torch.cumsum(turned, op.axis)
            y = y - turned if op.exclusive else y
            y = y.flip(op.axis) if op.reverse else y
        case ir.Resize():
            y = _resize(op, x)
        case ir.DepthToSpace():
            b, (n, c, h, w) = op.block, x.shape
            deep = (
                x.reshape(n, b, b, c // b**2, h, w)
                if op.mode == "DCR"
                else x.reshape(n, c // b**2, b, b, h, w)
            )
            order = (0, 3, 4, 1, 5, 2) if op.mode == "DCR" else (0, 1, 4, 2, 5, 3)
            y = deep.permute(order).reshape(n, c // b**2, h * b, w * b)
        case ir.SpaceToDepth():
            b, (n, c, h, w) = op.block, x.shape
            cut = x.reshape(n, c, h // b, b, w // b, b)
            order = (0, 3, 5, 1, 2, 4) if op.mode == "DCR" else (0, 1, 3, 5, 2, 4)
            y = cut.permute(order).reshape(n, c * b**2, h // b, w // b)
        case ir.Quantize():
            assert second is not None
            low, high = {
                "i8": (-128, 127),
                "u8": (0, 255),
                "i16": (-(2**15), 2**15 - 1),
                "u16": (0, 2**16 - 1),
            }[op.dtype]
            whole = torch.round(x / _scales(second, x.ndim, op.axis))
            whole = whole if third is None else whole + _scales(third, x.ndim, op.axis)
            y = torch.clamp(whole, low, high).to(torch.int64)
        case ir.Dequantize():
            assert second is not None
            plain = x.to(torch.float64)
            plain = plain if third is None else plain - _scales(third, x.ndim, op.axis)
            y = plain * _scales(second, x.ndim, op.axis)
        case ir.LayerNorm():
            y = F.layer_norm(x, x.shape[op.axis :], eps=op.epsilon)
            y = y if second is None else y * second
            y = y if third is None else y + third
        case ir.Lstm():
            return _lstm(op, operands)
        case ir.Gru() | ir.Rnn():
            return _one_state(op, operands)
        case ir.GroupNorm():
            groups = op.groups or x.shape[1]
            parts = x.reshape(x.shape[0], groups, -1)
            spread = parts.var(2, unbiased=False, keepdim=True) + op.epsilon
            y = ((parts - parts.mean(2, keepdim=True)) / spread.sqrt()).reshape(x.shape)
            y = y if second is None else y * _along(second, x.ndim, 1)
            y = y if third is None else y + _along(third, x.ndim, 1)
        case ir.MatMul():
            y = torch.matmul(x, second)
        case ir.Reshape():
            y = x.reshape([x.shape[i] if d is None else d for i, d in enumerate(op.shape)])
        case ir.Flatten():
            axis = op.axis if op.axis >= 0 else op.axis + x.ndim
            rows = int(np.prod(x.shape[:axis]))
            y = x.reshape(rows, -1) if x.numel() else x.reshape(rows, int(np.prod(x.shape[axis:])))
        case ir.Transpose():
            y = x.permute(op.perm)
        case ir.Squeeze():
            y = x.squeeze(op.axes)
        case ir.Unsqueeze():
            y = x
            rank = x.ndim + len(op.axes)
            for axis in sorted(a % rank for a in op.axes):
                y = y.unsqueeze(axis)
        case ir.Concat():
            return [torch.cat([t for t in operands if t is not None], op.axis)]
        case ir.Split():
            return list(torch.split(x, list(op.sizes), op.axis))
        case ir.Slice():
            index: list[slice] = [slice(None)] * x.ndim
            for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
                index[axis] = slice(start, end, step)
            y = x[tuple(index)]
        case ir.GatherElements():
            assert second is not None
            index = torch.where(second < 0, second + x.shape[op.axis], second).to(torch.int64)
            y = torch.gather(x, op.axis, index)
        case ir.GatherNd(batch_axes=0):
            assert second is not None
            y = x[tuple(second.to(torch.int64).movedim(-1, 0))]
        case ir.GatherNd():
            assert second is not None
            sizes, inside = x.shape[: op.batch_axes], second.to(torch.int64)
            rows = itertools.product(*map(range, sizes))
            picked = [x[row][tuple(inside[row].movedim(-1, 0))] for row in rows]
            y = torch.stack(picked).unflatten(0, sizes)
        case ir.TopK():
            found = torch.sort(x, dim=op.axis, descending=op.largest, stable=True)
            return [found.values.narrow(op.axis, 0, op.k), found.indices.narrow(op.axis, 0, op.k)]
        case ir.LocalResponseNorm():
            y = F.local_response_norm(x, op.size, op.alpha, op.beta, op.bias)
        case ir.DynamicSlice():
            assert second is not None
            assert third is not None
            cut = [slice(None)] * x.ndim
            for axis, step, start, end in zip(op.axes, op.steps, second, third, strict=True):
                cut[axis] = slice(int(start), int(end), step)
            y = x[tuple(cut)]
        case ir.Select():
            y = x.select(op.axis, op.index)
        case ir.Reduce():
            y = _reduce(op, x)
        case _:
            raise NotImplementedError(f"the test oracle does not know {op.name}")
    return [y]


def _lstm(op: ir.Lstm, operands: Sequence[Tensor | None]) -> list[Tensor]:
    given = [*operands, *[None] * (8 - len(operands))]
    x, w, r, b, lengths, start_h, start_c, peepholes = given
    assert x is not None
    assert w is not None
    assert r is not None
    assert lengths is None
    ways, last_h, last_c = [], [], []
    for d in range(op.directions):
        zero = x.new_zeros(x.shape[1], op.hidden)
        h = zero if start_h is None else start_h[d]
        c = zero if start_c is None else start_c[d]
        bias = 0 if b is None else b[d, : 4 * op.hidden] + b[d, 4 * op.hidden :]
        backwards = op.direction == "reverse" or d == 1
        steps = []
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            i, o, f, g = (x[t] @ w[d].T + h @ r[d].T + bias).chunk(4, 1)
            of_i, of_o, of_f = (0, 0, 0) if peepholes is None else peepholes[d].chunk(3)
            c = (f + of_f * c).sigmoid() * c + (i + of_i * c).sigmoid() * g.tanh()
            h = (o + of_o * c).sigmoid() * c.tanh()
            steps.append(h)
        ways.append(torch.stack(steps[::-1] if backwards else steps))
        last_h.append(h)
        last_c.append(c)
    return [torch.stack(ways, 1), torch.stack(last_h), torch.stack(last_c)][: op.results]


def _one_state(op: ir.Gru | ir.Rnn, operands: Sequence[Tensor | None]) -> list[Tensor]:
    x, w, r, b, lengths, start = [*operands, *[None] * (6 - len(operands))]
    assert x is not None
    assert w is not None
    assert r is not None
    assert lengths is None
    ways, last = [], []
    for d in range(op.directions):
        h = x.new_zeros(x.shape[1], op.hidden) if start is None else start[d]
        both = x.new_zeros(2, len(r[d])) if b is None else b[d].reshape(2, -1)
        backwards = op.direction == "reverse" or d == 1
        steps = []
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            if isinstance(op, ir.Rnn):
                h = getattr(torch, op.kind)(x[t] @ w[d].T + h @ r[d].T + both.sum(0))
            else:
                h = _gru_step(op, x[t] @ w[d].T + both[0], h, r[d], both[1])
            steps.append(h)
        ways.append(torch.stack(steps[::-1] if backwards else steps))
        last.append(h)
    return [torch.stack(ways, 1), torch.stack(last)][: op.results]


def _gru_step(op: ir.Gru, given: Tensor, h: Tensor, r: Tensor, bias: Tensor) -> Tensor:
    n = op.hidden
    of_state = h @ r.T + bias
    z = (given[:, :n] + of_state[:, :n]).sigmoid()
    reset = (given[:, n : 2 * n] + of_state[:, n : 2 * n]).sigmoid()
    if op.reset_after:
        inner = reset * of_state[:, 2 * n :]
    else:
        inner = (reset * h) @ r[2 * n :].T + bias[2 * n :]
    return (1 - z) * (given[:, 2 * n :] + inner).tanh() + z * h


def _scales(vector: Tensor, rank: int, axis: int) -> Tensor:
    return vector if vector.numel() == 1 else _along(vector, rank, axis)


def _resize(op: ir.Resize, x: Tensor) -> Tensor:
    """A resize by onnx's reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    node = helper.make_node(
        "Resize",
        ["x", "", "scales" if op.scales else "", "" if op.scales else "sizes"],
        ["y"],
        mode=op.mode,
        coordinate_transformation_mode=op.coordinates,
        nearest_mode=op.rounding,
        cubic_coeff_a=op.cubic,
        exclude_outside=int(op.exclude_outside),
        antialias=int(op.antialias),
    )
    sizes = [x.shape[a] if d is None else d for a, d in enumerate(op.sizes)]
    feeds = {"x": x.numpy(), "scales": np.array(op.scales), "sizes": np.array(sizes)}
    given = {name: feeds[name] for name in node.input if name}
    (y,) = ReferenceEvaluator(node).run(None, given)
    return torch.from_numpy(np.array(y, np.float64))


def _along(vector: Tensor, rank: int, axis: int) -> Tensor:
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def _pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    n = len(pads) // 2
    flat = [p for a in reversed(range(n)) for p in (pads[a], pads[n + a])]
    return F.pad(x, flat, value=value)


def _conv_transpose(
    op: ir.ConvTranspose, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    n = op.spatial_rank
    extra = op.output_padding or (0,) * n
    # Uneven pads: make everything (output padding is a tail of bias only), then crop.
    y = _CONV_TRANSPOSE[n](x, weight, None, op.strides, 0, 0, op.groups, op.dilations)
    y = F.pad(y, [p for a in reversed(range(n)) for p in (0, extra[a])])
    if bias is not None:
        y = y + _along(bias, y.ndim, 1)
    for a in range(n):
        y = y.narrow(2 + a, op.pads[a], y.shape[2 + a] - op.pads[a] - op.pads[n + a])
    return y


def _average_pool(op: ir.AveragePool, x: Tensor) -> Tensor:
    n = op.spatial_rank
    c = x.shape[1]
    sizes = op.infer([ir.TensorType(ir.DType.F64, tuple(x.shape))])[0].static_shape
    assert sizes is not None
    # Sums and counts, each by a depthwise convolution; in ceil mode the last window goes beyond the padding.
    tail = [
        max(
            0,
            (sizes[2 + a] - 1) * op.strides[a]
            + (op.kernel[a] - 1) * op.dilations[a]
            + 1
            - (x.shape[2 + a] + op.pads[a] + op.pads[n + a]),
        )
        for a in range(n)
    ]
    ones = torch.ones((c, 1, *op.kernel), dtype=x.dtype)
    inside = torch.ones_like(x)
    if op.count_include_pad:
        counted = _pad_spatial(inside, op.pads, 1.0)
    else:
        counted = _pad_spatial(inside, op.pads)
    extra = (*[0] * n, *tail)
    total = _pad_spatial(_pad_spatial(x, op.pads), extra)
    counted = _pad_spatial(counted, extra)
    window = (ones, None, op.strides, 0, op.dilations, c)
    y = _CONV[n](total, *window) / _CONV[n](counted, *window)
    return y[(slice(None), slice(None), *(slice(0, s) for s in sizes[2:]))]


def _reduce(op: ir.Reduce, x: Tensor) -> Tensor:
    axes = op.axes
    keep = op.keepdims
    match op.kind:
        case "mean":
            return x.mean(axes, keepdim=keep)
        case "sum":
            return x.sum(axes, keepdim=keep)
        case "max":
            return x.amax(axes, keepdim=keep)
        case "min":
            return x.amin(axes, keepdim=keep)
        case "l1":
            return x.abs().sum(axes, keepdim=keep)
        case "l2":
            return x.square().sum(axes, keepdim=keep).sqrt()
        case _:
            y = x
            for axis in sorted((a % x.ndim for a in axes), reverse=True):
                y = y.prod(axis, keepdim=keep)
            return y
