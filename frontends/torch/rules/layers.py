"""What torch's modules, functions, methods and ATen ops are in the IR.

Calls are looked up by their plain name (``conv2d`` for ``F.conv2d``, ``torch.conv2d``, ``aten.conv2d``) and read
with the argument order of ``torch.nn.functional``. A rule returns the op and its operands, or ``None`` to
leave the call opaque.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .... import ir
from ....hosts.torch.dtypes import DTYPES
from ....hosts.torch.layouts import keeps_format
from ....hosts.torch.modules.gates import Gate, Switch
from ....hosts.torch.modules.masks import only_masked, plain_type
from ....hosts.torch.modules.scale import Scale
from ....ir import LazyTensor, Tensor, TensorType, Value
from ....ir.ops.base import axis_of
from ....ir.tensor import reshaped, transposed
from ...lowering import Lowered, reshaping, scaled
from ..call import Call, Free, ints
from .functions import MATH_ALLOCATES, MATH_CALLS, factor, resized
from .norms import aten_batch_norm, batch_norm, normalise
from .shape import SHAPE_CALLS


def conv(call: Call, n: int) -> Lowered | None:
    """``(x, weight, bias, stride, padding, dilation, groups)``."""
    x, w = call.value(0), call.value(1, "weight")
    stride, dilation = call.ints(3, "stride", 1, n), call.ints(5, "dilation", 1, n)
    shape = w.type.static_shape
    if shape is None or len(shape) != n + 2 or x.type.rank not in (None, n + 2):
        return None
    padding = call.get(4, "padding", 0)
    if padding == "valid":
        pads: tuple[int, ...] = (0,) * (2 * n)
    elif padding == "same":
        total = [dilation[i] * (shape[2 + i] - 1) for i in range(n)]
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    else:
        pads = ints(padding, n) * 2
    op = ir.Conv(stride, pads, dilation, call.get(6, "groups", 1))
    bias = call.get(2, "bias")
    return op, [x, w] if bias is None else [x, w, bias]


def conv_transpose(call: Call, n: int) -> Lowered | None:
    """``(x, weight, bias, stride, padding, output_padding, groups, dilation)``."""
    x, w = call.value(0), call.value(1, "weight")
    if x.type.rank not in (None, n + 2):
        return None
    extra = call.ints(5, "output_padding", 0, n)
    op = ir.ConvTranspose(
        call.ints(3, "stride", 1, n),
        call.ints(4, "padding", 0, n) * 2,
        call.ints(7, "dilation", 1, n),
        call.get(6, "groups", 1),
        extra if any(extra) else (),
    )
    bias = call.get(2, "bias")
    return op, [x, w] if bias is None else [x, w, bias]


def convolution(call: Call) -> Lowered | None:
    """ATen's general form: ``(x, w, b, stride, padding, dilation, transposed, output_padding, groups)``."""
    x, w, b, stride, padding, dilation, transposed, extra, groups = call.args
    n = len(stride)
    if transposed:
        return conv_transpose(Call((x, w, b, stride, padding, extra, groups, dilation)), n)
    return conv(Call((x, w, b, stride, padding, dilation, groups)), n)


def linear(call: Call) -> Lowered | None:
    """``(x, weight, bias)``."""
    w, bias = call.value(1, "weight"), call.get(2, "bias")
    if w.type.rank != 2 or w.data is None:
        return None
    return ir.Linear(), [call.value(0), w] if bias is None else [call.value(0), w, bias]


def arithmetic(kind: str) -> Callable[[Call], Lowered | None]:
    """``x + y`` and its kin; constants per channel, and numbers, make a Scale."""

    def rule(call: Call) -> Lowered | None:
        a, b = call.get(0, "input"), call.get(1, "other")
        alpha = call.get(2, "alpha", 1)
        if len(call.args) > 3 or alpha != 1 or call.kwargs.get("rounding_mode") is not None:
            return None
        dtype = next((v.type.dtype for v in (a, b) if isinstance(v, Value)), None)
        if dtype is None:
            return None
        a, b = (_number_or_value(v, dtype) for v in (a, b))
        if a is None or b is None:
            return None
        found = scaled(kind, a, b)
        if found is not None:
            return found
        if kind == "Div" and not dtype.is_wide_float:
            return None  # torch's true division makes floats of integers.
        if kind == "Div" and not isinstance(a, Value):
            # What is divided is a number: no scale.
            return CALLS["reciprocal"](Call((b,))) if a.float64() == 1 else (ir.Div(), [a, b])
        if not isinstance(a, Value) or (kind != "Div" and not isinstance(b, Value)):
            return None
        return (getattr(ir, kind)(), [a, b]) if a.type.dtype is b.type.dtype else None

    return rule


