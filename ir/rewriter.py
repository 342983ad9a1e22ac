"""The only way to change a graph: counts what changed and remembers what was refused, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .exactness import Exactness
from .graph import Graph, GraphError, Node, Value
from .ops import Op
from .tensor import Tensor
from .types import TensorType


def _writes_all(node: Node) -> str | None:
    return None


@dataclass(frozen=True)
class Refusal:
    """A rewrite that was considered and not made."""

    node: str
    reason: str
    op: str = ""


@dataclass
class Rewrite:
    """A rewrite that was made.

    Attributes:
        what: What was done, for people ("fold Scale into Conv").
        nodes: The names of the nodes it was about.
        exactness: The promise it keeps.
        mutations: How many elementary changes it took.
        measures: What was measured of it, by name ("output error"); for the report.
    """

    what: str
    nodes: tuple[str, ...]
    exactness: Exactness
    mutations: int = 0
    measures: dict[str, float] = field(default_factory=dict)


@dataclass
class Rewriter:
    """Changes one graph during one pass.

    Attributes:
        graph: The graph.
        exactness: The class of changes that are made outside :meth:`rewrite`.
        rewrites: What was done, oldest first.
        refusals: What was not done and why, oldest first; one line for one node and reason.
        mutations: The number of elementary changes; 0 means that the graph is as it was.
        unwritable: Why the target cannot write a node, or ``None``; passes ask before they make a node that it may refuse.
    """

    graph: Graph
    exactness: Exactness = Exactness.EXACT
    rewrites: list[Rewrite] = field(default_factory=list)
    mutations: int = 0
    unwritable: Callable[[Node], str | None] = _writes_all
    _refusals: dict[Refusal, None] = field(default_factory=dict)
    _current: Rewrite | None = None

    @property
    def refusals(self) -> list[Refusal]:
        """What was not done, and why."""
        return list(self._refusals)

    @property
    def changed(self) -> bool:
        """True when the graph was changed."""
        return self.mutations > 0

    @property
    def worst(self) -> Exactness:
        """The weakest promise among the rewrites made."""
        return max((r.exactness for r in self.rewrites), default=Exactness.EXACT)

    # Recording.

    def skip(self, node: Node, reason: str) -> None:
        """Record that ``node`` was left as it is, and why."""
        self._refusals.setdefault(Refusal(node.name, reason, node.op.name))

    @contextmanager
    def rewrite(
        self,
        what: str,
        *nodes: Node,
        exactness: Exactness | None = None,
        measures: Mapping[str, float] | None = None,
    ) -> Iterator[Rewrite]:
        """Group the changes made inside the ``with`` block as one rewrite.

        Args:
            what: What is done, for people.
            nodes: The nodes it is about.
            exactness: The promise; the rewriter's own class when not given.
            measures: What was measured of it, by name.
        """
        if self._current is not None:
            raise GraphError(f"a rewrite is already under way: {self._current.what}")
        names = tuple(n.name for n in nodes)
        promise = self.exactness if exactness is None else exactness
        self._current = Rewrite(what, names, promise, measures=dict(measures or {}))
        try:
            yield self._current
        finally:
            if self._current.mutations:
                self.rewrites.append(self._current)
            self._current = None

    def _touch(self, what: str, name: str) -> None:
        self.mutations += 1
        if self._current is not None:
            self._current.mutations += 1
        else:
            self.rewrites.append(Rewrite(what, (name,), self.exactness, 1))

    # Changing.

    def constant(self, data: Tensor, name: str = "c") -> Value:
        """A new constant."""
        value = self.graph.add_constant(data, name)
        self._touch("add constant", value.name)
        return value

    def insert(
        self,
        op: Op,
        inputs: Sequence[Value | None],
        *,
        before: Node | None = None,
        after: Node | None = None,
        name: str = "",
        types: Sequence[TensorType] | None = None,
    ) -> Node:
        """A new node beside another one (at the end when neither is given).

        Raises:
            GraphError: If the inputs do not fit the op's number of inputs.
            InferenceError: If the inputs do not fit the op.
        """
        node = self.graph.append(op, inputs, before=before, after=after, name=name, types=types)
        self._touch(f"insert {op.name}", node.name)
        return node

    def replace(
        self, node: Node, op: Op, inputs: Sequence[Value | None], *, name: str | None = None
    ) -> Node:
        """Make ``node`` compute something else; its results keep their names and users.

        The origin is dropped. Types are inferred anew; a result whose type would contradict the known
        one is an error.

        Raises:
            GraphError: If the number of inputs does not fit the op, or the number or the types of the
                results would change; the node is then as it was.
            InferenceError: If the inputs do not fit the op.
        """
        self._own(node)
        low, high = op.arity
        if len(inputs) < low or (high is not None and len(inputs) > high):
            raise GraphError(f"{op.name} takes {low} to {high} inputs, not {len(inputs)}")
        inferred = op.infer([v.type if v is not None else None for v in inputs])
        if inferred is not None:
            if len(inferred) != len(node.outputs):
                raise GraphError(f"{op.name} cannot stand for {node.op.name} {node.name}")
            for value, type_ in zip(node.outputs, inferred, strict=True):
                if not value.type.accepts(type_):
                    raise GraphError(
                        f"{node.name}: {op.name} gives {type_} where {value.type} is used"
                    )
            for value, type_ in zip(node.outputs, inferred, strict=True):
                value.type = value.type.refined(type_)
        node.op = op
        node.origin = None
        self.graph._set_inputs(node, tuple(inputs))
        for value in node.outputs:
            value.data = None
        if name is not None:
            node.name = name
        self._touch(f"replace by {op.name}", node.name)
        return node

    def resize(self, node: Node, op: Op, inputs: Sequence[Value | None]) -> Node:
        """Like :meth:`replace` for a node whose results change their sizes.

        The origin stays where the op does, so that a host module keeps its identity. The results count as made
        here: they forget what the host calls them. Readers must be seen to by the caller, in topological order.

        Raises:
            GraphError: If a result is an output of the graph, or the op does not tell its result types.
            InferenceError: If the inputs do not fit the op.
        """
        self._own(node)
        if any(value.is_output for value in node.outputs):
            raise GraphError(f"{node.name} makes an output of the graph, whose size is a promise")
        inferred = op.infer([v.type if v is not None else None for v in inputs])
        if inferred is None or len(inferred) != len(node.outputs):
            raise GraphError(f"{op.name} cannot stand for {node.op.name} {node.name}")
        self.graph._set_inputs(node, tuple(inputs))
        for value, type_ in zip(node.outputs, inferred, strict=True):
            value.type, value.data, value.host = type_, None, None
        if op != node.op:
            node.op, node.origin = op, None
        self._touch(f"resize {op.name}", node.name)
        return node

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Let ``node`` read another value."""
        self._own(node)
        if node.inputs[index] is not value:
            self.graph._set_input(node, index, value)
            self._touch("change an input", node.name)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Let everybody who reads ``old`` read ``new``, the graph's outputs included.

        The outputs keep their names. ``new`` must come before every user of ``old``.

        Raises:
            GraphError: If the type of ``new`` contradicts that of ``old``.
        """
        if old is new:
            return
        if not old.type.accepts(new.type):
            raise GraphError(f"%{new.name}: {new.type} cannot replace {old.type} of %{old.name}")
        if old.use_count:
            self._touch("replace a value", old.name)
        for node, index in old.uses:
            self.graph._set_input(node, index, new)
        if old.is_output:
            for index, value in enumerate(self.graph.outputs):
                if value is old:
                    self.graph._set_output(index, new)

    def erase(self, node: Node) -> None:
        """Remove a node whose results nobody reads.

        Raises:
            GraphError: If a result is still read.
        """
        self._own(node)
        self.graph._remove(node)
        self._touch(f"erase {node.op.name}", node.name)

    def erase_constant(self, value: Value) -> None:
        """Remove a constant that nobody reads.

        Raises:
            GraphError: If it is still read or is not a plain constant.
        """
        if value.producer is not None or value.data is None:
            raise GraphError(f"%{value.name} is not a plain constant")
        self.graph._remove_constant(value)
        self._touch("erase constant", value.name)

    def _own(self, node: Node) -> None:
        if node.graph is not self.graph:
            raise GraphError(f"{node.name} is not (or no longer) in this graph")
