"""Whole ONNX models: a random graph, in the unusual forms that files of old and new exporters have."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .draw import Draw
from .onnx_graphs import FLOAT, WEIGHT, Array, Builder, OnnxCase, model_of, typed
from .onnx_menu import MENU, start, weight
from .ort import OrtError, run_model

OPSETS = {7: 1, 8: 1, 9: 2, 10: 2, 11: 3, 12: 2, 13: 4, 14: 1, 15: 1, 16: 1, 17: 4, 18: 3, 19: 1, 20: 3, 21: 2, 22: 1}  # fmt: skip


def onnx_case(seed: int) -> OnnxCase:
    """The model of a seed."""
    for attempt in range(20):
        draw = Draw(f"onnx {seed} {attempt}")
        b = Builder(draw, draw.weighted(OPSETS), plain=draw.chance(0.5))
        b.add_input(start(b))
        if draw.chance(0.2):
            b.add_input(start(b))
        for _ in range(draw.pick([2, 4, 7, 12, 20])):
            entry = draw.weighted(MENU)
            entry(b)
            if draw.chance(0.05) and not b.plain:
                control(b)
        if b.nodes:
            made = _finished(b)
            if made is not None:
                return made
    raise AssertionError(f"seed {seed} gives no model")


def control(b: Builder) -> object:
    """An If or a Loop whose bodies capture values and weights from outside."""
    draw, x = b.draw, b.pick(b.floats(low=1))
    if x is None or b.opset < 11:
        return None
    w = weight(b, *([1] * b.values[x].ndim), scale=1)

    def body(name: str, op: str, inputs: list[Any], first: list[str]) -> onnx.GraphProto:
        out = b.name("o")
        nodes = [helper.make_node(op, first, [out])]
        outputs = [helper.make_tensor_value_info(out, FLOAT, None)]
        inside = []
        if draw.chance(0.3):
            own = b.name(WEIGHT)
            inside.append(numpy_helper.from_array(draw.normal(1), own))
            nodes = [
                helper.make_node(op, first, [f"{out}_"]),
                helper.make_node("Add", [f"{out}_", own], [out]),
            ]
        if inputs:
            same = f"{out}_go"
            nodes.append(helper.make_node("Identity", [inputs[1].name], [same]))
            outputs.insert(0, helper.make_tensor_value_info(same, onnx.TensorProto.BOOL, []))
        return helper.make_graph(nodes, name, inputs, outputs, inside)

    if draw.chance(0.6):
        if draw.chance(0.5):
            condition = b.constant(draw.chance(0.5), np.bool_)
        else:
            total = b.node("ReduceSum", [x], keepdims=0)
            made = total and b.node("Greater", [total, b.constant(0.1, np.float32)])
            if made is None:
                return None
            condition = made
        then = body("then", "Mul", [], [x, w])
        otherwise = body("else", draw.pick(["Add", "Sub"]), [], [x, w])
        node = helper.make_node(
            "If", [condition], [b.name("v")], then_branch=then, else_branch=otherwise
        )
        return b.append(node, [x, w])
    inputs = [
        helper.make_tensor_value_info(b.name("i"), onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info(b.name("k"), onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info(b.name("s"), FLOAT, None),
    ]
    loop = body("body", "Add", inputs, [inputs[2].name, w])
    trips, go = b.constant(2, np.int64), b.constant(True, np.bool_)
    return b.append(helper.make_node("Loop", [trips, go, x], [b.name("v")], body=loop), [w])


def _finished(b: Builder) -> OnnxCase | None:
    """A model of the graph, with inputs for several sizes."""
    draw = b.draw
    read = {n for node in b.nodes for n in node.input} | _captured(b)
    made = [n for node in b.nodes for n in node.output]
    leaves = [n for n in made if n not in read]
    outputs = leaves[-3:] if draw.chance(0.7) else draw.some(leaves)[:4]
    if draw.chance(0.25):
        outputs += [n for n in draw.some(made)[:2] if n not in outputs]
    if draw.chance(0.03) and b.constants:
        outputs.append(draw.pick(list(b.constants)))
    if draw.chance(0.02):
        outputs.append(b.inputs[0])
    outputs = draw.shuffled(list(dict.fromkeys(outputs)))
    shapes: dict[str, list[int | str | None]] = {n: list(b.shape(n)) for n in b.inputs}
    feeds = {n: b.values[n] for n in b.inputs}
    for name in b.inputs:
        if name.startswith("s"):
            shapes[name] = [None]
    if draw.chance(0.35):
        for name in b.inputs:
            for axis, symbol in enumerate("NCHWD"[: len(shapes[name])]):
                if (
                    not name.startswith("s")
                    and axis != 1
                    and draw.chance(0.6 if axis == 0 else 0.3)
                ):
                    shapes[name][axis] = draw.weighted(
                        {f"{symbol}{shapes[name][axis]}": 5, None: 1}
                    )
    for attempt in range(2):
        case = _case(b, outputs, shapes, feeds)
        try:
            run_model(case.model, feeds)
        except OrtError:
            if attempt:
                return None
            shapes = {n: list(b.shape(n)) for n in b.inputs}
            continue
        case.feeds += _other_sizes(case, shapes, draw)
        if draw.chance(0.06):
            case = with_function(case, draw) or case
        if draw.chance(0.08):
            case = with_body(case, draw) or case
        if draw.chance(0.06):
            case = of_type(case, draw.pick([np.float64, np.float64, np.float16])) or case
        return case
    return None


def _captured(b: Builder) -> set[str]:
    return {
        name
        for node in b.nodes
        for a in node.attribute
        if a.HasField("g")
        for inner in a.g.node
        for name in inner.input
    }


def _other_sizes(
    case: OnnxCase, shapes: dict[str, list[Any]], draw: Draw
) -> list[dict[str, Array]]:
    """Inputs of other sizes, if the model runs on them."""
    if all(isinstance(d, int) for shape in shapes.values() for d in shape):
        return []
    if any(a.dtype.kind != "f" for a in case.feeds[0].values()):
        return []  # Sizes that are inputs fit only the original inputs.
    more = draw.pick([1, 2])
    other = {
        n: draw.normal(
            *(
                d if isinstance(d, int) else d0 + more
                for d, d0 in zip(shapes[n], a.shape, strict=True)
            )
        )
        for n, a in case.feeds[0].items()
    }
    try:
        made = run_model(case.model, other)
    except OrtError:
        return []
    tame = all(np.all(np.abs(a) < 1e4) for a in made if a.dtype.kind == "f")
    return [other] if tame else []


def with_function(case: OnnxCase, draw: Draw) -> OnnxCase | None:
    """Replace consecutive nodes by a call of a local function, if onnxruntime runs it."""
    graph = case.model.graph
    first = draw.whole(0, len(graph.node) - 1)
    inside = list(graph.node[first : first + draw.whole(1, 4)])
    if any(a.HasField("g") for node in inside for a in node.attribute):
        return None
    made = [n for node in inside for n in node.output if n]
    given = list(dict.fromkeys(n for node in inside for n in node.input if n and n not in made))
    if not given:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.node[first : first + len(inside)]
    call = helper.make_node("Part", given, made, domain="local", name="call")
    model.graph.node.insert(first, call)
    del model.graph.value_info[:]
    part = helper.make_function("local", "Part", given, made, inside, list(case.model.opset_import))
    model.functions.append(part)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = max(8, model.ir_version)
    return _running(OnnxCase(model, case.feeds))


def with_body(case: OnnxCase, draw: Draw) -> OnnxCase | None:
    """Move consecutive nodes into the branches of an If, or into a Loop that runs once, if onnxruntime runs it."""
    graph = case.model.graph
    opset = max(o.version for o in case.model.opset_import if not o.domain)
    first = draw.whole(0, len(graph.node) - 1)
    inside = list(graph.node[first : first + draw.whole(1, 8)])
    made = [n for node in inside for n in node.output if n]
    if opset < 13 or any(a.HasField("g") for node in inside for a in node.attribute):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.node[first : first + len(inside)]
    del model.graph.value_info[:]
    kept = {n for node in model.graph.node for n in node.input} | {v.name for v in graph.output}
    results = [n for n in made if n in kept] or made[-1:]
    elsewhere = kept | {v.name for v in graph.input}
    moved = [t for t in graph.initializer if t.name not in elsewhere and draw.chance(0.5)]

    def body(mark: str, inputs: list[Any]) -> onnx.GraphProto:
        new = {n: f"{n}{mark}" for n in [*made, *(t.name for t in moved)]}
        nodes, tensors = [], []
        for node in inside:
            twin = onnx.NodeProto.FromString(node.SerializeToString())
            twin.input[:] = [new.get(n, n) for n in node.input]
            twin.output[:] = [new.get(n, n) for n in node.output]
            nodes.append(twin)
        for stored in moved:
            tensors.append(onnx.TensorProto.FromString(stored.SerializeToString()))
            tensors[-1].name = new[stored.name]
        outputs = [onnx.ValueInfoProto(name=new[n]) for n in results]
        if inputs:
            nodes.append(helper.make_node("Identity", [inputs[1].name], [f"go{mark}"]))
            outputs.insert(0, typed(f"go{mark}", np.asarray(True)))
        return helper.make_graph(nodes, f"body{mark}", inputs, outputs, tensors)

    used = {n for t in moved for n in [t.name]}
    stays = [t for t in graph.initializer if t.name not in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stays)
    one = numpy_helper.from_array(np.asarray([1], np.int64), "body_one")
    yes = numpy_helper.from_array(np.asarray(True), "body_yes")
    source = next((v.name for v in graph.input if v.type.tensor_type.elem_type == FLOAT), None)
    if source is None:
        return None
    if draw.chance(0.6):
        # The condition depends on an input, so that no importer decides it.
        whole = [
            helper.make_node("ReduceSum", [source], ["body_sum"], keepdims=0),
            helper.make_node("Greater", ["body_sum", "body_sum"], ["body_no"]),
            helper.make_node("If", ["body_no"], results, then_branch=body("_t", []), else_branch=body("_e", [])),
        ]  # fmt: skip
        if draw.chance(0.5):
            whole.insert(2, helper.make_node("Not", ["body_no"], ["body_is"]))
            whole[3].input[0] = "body_is"
    else:
        model.graph.initializer.extend([one, yes])
        inputs = [typed("body_i", np.asarray(0)), typed("body_k", np.asarray(True))]
        stacked = [f"{n}_stacked" for n in results]
        loop = helper.make_node("Loop", ["body_one", "body_yes"], stacked, body=body("_l", inputs))
        whole = [loop]
        whole += [
            helper.make_node("Squeeze", [a, "body_one_axis"], [n])
            for a, n in zip(stacked, results, strict=True)
        ]
        axis = numpy_helper.from_array(np.asarray([0], np.int64), "body_one_axis")
        model.graph.initializer.append(axis)
    for node in reversed(whole):
        model.graph.node.insert(first, node)
    return _running(OnnxCase(model, case.feeds))


def of_type(case: OnnxCase, dtype: Any) -> OnnxCase | None:
    """The case in another float type, if onnxruntime runs it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    if any(a.HasField("g") for node in graph.node for a in node.attribute):
        return None

    finite = True

    def converted(stored: onnx.TensorProto) -> None:
        nonlocal finite
        if stored.data_type == FLOAT:
            before = numpy_helper.to_array(stored)
            with np.errstate(over="ignore"):
                array = before.astype(dtype)
            # Jobs ask whether what was finite stays so: a weight that has no such number in the other type is none for them.
            finite = finite and bool(np.array_equal(np.isfinite(before), np.isfinite(array)))
            stored.CopyFrom(numpy_helper.from_array(array, stored.name))

    for stored in graph.initializer:
        converted(stored)
    for node in [*graph.node, *(n for f in model.functions for n in f.node)]:
        for a in node.attribute:
            if a.HasField("t"):
                converted(a.t)
            elif node.op_type == "Cast" and a.name == "to" and a.i == FLOAT:
                a.i = kind
    if not finite:
        return None
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = kind
    del graph.value_info[:]
    feeds = [
        {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in f.items()}
        for f in case.feeds
    ]
    return _running(OnnxCase(model, feeds))


