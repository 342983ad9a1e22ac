"""How each canonical op is spelled in ONNX, in the opset that the model already uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from .... import ir
from ....hosts.onnx.tensors import code_of
from ....ir import (
    ArrayTensor,
    DerivedTensor,
    DType,
    LazyTensor,
    ModelError,
    Node,
    SplatTensor,
    Tensor,
)
from ....ir.tensor import reshaped
from ..speller import DrySpeller, Speller
from .functions import MATH_SPELLINGS

NEWEST_OPSET = 23
"""The opset of models that are made here from nothing; onnxruntime runs it."""


def spell(
    node: Node,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    opset: int,
    new_constant: Callable[[Tensor, str], str],
    new_name: Callable[[str], str],
) -> list[NodeProto]:
    """ONNX nodes that compute what an IR node says.

    Raises:
        ModelError: If the opset has no way to say it.
    """
    speller = Speller(node, inputs, outputs, opset, new_constant, new_name)
    _rule(node)(speller, node.op)
    if speller.made:
        speller.made[-1].name = node.name
    return speller.made


def problem(node: Node, opset: int) -> str | None:
    """Why a node cannot be spelled in an opset; ``None`` if it can. No ONNX node is made for the answer."""
    try:
        _rule(node)(DrySpeller(node, opset), node.op)
    except ModelError as error:
        return str(error).removeprefix(f"{node.name}: ")
    return None


def _rule(node: Node) -> Callable[[Speller, Any], None]:
    rule = _RULES.get(type(node.op)) or MATH_SPELLINGS.get(type(node.op))
    if rule is None:
        raise ModelError(f"{node.name}: {node.op.name} has no ONNX spelling")
    return rule


def _window(op: Any) -> dict[str, Any]:
    return {"strides": list(op.strides), "pads": list(op.pads)}


def _conv(s: Speller, op: ir.Conv) -> None:
    attrs = _window(op) | {"dilations": list(op.dilations), "group": op.groups}
    s.emit("Conv", s.inputs, s.outputs[0], **attrs)


def _conv_transpose(s: Speller, op: ir.ConvTranspose) -> None:
    attrs = _window(op) | {"dilations": list(op.dilations), "group": op.groups}
    if any(op.output_padding):
        attrs["output_padding"] = list(op.output_padding)
    s.emit("ConvTranspose", s.inputs, s.outputs[0], **attrs)


def _linear(s: Speller, op: ir.Linear) -> None:
    x, w = s.node.inputs[0], s.node.inputs[1]
    bias = s.inputs[2] if len(s.inputs) > 2 else ""
    assert x is not None
    assert w is not None
    # Gemm's bias is mandatory before opset 11.
    if x.type.rank == 2 and (bias or s.opset >= 11):
        s.emit("Gemm", [s.inputs[0], s.inputs[1], bias], s.outputs[0], transB=1)
        return
    if w.data is not None:
        data = w.data
        turned = LazyTensor(data.shape[::-1], data.dtype, lambda: data.numpy().T)
        weight = s.new_constant(turned, f"{s.inputs[1]}_t")
    else:
        weight = s.emit("Transpose", [s.inputs[1]], perm=[1, 0])
    out = s.emit("MatMul", [s.inputs[0], weight], None if bias else s.outputs[0])
    if bias:
        s.emit("Add", [out, bias], s.outputs[0])


def _scale(s: Speller, op: ir.Scale) -> None:
    x = s.node.inputs[0]
    assert x is not None
    parts = [(kind, i) for kind, i in (("Mul", 1), ("Add", 2)) if i < len(s.inputs) and s.inputs[i]]
    current = s.inputs[0]
    for place, (kind, index) in enumerate(parts):
        vector = s.node.inputs[index]
        assert vector is not None
        operand = s.inputs[index]
        size = vector.type.dim(0)
        if size != 1:
            if x.type.rank is None:
                raise ModelError(f"{s.node.name}: Scale of a value of unknown rank")
            trailing = x.type.rank - op.axis % x.type.rank - 1
            if trailing and vector.data is not None:
                operand = s.new_constant(
                    reshaped(vector.data, (size or 1, *[1] * trailing)), operand
                )
            elif trailing:
                operand = _unsqueeze_to(s, operand, list(range(1, trailing + 1)))
        current = s.emit(
            kind, [current, operand], s.outputs[0] if place == len(parts) - 1 else None
        )
    if not parts:
        s.emit("Identity", [current], s.outputs[0])


def _unsqueeze_to(s: Speller, value: str, axes: list[int], output: str | None = None) -> str:
    if s.opset >= 13:
        return s.emit("Unsqueeze", [value, s.ints(axes, "axes")], output)
    return s.emit("Unsqueeze", [value], output, axes=axes)


def _unsqueeze(s: Speller, op: ir.Unsqueeze) -> None:
    _unsqueeze_to(s, s.inputs[0], list(op.axes), s.outputs[0])


def _average_pool(s: Speller, op: ir.AveragePool) -> None:
    attrs = _window(op) | {"kernel_shape": list(op.kernel)}
    attrs["count_include_pad"] = int(op.count_include_pad)
    if op.ceil_mode:
        if s.opset < 10:
            raise s.refuse("with ceil_mode does not exist")
        attrs["ceil_mode"] = 1
    if any(d != 1 for d in op.dilations):
        if s.opset < 19:
            raise s.refuse("with dilations does not exist")
        attrs["dilations"] = list(op.dilations)
    s.emit("AveragePool", s.inputs[:1], s.outputs[0], **attrs)


def _max_pool(s: Speller, op: ir.MaxPool) -> None:
    attrs = _window(op) | {"kernel_shape": list(op.kernel)}
    if op.ceil_mode or any(d != 1 for d in op.dilations):
        if s.opset < 10:
            raise s.refuse("with ceil_mode or dilations does not exist")
        attrs |= {"ceil_mode": int(op.ceil_mode), "dilations": list(op.dilations)}
    s.emit("MaxPool", s.inputs[:1], s.outputs[0], **attrs)


def _pad(s: Speller, op: ir.Pad) -> None:
    if s.opset < 11:
        s.emit("Pad", s.inputs[:1], s.outputs[0], pads=list(op.pads), mode=op.mode, value=op.value)
        return
    value = s.scalar(op.value, "pad_value") if op.mode == "constant" and op.value else ""
    s.emit("Pad", [s.inputs[0], s.ints(op.pads, "pads"), value], s.outputs[0], mode=op.mode)


def _clip(s: Speller, low: float, high: float, x: str, output: str | None) -> str:
    if s.opset < 11:
        attrs = {}
        if math.isfinite(low):
            attrs["min"] = low
        if math.isfinite(high):
            attrs["max"] = high
        return s.emit("Clip", [x], output, **attrs)
    ends = [
        s.scalar(v, hint) if math.isfinite(v) else "" for v, hint in ((low, "min"), (high, "max"))
    ]
    return s.emit("Clip", [x, *ends], output)


_PLAIN_ACTIVATIONS = {
    "relu": ("Relu", 1, ()), "sigmoid": ("Sigmoid", 1, ()), "tanh": ("Tanh", 1, ()),
    "softplus": ("Softplus", 1, ()), "softsign": ("Softsign", 1, ()),
    "leaky_relu": ("LeakyRelu", 1, ("alpha",)), "elu": ("Elu", 1, ("alpha",)),
    "selu": ("Selu", 1, ("alpha", "gamma")), "hard_sigmoid": ("HardSigmoid", 1, ("alpha", "beta")),
    "celu": ("Celu", 12, ("alpha",)), "hard_swish": ("HardSwish", 14, ()), "mish": ("Mish", 18, ()),
    "thresholded_relu": ("ThresholdedRelu", 10, ("alpha",)),
}  # fmt: skip


def _activation(s: Speller, op: ir.Activation) -> None:
    _activate(s, op, s.outputs[0])


def _activate(s: Speller, op: ir.Activation, out: str) -> None:
    x = s.inputs[0]
    plain = _PLAIN_ACTIVATIONS.get(op.kind)
    if plain is not None and s.opset >= plain[1]:
        s.emit(plain[0], [x], out, **dict(zip(plain[2], op.params, strict=True)))
    elif op.kind == "relu6":
        _clip(s, 0.0, 6.0, x, out)
    elif op.kind == "clip":
        _clip(s, op.params[0], op.params[1], x, out)
    elif op.kind == "silu":
        s.emit("Mul", [x, s.emit("Sigmoid", [x])], out)
    elif op.kind == "hard_swish":
        gate = s.emit("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        s.emit("Mul", [x, gate], out)
    elif op.kind == "mish":
        s.emit("Mul", [x, s.emit("Tanh", [s.emit("Softplus", [x])])], out)
    elif op.kind in ("gelu", "gelu_tanh"):
        _gelu(s, op.kind == "gelu_tanh", x, out)
    elif op.kind == "celu":
        inner = s.emit("Elu", [s.emit("Div", [x, s.scalar(op.params[0], "alpha")])])
        positive = s.emit("Relu", [x])
        low = s.emit(
            "Mul",
            [s.emit("Sub", [inner, s.emit("Relu", [inner])]), s.scalar(op.params[0], "alpha")],
        )
        s.emit("Add", [positive, low], out)
    else:
        raise s.refuse(f"of kind {op.kind} does not exist")


def _gelu(s: Speller, tanh: bool, x: str, out: str) -> None:
    if s.opset >= 20:
        s.emit("Gelu", [x], out, approximate="tanh" if tanh else "none")
        return
    half = s.emit("Mul", [x, s.scalar(0.5, "half")])
    if tanh:
        cube = s.emit("Mul", [s.emit("Mul", [x, x]), x])
        inner = s.emit("Add", [x, s.emit("Mul", [cube, s.scalar(0.044715, "c")])])
        curve = s.emit("Tanh", [s.emit("Mul", [inner, s.scalar(math.sqrt(2 / math.pi), "c")])])
    elif s.opset >= 9:
        curve = s.emit("Erf", [s.emit("Mul", [x, s.scalar(math.sqrt(0.5), "c")])])
    else:
        raise s.refuse("needs Erf, which does not exist")
    s.emit("Mul", [half, s.emit("Add", [curve, s.scalar(1.0, "one")])], out)


def _prelu(s: Speller, op: ir.PRelu) -> None:
    slope = s.node.inputs[1]
    assert slope is not None
    if slope.data is None:
        raise ModelError(f"{s.node.name}: PRelu with a computed slope")
    _sloped(s, op.axis, slope.data, s.inputs[1])


def _sloped(s: Speller, axis: int, slope: Tensor, name: str) -> None:
    x = s.node.inputs[0]
    assert x is not None
    if x.type.rank is None and slope.size > 1:
        raise ModelError(f"{s.node.name}: PRelu of unknown rank")
    trailing = x.type.rank - axis % x.type.rank - 1 if x.type.rank else 0
    shape = (slope.size, *[1] * trailing) if slope.size > 1 else (1,)
    s.emit("PRelu", [s.inputs[0], s.new_constant(reshaped(slope, shape), name)], s.outputs[0])


def _gate(s: Speller, op: ir.Gate) -> None:
    """A frozen gate: a gated ReLU is a leaky one, ``max(x, 0) + (1 - g) * min(x, 0)``."""
    number, slope, x = s.node.inputs[1], s.node.input(2), s.inputs[0]
    if number is None or number.data is None or (slope is not None and slope.data is None):
        raise ModelError(f"{s.node.name}: a gate of a computed number has no ONNX spelling")
    g = float(number.data.float64()[0])
    if g == 0.0:
        s.emit("Identity", [x], s.outputs[0])
    elif slope is not None and slope.data is not None:
        given = slope.data

        def mixed() -> Any:
            return g * given.float64() + (1 - g)

        _sloped(s, op.axis, DerivedTensor(given.shape, given.dtype, mixed), s.inputs[2])
    elif g == 1.0:
        _activation(s, ir.Activation(op.kind, op.params))
    elif op.kind in ("relu", "leaky_relu"):
        alpha = op.params[0] if op.params else 0.0
        s.emit("LeakyRelu", [x], s.outputs[0], alpha=g * alpha + (1 - g))
    else:
        act = s.new_name(f"{s.outputs[0]}_act")
        _activate(s, ir.Activation(op.kind, op.params), act)
        act = s.emit("Mul", [act, s.scalar(g, "gate")])
        rest = s.emit("Mul", [x, s.scalar(1 - g, "gate_rest")])
        s.emit("Add", [act, rest], s.outputs[0])


def _softmax(s: Speller, op: ir.Softmax | ir.LogSoftmax) -> None:
    x = s.node.inputs[0]
    assert x is not None
    if s.opset >= 13 or (x.type.rank is not None and op.axis % x.type.rank == x.type.rank - 1):
        # Before opset 13 all axes from ``axis`` on are one: only the last axis means the same.
        axis = op.axis if s.opset >= 13 or x.type.rank is None else x.type.rank - 1
        s.emit(op.name, [s.inputs[0]], s.outputs[0], axis=axis)
        return
    if x.type.rank is None:
        raise s.refuse("of unknown rank does not exist")
    perm = list(range(x.type.rank))
    own = op.axis % x.type.rank
    perm[own], perm[-1] = perm[-1], perm[own]
    turned = s.emit("Transpose", [s.inputs[0]], perm=perm)
    soft = s.emit(op.name, [turned], axis=x.type.rank - 1)
    s.emit("Transpose", [soft], s.outputs[0], perm=perm)


def _group_norm(s: Speller, op: ir.GroupNorm) -> None:
    x = s.node.inputs[0]
    assert x is not None
    channels = x.type.dim(1)
    whole = op.groups == 0 or s.opset >= 21
    size = channels if whole else op.groups
    given = [s.inputs[i] if len(s.inputs) > i else "" for i in (1, 2)]
    vectors = []
    for index, (name, hint) in enumerate(zip(given, ("ones", "zeros"), strict=True)):
        if name and whole:
            vectors.append(name)
        elif size is None:
            raise ModelError(f"{s.node.name}: GroupNorm of unknown size has no ONNX spelling")
        else:
            plain = SplatTensor((size,), s.dtype, 1.0 - index)
            vectors.append(s.new_constant(plain, hint))
    if whole:
        attrs: dict[str, Any] = {"epsilon": op.epsilon}
        kind = "InstanceNormalization"
        if op.groups:
            kind, attrs["num_groups"] = "GroupNormalization", op.groups
        s.emit(kind, [s.inputs[0], *vectors], s.outputs[0], **attrs)
        return
    # Each group as one channel, then the vectors.
    rank = x.type.rank
    if rank is None:
        raise ModelError(f"{s.node.name}: GroupNorm of unknown rank has no ONNX spelling")
    flat = s.emit("Reshape", [s.inputs[0], s.ints((0, op.groups, -1), "groups")])
    flat = s.emit("InstanceNormalization", [flat, *vectors], epsilon=op.epsilon)
    shape = s.emit("Shape", [s.inputs[0]])
    left = [(kind, name) for kind, name in zip(("Mul", "Add"), given, strict=True) if name]
    made = s.emit("Reshape", [flat, shape], None if left else s.outputs[0])
    for number, (kind, name) in enumerate(left):
        last = number == len(left) - 1
        wide = s.emit("Reshape", [name, s.ints((1, -1, *[1] * (rank - 2)), "wide")])
        made = s.emit(kind, [made, wide], s.outputs[0] if last else None)


def _lstm(s: Speller, op: ir.Lstm) -> None:
    s.many("LSTM", s.inputs, s.outputs, hidden_size=op.hidden, direction=op.direction)


def _layer_norm(s: Speller, op: ir.LayerNorm) -> None:
    scale = s.inputs[1] if len(s.inputs) > 1 else ""
    shift = s.inputs[2] if len(s.inputs) > 2 else ""
    x = s.node.inputs[0]
    assert x is not None
    if s.opset >= 17 and scale:
        s.emit(
            "LayerNormalization",
            [s.inputs[0], scale, shift],
            s.outputs[0],
            axis=op.axis,
            epsilon=op.epsilon,
        )
        return
    if x.type.rank is None:
        raise s.refuse("of unknown rank cannot be decomposed")
    axes = list(range(op.axis % x.type.rank, x.type.rank))
    centred = s.emit("Sub", [s.inputs[0], _reduce_mean(s, s.inputs[0], axes)])
    variance = _reduce_mean(s, s.emit("Mul", [centred, centred]), axes)
    deviation = s.emit("Sqrt", [s.emit("Add", [variance, s.scalar(op.epsilon, "epsilon")])])
    steps = [("Div", deviation), ("Mul", scale), ("Add", shift)]
    kept = [(kind, operand) for kind, operand in steps if operand]
    current = centred
    for i, (kind, operand) in enumerate(kept):
        current = s.emit(kind, [current, operand], s.outputs[0] if i == len(kept) - 1 else None)


def _reduce_mean(s: Speller, x: str, axes: list[int]) -> str:
    if s.opset >= 18:
        return s.emit("ReduceMean", [x, s.ints(axes, "axes")], keepdims=1)
    return s.emit("ReduceMean", [x], axes=axes, keepdims=1)


def _reduce(s: Speller, op: ir.Reduce) -> None:
    kind = {"l1": "ReduceL1", "l2": "ReduceL2"}.get(op.kind, f"Reduce{op.kind.capitalize()}")
    if s.opset >= (13 if op.kind == "sum" else 18):
        axes = s.ints(op.axes, "axes")
        s.emit(kind, [s.inputs[0], axes], s.outputs[0], keepdims=int(op.keepdims))
    else:
        s.emit(kind, s.inputs[:1], s.outputs[0], axes=list(op.axes), keepdims=int(op.keepdims))


def _reshape(s: Speller, op: ir.Reshape) -> None:
    target = [0 if d is None else d for d in op.shape]
    if 0 in op.shape and None in op.shape:
        raise ModelError(f"{s.node.name}: Reshape both copies an axis and makes one of size zero")
    attrs = {"allowzero": 1} if 0 in op.shape else {}
    if attrs and s.opset < 14:
        raise s.refuse("to a size of zero does not exist")
    s.emit("Reshape", [s.inputs[0], s.ints(target, "shape")], s.outputs[0], **attrs)


def _squeeze(s: Speller, op: ir.Squeeze) -> None:
    if s.opset >= 13:
        s.emit("Squeeze", [s.inputs[0], s.ints(op.axes, "axes")], s.outputs[0])
    else:
        s.emit("Squeeze", s.inputs[:1], s.outputs[0], axes=list(op.axes))


def _split(s: Speller, op: ir.Split) -> None:
    if s.opset >= 13:
        s.many("Split", [s.inputs[0], s.ints(op.sizes, "split")], s.outputs, axis=op.axis)
    else:
        s.many("Split", [s.inputs[0]], s.outputs, axis=op.axis, split=list(op.sizes))


def _slice(s: Speller, op: ir.Slice) -> None:
    if s.opset >= 10:
        parts = [s.ints(v, "slice") for v in (op.starts, op.ends, op.axes, op.steps)]
        s.emit("Slice", [s.inputs[0], *parts], s.outputs[0])
        return
    if any(step != 1 for step in op.steps):
        raise s.refuse("with steps does not exist")
    attrs = {"starts": list(op.starts), "ends": list(op.ends), "axes": list(op.axes)}
    s.emit("Slice", s.inputs[:1], s.outputs[0], **attrs)


def _select(s: Speller, op: ir.Select) -> None:
    index = op.index
    if index < 0 and s.opset < 11:
        size = s.node.inputs[0].type.dim(op.axis) if s.node.inputs[0] is not None else None
        if size is None:
            raise s.refuse("of a negative index does not exist")
        index += size
    where = s.new_constant(ArrayTensor(np.array(index, np.int64)), "index")
    s.emit("Gather", [s.inputs[0], where], s.outputs[0], axis=op.axis)


def _embedding(s: Speller, op: ir.Embedding) -> None:
    s.emit("Gather", s.inputs[::-1], s.outputs[0], axis=0)


def _plain(kind: str, **names: str) -> Callable[[Speller, Any], None]:
    def rule(s: Speller, op: Any) -> None:
        attrs = {key: getattr(op, own) for key, own in names.items()}
        attrs = {k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items()}
        s.emit(kind, s.inputs, s.outputs[0], **attrs)

    return rule


def _cast(s: Speller, op: ir.Cast) -> None:
    s.emit("Cast", s.inputs, s.outputs[0], to=code_of(DType(op.to)))


_RULES: dict[type[ir.Op], Callable[[Speller, Any], None]] = {
    ir.Activation: _activation,
    ir.Add: _plain("Add"),
    ir.AveragePool: _average_pool,
    ir.Cast: _cast,
    ir.Concat: _plain("Concat", axis="axis"),
    ir.Conv: _conv,
    ir.ConvTranspose: _conv_transpose,
    ir.Div: _plain("Div"),
    ir.Embedding: _embedding,
    ir.Flatten: _plain("Flatten", axis="axis"),
    ir.Gate: _gate,
    ir.GlobalAveragePool: _plain("GlobalAveragePool"),
    ir.GroupNorm: _group_norm,
    ir.Identity: _plain("Identity"),
    ir.LayerNorm: _layer_norm,
    ir.Lstm: _lstm,
    ir.Linear: _linear,
    ir.LogSoftmax: _softmax,
    ir.MatMul: _plain("MatMul"),
    ir.MaxPool: _max_pool,
    ir.Mul: _plain("Mul"),
    ir.PRelu: _prelu,
    ir.Pad: _pad,
    ir.Reduce: _reduce,
    ir.Reshape: _reshape,
    ir.Scale: _scale,
    ir.Select: _select,
    ir.Slice: _slice,
    ir.Softmax: _softmax,
    ir.Split: _split,
    ir.Squeeze: _squeeze,
    ir.Sub: _plain("Sub"),
    ir.Transpose: _plain("Transpose", perm="perm"),
    ir.Unsqueeze: _unsqueeze,
}