def _number_or_value(found: Any, dtype: ir.DType) -> Value | Tensor | None:
    if isinstance(found, Value):
        return found
    plain = isinstance(found, (int, float)) and not isinstance(found, bool)
    return factor(found, dtype) if plain else None


def activation(kind: str, *parameters: tuple[str, float]) -> Callable[[Call], Lowered | None]:
    """An activation with its parameters in order."""

    def rule(call: Call) -> Lowered | None:
        params = tuple(
            float(call.get(1 + i, name, default)) for i, (name, default) in enumerate(parameters)
        )
        x = call.value(0)
        dtype = x.type.dtype
        return (
            None if dtype is not None and not dtype.is_float else (ir.Activation(kind, params), [x])
        )

    return rule


def clip(call: Call) -> Lowered | None:
    """``(x, min, max)``."""
    low = call.get(1, "min", call.kwargs.get("min_val"))
    high = call.get(2, "max", call.kwargs.get("max_val"))
    return clipped(call.value(0), low, high)


def clipped(x: Value, low: Any, high: Any) -> Lowered | None:
    """A clip between two numbers, open where one is ``None``."""
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    if not all(isinstance(e, (int, float)) for e in ends):
        return None
    if x.type.dtype is not None and not x.type.dtype.is_wide_float:
        return None
    if ends == (0, 6):
        return ir.Activation("relu6"), [x]
    return ir.Activation("clip", (float(ends[0]), float(ends[1]))), [x]


def prelu(call: Call) -> Lowered | None:
    """``(x, weight)``: one slope, or one for each channel."""
    x, slope = call.value(0), call.value(1, "weight")
    if slope.data is None or len(slope.data.shape) != 1:
        return None
    return (ir.PRelu(1), [x, slope]) if x.type.rank not in (0, 1) or slope.data.size == 1 else None


def gate(module: Gate, x: Any, parameter: Callable[[str], Value | None]) -> Lowered | None:
    """A learned gate: its activation, its number, and whatever the activation needs."""
    if hooked(module.activation) or hooked(module.switch):
        return None
    inner = module_call(module.activation, x, lambda name: parameter(f"activation.{name}"))
    if inner is None:
        return None
    op, operands = inner
    number = gate_number(module.switch)
    if isinstance(op, ir.PRelu):
        return ir.Gate("prelu", axis=op.axis, mode=module.mode), [x, number, operands[1]]
    if not isinstance(op, ir.Activation):
        return None
    return ir.Gate(op.kind, op.params, mode=module.mode), [x, number]


def scale(module: Scale, x: Any, parameter: Callable[[str], Value | None]) -> Lowered | None:
    """A scale and shift that was emitted earlier; its tensors have ones behind their axis."""
    rank = x.type.rank
    vectors: list[Tensor | None] = []
    for name in ("scale", "shift"):
        value = parameter(name)
        vectors.append(
            None
            if value is None or value.data is None
            else reshaped(value.data, (value.data.size,))
        )
    if all(v is None for v in vectors) or (rank is not None and rank <= module.trailing):
        return None
    axis = -1 - module.trailing
    return ir.Scale(axis if rank is None else axis + rank), [x, *vectors]


def gate_number(switch: Switch) -> Tensor:
    """The number of a switch as a vector of size 1; gates of one switch get handles with one host."""
    dtype = DTYPES[switch.score.dtype]

    def load() -> Any:
        found = switch.number().cpu().reshape(1)
        return found.double().numpy().astype(dtype.numpy)

    return LazyTensor((1,), dtype, load, switch)


def gelu(call: Call) -> Lowered | None:
    """``(x, approximate)``."""
    kind = "gelu_tanh" if call.get(1, "approximate", "none") == "tanh" else "gelu"
    return ir.Activation(kind), [call.value(0)]


