"""``fuse-dense``: a dense layer that the host writes as a product and an addition becomes one node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...ir import Graph, Linear, Rewriter, sketch
from ...ir.analysis.dequantized import is_dequantized
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class FuseDense(Pass):
    """Write matrix products with a bias as one node (ONNX: MatMul and Add as Gemm); exact.

    Only inputs that are matrices; a weight that others read too is not stored a second time.
    """

    name = "fuse-dense"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        if ctx.target == "fx":
            return
        based = Counter(b for v in graph.constants if v.use_count for b in v.bases)
        for node in graph.nodes:
            parts = getattr(node.origin, "nodes", ())
            if not isinstance(node.op, Linear) or node.input(2) is None or len(parts) < 2:
                continue
            source, weight = node.required(0), node.required(1)
            if source.type.rank != 2:
                continue
            dtype = node.output.type.dtype
            if dtype is None or not dtype.is_wide_float or is_dequantized(weight):
                continue
            shared = any(b.use_count or based[b] > 1 or b.producer for b in weight.bases)
            if shared or len(weight.users) > 1 or weight.data is None:
                rw.skip(node, "its weight is read elsewhere and would be stored twice")
                continue
            reason = rw.unwritable(sketch(node.op, node.inputs))
            if reason is not None:
                rw.skip(node, reason)
                continue
            with rw.rewrite("write a dense layer as one node", node):
                rw.replace(node, node.op, node.inputs)
