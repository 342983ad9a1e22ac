"""How results lie in memory, of which the IR knows nothing: calls that depend on it are written so that they still run.

A host call may count on rows in order (``view``, calls of other packages). Where a pass took a call that put them in
order, or made one that reorders axes, such calls are copied as the ones that take any order, or get ``contiguous()`` in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from ...hosts.torch import layouts
from ...hosts.torch.origins import FxHost
from ...ir import (
    Activation,
    AveragePool,
    Concat,
    Conv,
    ConvTranspose,
    Gate,
    GlobalAveragePool,
    Graph,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    LogSoftmax,
    MatMul,
    MaxPool,
    Node,
    Opaque,
    PRelu,
    Resize,
    Scale,
    Softmax,
    Transpose,
    Unary,
    Value,
)

_ALLOCATING = (
    Conv, ConvTranspose, Linear, Scale, MatMul, Activation, PRelu, Gate, LayerNorm, GroupNorm, Softmax, LogSoftmax,
    Concat, AveragePool, MaxPool, GlobalAveragePool, Unary, Resize,
)  # fmt: skip
"""Ops whose result is new memory, beside those that broadcast."""


class Memory:
    """Copies host calls of one graph.

    Attributes:
        as_before: The names of host nodes that were copied with everything in front of them unchanged.
    """

    def __init__(
        self, graph: Graph, host: FxHost, out: fx.Graph, copies: Mapping[str, fx.Node]
    ) -> None:
        """Look at what passes changed.

        Args:
            graph: The graph.
            host: Its host.
            out: The graph that is written.
            copies: The host nodes that were copied so far, by name; read, not changed.
        """
        self.as_before: set[str] = set()
        self._host, self._out, self._copies = host, out, copies
        self._modules = dict(host.module.named_modules(remove_duplicate=False))
        self._contiguous: dict[fx.Node, fx.Node] = {}
        self._changed = _order_changed(graph, host)

    def copied(
        self,
        found: fx.Node,
        mapped: Callable[[fx.Node], fx.Node],
        values: Mapping[str, Value],
    ) -> fx.Node:
        """A copy of a host call; one that depends on the order in memory is written so that it still runs.

        Args:
            found: The call.
            mapped: Gives the node that stands in the place of each argument.
            values: The IR values of arguments, by the host's names.
        """
        changed = [s for s in found.all_input_nodes if not self._is_as_before(s, mapped(s))]
        if not changed:
            self.as_before.add(found.name)
            return self._out.node_copy(found, mapped)
        reshaping = layouts.reshaping(found)
        if reshaping is not None:
            kind, target, given = reshaping
            args: Any = fx.map_arg(found.args, mapped)
            kwargs: Any = fx.map_arg(given, mapped)
            made = self._out.create_node(kind, target, args, kwargs, found.name)
            made.meta = dict(found.meta)
            return made
        if not self._changed or not layouts.may_want_rows(found, self._modules):
            return self._out.node_copy(found, mapped)
        rows = {s.name for s in changed if self._needs_rows(s, values.get(s.name))}
        return self._out.node_copy(
            found, lambda s: self._in_rows(mapped(s)) if s.name in rows else mapped(s)
        )

    def returned(self, source: fx.Node, value: Value, made: fx.Node) -> fx.Node:
        """An output; whoever reads it may count on its order in memory."""
        if not self._changed or self._is_as_before(source, made):
            return made
        # Without example inputs nobody knows for certain.
        lay = source.name in self._host.in_rows or layouts.is_put_in_rows(source)
        return self._in_rows(made) if lay and self._needs_rows(source, value) else made

    def _is_as_before(self, source: fx.Node, made: fx.Node) -> bool:
        """Whether a node is the copy of a host node, with everything in front of it unchanged."""
        if source.op in ("placeholder", "get_attr"):
            return source.op == made.op
        return source.name in self.as_before and self._copies.get(source.name) is made

    def _needs_rows(self, source: fx.Node, value: Value | None) -> bool:
        """Whether an argument whose rows may have been in order may now be out of order."""
        if source.name in self._host.strided or value is None or value.producer is None:
            return False
        is_tensor = source.name in self._host.in_rows or not isinstance(value.producer.op, Opaque)
        return is_tensor and not _lies_in_rows(value)

    def _in_rows(self, made: fx.Node) -> fx.Node:
        if made not in self._contiguous:
            self._contiguous[made] = self._out.call_method("contiguous", (made,))
        return self._contiguous[made]


def keeps_memory(node: Node) -> bool:
    """Whether an in-place call may stay in place: nobody else reads the memory that it overwrites."""
    value = node.inputs[0]
    while value is not None:
        if value.use_count != 1 or value.producer is None:
            return False
        if value.producer.op.broadcasts or isinstance(value.producer.op, _ALLOCATING):
            return True
        value = value.producer.inputs[0] if value.producer.inputs else None
    return False


def _order_changed(graph: Graph, host: FxHost) -> bool:
    """Whether a call that decides the order in memory was taken out, or made."""
    kept = {name for node in graph.nodes for name in getattr(node.origin, "nodes", ())}
    gone = any(n.name not in kept for n in host.order.values() if layouts.decides(n))
    return gone or any(
        isinstance(n.op, Transpose | Identity) and n.origin is None for n in graph.nodes
    )


def _lies_in_rows(value: Value) -> bool:
    """Whether the rows of a value are in order, whatever it was made from."""
    while value.producer is not None and value.producer.inputs:
        node, source = value.producer, value.producer.inputs[0]
        if isinstance(node.op, Linear | MatMul):
            return True
        if not isinstance(node.op, Activation | Softmax | Unary) or source is None:
            return False
        value = source
    return False
