"""Residual blocks of a graph, one after the other: what is between two cuts of the same type, with a skip over it.

A block goes by giving its result the value that it reads. That is the function ``x + f(x)`` without ``f``; where a norm or an activation
stands behind the sum, as in the transformer of Vaswani et al. (2017), it goes with the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Add, Conv, Exactness, Graph, Identity, MatMul, Node, Rewriter, Softmax, Value
from ...ir.analysis.cuts import stretches


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block, or several in a row.

    Attributes:
        entry: The value that it reads.
        exit: The value that it computes, of the same type.
        nodes: Its nodes in topological order.
        layers: Its nodes with weights.
    """

    entry: Value
    exit: Value
    nodes: tuple[Node, ...]
    layers: tuple[Node, ...]

    @property
    def name(self) -> str:
        """The names of its first and its last layer."""
        first, last = self.layers[0].name, self.layers[-1].name
        return first if first == last else f"{first} to {last}"

    @property
    def channel_axis(self) -> int:
        """The axis of the channels of entry and exit."""
        return 1 if any(isinstance(n.op, Conv) for n in self.nodes) else -1

    @property
    def attends(self) -> bool:
        """Whether it multiplies two values that it computes, behind a softmax: attention."""
        products = [n for n in self.nodes if isinstance(n.op, MatMul) and n not in self.layers]
        return bool(products) and any(isinstance(n.op, Softmax) for n in self.nodes)


def sub_layers(graph: Graph) -> list[Block]:
    """The residual blocks of a graph in order; attention and MLP of a transformer are two."""
    found: list[Block] = []
    for stretch in stretches(graph):
        entry, exit, nodes = stretch.entry, stretch.exit, stretch.nodes
        if entry is None or exit is None:
            continue
        behind = found and found[-1].exit is entry and entry.type == exit.type
        if behind and not stretch.layers:
            # A norm or an activation behind the sum.
            last = found.pop()
            found.append(Block(last.entry, exit, (*last.nodes, *nodes), last.layers))
        elif stretch.layers and _is_residual(entry, exit, nodes):
            found.append(Block(entry, exit, nodes, tuple(stretch.layers)))
    return found


def transformer_layers(graph: Graph) -> list[Block]:
    """The residual blocks of a graph in order, attention together with the MLP behind it."""
    found: list[Block] = []
    attention: Block | None = None
    for block in sub_layers(graph):
        if attention is None or block.attends or attention.exit is not block.entry:
            found.append(block)
            attention = block if block.attends else None
        else:
            nodes, layers = (*attention.nodes, *block.nodes), (*attention.layers, *block.layers)
            found[-1] = Block(attention.entry, block.exit, nodes, layers)
            attention = None
    return found


def _is_residual(entry: Value, exit: Value, nodes: tuple[Node, ...]) -> bool:
    if entry.type != exit.type or entry.type.rank is None:
        return False
    return any(isinstance(n.op, Add) and entry in n.inputs for n in nodes)


def skip(rw: Rewriter, what: str, entry: Value, exit: Value, *nodes: Node) -> None:
    """Give the result of a block the value that it reads; the last node becomes an identity, so that the result keeps its name.

    Args:
        rw: The rewriter.
        what: The block, for the report.
        entry: The value that it reads.
        exit: The value that it computes.
        nodes: The nodes of the block, which are erased if nothing else reads them; if not given, they stay.
    """
    last = exit.producer
    assert last is not None
    with rw.rewrite(f"skip {what}", *(nodes or (last,)), exactness=Exactness.APPROXIMATE):
        rw.replace(last, Identity(), [entry])
        _erase(rw, nodes)


def _erase(rw: Rewriter, nodes: tuple[Node, ...]) -> None:
    """Erase those of some nodes whose results nobody reads any more."""
    for node in reversed(nodes):
        if node.graph is rw.graph and not any(v.use_count for v in node.outputs):
            rw.erase(node)