def average_pool(call: Call, n: int) -> Lowered | None:
    """``(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)``."""
    if call.get(6, "divisor_override") is not None:
        return None
    kernel = call.ints(1, "kernel_size", None, n)
    stride = call.get(2, "stride")
    padding = call.ints(3, "padding", 0, n)
    counted = call.get(5, "count_include_pad", True)
    return ir.AveragePool(
        kernel if stride in (None, [], ()) else ints(stride, n),
        padding * 2,
        (1,) * n,
        kernel,
        bool(call.get(4, "ceil_mode", False)),
        bool(counted) and any(padding),
    ), [call.value(0)]


def max_pool(call: Call, n: int) -> Lowered | None:
    """``(x, kernel, stride, padding, dilation, ceil_mode, return_indices)``."""
    if call.get(6, "return_indices", False):
        return None
    kernel = call.ints(1, "kernel_size", None, n)
    stride = call.get(2, "stride")
    return ir.MaxPool(
        kernel if stride in (None, [], ()) else ints(stride, n),
        call.ints(3, "padding", 0, n) * 2,
        call.ints(4, "dilation", 1, n),
        kernel,
        bool(call.get(5, "ceil_mode", False)),
    ), [call.value(0)]


def adaptive_pool(call: Call, n: int) -> Lowered | None:
    """Only to size 1: a global pool."""
    size = call.get(1, "output_size")
    x = call.value(0)
    if ints(size, n) != (1,) * n or x.type.rank not in (None, n + 2):
        return None
    return ir.GlobalAveragePool(n if x.type.rank is None else None), [x]


def mean(call: Call) -> Lowered | None:
    """``(x, dim, keepdim)``."""
    x, dim = call.value(0), call.get(1, "dim")
    keep = bool(call.get(2, "keepdim", False))
    rank = x.type.rank
    if rank is None or dim is None or call.kwargs.get("dtype") is not None:
        return None
    axes = tuple(sorted(a % rank for a in ints(dim, 1)))
    if keep and rank in ir.GlobalAveragePool.RANKS and axes == tuple(range(2, rank)):
        return ir.GlobalAveragePool(), [x]
    return ir.Reduce("mean", axes, keep), [x]


def flatten(call: Call) -> Lowered | None:
    """``(x, start_dim, end_dim)``: a Flatten from axis 1 on, a Reshape where other axes stay."""
    x = call.value(0)
    start, end, rank = call.get(1, "start_dim", 0), call.get(2, "end_dim", -1), x.type.rank
    if rank is None:
        return (ir.Flatten(1), [x]) if (start, end) == (1, -1) else None
    start, end = axis_of(start, rank), axis_of(end, rank)
    if (start, end) == (1, rank - 1):
        return ir.Flatten(1), [x]
    if start >= end:
        return None
    sizes = [x.type.dim(a) for a in range(rank)]
    rest = sizes[end + 1 :]
    if None in rest or 0 in rest:
        return None
    joined = sizes[start : end + 1]
    # The size of batches stays open, and so does what is not known.
    product = -1 if start == 0 or None in joined else math.prod(d for d in joined if d is not None)
    return reshaping(x.type, (*sizes[:start], product, *rest)), [x]


def reshape(call: Call) -> Lowered | None:
    """``(x, shape)`` or ``(x, *sizes)`` of known integers."""
    x = call.value(0)
    if isinstance(call.get(1, "shape"), torch.dtype):
        return None  # The same bytes as other numbers.
    found = call.args[1:] if len(call.args) > 2 else (call.get(1, "shape"),)
    sizes = found[0] if len(found) == 1 and isinstance(found[0], (list, tuple)) else found
    target: list[int | None] = []
    for i, size in enumerate(sizes):
        # What is the size of the same axis already is copied; another one is what is left.
        free = isinstance(size, Free)
        same = free and x.type.rank is not None and i < x.type.rank
        if same and x.type.shape is not None and x.type.shape[i] == size.value:
            target.append(None)
        else:
            target += [-1] if free else ints(size, 1)
    # Numbers alone fit no other batch; beside -1 they would be as they are for any.
    kind = call.certain(x) if -1 in target else x.type
    return (reshaping(kind, tuple(target)), [x]) if target.count(-1) < 2 else None


