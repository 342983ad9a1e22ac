"""Operators without an op in the IR, written as several others: those that ONNX defines by a function, those of dynamic quantisation, and STFT.

An integer product becomes a product of float32, exact for sums up to 2**24. A short-time Fourier transform of real numbers becomes a
convolution whose kernels are the windowed waves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ...hosts.onnx.operators import DOMAINS, function_schema, opset_of, write_defaults
from ...hosts.onnx.scopes import unique_name

_Fresh = Callable[[str], str]


@dataclass(frozen=True)
class _Known:
    """What is known of the values of a model, by name.

    Attributes:
        shapes: The shapes, with ``None`` for open sizes.
        tensors: The stored constants.
        opset: The version of the default domain.
    """

    shapes: Mapping[str, tuple[int | None, ...]]
    tensors: Mapping[str, TensorProto]
    opset: int

    def rank(self, name: str, otherwise: int | None = None) -> int | None:
        """The number of axes of a value."""
        return len(self.shapes[name]) if name in self.shapes else otherwise

    def array(self, name: str) -> Any:
        """The numbers of a constant; ``None`` for other values."""
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None


_Rule = Callable[[NodeProto, _Fresh, _Known], Iterator[NodeProto]]


def written_out(model: ModelProto, operators: Iterable[str]) -> tuple[ModelProto, list[str]]:
    """Write out operators of ONNX's own domain where that is possible.

    Args:
        model: The model; it may be changed.
        operators: The operators to write out.

    Returns:
        The model, and the operators that were written out.
    """
    from onnx import inliner

    found = []
    opset = opset_of(model)
    for name in sorted(set(operators)):
        if name in _RULES:
            _replace(model, name)
            found.append(name)
            continue
        schema = function_schema(name, opset)
        if schema is None:
            continue
        for node in model.graph.node:
            if node.op_type == name:
                write_defaults(node, schema)
        try:
            # Functions that depend on types need them.
            typed = shape_inference.infer_shapes(model)
            done = inliner.inline_selected_functions(typed, [("", name)], False, True)
        except Exception:
            continue  # The operator stays as it is.
        model = done
        found.append(name)
    return model, found


def _replace(model: ModelProto, name: str) -> None:
    graph = model.graph
    taken = {n for node in graph.node for n in (*node.input, *node.output)}
    fresh = partial(unique_name, taken=taken)
    nodes: list[NodeProto] = []
    known = _known(model)
    for node in graph.node:
        if node.op_type == name and node.domain in DOMAINS:
            nodes += _RULES[name](node, fresh, known)
        else:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _known(model: ModelProto) -> _Known:
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # Types that contradict each other.
        graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    shapes: dict[str, tuple[int | None, ...]] = {n: tuple(t.dims) for n, t in tensors.items()}
    for value in (*graph.input, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in dims
            )
    return _Known(shapes, tensors, opset_of(model))


def _matmul_integer(node: NodeProto, fresh: _Fresh, known: _Known) -> Iterator[NodeProto]:
    """``(a - a_zero) @ (b - b_zero)``; a vector of zero points has one for each row of a, or column of b."""
    rows = known.rank(node.input[0]) != 1 and _is_vector(node, 2, known)
    yield from _product(node, fresh, "MatMul", ([-1, 1] if rows else None, None))


def _conv_integer(node: NodeProto, fresh: _Fresh, known: _Known) -> Iterator[NodeProto]:
    """A convolution of ``x - x_zero``, which pads with 0, by ``w - w_zero``; a vector has a zero point for each output channel."""
    shape = [-1] + [1] * ((known.rank(node.input[1], 4) or 4) - 1)
    yield from _product(node, fresh, "Conv", (None, shape if _is_vector(node, 3, known) else None))


def _is_vector(node: NodeProto, place: int, known: _Known) -> bool:
    """Whether an optional input is a vector, or may be one."""
    return len(node.input) > place and known.rank(node.input[place], 1) == 1


def _dynamic_quantize(node: NodeProto, fresh: _Fresh, _: _Known) -> Iterator[NodeProto]:
    """The range of the data, with 0 in it, in 255 steps; ONNX's own function quantises with a computed scale, which is no plain arithmetic."""
    base = node.output[0]
    (x,), (quantized, scale, zero) = node.input, node.output
    names = (
        "most", "least", "high", "low", "range", "step", "flat", "start", "start_round", "start_clip",
        "steps", "steps_round", "moved", "clipped", "none", "one", "last",
    )  # fmt: skip
    n = {name: fresh(f"{base}_{name}") for name in names}
    for name, number in (("none", 0.0), ("one", 1.0), ("last", 255.0)):
        value = numpy_helper.from_array(np.array(number, np.float32))
        yield helper.make_node("Constant", [], [n[name]], value=value)
    yield helper.make_node("ReduceMax", [x], [n["most"]], keepdims=0)
    yield helper.make_node("ReduceMin", [x], [n["least"]], keepdims=0)
    yield helper.make_node("Max", [n["most"], n["none"]], [n["high"]])
    yield helper.make_node("Min", [n["least"], n["none"]], [n["low"]])
    yield helper.make_node("Sub", [n["high"], n["low"]], [n["range"]])
    yield helper.make_node("Div", [n["range"], n["last"]], [n["step"]])
    yield helper.make_node("Equal", [n["range"], n["none"]], [n["flat"]])
    yield helper.make_node("Where", [n["flat"], n["one"], n["step"]], [scale])
    yield helper.make_node("Div", [n["low"], scale], [n["start"]])
    yield helper.make_node("Round", [n["start"]], [n["start_round"]])
    yield helper.make_node("Neg", [n["start_round"]], [n["start_clip"]])
    yield helper.make_node("Cast", [n["start_clip"]], [zero], to=TensorProto.UINT8)
    yield helper.make_node("Div", [x, scale], [n["steps"]])
    yield helper.make_node("Round", [n["steps"]], [n["steps_round"]])
    yield helper.make_node("Add", [n["steps_round"], n["start_clip"]], [n["moved"]])
    yield helper.make_node("Clip", [n["moved"], n["none"], n["last"]], [n["clipped"]])
    yield helper.make_node("Cast", [n["clipped"]], [quantized], to=TensorProto.UINT8)


