"""The structural checks that every graph must pass after every pass."""

from __future__ import annotations

from .graph import Graph, GraphError, Node, Value
from .ops import InferenceError


class VerificationError(GraphError):
    """A graph is broken; the message names the node or value."""


def verify(graph: Graph) -> None:
    """Check order, links, use lists, names, and that types fit what the ops infer.

    Raises:
        VerificationError: At the first thing that is wrong.
    """
    seen: set[Value] = set()
    names: set[str] = set()
    uses: dict[Value, set[tuple[Node, int]]] = {}

    def define(value: Value) -> None:
        if value.name in names:
            raise VerificationError(f"two values are named %{value.name}")
        names.add(value.name)
        seen.add(value)
        if value.data is not None and not value.type.accepts(value.data.type):
            raise VerificationError(f"{value!r} holds a tensor of type {value.data.type}")

    for value in graph.inputs:
        define(value)
    for value in graph.constants:
        if value.data is None:
            raise VerificationError(f"constant %{value.name} has no data")
        define(value)
    count = 0
    previous: Node | None = None
    for node in graph.nodes:
        count += 1
        if node.graph is not graph or node._prev is not previous or count > len(graph):
            raise VerificationError(f"{node.name} is not linked into its graph")
        previous = node
        for i, read in enumerate(node.inputs):
            if read is None:
                continue
            if read not in seen:
                raise VerificationError(f"{node.name} reads %{read.name} before it is made")
            uses.setdefault(read, set()).add((node, i))
        for value in node.outputs:
            if value.producer is not node:
                raise VerificationError(f"%{value.name} does not know its producer {node.name}")
            define(value)
        _check_types(node)
    if count != len(graph):
        raise VerificationError(f"{count} nodes are linked, {len(graph)} are counted")
    if graph._last is not previous:
        raise VerificationError("the last node is not the end of the list")
    returned: dict[Value, int] = {}
    for value in graph.outputs:
        if value not in seen:
            raise VerificationError(f"output %{value.name} is never made")
        returned[value] = returned.get(value, 0) + 1
    if len(graph.outputs) != len(graph.output_names):
        raise VerificationError("outputs and their names differ in number")
    if graph._names != names:
        odd = ", ".join(f"%{name}" for name in sorted(graph._names ^ names)[:5])
        raise VerificationError(f"the graph's record of names in use is wrong: {odd}")
    for value in seen:
        if value._uses.keys() != uses.get(value, set()):
            raise VerificationError(f"the use list of %{value.name} is wrong")
        if value.outputs != returned.get(value, 0):
            raise VerificationError(f"the output count of %{value.name} is wrong")


def _check_types(node: Node) -> None:
    low, high = node.op.arity
    if len(node.inputs) < low or (high is not None and len(node.inputs) > high):
        raise VerificationError(f"{node.name}: {node.op.name} with {len(node.inputs)} inputs")
    try:
        inferred = node.op.infer(node.input_types)
    except InferenceError as error:
        raise VerificationError(f"{node.name}: {error}") from error
    if inferred is None:
        return
    if len(inferred) != len(node.outputs):
        raise VerificationError(f"{node.name}: {node.op.name} has {len(inferred)} results")
    for value, type_ in zip(node.outputs, inferred, strict=True):
        if not value.type.accepts(type_):
            raise VerificationError(f"{node.name}: {value!r}, but {node.op.name} gives {type_}")