def permute(call: Call) -> Lowered | None:
    """``(x, dims)`` or ``(x, *dims)``."""
    x = call.value(0)
    found = call.args[1:] if len(call.args) > 2 else (call.get(1, "dims"),)
    dims = found[0] if len(found) == 1 and isinstance(found[0], (list, tuple)) else found
    perm = ints(list(dims), len(dims))
    return ir.Transpose(tuple(p % len(perm) for p in perm)), [x]


def transpose(call: Call) -> Lowered | None:
    """``(x, dim0, dim1)``."""
    x, a, b = call.value(0), call.get(1, "dim0"), call.get(2, "dim1")
    if x.type.rank is None:
        return None
    perm = list(range(x.type.rank))
    perm[a], perm[b] = perm[b], perm[a]
    return ir.Transpose(tuple(perm)), [x]


def matrix_transpose(call: Call) -> Lowered | None:
    """``(x)`` of two axes."""
    x = call.value(0)
    return (ir.Transpose((1, 0)), [x]) if x.type.rank == 2 else None


def concat(call: Call) -> Lowered | None:
    """``(tensors, dim)``."""
    tensors, dim = call.get(0, "tensors"), call.get(1, "dim", 0)
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Value) for t in tensors):
        return None
    rank = tensors[0].type.rank
    if rank is None and dim < 0:
        return None
    return ir.Concat(dim % rank if rank else dim), list(tensors)


def embedding(call: Call) -> Lowered | None:
    """``(ids, table, padding_idx, max_norm, ...)``, or ATen's ``(table, ids, ...)``."""
    first, second = call.get(0, "input"), call.get(1, "weight", call.kwargs.get("indices"))
    if first is None:
        first = call.kwargs.get("weight")
    if not isinstance(first, Value) or not isinstance(second, Value):
        return None
    turned = second.type.dtype is not None and second.type.dtype.is_int
    ids, table = (second, first) if turned else (first, second)
    if table.data is None or ids.type.dtype is None or not table.data.dtype.is_wide_float:
        return None
    # A bound on the norm writes to the table.
    bound = call.get(3, "max_norm") if table is second else None
    return (ir.Embedding(), [ids, table]) if bound is None else None


def softmax(kind: type[ir.Softmax] | type[ir.LogSoftmax]) -> Callable[[Call], Lowered | None]:
    """``(x, dim)``."""

    def rule(call: Call) -> Lowered | None:
        x, dim = call.value(0), call.get(1, "dim")
        # The type to compute in is the third argument of torch.softmax, the fourth of F.softmax.
        stated = any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values()))
        if dim is None or stated:
            return None
        return kind(dim % x.type.rank if x.type.rank else dim), [x]

    return rule


def layer_norm(call: Call) -> Lowered | None:
    """``(x, normalized_shape, weight, bias, eps)``."""
    x, shape = call.value(0), call.get(1, "normalized_shape")
    if x.type.rank is None or not isinstance(shape, (list, tuple)):
        return None
    operands = [x, call.get(2, "weight"), call.get(3, "bias")]
    while operands[-1] is None:
        operands.pop()
    return ir.LayerNorm(x.type.rank - len(shape), call.get(4, "eps", 1e-5)), operands


def group_norm(call: Call) -> Lowered | None:
    """``(x, num_groups, weight, bias, eps)``."""
    vectors = [call.get(2, "weight"), call.get(3, "bias")]
    return grouped(call.value(0), call.get(1, "num_groups"), vectors, call.get(4, "eps", 1e-5))


def instance_norm(call: Call) -> Lowered | None:
    """``(x, mean, var, weight, bias, use_input_stats, momentum, eps)``; only without running statistics."""
    stats = (call.get(1, "running_mean"), call.get(2, "running_var"))
    if stats != (None, None) or not call.get(5, "use_input_stats", True):
        return None
    vectors = [call.get(3, "weight"), call.get(4, "bias")]
    return grouped(call.value(0), 0, vectors, call.get(7, "eps", 1e-5))


def aten_instance_norm(call: Call) -> Lowered | None:
    """ATen's order: ``(x, weight, bias, mean, var, use_input_stats, momentum, eps, cudnn)``."""
    x, weight, bias, mean, var, own, _, eps, *_ = call.args
    return instance_norm(Call((x, mean, var, weight, bias, own, 0.1, eps)))


