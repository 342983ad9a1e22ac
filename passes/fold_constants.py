"""Turn values that are computed from constants into constants."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph, Rewriter, Value
from .base import Context, Pass, PassError, register


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Store what constant subgraphs compute, within a bound on the growth of the file; exact.

    Attributes:
        max_growth: How many bytes larger than the constants that it replaces one folded tensor may be.
    """

    name = "fold-constants"
    max_growth: int = 65536

    def __post_init__(self) -> None:
        if self.max_growth < 0:
            raise PassError("fold-constants: max-growth must not be negative")

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        for node in graph.nodes:
            if not node.outputs or any(v.data is None for v in node.outputs):
                continue
            for value in node.outputs:
                # What only other folded nodes read goes away with them.
                if value.is_output or any(self._needs(user.outputs) for user in value.users):
                    self._fold(value, rw)

    @staticmethod
    def _needs(outputs: tuple[Value, ...]) -> bool:
        return not outputs or any(v.data is None for v in outputs)

    def _fold(self, value: Value, rw: Rewriter) -> None:
        node, data = value.producer, value.data
        assert node is not None
        assert data is not None
        freed = sum(
            v.data.nbytes for v in node.inputs if v is not None and v.data and v.has_one_use
        )
        if data.nbytes - freed > self.max_growth:
            rw.skip(
                node,
                f"folding would add {data.nbytes - freed} bytes, "
                f"more than max-growth={self.max_growth}",
            )
            return
        if not value._uses:
            return  # Returned only: the node is as good as a constant and an identity.
        with rw.rewrite(f"fold {node.op.name} of constants", node):
            constant = rw.constant(data, value.name)
            for user, index in value.uses:
                rw.set_input(user, index, constant)
