"""Statistics of the inputs of layers that are made sparse, and the output error that a change of weights causes.

If a layer has a bias, the bias can compensate the mean of the error: ``b - D E[x]`` for a change ``D`` of the weight. The
remaining error is that of the inputs minus their mean, ``tr(D (G - n E[x] E[x]^T) D^T)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import Graph, MatMul, Node, Tensor, UsageError
from ...ir.analysis.weights import NmWeight
from ..merge.algebra.tensors import Array64, from_float64
from ..statistics.gram import GramMatrix, InputMoments
from ..statistics.im2col import columns_problem, weight_rows
from ..statistics.requests import Calibration, Results
from .sparse_weights import output_change


class LayerInputs:
    """Statistics of the inputs of the layers of one wave, summed over all nodes that read the same weight.

    Attributes:
        refit_bias: Whether biases compensate the mean of the error.
        requests: For each weight, a request for each of its readers.
        problems: For a weight without statistics: the reason.
    """

    def __init__(
        self,
        graph: Graph,
        wave: Sequence[NmWeight],
        calibration: Calibration | None,
        method: str,
        refit_bias: bool,
    ) -> None:
        self.refit_bias = refit_bias
        self._results: Results | None = None
        self.requests: dict[NmWeight, list[Any]] = {}
        self.problems: dict[NmWeight, str] = {}
        if calibration is None:
            return
        for weight in wave:
            problem = columns_problem(weight.node)
            if problem:
                self.problems[weight] = f"{problem}: only method=magnitude supports it"
                continue
            requests: list[Any] = [GramMatrix(node) for node in weight.readers]
            problem = requests[0].problem()
            if problem and method == "wanda":
                requests = [InputMoments(node) for node in weight.readers]
            elif problem:
                self.problems[weight] = problem
                continue
            self.requests[weight] = requests
        self._results = calibration.collect(graph, [r for rs in self.requests.values() for r in rs])

    @property
    def results(self) -> Results:
        """The collected statistics.

        Raises:
            UsageError: If there is no calibration data.
        """
        if self._results is None:
            raise UsageError("there is no calibration data")
        return self._results

    def is_centred(self, weight: NmWeight) -> bool:
        """Whether biases compensate the mean of the error."""
        return (
            self.refit_bias
            and weight in self.requests
            and all(_bias(node) is not None for node in weight.readers)
        )

    def gram(self, weight: NmWeight, *, raw: bool = False) -> Array64:
        """The Gram matrix ``(groups, K, K)`` of the inputs.

        Args:
            weight: The weight.
            raw: Keep the means of the inputs, even if biases compensate them.
        """
        centred = self.is_centred(weight) and not raw
        grams = [self.results[request] for request in self.requests[weight]]
        total: Array64 = grams[0].scatter if centred else grams[0].matrix
        for gram in grams[1:]:
            total = total + (gram.scatter if centred else gram.matrix)
        return total

    def squares(self, weight: NmWeight) -> Array64:
        """The diagonal of the Gram matrix of the inputs, ``(groups, K)``."""
        requests = self.requests[weight]
        if isinstance(requests[0], GramMatrix):
            return np.diagonal(self.gram(weight), axis1=1, axis2=2)
        found = [self.results[request] for request in requests]
        centred = self.is_centred(weight)
        return np.asarray(np.sum([f.scatter if centred else f.squares for f in found], axis=0))

    def biases(self, weight: NmWeight, change: Array64) -> dict[Node, Tensor]:
        """The biases that compensate the mean error of a change of the weight; empty if biases stay as they are."""
        if not self.is_centred(weight):
            return {}
        made: dict[Node, Tensor] = {}
        for node, request in zip(weight.readers, self.requests[weight], strict=True):
            bias = _bias(node)
            if bias is None:  # ``is_centred`` excludes it.
                continue
            shift = np.einsum("grk,gk->gr", weight_rows(node, change), self.results[request].mean)
            made[node] = from_float64(bias.float64() - shift.reshape(-1), bias.dtype, bias)
        return made

    def error(self, weight: NmWeight, old: Array64, new: Array64) -> float | None:
        """The root mean square of the change of the outputs, relative to that of the outputs without bias.

        ``None`` if there are no Gram matrices.
        """
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
    """The bytes of the Gram matrices of a weight's inputs; 0 if they are not computed."""
    if columns_problem(weight.node):
        return 0
    size = sum(GramMatrix(node).nbytes() for node in weight.readers)
    return 0 if GramMatrix(weight.node).problem() else size


def _bias(node: Node) -> Tensor | None:
    """The bias of a layer; ``None`` if there is none or it is not a constant."""
    value = None if isinstance(node.op, MatMul) else node.input(2)
    return None if value is None else value.data
