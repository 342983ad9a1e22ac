"""The verifier: checks the structure of a graph; it runs after every pass."""

from __future__ import annotations

from .errors import counted
from .graph import Graph, GraphError, Node, Value, check_arity
from .ops import InferenceError


class VerificationError(GraphError):
    """A graph is inconsistent; the message names the node or value."""


def verify(graph: Graph) -> None:
    """Check topological order, links, use lists, names, and that types agree with what the ops infer.

    Raises:
        VerificationError: At the first inconsistency.
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
                raise VerificationError(f"{node.name} reads %{read.name} before it is defined")
            uses.setdefault(read, set()).add((node, i))
        for value in node.outputs:
            if value.producer is not node:
                raise VerificationError(f"%{value.name} does not have {node.name} as its producer")
            define(value)
        _check_types(node)
    if count != len(graph):
        raise VerificationError(f"{count} nodes are linked, but the count is {len(graph)}")
    if graph._last is not previous:
        raise VerificationError("the last node is not the end of the linked list")
    returned: dict[Value, int] = {}
    for value in graph.outputs:
        if value not in seen:
            raise VerificationError(f"output %{value.name} is never defined")
        returned[value] = returned.get(value, 0) + 1
    if len(graph.outputs) != len(graph.output_names):
        raise VerificationError("the numbers of outputs and of output names differ")
    if graph._names != names:
        wrong = ", ".join(f"%{name}" for name in sorted(graph._names ^ names)[:5])
        raise VerificationError(f"the graph's set of names in use is wrong about {wrong}")
    for value in seen:
        if value._uses.keys() != uses.get(value, set()):
            raise VerificationError(f"the use list of %{value.name} is wrong")
        if value.outputs != returned.get(value, 0):
            raise VerificationError(f"the output count of %{value.name} is wrong")


def _check_types(node: Node) -> None:
    try:
        check_arity(node.op, len(node.inputs))
        inferred = node.op.infer(node.input_types)
    except (GraphError, InferenceError) as error:
        raise VerificationError(f"{node.name}: {error}") from error
    if inferred is None:
        return
    if len(inferred) != len(node.outputs):
        raise VerificationError(
            f"{node.name}: {node.op.name} has {counted(len(inferred), 'result')}, not {len(node.outputs)}"
        )
    for value, type_ in zip(node.outputs, inferred, strict=True):
        if not value.type.accepts(type_):
            raise VerificationError(
                f"{node.name}: {node.op.name} gives {type_}, but the result is {value!r}"
            )
