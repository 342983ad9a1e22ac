"""``fuse-patterns``: an activation or a normalisation that the host computes by several nodes becomes its one operator."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Activation, DType, Graph, LayerNorm, Rewriter
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class FusePatterns(Pass):
    """Write activations and layer norms by the host's own operator where the model computes them by several (ONNX: Erf and others as Gelu); exact.

    Only where the model's opset has the operator, and only in float32, for which runtimes have kernels. A GELU that stays keeps
    its factor of 0.5: onnxruntime would not recognise it without.
    """

    name = "fuse-patterns"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        if ctx.host_nodes is None:
            return
        for node in graph.nodes:
            parts = len(getattr(node.origin, "nodes", ()))
            if not isinstance(node.op, Activation | LayerNorm) or parts < 2:
                continue
            if node.output.type.dtype is not DType.F32 or rw.unwritable(node) is not None:
                continue
            count = ctx.host_nodes(node)
            if count < parts:
                with rw.rewrite(f"write {parts} nodes as {count}", node):
                    rw.replace(node, node.op, node.inputs)
            else:
                rw.skip(node, "the opset has no shorter form")
