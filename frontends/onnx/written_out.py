"""Operators without an op in the IR, written as several others: those that ONNX defines by a function, and those of dynamic quantisation.

An integer product becomes a product of float32, exact for sums up to 2**24.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ...hosts.onnx.operators import DOMAINS, function_schema, opset_of, write_defaults
from ...hosts.onnx.scopes import unique_name

_Fresh = Callable[[str], str]
_Ranks = Mapping[str, int]
"""The numbers of axes of the values of which they are known."""


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
    ranks = _ranks(model)
    for node in graph.node:
        if node.op_type == name and node.domain in DOMAINS:
            nodes += _RULES[name](node, fresh, ranks)
        else:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _ranks(model: ModelProto) -> dict[str, int]:
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # Types that contradict each other.
        graph = model.graph
    found = {t.name: len(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = len(value.type.tensor_type.shape.dim)
    return found


def _matmul_integer(node: NodeProto, fresh: _Fresh, ranks: _Ranks) -> Iterator[NodeProto]:
    """``(a - a_zero) @ (b - b_zero)``; a vector of zero points has one for each row of a, or column of b."""
    rows = ranks.get(node.input[0]) != 1 and _is_vector(node, 2, ranks)
    yield from _product(node, fresh, "MatMul", ([-1, 1] if rows else None, None))


def _conv_integer(node: NodeProto, fresh: _Fresh, ranks: _Ranks) -> Iterator[NodeProto]:
    """A convolution of ``x - x_zero``, which pads with 0, by ``w - w_zero``; a vector has a zero point for each output channel."""
    shape = [-1] + [1] * (ranks.get(node.input[1], 4) - 1)
    yield from _product(node, fresh, "Conv", (None, shape if _is_vector(node, 3, ranks) else None))


def _is_vector(node: NodeProto, place: int, ranks: _Ranks) -> bool:
    """Whether an optional input is a vector, or may be one."""
    return len(node.input) > place and ranks.get(node.input[place], 1) == 1


def _dynamic_quantize(node: NodeProto, fresh: _Fresh, _: _Ranks) -> Iterator[NodeProto]:
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


_RULES: dict[str, Callable[[NodeProto, _Fresh, _Ranks], Iterator[NodeProto]]] = {
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "DynamicQuantizeLinear": _dynamic_quantize,
}


OPERATORS = frozenset(_RULES)
"""The operators that are written out by rules here, whether or not the IR has ops for them."""


__all__ = ["OPERATORS", "written_out"]