def _product(
    node: NodeProto, fresh: _Fresh, kind: str, shapes: tuple[list[int] | None, list[int] | None]
) -> Iterator[NodeProto]:
    """A product of two operands minus their zero points, which get these shapes."""
    base, operands = node.output[0], []
    for i, shape in enumerate(shapes):
        wide = fresh(f"{base}_float_{i}")
        yield helper.make_node("Cast", [node.input[i]], [wide], to=TensorProto.FLOAT)
        zero = node.input[2 + i] if len(node.input) > 2 + i else ""
        if zero:
            zero_wide = fresh(f"{base}_zero_{i}")
            yield helper.make_node("Cast", [zero], [zero_wide], to=TensorProto.FLOAT)
            if shape is not None:
                made, zero_wide = _shaped(zero_wide, fresh, shape)
                yield from made
            centred = fresh(f"{base}_centred_{i}")
            yield helper.make_node("Sub", [wide, zero_wide], [centred])
            wide = centred
        operands.append(wide)
    result = fresh(f"{base}_float")
    made_node = helper.make_node(kind, operands, [result], name=node.name)
    made_node.attribute.extend(node.attribute)
    yield made_node
    yield helper.make_node("Cast", [result], [base], to=TensorProto.INT32)


def _shaped(name: str, fresh: _Fresh, shape: list[int]) -> tuple[list[NodeProto], str]:
    sizes, out = fresh(f"{name}_shape"), fresh(f"{name}_shaped")
    value = numpy_helper.from_array(np.array(shape, np.int64))
    nodes = [
        helper.make_node("Constant", [], [sizes], value=value),
        helper.make_node("Reshape", [name, sizes], [out]),
    ]
    return nodes, out


_MOST_CLASSES = 1 << 16
"""A one-hot code compares with each class."""


