"""Graphs as :class:`networkx.MultiDiGraph`, to analyse or draw them with the ecosystem's tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import MissingExtra
from .graph import Graph, Value

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph, constants: bool = False) -> networkx.MultiDiGraph[Any]:
    """Convert a graph to a networkx multigraph; see :meth:`graphshrink.ir.Graph.to_networkx`."""
    try:
        import networkx
    except ImportError as error:
        raise MissingExtra("Graph.to_networkx", "networkx", "networkx") from error

    result: networkx.MultiDiGraph[Any] = networkx.MultiDiGraph(name=graph.name)
    producers: dict[Value, str] = {}
    taken: set[str] = set()

    def add(name: str, macs: int | None = 0, **attributes: Any) -> str:
        if macs is not None:
            attributes["macs"] = macs
        key, count = name, 0
        while key in taken:
            count += 1
            key = f"{name}_{count}"
        taken.add(key)
        result.add_node(key, **attributes)
        return key

    for value in graph.inputs:
        producers[value] = add(value.name, op="Input", type=str(value.type))
    for node in graph.nodes:
        key = add(
            node.name,
            op=node.op.name,
            payload=repr(node.op),
            type=", ".join(str(v.type) for v in node.outputs),
            macs=node.op.macs(list(node.input_types), [v.type for v in node.outputs]),
        )
        for index, read in enumerate(node.inputs):
            if read is None or (read not in producers and not constants):
                continue
            if read not in producers:
                producers[read] = add(read.name, op="Constant", type=str(read.type))
            result.add_edge(
                producers[read], key, tensor=read.name, type=str(read.type), input=index
            )
        for value in node.outputs:
            producers[value] = key
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        key = add(name, op="Output", type=str(value.type))
        if value in producers:
            result.add_edge(producers[value], key, tensor=value.name, type=str(value.type), input=0)
    return result
