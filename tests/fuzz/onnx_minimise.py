"""Smaller ONNX models that are like a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .onnx_graphs import WEIGHT, Array, OnnxCase, typed
from .ort import OrtError, run_model


def smaller(case: OnnxCase) -> Iterator[OnnxCase]:
    """Simpler models, the shortest first."""
    graph, values = case.model.graph, _values(case)
    if len(case.feeds) > 1:
        yield OnnxCase(case.model, case.feeds[:1])
        yield OnnxCase(case.model, case.feeds[1:])
    outputs = [o.name for o in graph.output]
    # One result alone, from the first value on.
    if len(graph.node) > 1 or len(outputs) > 1:
        for node in graph.node:
            for name in node.output:
                if name and [name] != outputs and name in values:
                    yield _changed(case, lambda g, n=name: _set_outputs(g, [n], values))
    if len(outputs) > 1:
        for name in outputs:
            yield _changed(
                case, lambda g, n=name: _set_outputs(g, [o for o in outputs if o != n], values)
            )
    # A value comes in as an input, or is a constant, and what made it goes.
    inner = [
        n for node in reversed(graph.node) for n in node.output if n in values and n not in outputs
    ]
    many = list(case.feeds[1:])
    if not many:
        for name in inner:
            if (
                any(name in node.input for node in graph.node)
                and _producer(graph, name).op_type != "Constant"
            ):
                yield _as_input(case, name, values[name])
    for i, node in enumerate(graph.node):
        if not node.output or node.output[0] not in values:
            continue
        out = values[node.output[0]]
        for name in dict.fromkeys(node.input):
            alike = (
                name in values
                and values[name].shape == out.shape
                and values[name].dtype == out.dtype
            )
            if alike:
                yield _changed(case, lambda g, i=i, n=name: _bypass(g, i, n))
    if not many:
        for name in inner:
            yield _changed(case, lambda g, n=name: _fix(g, n, values[n]))
    yield from _plainer(case)


def _plainer(case: OnnxCase) -> Iterator[OnnxCase]:
    """The same nodes with fewer attributes and rounder numbers."""
    graph = case.model.graph

    def unless_same(change: Callable[[Any], None]) -> Iterator[OnnxCase]:
        made = _changed(case, change)
        if made.model.SerializeToString() != case.model.SerializeToString():
            yield made

    yield from unless_same(lambda g: g.ClearField("value_info"))
    yield from unless_same(lambda g: [_shaped(i, case.feeds[0]) for i in g.input])
    for i, node in enumerate(graph.node):
        for a in node.attribute:
            if not a.HasField("g"):
                yield _changed(case, lambda g, i=i, a=a: g.node[i].attribute.remove(a))
        if len(node.input) > 2:
            yield _changed(case, lambda g, i=i: g.node[i].input.pop())
    for i, stored in enumerate(graph.initializer):
        if not stored.name.startswith(WEIGHT):
            continue
        array = numpy_helper.to_array(stored)
        for plain in (np.ones_like(array), np.round(array * 2) / 2):
            if not np.array_equal(plain, array):
                yield _changed(
                    case,
                    lambda g, i=i, p=plain: g.initializer[i].CopyFrom(
                        numpy_helper.from_array(p.astype(p.dtype), g.initializer[i].name)
                    ),
                )
                break
    rounded = [
        {n: np.round(a * 2) / 2 if a.dtype.kind == "f" else a for n, a in f.items()}
        for f in case.feeds
    ]
    rounded = [
        {n: np.asarray(a, f[n].dtype) for n, a in r.items()}
        for r, f in zip(rounded, case.feeds, strict=True)
    ]
    if any(
        not np.array_equal(r[n], f[n]) for r, f in zip(rounded, case.feeds, strict=True) for n in f
    ):
        yield OnnxCase(case.model, rounded)


def _values(case: OnnxCase) -> dict[str, Array]:
    """All values of the outer graph, by name."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    known = {o.name for o in graph.output}
    names = [n for node in graph.node for n in node.output if n]
    graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    try:
        made = run_model(model, case.feeds[0])
    except OrtError:
        return {}
    values = dict(zip([o.name for o in graph.output], made, strict=True))
    values.update({t.name: numpy_helper.to_array(t) for t in graph.initializer})
    values.update(case.feeds[0])
    return {n: a for n, a in values.items() if isinstance(a, np.ndarray)}


def _changed(case: OnnxCase, change: Callable[[Any], object]) -> OnnxCase:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    change(model.graph)
    return _pruned(OnnxCase(model, case.feeds))


def _pruned(case: OnnxCase) -> OnnxCase:
    """Without what no output needs."""
    graph = case.model.graph
    needed = {o.name for o in graph.output}
    kept: list[int] = []
    progress = True
    while progress:  # Nodes may be out of order.
        progress = False
        for i, node in enumerate(graph.node):
            if i not in kept and needed & set(node.output):
                kept.append(i)
                needed |= set(node.input) | _inside(node)
                progress = True
    nodes = [graph.node[i] for i in sorted(kept)]
    copies = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for items in (graph.initializer, graph.input):
        gone = [item for item in items if item.name not in needed]
        for item in gone:
            items.remove(item)
    made = {n for node in graph.node for n in node.output}
    for item in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(item)
    names = {i.name for i in graph.input}
    return OnnxCase(case.model, [{n: a for n, a in f.items() if n in names} for f in case.feeds])


def _inside(node: onnx.NodeProto) -> set[str]:
    return {n for a in node.attribute if a.HasField("g") for inner in a.g.node for n in inner.input}


def _set_outputs(graph: Any, names: list[str], values: dict[str, Array]) -> None:
    del graph.output[:]
    graph.output.extend(typed(n, values[n], [None] * values[n].ndim) for n in names)


def _producer(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if name in node.output)


def _as_input(case: OnnxCase, name: str, value: Array) -> OnnxCase:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    node = _producer(model.graph, name)
    node.output[:] = [f"{n}_gone" if n == name else n for n in node.output]
    model.graph.input.append(typed(name, value))
    return _pruned(OnnxCase(model, [{**case.feeds[0], name: value}]))


def _bypass(graph: Any, place: int, name: str) -> None:
    node = graph.node[place]
    out = node.output[0]
    if any(o.name == out for o in graph.output):
        made = helper.make_node("Identity", [name], [out])
        if node.op_type != "Identity":
            node.CopyFrom(made)
        return
    del graph.node[place]
    for other in graph.node:
        other.input[:] = [name if n == out else n for n in other.input]


def _fix(graph: Any, name: str, value: Array) -> None:
    node = _producer(graph, name)
    node.output[:] = [f"{n}_gone" if n == name else n for n in node.output]
    prefix = name if name.startswith(WEIGHT) else f"c_{name}"
    for other in graph.node:
        other.input[:] = [prefix if n == name else n for n in other.input]
    graph.initializer.append(numpy_helper.from_array(value, prefix))


def _shaped(value: Any, feeds: dict[str, Array]) -> None:
    if value.name in feeds:
        value.CopyFrom(typed(value.name, feeds[value.name]))