def _one_hot(node: NodeProto, fresh: _Fresh, known: _Known) -> Iterator[NodeProto]:
    """A comparison with the number of each class; indices below zero count from the end, others out of range have none."""
    index, depth, values = node.input
    count, numbers, rank = known.array(depth), known.array(values), known.rank(index)
    if count is None or numbers is None or rank is None or not 0 < count.item() <= _MOST_CLASSES:
        yield NodeProto.FromString(node.SerializeToString())
        return
    classes = int(count.item())
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1) % (rank + 1)
    places = np.arange(classes).reshape(-1, *[1] * (rank - axis))
    base = node.output[0]
    held = {
        "zero": np.array(0), "count": np.array(classes), "places": places, "axes": np.array([axis]),
        "off": numbers[0], "on": numbers[1],
    }  # fmt: skip
    names = (*held, "whole", "negative", "raised", "wrapped", "wide", "equal")
    n = {name: fresh(f"{base}_{name}") for name in names}
    for name, array in held.items():
        value = numpy_helper.from_array(np.asarray(array))
        yield helper.make_node("Constant", [], [n[name]], value=value)
    yield helper.make_node("Cast", [index], [n["whole"]], to=TensorProto.INT64)
    yield helper.make_node("Less", [n["whole"], n["zero"]], [n["negative"]])
    yield helper.make_node("Add", [n["whole"], n["count"]], [n["raised"]])
    yield helper.make_node("Where", [n["negative"], n["raised"], n["whole"]], [n["wrapped"]])
    if known.opset >= 13:
        yield helper.make_node("Unsqueeze", [n["wrapped"], n["axes"]], [n["wide"]])
    else:
        yield helper.make_node("Unsqueeze", [n["wrapped"]], [n["wide"]], axes=[axis])
    yield helper.make_node("Equal", [n["wide"], n["places"]], [n["equal"]])
    yield helper.make_node("Where", [n["equal"], n["on"], n["off"]], [base])


_LONGEST_FRAME = 4096
"""The kernels of a Fourier transform have about the square of this many numbers."""


def _short_time_fourier(node: NodeProto, fresh: _Fresh, known: _Known) -> Iterator[NodeProto]:
    """A convolution of the signal by the real and the imaginary parts of the windowed waves."""
    signal, step, window, length = (*node.input, "", "")[:4]
    weight = _waves(node, known, window, length)
    steps, shape = known.array(step), known.shapes.get(signal, ())
    real = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    if weight is None or steps is None or not real:
        yield NodeProto.FromString(node.SerializeToString())
        return
    base, bins = node.output[0], len(weight) // 2
    names = ("channel", "channels", "kernels", "waves", "parts", "split")
    n = {name: fresh(f"{base}_{name}") for name in names}
    constants = (("channel", [0, 1, -1]), ("parts", [0, 2, bins, -1]))
    for name, numbers in constants:
        value = numpy_helper.from_array(np.array(numbers, np.int64))
        yield helper.make_node("Constant", [], [n[name]], value=value)
    kernels = numpy_helper.from_array(weight)
    yield helper.make_node("Constant", [], [n["kernels"]], value=kernels)
    yield helper.make_node("Reshape", [signal, n["channel"]], [n["channels"]])
    strides = [int(steps.reshape(-1)[0])]
    yield helper.make_node("Conv", [n["channels"], n["kernels"]], [n["waves"]], strides=strides)
    yield helper.make_node("Reshape", [n["waves"], n["parts"]], [n["split"]])
    yield helper.make_node("Transpose", [n["split"]], [base], perm=[0, 3, 2, 1])


def _waves(node: NodeProto, known: _Known, window: str, length: str) -> Any:
    """The kernels, first the real parts, then the imaginary ones; ``None`` if the frames are not known."""
    shape, given = known.array(window), known.array(length)
    if (window and shape is None) or (length and given is None) or not (window or length):
        return None
    size = int(given.reshape(-1)[0]) if length else len(shape)
    if not 0 < size <= _LONGEST_FRAME or (window and shape.shape != (size,)):
        return None
    onesided = next((a.i for a in node.attribute if a.name == "onesided"), 1)
    bins = np.arange(size // 2 + 1 if onesided else size)
    # The phase is a whole number of steps around the circle, which is exact.
    phase = 2 * np.pi * (bins[:, None] * np.arange(size) % size) / size
    scale = np.ones(size) if not window else shape.astype(np.float64)
    waves = np.concatenate([np.cos(phase), -np.sin(phase)]) * scale
    return waves[:, None].astype(shape.dtype if window else np.float32)


_RULES: dict[str, _Rule] = {
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "OneHot": _one_hot,
    "STFT": _short_time_fourier,
}


OPERATORS = frozenset(_RULES)
"""The operators that are written out by rules here, whether or not the IR has ops for them."""


__all__ = ["OPERATORS", "written_out"]
