"""A region as a graph of its own, to measure what it costs."""

from __future__ import annotations

from ..ir import Graph, ModelError, Node, TensorType, Value


def region_graph(graph: Graph, entry: str, exit: str) -> Graph:
    """The nodes that compute one value from another, as a graph with one input and one output.

    An open batch becomes a batch of one sample.

    Args:
        graph: A graph.
        entry: The name of the value that the region reads.
        exit: The name of the value that it computes.

    Raises:
        ModelError: If the value depends on anything else, or sizes are open.
    """
    values = {v.name: v for v in graph.values()}
    start, end = values[entry], values[exit]
    inside: set[Node] = set()
    stack = [end]
    while stack:
        value = stack.pop()
        node = value.producer
        if value is start or value.data is not None or node in inside:
            continue
        if node is None:
            raise ModelError(f"%{exit} depends on more than %{entry}")
        inside.add(node)
        stack += [v for v in node.inputs if v is not None]
    made = Graph("region")
    twins: dict[Value, Value] = {start: made.add_input("x", closed(start.type))}
    for node in graph.nodes:
        if node not in inside:
            continue
        inputs = [_twin(made, twins, v) for v in node.inputs]
        types = [closed(v.type) for v in node.outputs]
        if node.op.infer([v.type if v is not None else None for v in inputs]) is not None:
            twin = made.append(node.op, inputs, name=node.name)
        else:
            twin = made.append(node.op, inputs, name=node.name, types=types)
        twins.update(zip(node.outputs, twin.outputs, strict=True))
    made.add_output(twins[end], "y")
    return made


def closed(type_: TensorType) -> TensorType:
    """The type with a batch of one sample where the batch is open.

    Raises:
        ModelError: If another size is open.
    """
    made = type_.one_sample()
    if not made.is_static:
        raise ModelError(f"sizes of a value are open: {type_}")
    return made


def _twin(made: Graph, twins: dict[Value, Value], value: Value | None) -> Value | None:
    if value is None:
        return None
    if value not in twins:
        assert value.data is not None
        twins[value] = made.add_constant(value.data, value.name)
    return twins[value]
