"""Graphs, nodes and values, and the links between them.

A graph is in SSA form and in topological order: each value is an input, a constant or the result of one node, and each
node comes after the producers of its inputs. Nodes form a doubly linked list, so that inserting or removing one takes
constant time anywhere. The functions of this module that change links also update the use lists; no other code may write
to them. Passes change a graph through :class:`graphshrink.ir.Rewriter`; frontends build one with :meth:`Graph.append`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import GraphshrinkError, counted
from .ops import Op, Opaque
from .tensor import DerivedTensor, Tensor
from .types import UNKNOWN, TensorType

if TYPE_CHECKING:
    import networkx


class GraphError(GraphshrinkError):
    """A call would break a graph, or uses one wrongly."""


class Value:
    """A tensor that flows through the graph, or a constant.

    Attributes:
        name: Unique in its graph.
        type: Element type and shape, as far as known.
        data: The tensor of a constant, else ``None``. A constant is a weight, or the result of a constant subgraph
            (then ``producer`` is the node that computes it).
        producer: The node whose result this is; ``None`` for inputs and plain constants.
        host: The host's name of this value; ``None`` for a value that the host does not have.
        bases: The host values that this constant was made from, if it is another form of them (a transposed
            weight). The host's nodes read these as long as they are copied.
        outputs: How many times the graph returns this value.
    """

    __slots__ = ("_uses", "bases", "data", "host", "name", "outputs", "producer", "type")

    def __init__(self, name: str, type: TensorType = UNKNOWN, data: Tensor | None = None) -> None:
        self.name = name
        self.type = type
        self.data = data
        self.producer: Node | None = None
        self.host: Any = None
        self.bases: tuple[Value, ...] = ()
        self._uses: dict[tuple[Node, int], None] = {}
        self.outputs = 0

    @property
    def uses(self) -> tuple[tuple[Node, int], ...]:
        """The (node, input index) pairs that read this value, oldest first."""
        return tuple(self._uses)

    @property
    def users(self) -> tuple[Node, ...]:
        """The nodes that read this value, each once, oldest first."""
        return tuple(dict.fromkeys(node for node, _ in self._uses))

    @property
    def is_output(self) -> bool:
        """True when the graph returns this value."""
        return self.outputs > 0

    @property
    def use_count(self) -> int:
        """The number of node inputs and graph outputs that read the value."""
        return len(self._uses) + self.outputs

    @property
    def has_one_use(self) -> bool:
        """True when exactly one node input reads the value and the graph does not return it."""
        return len(self._uses) == 1 and not self.outputs

    @property
    def index(self) -> int:
        """The index among its producer's outputs; 0 without a producer."""
        return 0 if self.producer is None else self.producer.outputs.index(self)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One application of an op to values.

    Attributes:
        op: The op that it applies.
        name: A name for people: the host's node or module name. Not necessarily unique.
        origin: The frontend's record of the host node or nodes that this node is equal to; ``None`` once it was
            rewritten.
    """

    __slots__ = ("_inputs", "_next", "_outputs", "_prev", "graph", "name", "op", "origin")

    def __init__(self, op: Op, name: str) -> None:
        self.op = op
        self.name = name
        self.origin: Any = None
        self.graph: Graph | None = None
        self._inputs: tuple[Value | None, ...] = ()
        self._outputs: tuple[Value, ...] = ()
        self._prev: Node | None = None
        self._next: Node | None = None

    __match_args__ = ("op", "inputs", "outputs")

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """The values that it reads; ``None`` for an optional input that is left out."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that it produces."""
        return self._outputs

    @property
    def output(self) -> Value:
        """The first result."""
        return self._outputs[0]

    @property
    def is_constant(self) -> bool:
        """Whether all results are known constants; false for a node without results."""
        return bool(self._outputs) and all(v.data is not None for v in self._outputs)

    @property
    def macs(self) -> int | None:
        """Its multiply-accumulate operations, for one sample if the batch is open; ``None`` if other sizes are open."""
        reads = [None if t is None else t.one_sample() for t in self.input_types]
        return self.op.macs(reads, [v.type.one_sample() for v in self._outputs])

    @property
    def op_name(self) -> str:
        """The name of its op, or the host's name for what is not understood."""
        return self.op.kind if isinstance(self.op, Opaque) else self.op.name

    @property
    def input_types(self) -> tuple[TensorType | None, ...]:
        """The types of the inputs."""
        return tuple(v.type if v is not None else None for v in self._inputs)

    def input(self, index: int) -> Value | None:
        """The input at an index, or ``None`` when it is left out."""
        return self._inputs[index] if index < len(self._inputs) else None

    def required(self, index: int) -> Value:
        """The input at an index, for inputs that the op always has.

        Raises:
            GraphError: If it is left out.
        """
        value = self.input(index)
        if value is None:
            raise GraphError(f"{self.name}: {self.op.name} has no input {index}")
        return value

    def __repr__(self) -> str:
        outs = ", ".join(f"%{v.name}" for v in self._outputs)
        ins = ", ".join("none" if v is None else f"%{v.name}" for v in self._inputs)
        return f"{outs} = {self.op!r}({ins})"