def grouped(x: Value, groups: Any, vectors: list[Any], epsilon: float) -> Lowered | None:
    """Normalisation within groups of channels (0: within each)."""
    if x.type.rank in (None, 0, 1) or (groups == 0 and x.type.rank == 2):
        return None  # Without a batch axis, torch counts otherwise.
    while vectors and vectors[-1] is None:
        vectors = vectors[:-1]
    return ir.GroupNorm(groups, epsilon), [x, *vectors]


def matmul(call: Call) -> Lowered | None:
    """``(a, b)``."""
    a, b = call.value(0), call.value(1, "other")
    if a.type.dtype is None or a.type.dtype is not b.type.dtype:
        return None
    if b.data is not None and len(b.data.shape) == 2 and a.type.rank and b.type.dtype.is_wide_float:
        return ir.Linear(), [a, transposed(b.data)]
    return ir.MatMul(), [a, b]


def dropout(call: Call) -> Lowered | None:
    """``(x, p, training)``: nothing happens when it is evaluated."""
    training = call.get(2, "training", call.kwargs.get("train", True))
    return None if training else (ir.Identity(), [call.value(0)])


def pad(call: Call) -> Lowered | None:
    """``(x, pad, mode, value)``: torch counts from the last axis backwards."""
    x, amounts, mode = call.value(0), call.get(1, "pad"), call.get(2, "mode", "constant")
    rank = x.type.rank
    if rank is None or mode != "constant":
        return None
    amounts = ints(amounts, len(amounts))
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    return ir.Pad((*begins, *ends), "constant", float(call.get(3, "value") or 0.0)), [x]


def identity(call: Call) -> Lowered | None:
    """A copy or the value itself."""
    return ir.Identity(), [call.value(0)]


def contiguous(call: Call) -> Lowered | None:
    """``(x, memory_format)``: the value itself, unless another format is asked for."""
    return identity(call) if keeps_format(call.get(1, "memory_format")) else None


def upsample(module: Any, x: Value) -> Lowered | None:
    """An ``nn.Upsample`` and its kin."""
    if getattr(module, "recompute_scale_factor", False) and module.scale_factor is not None:
        return None
    corners = bool(module.align_corners)
    return resized(x, module.size, module.scale_factor, module.mode, corners)


def ranked(rule: Callable[[Call, int], Lowered | None], name: str) -> dict[str, Any]:
    """One rule for ranks 1 to 3."""
    return {name.format(n): (lambda call, n=n: rule(call, n)) for n in (1, 2, 3)}


CALLS: dict[str, Callable[[Call], Lowered | None]] = {
    **SHAPE_CALLS,
    **MATH_CALLS,
    **ranked(conv, "conv{}d"), **ranked(conv_transpose, "conv_transpose{}d"),
    **ranked(average_pool, "avg_pool{}d"), **ranked(max_pool, "max_pool{}d"),
    **ranked(adaptive_pool, "adaptive_avg_pool{}d"),
    "convolution": convolution, "linear": linear, "batch_norm": batch_norm,
    "aten.batch_norm": aten_batch_norm, "add": arithmetic("Add"), "sub": arithmetic("Sub"),
    "mul": arithmetic("Mul"), "div": arithmetic("Div"), "truediv": arithmetic("Div"),
    "multiply": arithmetic("Mul"), "subtract": arithmetic("Sub"), "divide": arithmetic("Div"),
    "rsub": lambda c: arithmetic("Sub")(Call((c.get(1, "other"), c.get(0, "input"), c.get(2, "alpha", 1)))), "relu": activation("relu"), "relu6": activation("relu6"),
    "silu": activation("silu"), "sigmoid": activation("sigmoid"), "tanh": activation("tanh"),
    "hardswish": activation("hard_swish"), "mish": activation("mish"),
    "softsign": activation("softsign"), "leaky_relu": activation("leaky_relu", ("negative_slope", 0.01)),
    "elu": lambda c: activation("elu", ("alpha", 1.0))(Call(c.args[:2], c.kwargs)),
    "prelu": prelu, "gelu": gelu, "hardtanh": lambda c: clipped(
        c.value(0), c.get(1, "min_val", -1.0), c.get(2, "max_val", 1.0)),
    "clamp": clip, "clip": clip, "mean": mean, "flatten": flatten, "reshape": reshape, "view": reshape, "_unsafe_view": reshape,
    "embedding": embedding, "permute": permute, "transpose": transpose, "swapaxes": transpose, "swapdims": transpose, "t": matrix_transpose, "cat": concat, "concat": concat, "softmax": softmax(ir.Softmax), "log_softmax": softmax(ir.LogSoftmax),
    "layer_norm": layer_norm, "group_norm": group_norm, "instance_norm": instance_norm,
    "aten.instance_norm": aten_instance_norm, "matmul": matmul, "dropout": dropout, "pad": pad,
    "contiguous": contiguous, "alias": identity, "hardsigmoid":
        lambda c: (ir.Activation("hard_sigmoid", (1 / 6, 0.5)), [c.value(0)]),
}  # fmt: skip

