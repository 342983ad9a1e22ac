"""The graph: values, nodes, and the structure that keeps their links true.

SSA in topological order: every value has one producer (a node, the graph's inputs, or nobody for a
constant) and every node comes after the producers of its inputs. Nodes are a doubly linked list, so
that inserting and removing in the middle cost the same everywhere. Use lists are kept here, by the same
functions that change the links; nothing else may write to them. Passes change a graph through
:class:`graphshrink.ir.Rewriter`; frontends build one with :meth:`Graph.append`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import GraphshrinkError
from .ops import Op
from .tensor import DerivedTensor, Tensor
from .types import UNKNOWN, TensorType

if TYPE_CHECKING:
    import networkx


class GraphError(GraphshrinkError):
    """A graph was used or changed in a way that would break it."""


class Value:
    """A tensor that flows through the graph, or a constant.

    Attributes:
        name: Unique in its graph.
        type: Element type and shape, as far as known.
        data: The tensor, when the value is known: a weight, or what a constant subgraph computes
            (then ``producer`` is the node that computes it).
        producer: The node whose result this is; ``None`` for inputs and plain constants.
        host: What the host calls this value; ``None`` for a value made here.
        bases: For a constant that is another form of host values (a transposed weight): those values.
            The host's own nodes read them for as long as they are copied.
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
        """How often the value is read, the graph's own outputs included."""
        return len(self._uses) + self.outputs

    @property
    def has_one_use(self) -> bool:
        """True when exactly one node input reads the value and the graph does not return it."""
        return len(self._uses) == 1 and not self.outputs

    @property
    def index(self) -> int:
        """The place among its producer's outputs; 0 without a producer."""
        return 0 if self.producer is None else self.producer.outputs.index(self)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One application of an op.

    Attributes:
        op: What it computes.
        name: A name for people: the host's node or module name. Not necessarily unique.
        origin: The host's own node(s) when this node still means exactly these, else ``None``.
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
        """The values read; ``None`` for an optional input that is left out."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values made."""
        return self._outputs

    @property
    def output(self) -> Value:
        """The first result."""
        return self._outputs[0]

    @property
    def input_types(self) -> tuple[TensorType | None, ...]:
        """The types of the inputs."""
        return tuple(v.type if v is not None else None for v in self._inputs)

    def input(self, index: int) -> Value | None:
        """An input, or ``None`` when it is left out."""
        return self._inputs[index] if index < len(self._inputs) else None

    def required(self, index: int) -> Value:
        """An input that the op always has.

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
    """A node outside any graph, without results: to ask about it before it is made."""
    node = Node(op, name or op.name)
    node._inputs = tuple(inputs)
    return node


class Graph:
    """A program: inputs, nodes in topological order, outputs.

    Attributes:
        name: A name for people.
        output_names: The host's names of the outputs, which stay whatever value is returned.
        host: The frontend's record of the whole host model, which targets emit from.
        notes: What the frontend could not see for want of shapes or types, one line each.
        derived: What an analysis found of constants that nodes compute; empty again when such a node reads something
            else.
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
        """The values that the caller gives."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that the caller gets."""
        return tuple(self._outputs)

    @property
    def constants(self) -> tuple[Value, ...]:
        """The constants that no node computes, in order of creation, unused ones included."""
        return tuple(self._constants.values())

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes in topological order. Any nodes may be removed while iterating."""
        node = self._first
        while node is not None:
            yield node
            node = node._next
            # From a removed node, the links that it kept lead back to what is left.
            while node is not None and node.graph is not self:
                node = node._next

    def __len__(self) -> int:
        return self._count

    def value(self, name: str) -> Value:
        """The value with this name (looks through the whole graph).

        Raises:
            KeyError: If there is none.
        """
        for value in self.values():
            if value.name == name:
                return value
        raise KeyError(f"graph {self.name} has no value %{name}")

    def values(self) -> Iterator[Value]:
        """All values: inputs, constants, results."""
        yield from self._inputs
        yield from self._constants.values()
        for node in self.nodes:
            yield from node._outputs

    # Building. These keep the links; they do not record changes (the Rewriter does).

    def unique_name(self, hint: str) -> str:
        """A value name that is free: ``hint``, or ``hint_1``, ``hint_2``, ..."""
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
            op: What it computes.
            inputs: What it reads.
            name: A name for people; the first output's name when empty.
            types: The result types; inferred from the op when not given. Given types are refined by
                what the op infers.
            output_names: Hints for the names of the results.
            before: Place it in front of this node.
            after: Place it behind this node.

        Raises:
            GraphError: If the number of inputs or results does not fit the op.
            InferenceError: If the inputs do not fit the op.
        """
        beside = before or after
        if beside is not None and beside.graph is not self:
            raise GraphError(f"{beside.name} is not (or no longer) in this graph")
        node = Node(op, name)
        low, high = op.arity
        if len(inputs) < low or (high is not None and len(inputs) > high):
            raise GraphError(f"{op.name} takes {low} to {high} inputs, not {len(inputs)}")
        inferred = op.infer([v.type if v is not None else None for v in inputs])
        if inferred is None:
            if types is None:
                raise GraphError(f"{op.name} needs its result types given")
            inferred = tuple(types)
        elif types is not None:
            if len(types) != len(inferred):
                raise GraphError(f"{op.name} has {len(inferred)} results, not {len(types)}")
            inferred = tuple(i.refined(t) for i, t in zip(inferred, types, strict=True))
        outputs = []
        for i, type_ in enumerate(inferred):
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
        # The removed node keeps its own links, so that a walk that stands on it can go on.
        node.graph = None
        self._count -= 1

    def _set_inputs(self, node: Node, inputs: tuple[Value | None, ...]) -> None:
        self._forget(node)
        for i, value in enumerate(node._inputs):
            if value is not None:
                del value._uses[(node, i)]
        node._inputs = inputs
        for i, value in enumerate(inputs):
            if value is not None:
                value._uses[(node, i)] = None

    def _forget(self, node: Node) -> None:
        """What was derived of constants holds no more when a node that computes some reads something else."""
        if self.derived and any(v.data is not None for v in node._outputs):
            self.derived.clear()

    def _set_input(self, node: Node, index: int, value: Value | None) -> None:
        self._forget(node)
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
                raise GraphError(f"%{value.name} is still used, its node cannot be removed")
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
        """A copy with its own structure; tensors, origins and the host record are shared."""
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
                # What was removed since is nobody's base any more.
                values[value].bases = tuple(values[b] for b in value.bases if b in values)
        for value, name in zip(self._outputs, self.output_names, strict=True):
            other.add_output(values[value], name)
        other._names = set(self._names)
        other._counters = dict(self._counters)
        return other

    def adopt(self, other: Graph) -> None:
        """Become ``other``, which must not be used afterwards (how a failed pass is rolled back)."""
        for node in self.nodes:
            node.graph = None
        self.__dict__.update(other.__dict__)
        place = self._first
        while place is not None:
            place.graph = self
            place = place._next

    def to_networkx(self, constants: bool = False) -> networkx.MultiDiGraph[Any]:
        """The graph as a networkx multigraph, to analyse or draw it with the ecosystem's tools.

        Nodes are named like the graph's nodes, inputs and outputs (with ``_1``, ``_2``, ... behind names that occur
        again) and carry ``op`` (``"Conv"``; ``"Input"``, ``"Output"``, ``"Constant"``), ``payload`` (the op with its
        attributes), ``type`` (element type and shape of the results) and ``macs`` (where they are known). An edge for
        each tensor that is read carries ``tensor``, ``type`` and ``input``, the place among the reader's inputs. All
        attributes are strings and integers, which every format of networkx can store.

        Args:
            constants: Give constants nodes of their own.

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
