"""``prune-dead``: remove unused nodes, unused constants and identities."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, Identity, Node, Opaque, Rewriter
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class PruneDead(Pass):
    """Remove unused pure nodes, unused constants and needless identities; exact."""

    name = "prune-dead"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        nodes = list(graph.nodes)
        for node in nodes:
            if isinstance(node.op, Identity):
                self._bypass(node, rw)
        # A host node that is copied reads the bases of a constant, not the constant.
        bases = {base for v in graph.constants if v.use_count for base in v.bases}
        for node in reversed(nodes):
            if any(value.use_count or value in bases for value in node.outputs):
                continue
            if isinstance(node.op, Opaque) and not node.op.pure:
                continue
            with rw.rewrite(f"remove unused {node.op.name}", node):
                rw.erase(node)
        for value in graph.constants:
            if not value.use_count:
                rw.erase_constant(value)

    @staticmethod
    def _bypass(node: Node, rw: Rewriter) -> None:
        """Let the users of an identity read its input."""
        source, result = node.inputs[0], node.output
        if source is None or not result.type.accepts(source.type):
            return
        # A graph output that is an input, a constant or another output needs its identity.
        if result.is_output and (source.producer is None or source.is_output):
            return
        if result.use_count:
            with rw.rewrite("bypass Identity", node):
                # The type of a graph input is part of the signature: an inferred type (such as a symbol that
                # onnx invented for an unnamed size) must not narrow it.
                if source.producer is not None:
                    source.type = source.type.refined(result.type)
                rw.replace_uses(result, source)
