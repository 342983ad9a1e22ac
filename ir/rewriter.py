"""The rewriter: the only way for passes to change a graph. It counts changes and records refusals with reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from .errors import counted
from .exactness import Exactness
from .graph import Graph, GraphError, Node, Value, check_arity
from .ops import Op
from .tensor import Tensor
from .types import TensorType


def _always_writable(_node: Node) -> str | None:
    return None


@dataclass(frozen=True)
class Refusal:
    """A rewrite that a pass considered and did not make.

    Attributes:
        node: The name of the node.
        reason: Why not, in words.
        op: The name of the node's op.
    """

    node: str
    reason: str
    op: str = ""


@dataclass
class Rewrite:
    """A rewrite that a pass made.

    Attributes:
        what: A description for people ("fold Scale into Conv").
        nodes: The names of the rewritten nodes.
        exactness: Its exactness class.
        mutations: The number of elementary changes.
        measures: Measured numbers by name ("output error"), for the report.
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
        exactness: The exactness class of changes that are made outside :meth:`rewrite`.
        rewrites: The rewrites made, oldest first.
        refusals: The rewrites not made, with reasons, oldest first; the same node and reason are listed once.
        mutations: The number of elementary changes; 0 means that the graph is unchanged.
        unwritable: Returns the reason why the target cannot write a node, or ``None``. Passes ask it, with a
            :func:`sketch`, before they make a node that the target may lack.
    """

    graph: Graph
    exactness: Exactness = Exactness.EXACT
    rewrites: list[Rewrite] = field(default_factory=list)
    mutations: int = 0
    unwritable: Callable[[Node], str | None] = _always_writable
    _refusals: dict[Refusal, None] = field(default_factory=dict)
    _current: Rewrite | None = None

    @property
    def refusals(self) -> list[Refusal]:
        """The rewrites not made, with reasons, oldest first."""
        return list(self._refusals)

    @property
    def changed(self) -> bool:
        """True when the graph was changed."""
        return self.mutations > 0

    @property
    def worst(self) -> Exactness:
        """The weakest exactness class among the rewrites made."""
        return max((r.exactness for r in self.rewrites), default=Exactness.EXACT)

    # Recording.

    def skip(self, node: Node, reason: str) -> None:
        """Record that the pass leaves ``node`` as it is, with the reason."""
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
            what: A description for people.
            nodes: The nodes that are rewritten.
            exactness: The exactness class; the rewriter's own when not given.
            measures: Measured numbers by name.

        Raises:
            GraphError: If another rewrite is open.
        """
        if self._current is not None:
            raise GraphError(f"a rewrite is already under way: {self._current.what}")
        names = tuple(n.name for n in nodes)
        kind = self.exactness if exactness is None else exactness
        self._current = Rewrite(what, names, kind, measures=dict(measures or {}))
        try:
            yield self._current
        finally:
            if self._current.mutations:
                self.rewrites.append(self._current)
            self._current = None

    def _record(self, what: str, name: str) -> None:
        self.mutations += 1
        if self._current is not None:
            self._current.mutations += 1
        else:
            self.rewrites.append(Rewrite(what, (name,), self.exactness, 1))

    def include(self, rewrites: Sequence[Rewrite], refusals: Sequence[Refusal], where: str) -> None:
        """Record what was done, and what was not, in a graph within this one.

        Args:
            rewrites: The rewrites that were made there.
            refusals: Those that were not.
            where: Text to append to each description and reason.
        """
        for made in rewrites:
            self.rewrites.append(replace(made, what=f"{made.what}{where}"))
        for refusal in refusals:
            told = replace(refusal, reason=f"{refusal.reason}{where}")
            self._refusals.setdefault(told)

    # Changing.

    def constant(self, data: Tensor, name: str = "c") -> Value:
        """Add a constant and return it."""
        value = self.graph.add_constant(data, name)
        self._record("add constant", value.name)
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
        """Insert a node before or after another one (at the end when neither is given) and return it.

        Raises:
            GraphError: If the number of inputs does not fit the op.
            InferenceError: If the inputs do not fit the op.
        """
        node = self.graph.append(op, inputs, before=before, after=after, name=name, types=types)
        self._record(f"insert {op.name}", node.name)
        return node

    def computed(
        self,
        op: Op,
        inputs: Sequence[Value | None],
        data: Sequence[Tensor],
        *,
        before: Node | None = None,
        name: str = "",
    ) -> Node:
        """Insert a node that computes constants from constants and return it; its results are known.

        Args:
            op: The op.
            inputs: The constants that it reads.
            data: The numbers of its results.
            before: Insert the new node before this node; at the end when not given.
            name: A name for people.

        Raises:
            GraphError: If the number of inputs does not fit the op.
            InferenceError: If the inputs do not fit the op.
        """
        node = self.insert(op, inputs, before=before, name=name)
        for value, tensor in zip(node.outputs, data, strict=True):
            value.data = tensor
        self.graph.derived.clear()
        return node

    def replace(
        self, node: Node, op: Op, inputs: Sequence[Value | None], *, name: str | None = None
    ) -> Node:
        """Give ``node`` another op and other inputs; its results keep their names and users.

        The origin is dropped and the result types are inferred again.

        Raises:
            GraphError: If the number of inputs does not fit the op, or if the number of results would change or their
                types would contradict the known ones. The node is then unchanged.
            InferenceError: If the inputs do not fit the op.
        """
        self._check_owned(node)
        check_arity(op, len(inputs))
        inferred = op.infer([v.type if v is not None else None for v in inputs])
        if inferred is not None:
            _check_count(node, op, inferred)
            for value, type_ in zip(node.outputs, inferred, strict=True):
                if not value.type.accepts(type_):
                    raise GraphError(
                        f"{node.name}: {op.name} gives {type_}, but its readers expect {value.type}"
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
        self._record(f"replace by {op.name}", node.name)
        return node

    def resize(
        self, node: Node, op: Op, inputs: Sequence[Value | None], *, anew: bool = False
    ) -> Node:
        """Like :meth:`replace`, for a change that gives the results other sizes.

        If the op stays the same, so does the origin, and a host module keeps its identity. The results lose their
        host names. The caller must update the readers, in topological order.

        Args:
            node: The node.
            op: Its op.
            inputs: Its inputs.
            anew: Drop the origin in any case: a host node may hold sizes that the op leaves open.

        Raises:
            GraphError: If a result is an output of the graph, if the op cannot infer its result types, or if the number
                of results would change.
            InferenceError: If the inputs do not fit the op.
        """
        self._check_owned(node)
        if any(value.is_output for value in node.outputs):
            raise GraphError(f"{node.name} makes an output of the graph, which must keep its shape")
        check_arity(op, len(inputs))
        inferred = op.infer([v.type if v is not None else None for v in inputs])
        if inferred is None:
            raise GraphError(f"{node.name}: {op.name} cannot infer its result types")
        _check_count(node, op, inferred)
        self.graph._set_inputs(node, tuple(inputs))
        for value, type_ in zip(node.outputs, inferred, strict=True):
            value.type, value.data, value.host = type_, None, None
        if op != node.op or anew:
            node.op, node.origin = op, None
        self._record(f"resize {op.name}", node.name)
        return node

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Make ``node`` read another value."""
        self._check_owned(node)
        if node.inputs[index] is not value:
            self.graph._set_input(node, index, value)
            self._record("change an input", node.name)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make all readers of ``old`` read ``new``, the graph's outputs included.

        The outputs keep their names. ``new`` must be defined before every user of ``old``.

        Raises:
            GraphError: If the type of ``new`` contradicts that of ``old``.
        """
        if old is new:
            return
        if not old.type.accepts(new.type):
            raise GraphError(f"%{new.name}: {new.type} cannot replace {old.type} of %{old.name}")
        if old.use_count:
            self._record("replace a value", old.name)
        for node, index in old.uses:
            self.graph._set_input(node, index, new)
        if old.is_output:
            for index, value in enumerate(self.graph.outputs):
                if value is old:
                    self.graph._set_output(index, new)

    def rebase(self, value: Value, bases: Sequence[Value]) -> None:
        """Name other host values with the same numbers as those that a constant was made from."""
        value.bases = tuple(bases)
        self._record("change where a constant comes from", value.name)

    def erase(self, node: Node) -> None:
        """Remove a node whose results are unused.

        Raises:
            GraphError: If a result is still used.
        """
        self._check_owned(node)
        self.graph._remove(node)
        self._record(f"erase {node.op.name}", node.name)

    def erase_constant(self, value: Value) -> None:
        """Remove an unused constant.

        Raises:
            GraphError: If it is still used or is not a plain constant.
        """
        if value.producer is not None or value.data is None:
            raise GraphError(f"%{value.name} is not a plain constant")
        self.graph._remove_constant(value)
        self._record("erase constant", value.name)

    def _check_owned(self, node: Node) -> None:
        if node.graph is not self.graph:
            raise GraphError(f"{node.name} is not (or no longer) in this graph")


def _check_count(node: Node, op: Op, results: Sequence[TensorType]) -> None:
    if len(results) != len(node.outputs):
        raise GraphError(
            f"{node.name}: {op.name} has {counted(len(results), 'result')}, {node.op.name} has {len(node.outputs)}"
        )
