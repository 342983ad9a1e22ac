"""Writes models of opsets 7 and 8 in opset 9, the oldest that TensorRT's parser takes.

Few operators changed between them. onnx's own converter is not used, because it needs the numbers of all weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.scopes import unique_name
from ...ir import ModelError
from .draft import Draft, all_graphs, all_nodes, attributes

OLDEST, NEWEST = 7, 8
"""The opsets that are converted."""

TO = 9

_Change = Callable[[NodeProto, GraphProto, Callable[[str], str]], str | None]
"""Changes a node of a graph in place, with a function that makes unique names; returns why that is impossible, if it is."""


def raise_opset(draft: Draft) -> None:
    """Write a model of opset 7 or 8 in opset 9, in place; one of another opset is not changed.

    Raises:
        ModelError: If operators have a form that opset 9 lacks; it names all of them.
    """
    before = draft.opset
    if not OLDEST <= before <= NEWEST:
        return
    names = {name for node in all_nodes(draft.model.graph) for name in (*node.input, *node.output)}
    fresh = partial(unique_name, taken=names)

    problems = []
    for graph in list(all_graphs(draft.model.graph)):
        for node in list(graph.node):
            change = _CHANGED.get(node.op_type) if node.domain in DOMAINS else None
            problem = None if change is None else change(node, graph, fresh)
            if problem is not None:
                problems.append(f"{node.op_type} ({node.name or node.output[0]}) {problem}")
    if problems:
        raise ModelError(
            f"the model has opset {before}, and opset {TO} cannot express it: {'; '.join(problems)}: "
            "export it with a newer opset"
        )
    for entry in draft.model.opset_import:
        if entry.domain in DOMAINS:
            entry.version = TO
    draft.notes.append(f"opset {before} became opset {TO}")


def _upsample(node: NodeProto, graph: GraphProto, fresh: Callable[[str], str]) -> str | None:
    """The scales are an input since opset 9."""
    scales = attributes(node)["scales"]
    kept = [a for a in node.attribute if a.name != "scales"]
    name = fresh(f"{node.output[0]}_scales")
    graph.initializer.append(numpy_helper.from_array(np.asarray(scales, np.float32), name))
    del node.attribute[:]
    node.attribute.extend(kept)
    node.input.append(name)
    return None


def _batch_norm(node: NodeProto, graph: GraphProto, fresh: Callable[[str], str]) -> str | None:
    """Statistics of every number of a sample, ``spatial=0``, went with opset 9."""
    if attributes(node).get("spatial", 1) != 1:
        return "normalises every number of a sample by itself (spatial=0)"
    kept = [a for a in node.attribute if a.name != "spatial"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return None


def _scan(node: NodeProto, graph: GraphProto, fresh: Callable[[str], str]) -> str | None:
    return "scans batches, which it does in opset 8 only"


_CHANGED: dict[str, _Change] = {
    "Upsample": _upsample,
    "BatchNormalization": _batch_norm,
    "Scan": _scan,
}


__all__ = ["raise_opset"]
