"""``fold-constants``: values that nodes compute from constants become constants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from ...ir import Graph, GraphError, Identity, LazyTensor, Node, Rewriter, Tensor, Value
from ...ir.analysis.dequantized import is_dequantized
from ...ir.options import Bounds
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Store the results of constant subgraphs, within a limit on the growth of the file; exact.

    Quantised weights (integers with scales) are not folded.

    Attributes:
        max_growth: How many bytes larger one folded tensor may be than the constants that it replaces.
    """

    name = "fold-constants"
    asks_first = True
    max_growth: Annotated[int, Bounds(at_least=0)] = 65536

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        if ctx.target != "fx":
            _skip_copies(graph, rw)
        based = Counter(b for v in graph.constants if v.use_count for b in v.bases)
        for node in graph.nodes:
            if not node.is_constant:
                continue
            for value in node.outputs:
                # A value that only folded nodes read disappears with them.
                if any(self._is_kept(user.outputs) for user in value.users):
                    self._fold(value, [node], based, rw)
        for value in graph.constants:
            makers = [b.producer for b in value.bases if b.producer is not None]
            if not makers or not value.use_count:
                continue
            # The constant is another form of the results of ``makers``: all its readers must be written anew.
            reasons = ((user, rw.unwritable(user)) for user in value.users)
            refused = next(((user, why) for user, why in reasons if why is not None), None)
            if refused is not None:
                rw.skip(refused[0], refused[1])
                continue
            self._fold(value, makers, based, rw)

    @staticmethod
    def _is_kept(outputs: tuple[Value, ...]) -> bool:
        """Whether a node with these outputs stays: not all of them are constants."""
        return not outputs or any(v.data is None for v in outputs)

    def _fold(self, value: Value, makers: list[Node], based: Counter[Value], rw: Rewriter) -> None:
        """Replace ``value``, a result or another form of a result of ``makers``, by a constant."""
        data = value.data
        if data is None:
            raise GraphError(f"%{value.name} is not a constant")
        if all(_is_view(v.data) for m in makers for v in m.outputs):
            return  # A view of the host's own parameter: a copy would no longer follow it.
        if any(is_dequantized(v) for m in makers for v in m.outputs):
            rw.skip(makers[0], "folding would turn quantised numbers into floating-point ones")
            return
        results = [v for m in makers for v in m.outputs if v is not value]
        stay = any(v.use_count or based[v] > (v in value.bases) for v in results)
        stay = stay or value.is_output or based[value] > 0
        growth = data.nbytes - (0 if stay else _freed(makers, based))
        if growth > self.max_growth:
            rw.skip(
                makers[0],
                f"folding would add {growth} bytes, more than max-growth={self.max_growth}",
            )
            return
        with rw.rewrite(f"fold {makers[0].op.name} of constants", makers[0]):
            constant = rw.constant(data, value.name)
            for user, index in value.uses:
                rw.set_input(user, index, constant)


def _skip_copies(graph: Graph, rw: Rewriter) -> None:
    """Let what reads a copy of a constant read the constant itself, in whatever form."""
    copies: dict[Value, Value] = {}
    for node in graph.nodes:
        if not isinstance(node.op, Identity) or node.required(0).data is None:
            continue
        source = node.required(0)
        copies[node.output] = copies.get(source, source)
        with rw.rewrite("read a constant instead of a copy", node):
            for user, index in node.output.uses:
                rw.set_input(user, index, copies[node.output])
    for value in graph.constants if copies else ():
        if not copies.keys().isdisjoint(value.bases):
            with rw.rewrite("read a constant instead of a copy", *value.users):
                rw.rebase(value, [copies.get(b, b) for b in value.bases])


def _is_view(data: Tensor | None) -> bool:
    """Whether a constant has the numbers of a host tensor, only in another order or shape."""
    while isinstance(data, LazyTensor) and data.source is not None:
        data = data.source
        if data.host is not None:
            return True
    return False


def _freed(makers: list[Node], based: Counter[Value]) -> int:
    """Bytes of the constants that become unread if the results of ``makers`` are stored.

    What several of the nodes that go read, such as a weight that is cut into pieces and joined in another order, goes with
    the last of them.
    """
    freed = 0
    gone, pending = set(makers), list(makers)
    left: dict[Value, int] = {}
    while pending:
        for value in pending.pop().inputs:
            if value is None or value.data is None or value.is_output or based[value]:
                continue
            left[value] = left.get(value, value.use_count) - 1
            maker = value.producer
            if left[value]:
                continue
            if maker is None:
                freed += value.data.nbytes
            elif maker not in gone and all(_goes(v, left, based) for v in maker.outputs):
                gone.add(maker)
                pending.append(maker)
    return freed


def _goes(value: Value, left: dict[Value, int], based: Counter[Value]) -> bool:
    """Whether nothing reads a result any more."""
    return not left.get(value, value.use_count) and not value.is_output and not based[value]