ALLOCATES = {
    *MATH_ALLOCATES,
    "clone",
    "linear", "convolution", "batch_norm", "add", "sub", "mul", "div", "truediv", "multiply", "relu",
    "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "softsign", "leaky_relu",
    "elu", "prelu", "gelu", "hardtanh", "clamp", "clip", "cat", "concat", "softmax", "layer_norm", "group_norm", "instance_norm", "matmul", "mean", "scaled_dot_product_attention", "stack",
    *(f"{k}{n}d" for n in (1, 2, 3) for k in (
        "conv", "conv_transpose", "avg_pool", "max_pool", "adaptive_avg_pool")),
}  # fmt: skip
"""Calls whose result never shares memory with an argument (when they do not work in place)."""


def call_name(target: Any) -> str:
    """The plain name of a function: ``conv2d``, ``add``; in-place names lose their underscore."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
        return f"aten.{name}" if name in _OTHER_ORDER else name.rstrip("_")
    if target in (torch.batch_norm, torch.instance_norm):
        return f"aten.{target.__name__}"
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and not _is_torch(target):
        return ""
    if target in _OPERATORS or name in _AUGMENTED:
        return _OPERATORS.get(target) or _AUGMENTED[name]
    return name.rstrip("_").removeprefix("boolean_dispatch.")


_OTHER_ORDER = ("batch_norm", "instance_norm")
"""What ATen, and ``torch`` itself, give arguments in another order than ``torch.nn.functional``."""

_OPERATORS = {
    operator.iadd: "add", operator.isub: "sub", operator.imul: "mul", operator.itruediv: "div",
}  # fmt: skip

_AUGMENTED = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"}


def _is_torch(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    return target in _OPERATORS or module.startswith(("torch", "_operator")) or module == ""


def hooked(module: nn.Module) -> bool:
    """Whether hooks or parametrizations other than masks may change what a module computes."""
    if not only_masked(module):
        return True
    return bool(module._forward_hooks or module._forward_pre_hooks)


def module_call(
    module: nn.Module, x: Any, parameter: Callable[[str], Value | None]
) -> Lowered | None:
    """What a module computes of ``x``; ``parameter`` gives the module's own tensors by name."""
    m: Any = module
    kind = plain_type(module)
    n = next((i for i in (1, 2, 3) if kind.__name__.endswith(f"{i}d")), 0)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if m.padding_mode != "zeros":
            return None
        w, b = parameter("weight"), parameter("bias")
        return conv(Call((x, w, b, m.stride, m.padding, m.dilation, m.groups)), n)
    if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        w, b = parameter("weight"), parameter("bias")
        rest = (m.stride, m.padding, m.output_padding, m.groups, m.dilation)
        return conv_transpose(Call((x, w, b, *rest)), n)
    if kind is nn.Linear:
        return linear(Call((x, parameter("weight"), parameter("bias"))))
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        mean, var = parameter("running_mean"), parameter("running_var")
        return normalise(x, mean, var, parameter("weight"), parameter("bias"), m.eps, module)
    if kind in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d):
        divisor = getattr(m, "divisor_override", None)
        window = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)
        return average_pool(Call((x, *window)), n)
    if kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d):
        arguments = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
        return max_pool(Call((x, *arguments)), n)
    if kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d):
        return adaptive_pool(Call((x, m.output_size)), n)
    if kind is nn.LayerNorm:
        w, b = parameter("weight"), parameter("bias")
        return layer_norm(Call((x, m.normalized_shape, w, b, m.eps)))
    if kind is nn.PReLU:
        return prelu(Call((x, parameter("weight"))))
    if kind is Scale:
        return scale(m, x, parameter)
    if kind is Gate:
        return gate(m, x, parameter)
    if kind is nn.Embedding:
        return None if m.max_norm is not None else embedding(Call((x, parameter("weight"))))
    if kind is nn.GroupNorm:
        vectors = [parameter("weight"), parameter("bias")]
        return grouped(x, m.num_groups, vectors, m.eps)
    if kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
        if m.running_mean is not None or x.type.rank != n + 2:
            return None
        return grouped(x, 0, [parameter("weight"), parameter("bias")], m.eps)
    rule = _MODULES.get(kind)
    return rule(m, x) if rule is not None else None


