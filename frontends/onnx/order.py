"""The names of an ONNX model: each is made once, before it is read; nodes that are out of order are sorted.

ONNX asks for nodes in topological order, but onnxruntime runs models that are not, and some exporters write them.
Everything behind :func:`ordered` may rely on the order and on names that are made exactly once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto

from ...hosts.onnx.scopes import bodies, has_bodies
from ...ir import ModelError

_SHOWN = 4
"""Nodes of a cycle that an error names."""


def ordered(model: ModelProto, name: str, copy: bool) -> tuple[ModelProto, bool]:
    """Check the names of a model and put its nodes in topological order, those of bodies and functions included.

    The order is stable: of the nodes that may come next, the one that comes first in the model does.

    Args:
        model: The model.
        name: What errors call it.
        copy: Leave ``model`` as it is, and sort a copy.

    Returns:
        The model, and whether anything was sorted; a model in order is given back as it is.

    Raises:
        ModelError: If a name is empty, made twice or by nothing, or nodes form a cycle.
    """
    orders = _Orders(name)
    orders.graph(model.graph)
    for function in model.functions:
        orders.function(function)
    if not orders.found:
        return model, False
    if copy:
        copied = ModelProto()
        copied.CopyFrom(model)
        return ordered(copied, name, copy=False)
    for nodes, order in orders.found:
        in_order = [NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
        del nodes[:]
        nodes.extend(in_order)
    return model, True


class _Orders:
    """Checks scopes, inner ones first, and collects an order for each that is not sorted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[tuple[Any, list[int]]] = []
        """Lists of nodes and their order, inner ones before those that contain them."""

    def graph(self, graph: GraphProto) -> None:
        """Check the graph of a model."""
        made, read = self._scope(graph, "the graph")
        read |= {v.name: "as an output" for v in graph.output if v.name not in made}
        self._all_known(read, "the graph")

    def function(self, function: FunctionProto) -> None:
        """Check a local function."""
        where = f"function {function.name!r}"
        made: dict[str, str | int] = {}
        for name in function.input:
            self._define(made, name, "an input", (), where)
        self._outputs(function.output, where)
        read = self._nodes(function.node, made, where)
        read |= {name: "as an output" for name in function.output if name not in made}
        self._all_known(read, where)

    def _scope(self, graph: GraphProto, where: str) -> tuple[dict[str, str | int], dict[str, str]]:
        """Check a graph or a body.

        Returns:
            The names that it makes, and those that its nodes read and it does not make, each with its reader.
        """
        made: dict[str, str | int] = {}
        for value in graph.input:
            self._define(made, value.name, "an input", (), where)
        inputs = set(made)
        tensors: dict[str, Any] = {}
        for tensor in (*graph.initializer, *graph.sparse_initializer):
            sparse = isinstance(tensor, SparseTensorProto)
            name = tensor.values.name if sparse else tensor.name
            if name in tensors:
                # A second copy does no harm, and some converters write it.
                if tensor != tensors[name]:
                    raise self._error(f"{where} has two different initializers {name!r}")
                continue
            tensors[name] = tensor
            if name not in inputs:
                self._define(made, name, "an initializer", (), where)
        self._outputs((v.name for v in graph.output), where)
        return made, self._nodes(graph.node, made, where)

    def _nodes(
        self, nodes: Sequence[NodeProto], made: dict[str, str | int], where: str
    ) -> dict[str, str]:
        """Check nodes, whose results are added to ``made``; the names that they read and that are not made."""
        needs: list[list[str]] = []
        inner: dict[str, str] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if name:
                    self._define(made, name, index, nodes, where)
            needs.append([name for name in node.input if name])
            if isinstance(node.op_type, bytes) or isinstance(node.domain, bytes):
                raise self._error(f"the operator of {_label(node, index)} is not UTF-8")
            if has_bodies(node):
                captured = self._captures(node, index)
                needs[-1] += captured
                inner |= captured
        read: dict[str, str] = {}
        in_order = True
        for index, names in enumerate(needs):
            for name in names:
                place = made.get(name)
                if place is None:
                    read.setdefault(name, inner.get(name) or f"by {_label(nodes[index], index)}")
                elif isinstance(place, int):
                    in_order &= place < index
        if not in_order:
            self.found.append((nodes, self._order(nodes, needs, made, where)))
        return read

    def _captures(self, node: NodeProto, index: int) -> dict[str, str]:
        """Check the bodies of a node; the names that they read of the scopes around them."""
        captured: dict[str, str] = {}
        for number, body in enumerate(bodies(node)):
            where = f"body {body.name or number!r} of {_label(node, index)}"
            made, read = self._scope(body, where)
            read |= {v.name: f"as an output of {where}" for v in body.output if v.name not in made}
            captured |= read
        return captured

    def _order(
        self,
        nodes: Sequence[NodeProto],
        needs: Sequence[Iterable[str]],
        made: dict[str, str | int],
        where: str,
    ) -> list[int]:
        """A topological order by Kahn's algorithm; of the ready nodes, the first comes first."""
        waits: list[set[int]] = []
        for names in needs:
            places = (made.get(name) for name in names)
            waits.append({place for place in places if isinstance(place, int)})
        readers: list[list[int]] = [[] for _ in needs]
        for index, makers in enumerate(waits):
            for place in makers:
                readers[place].append(index)
        ready = [index for index, makers in enumerate(waits) if not makers]
        order: list[int] = []
        while ready:
            index = heapq.heappop(ready)
            order.append(index)
            for reader in readers[index]:
                waits[reader].discard(index)
                if not waits[reader]:
                    heapq.heappush(ready, reader)
        if len(order) < len(needs):
            raise self._error(f"{where} has a cycle: {self._cycle(nodes, waits)}")
        return order

    def _cycle(self, nodes: Sequence[NodeProto], waits: Sequence[set[int]]) -> str:
        """One cycle among nodes that wait for each other, from reader to maker and back."""
        place = next(index for index, makers in enumerate(waits) if makers)
        seen: dict[int, int] = {}
        path: list[int] = []
        while place not in seen:
            seen[place] = len(path)
            path.append(place)
            place = min(waits[place])
        cycle = path[seen[place] :]
        labels = [_label(nodes[i], i) for i in cycle[:_SHOWN]]
        more = f" and {len(cycle) - _SHOWN} more nodes" if len(cycle) > _SHOWN else ""
        if len(cycle) == 1:
            return f"{labels[0]} reads its own result"
        return f"{', which reads '.join(labels)}{more}, which reads the first"

    def _outputs(self, names: Iterable[str], where: str) -> None:
        seen: set[str] = set()
        for name in names:
            if not name:
                raise self._error(f"an output of {where} has no name")
            if name in seen:
                raise self._error(f"{where} has two outputs {name!r}")
            seen.add(name)

    def _define(
        self,
        made: dict[str, str | int],
        name: str,
        by: str | int,
        nodes: Sequence[NodeProto],
        where: str,
    ) -> None:
        """Record that an input, an initializer or a node (by its index) defines a name."""
        if not name:
            raise self._error(f"{by} of {where} has no name")
        if isinstance(name, bytes):  # What protobuf hands out for text that is not UTF-8.
            maker = by if isinstance(by, str) else _label(nodes[by], by)
            raise self._error(f"{maker} of {where} has a name that is not UTF-8: {name!r}")
        if name in made:
            both = (p if isinstance(p, str) else _label(nodes[p], p) for p in (made[name], by))
            raise self._error(f"{where} makes {name!r} twice: {' and '.join(both)}")
        made[name] = by

    def _all_known(self, read: dict[str, str], where: str) -> None:
        for name, reader in read.items():
            raise self._error(f"nothing in {where} makes {name!r}, which is read {reader}")

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self.name} is not valid ONNX: {text}")


def _label(node: NodeProto, index: int) -> str:
    """How errors call a node."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"node {index} ({node.op_type} of {', '.join(map(repr, node.output))})"


__all__ = ["ordered"]