def sketch(op: Op, inputs: Sequence[Value | None], name: str = "") -> Node:
    """A node that belongs to no graph and has no results, to ask a target whether it could write such a node."""
    node = Node(op, name or op.name)
    node._inputs = tuple(inputs)
    return node


def check_arity(op: Op, count: int) -> None:
    """Check that an op takes this number of inputs.

    Raises:
        GraphError: If it does not.
    """
    low, high = op.arity
    if count < low or (high is not None and count > high):
        expected = (
            f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"
        )
        raise GraphError(f"{op.name} takes {expected} inputs, not {count}")


def _result_types(
    op: Op, inputs: Sequence[Value | None], given: Sequence[TensorType] | None
) -> tuple[TensorType, ...]:
    """The inferred types, completed by the given ones."""
    inferred = op.infer([v.type if v is not None else None for v in inputs])
    if inferred is None:
        if given is None:
            raise GraphError(f"{op.name} cannot infer its result types: give them")
        return tuple(given)
    if given is None:
        return inferred
    if len(given) != len(inferred):
        raise GraphError(f"{op.name} has {counted(len(inferred), 'result')}, not {len(given)}")
    return tuple(i.refined(t) for i, t in zip(inferred, given, strict=True))


class Graph:
    """A program: inputs, nodes in topological order, outputs.

    Attributes:
        name: A name for people.
        output_names: The host's names of the outputs. They stay when an output is replaced by another value.
        host: The frontend's record of the whole host model; targets emit from it.
        notes: What the frontend could not read because shapes or types are missing, one line each.
        derived: Cache for analyses of constants that nodes compute; cleared when such a node changes its inputs.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.host: Any = None
        self.notes: list[str] = []
        self.output_names: list[str] = []
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._constants: dict[str, Value] = {}
        self._names: set[str] = set()
        self._counters: dict[str, int] = {}
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self.derived: dict[Value, Any] = {}

    # Reading.

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values that the caller passes in."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that the graph returns."""
        return tuple(self._outputs)

    @property
    def constants(self) -> tuple[Value, ...]:
        """The constants without a producer, in order of creation, unused ones included."""
        return tuple(self._constants.values())

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes in topological order. Any nodes may be removed while iterating."""
        node = self._first
        while node is not None:
            yield node
            node = node._next
            # A removed node keeps its links: they lead back to a node that is still there.
            while node is not None and node.graph is not self:
                node = node._next

    def __len__(self) -> int:
        return self._count

    def value(self, name: str) -> Value:
        """The value with this name, found by a search through the whole graph.

        Raises:
            KeyError: If there is none.
        """
        for value in self.values():
            if value.name == name:
                return value
        raise KeyError(f"graph {self.name} has no value %{name}")

    def values(self) -> Iterator[Value]:
        """All values: inputs, plain constants, results of nodes."""
        yield from self._inputs
        yield from self._constants.values()
        for node in self.nodes:
            yield from node._outputs

    # Building. These functions keep the links consistent; recording changes is left to the Rewriter.

    def unique_name(self, hint: str) -> str:
        """A name that no value has: ``hint``, or ``hint_1``, ``hint_2``, ..."""
        name = hint or "v"
        if name not in self._names:
            return name
        count = self._counters.get(name, 0)
        while True:
            count += 1
            candidate = f"{name}_{count}"
            if candidate not in self._names:
                self._counters[name] = count
                return candidate

    def _new_value(self, name: str, type: TensorType, data: Tensor | None = None) -> Value:
        value = Value(self.unique_name(name), type, data)
        self._names.add(value.name)
        return value

    def add_input(self, name: str, type: TensorType = UNKNOWN) -> Value:
        """Add an input at the end."""
        value = self._new_value(name, type)
        self._inputs.append(value)
        return value

    def add_constant(self, data: Tensor, name: str = "c") -> Value:
        """Add a constant."""
        value = self._new_value(name, data.type, data)
        self._constants[value.name] = value
        if isinstance(data, DerivedTensor) and not data.label:
            data.label = name
        return value

    def add_output(self, value: Value, name: str | None = None) -> None:
        """Return ``value`` as the next output."""
        self._outputs.append(value)
        self.output_names.append(name if name is not None else value.name)
        value.outputs += 1

    def append(
        self,
        op: Op,
        inputs: Sequence[Value | None],
        *,
        name: str = "",
        types: Sequence[TensorType] | None = None,
        output_names: Sequence[str] = (),
        before: Node | None = None,
        after: Node | None = None,
    ) -> Node:
        """Add a node: at the end, or beside another node.

        Args:
            op: The op that it applies.
            inputs: The values that it reads.
            name: A name for people; the first output's name when empty.
            types: The result types, for what the op cannot infer.
            output_names: Hints for the names of the results.
            before: Insert the new node before this node.
            after: Insert the new node after this node.

        Raises:
            GraphError: If the number of inputs or results does not fit the op.
            InferenceError: If the inputs do not fit the op.
        """
        beside = before or after
        if beside is not None and beside.graph is not self:
            raise GraphError(f"{beside.name} is not (or no longer) in this graph")
        node = Node(op, name)
        check_arity(op, len(inputs))
        outputs = []
        for i, type_ in enumerate(_result_types(op, inputs, types)):
            hint = output_names[i] if i < len(output_names) else (name or op.name.lower())
            value = self._new_value(hint, type_)
            value.producer = node
            outputs.append(value)
        node._outputs = tuple(outputs)
        if not node.name:
            node.name = outputs[0].name if outputs else op.name.lower()
        self._link(node, before, after)
        self._set_inputs(node, tuple(inputs))
        return node

    # Links.

    def _link(self, node: Node, before: Node | None, after: Node | None) -> None:
        if before is not None:
            after = before._prev
        elif after is not None:
            before = after._next
        else:
            after = self._last
        node.graph = self
        node._prev, node._next = after, before
        if after is None:
            self._first = node
        else:
            after._next = node
        if before is None:
            self._last = node
        else:
            before._prev = node
        self._count += 1

    def _unlink(self, node: Node) -> None:
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        # The removed node keeps its own links, so that an iteration that stands on it can go on.
        node.graph = None
        self._count -= 1

    def _set_inputs(self, node: Node, inputs: tuple[Value | None, ...]) -> None:
        self._invalidate(node)
        for i, value in enumerate(node._inputs):
            if value is not None:
                del value._uses[(node, i)]
        node._inputs = inputs
        for i, value in enumerate(inputs):
            if value is not None:
                value._uses[(node, i)] = None

    def _invalidate(self, node: Node) -> None:
        """Clear ``derived`` if the node computes a constant: its inputs are about to change."""
        if self.derived and any(v.data is not None for v in node._outputs):
            self.derived.clear()

    def _set_input(self, node: Node, index: int, value: Value | None) -> None:
        self._invalidate(node)
        old = node._inputs[index]
        if old is not None:
            del old._uses[(node, index)]
        node._inputs = (*node._inputs[:index], value, *node._inputs[index + 1 :])
        if value is not None:
            value._uses[(node, index)] = None

    def _set_output(self, index: int, value: Value) -> None:
        self._outputs[index].outputs -= 1
        self._outputs[index] = value
        value.outputs += 1

    def _remove(self, node: Node) -> None:
        for value in node._outputs:
            if value.use_count:
                raise GraphError(f"%{value.name} is still used: its node cannot be removed")
        self._set_inputs(node, ())
        for value in node._outputs:
            self._names.discard(value.name)
        self._unlink(node)

    def _remove_constant(self, value: Value) -> None:
        if value.use_count:
            raise GraphError(f"constant %{value.name} is still used and cannot be removed")
        del self._constants[value.name]
        self._names.discard(value.name)

    # Whole graphs.

    def clone(self) -> Graph:
        """A copy with its own nodes and values; tensors, origins and the host record are shared."""
        other = Graph(self.name)
        other.host = self.host
        other.notes = list(self.notes)
        values: dict[Value, Value] = {}

        def copy(value: Value) -> Value:
            twin = Value(value.name, value.type, value.data)
            twin.host = value.host
            values[value] = twin
            return twin

        other._inputs = [copy(v) for v in self._inputs]
        other._constants = {n: copy(v) for n, v in self._constants.items()}
        for node in self.nodes:
            twin = Node(node.op, node.name)
            twin.origin = node.origin
            twin._outputs = tuple(copy(v) for v in node._outputs)
            for value in twin._outputs:
                value.producer = twin
            other._link(twin, None, None)
            other._set_inputs(twin, tuple(None if v is None else values[v] for v in node._inputs))
        for value in self._constants.values():
            if value.bases:
                # A base may have been removed from the graph in the meantime.
                values[value].bases = tuple(values[b] for b in value.bases if b in values)
        for value, name in zip(self._outputs, self.output_names, strict=True):
            other.add_output(values[value], name)
        other._names = set(self._names)
        other._counters = dict(self._counters)
        return other

    def adopt(self, other: Graph) -> None:
        """Take over the content of ``other``, which must not be used afterwards; rolls back a failed pass."""
        for node in self.nodes:
            node.graph = None
        self.__dict__.update(other.__dict__)
        adopted = self._first
        while adopted is not None:
            adopted.graph = self
            adopted = adopted._next

    def to_networkx(self, constants: bool = False) -> networkx.MultiDiGraph[Any]:
        """The graph as a networkx multigraph, to analyse or draw it with the ecosystem's tools.

        Each node, input and output of the graph becomes a node of that name (``_1``, ``_2``, ... is added to a name that
        occurs again) with the attributes ``op`` (``"Conv"``; ``"Input"``, ``"Output"``, ``"Constant"``), ``payload`` (the
        op with its attributes), ``type`` (element type and shape of the results) and ``macs`` (where known). Each tensor
        that a node reads becomes an edge with the attributes ``tensor``, ``type`` and ``input`` (the index among the
        reader's inputs). All attributes are strings and integers, which every format of networkx can store.

        Args:
            constants: Make a node for each constant too.

        Raises:
            MissingExtra: If networkx is not installed.
        """
        from .to_networkx import to_networkx

        return to_networkx(self, constants)

    def text(self, *, full: bool = False, names: bool = True) -> str:
        """The text form; see :func:`graphshrink.ir.text.print_graph`."""
        from .text import print_graph

        return print_graph(self, full=full, names=names)

    def verify(self) -> None:
        """Check the structure; see :func:`graphshrink.ir.verify.verify`."""
        from .verify import verify

        verify(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self)} nodes>"