def _running(case: OnnxCase) -> OnnxCase | None:
    """The case, if onnxruntime runs it and its numbers are not too large."""
    try:
        made = [a for feeds in case.feeds for a in run_model(case.model, feeds)]
    except OrtError:
        return None
    return case if all(np.all(np.abs(a) < 1e4) for a in made if a.dtype.kind == "f") else None


def _case(
    b: Builder, outputs: list[str], shapes: dict[str, Any], feeds: dict[str, Array]
) -> OnnxCase:
    draw = Draw(f"forms {len(b.nodes)} {b.opset} {outputs}")
    nodes = list(b.nodes)
    wanted = set(outputs) | _captured(b) | {n for node in nodes for n in node.input}
    constants = {n: a for n, a in b.constants.items() if n in wanted or draw.chance(0.2)}
    stored = dict(constants)
    if draw.chance(0.25):
        for name in draw.some(list(stored)) if stored else []:
            if name not in outputs:
                value = numpy_helper.from_array(np.asarray(stored.pop(name)), name)
                nodes.insert(0, helper.make_node("Constant", [], [name], value=value))
    initializers = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    inputs = [typed(n, a, shapes[n]) for n, a in feeds.items()]
    version = None
    if draw.chance(0.08) and stored:
        names = draw.some(list(stored)) if draw.chance(0.5) else list(stored)
        inputs += [typed(n, np.asarray(stored[n])) for n in names]
        version = draw.pick([4, 6, 7]) if b.opset <= 12 else None
    if draw.chance(0.05):
        nodes = draw.shuffled(nodes)
    full = all(isinstance(d, int) for shape in shapes.values() for d in shape) and draw.chance(0.6)
    results = [typed(n, b.values[n], None if full else [None] * b.values[n].ndim) for n in outputs]
    graph = helper.make_graph(nodes, "fuzz", inputs, results, initializers)
    if draw.chance(0.3):
        for node in graph.node:
            node.name = ""
    model = model_of(graph, b.opset, version)
    if draw.chance(0.3):
        # Where inference fails, the file's maker had none.
        with contextlib.suppress(Exception):
            model = onnx.shape_inference.infer_shapes(model)
    return OnnxCase(model, [feeds])