_MODULES: dict[type[nn.Module], Callable[[Any, Any], Lowered | None]] = {
    nn.ReLU: lambda m, x: (ir.Activation("relu"), [x]),
    nn.ReLU6: lambda m, x: (ir.Activation("relu6"), [x]),
    nn.SiLU: lambda m, x: (ir.Activation("silu"), [x]),
    nn.Sigmoid: lambda m, x: (ir.Activation("sigmoid"), [x]),
    nn.Tanh: lambda m, x: (ir.Activation("tanh"), [x]),
    nn.Hardswish: lambda m, x: (ir.Activation("hard_swish"), [x]),
    nn.Hardsigmoid: lambda m, x: (ir.Activation("hard_sigmoid", (1 / 6, 0.5)), [x]),
    nn.Mish: lambda m, x: (ir.Activation("mish"), [x]),
    nn.Softsign: lambda m, x: (ir.Activation("softsign"), [x]),
    nn.LeakyReLU: lambda m, x: (ir.Activation("leaky_relu", (float(m.negative_slope),)), [x]),
    nn.ELU: lambda m, x: (ir.Activation("elu", (float(m.alpha),)), [x]),
    nn.GELU: lambda m, x: gelu(Call((x, m.approximate))),
    nn.Hardtanh: lambda m, x: clipped(x, m.min_val, m.max_val),
    nn.Identity: lambda m, x: (ir.Identity(), [x]),
    nn.Dropout: lambda m, x: (ir.Identity(), [x]),
    nn.Dropout1d: lambda m, x: (ir.Identity(), [x]),
    nn.Dropout2d: lambda m, x: (ir.Identity(), [x]),
    nn.Dropout3d: lambda m, x: (ir.Identity(), [x]),
    nn.Flatten: lambda m, x: flatten(Call((x, m.start_dim, m.end_dim))),
    nn.Softmax: lambda m, x: softmax(ir.Softmax)(Call((x, m.dim))),
    nn.LogSoftmax: lambda m, x: softmax(ir.LogSoftmax)(Call((x, m.dim))),
    nn.PixelShuffle: lambda m, x: CALLS["pixel_shuffle"](Call((x, m.upscale_factor))),
    nn.PixelUnshuffle: lambda m, x: CALLS["pixel_unshuffle"](Call((x, m.downscale_factor))),
    nn.Upsample: lambda m, x: upsample(m, x),
    nn.UpsamplingNearest2d: lambda m, x: upsample(m, x),
    nn.UpsamplingBilinear2d: lambda m, x: upsample(m, x),
    nn.ZeroPad2d: lambda m, x: pad(Call((x, m.padding))),
    nn.ConstantPad2d: lambda m, x: pad(Call((x, m.padding, "constant", m.value))),
}

SHARES_MEMORY = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
)  # fmt: skip
"""Modules of torch whose result may be the argument itself, or a view of it."""


def type_of(found: Any) -> TensorType:
    """The IR type of a torch tensor (fake ones too); unknown for anything else."""
    if not isinstance(found, torch.Tensor):
        return ir.UNKNOWN
    dims: list[ir.Dim] = [d if isinstance(d, int) else str(d) for d in found.shape]
    return TensorType(DTYPES.get(found.dtype), tuple(dims))
