"""Writes pools over one axis as pools over two, of which the first has size 1: TensorRT pools over two or three axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.scopes import unique_name
from .draft import Draft, all_graphs, all_nodes, attributes

_POOLS = ("AveragePool", "LpPool", "MaxPool")

_ATTRIBUTES = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0, 0]}
"""What the additional axis adds to each attribute, in front of what each end has."""


def widen_pools(draft: Draft) -> None:
    """Replace pools over one axis by an Unsqueeze, a pool over two axes and a Squeeze, in place."""
    if not any(map(_is_flat, all_nodes(draft.model.graph))):
        return
    taken = {name for node in all_nodes(draft.model.graph) for name in (*node.input, *node.output)}
    fresh = partial(unique_name, taken=taken)

    for graph in list(all_graphs(draft.model.graph)):
        if any(map(_is_flat, graph.node)):
            nodes = [
                part
                for node in graph.node
                for part in (
                    _widened(node, graph, draft.opset, fresh)
                    if _is_flat(node)
                    else [NodeProto.FromString(node.SerializeToString())]
                )
            ]
            del graph.node[:]
            graph.node.extend(nodes)


def _is_flat(node: NodeProto) -> bool:
    if node.op_type not in _POOLS or node.domain not in DOMAINS:
        return False
    kernel = attributes(node).get("kernel_shape")
    return isinstance(kernel, list | tuple) and len(kernel) == 1


def _widened(
    node: NodeProto, graph: GraphProto, opset: int, fresh: Callable[[str], str]
) -> Iterator[NodeProto]:
    wide = NodeProto.FromString(node.SerializeToString())
    for attribute in wide.attribute:
        more = _ATTRIBUTES.get(attribute.name)
        if more is not None:
            step = len(attribute.ints) // len(more)
            sizes = [x for i, a in enumerate(more) for x in (a, *attribute.ints[i * step :][:step])]
            attribute.ints[:] = sizes
    axes: dict[str, Any] = {"axes": [2]}
    more_inputs: list[str] = []
    if opset >= 13:
        name = fresh(f"{node.output[0]}_axis")
        graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), name))
        axes, more_inputs = {}, [name]
    label = node.name or node.output[0]
    wide.input[0] = fresh(f"{node.input[0]}_2d")
    outputs = [(i, out, fresh(f"{out}_2d")) for i, out in enumerate(node.output) if out]
    yield helper.make_node(
        "Unsqueeze", [node.input[0], *more_inputs], [wide.input[0]], f"{label}_unsqueeze", **axes
    )
    for i, _, inner in outputs:
        wide.output[i] = inner
    yield wide
    for i, out, inner in outputs:
        end = "squeeze" if i == 0 else f"squeeze_{i}"
        yield helper.make_node("Squeeze", [inner, *more_inputs], [out], f"{label}_{end}", **axes)


__all__ = ["widen_pools"]
