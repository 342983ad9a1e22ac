"""What the layers that are to be made sparse read, and what a change of their weights does to their outputs.

Where a layer has a bias, the bias can take the mean of whatever is lost: ``b - D E[x]`` for a change ``D`` of the weight. What
is left of the error is then that of the inputs without their mean, ``tr(D (G - n E[x] E[x]^T) D^T)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import Graph, MatMul, Node, Tensor
from ...ir.analysis.weights import NmWeight
from ..merge.algebra.tensors import Array64, exact
from ..statistics.gram import GramMatrix, InputMoments
from ..statistics.im2col import columns_problem, weight_rows
from ..statistics.requests import Calibration, Results
from .sparse_weights import output_change


class LayerInputs:
    """What the layers of one wave read: summed over all nodes that read one weight."""

    def __init__(
        self,
        graph: Graph,
        wave: Sequence[NmWeight],
        calibration: Calibration | None,
        method: str,
        refit_bias: bool,
    ) -> None:
        self.refit_bias = refit_bias
        self.found: Results | None = None
        self.requests: dict[NmWeight, list[Any]] = {}
        self.problems: dict[NmWeight, str] = {}
        if calibration is None:
            return
        for weight in wave:
            problem = columns_problem(weight.node)
            if problem:
                self.problems[weight] = f"{problem}: only method=magnitude takes it"
                continue
            requests: list[Any] = [GramMatrix(node) for node in weight.readers]
            problem = requests[0].problem()
            if problem and method == "wanda":
                requests = [InputMoments(node) for node in weight.readers]
            elif problem:
                self.problems[weight] = problem
                continue
            self.requests[weight] = requests
        self.found = calibration.collect(graph, [r for rs in self.requests.values() for r in rs])

    def centred(self, weight: NmWeight) -> bool:
        """Whether biases take the mean of what is lost."""
        return (
            self.refit_bias
            and weight in self.requests
            and all(_bias(node) is not None for node in weight.readers)
        )

    def gram(self, weight: NmWeight, *, raw: bool = False) -> Array64:
        """The Gram matrix ``(groups, K, K)`` of the inputs: without their means where biases take these, or ``raw``."""
        assert self.found is not None
        total: Array64 | None = None
        for request in self.requests[weight]:
            gram = self.found[request]
            matrix = gram.scatter if self.centred(weight) and not raw else gram.matrix
            total = matrix if total is None else total + matrix
        assert total is not None
        return total

    def squares(self, weight: NmWeight) -> Array64:
        """The diagonal of that matrix, ``(groups, K)``."""
        assert self.found is not None
        requests = self.requests[weight]
        if isinstance(requests[0], GramMatrix):
            return np.diagonal(self.gram(weight), axis1=1, axis2=2)
        found = [self.found[request] for request in requests]
        centred = self.centred(weight)
        return np.asarray(np.sum([f.scatter if centred else f.squares for f in found], axis=0))

    def biases(self, weight: NmWeight, change: Array64) -> dict[Node, Tensor]:
        """The biases that make up for the mean of what a change of the weight does to the outputs."""
        if not self.centred(weight):
            return {}
        assert self.found is not None
        made: dict[Node, Tensor] = {}
        for node, request in zip(weight.readers, self.requests[weight], strict=True):
            bias = _bias(node)
            assert bias is not None
            shift = np.einsum("grk,gk->gr", weight_rows(node, change), self.found[request].mean)
            made[node] = exact(bias.float64() - shift.reshape(-1), bias.dtype, bias)
        return made

    def error(self, weight: NmWeight, old: Array64, new: Array64) -> float | None:
        """How far the outputs move, relative to what they were without their bias, in root mean squares."""
        requests = self.requests.get(weight)
        if not requests or not isinstance(requests[0], GramMatrix):
            return None
        node = weight.node
        moved, size = (
            sum(map(output_change, weight_rows(node, array), gram))
            for array, gram in (
                (new - old, self.gram(weight)), (old, self.gram(weight, raw=True)),
            )
        )  # fmt: skip
        return float(np.sqrt(moved / size)) if size else 0.0


def gram_bytes(weight: NmWeight) -> int:
    """What the Gram matrices of a weight's inputs take; 0 where they are not made."""
    if columns_problem(weight.node):
        return 0
    size = sum(GramMatrix(node).nbytes() for node in weight.readers)
    return 0 if GramMatrix(weight.node).problem() else size


def _bias(node: Node) -> Tensor | None:
    """The bias of a layer, where it is a constant."""
    value = None if isinstance(node.op, MatMul) else node.input(2)
    return None if value is None else value.data
