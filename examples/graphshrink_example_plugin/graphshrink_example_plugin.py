"""Two passes of another package: a class with an option, and a plain function."""

from __future__ import annotations

from dataclasses import dataclass

from graphshrink import Context, Exactness, Graph, Pass, Rewriter
from graphshrink.ir import Activation


@dataclass(frozen=True)
class ClampActivations(Pass):
    """Bound every ReLU from above, as fixed-point hardware requires.

    Attributes:
        limit: The largest value that is kept.
    """

    name = "clamp-activations"
    exactness = Exactness.APPROXIMATE
    limit: float = 6.0

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError("limit must be above 0")

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Rewrite ``graph`` through ``rw``."""
        for node in graph.nodes:
            if node.op == Activation("relu"):
                with rw.rewrite(f"clamp at {self.limit:g}", node):
                    rw.replace(node, Activation("clip", (0.0, self.limit)), node.inputs)
            elif isinstance(node.op, Activation):
                rw.skip(node, f"a {node.op.kind} is not a ReLU")


def relu6_to_relu(graph: Graph, rw: Rewriter) -> None:
    """Drop the upper bound of every ReLU6."""
    for node in graph.nodes:
        if node.op == Activation("relu6"):
            rw.replace(node, Activation("relu"), node.inputs)
