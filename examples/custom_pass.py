"""Your own passes: a function, and a class with an option, chained with the built-in ones.

``graphshrink_example_plugin/`` beside this file shows how a package publishes passes. Run::

    python examples/custom_pass.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from graphshrink import Context, Exactness, Graph, Pass, Pipeline, Rewriter, register, shrink
from graphshrink.ir import Activation


def silu_to_hard_swish(graph: Graph, rw: Rewriter) -> None:
    """A pass may be a plain function. It counts as approximate."""
    for node in graph.nodes:
        if node.op == Activation("silu"):
            rw.replace(node, Activation("hard_swish"), node.inputs)


@register
@dataclass(frozen=True)
class DropActivation(Pass):
    """A pass with options is a frozen dataclass; registering it gives it a name in pipeline texts.

    Attributes:
        kind: The kind of activation that becomes an identity.
        most: The largest number of them, counted from the end of the network.
    """

    name = "drop-activation"
    exactness = Exactness.APPROXIMATE
    kind: str = "relu"
    most: int = 1

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Every pass has this method; all changes go through ``rw``."""
        found = [n for n in graph.nodes if n.op == Activation(self.kind)]
        for place, node in enumerate(reversed(found)):
            result, source = node.output, node.inputs[0]
            if place >= self.most:
                rw.skip(node, f"more than most={self.most}")
            elif source is not None and not result.is_output:
                with rw.rewrite(f"drop {self.kind}", node):
                    rw.replace_uses(result, source)
                    rw.erase(node)


def main() -> None:
    """Run them in a pipeline, and print the changes of each."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 8, 8)
    in_python = Pipeline([silu_to_hard_swish, DropActivation(most=2), "merge-linear", "prune-dead"])
    as_text = [silu_to_hard_swish, "drop-activation{most=2},merge-linear,prune-dead"]
    for passes in (in_python, as_text):
        result = shrink(model, passes, example_inputs=(image,), check=True)
        for record in result.report.passes:
            done = "; ".join(f"{r.what} ({' '.join(r.nodes)})" for r in record.rewrites[:2])
            print(f"{record.text:<24} {record.exactness!s:<12} {len(record.rewrites):>2}: {done}")
        print(f"{len(list(model))} modules -> {len(result.graph)} nodes\n")


if __name__ == "__main__":
    main()
