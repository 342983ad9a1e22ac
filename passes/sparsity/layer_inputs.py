"""Statistics of the inputs of layers that are made sparse, and the output error that a change of weights causes.

If a layer has a bias, the bias can compensate the mean of the error: ``b - D E[x]`` for a change ``D`` of the weight. The
remaining error is that of the inputs minus their mean, ``tr(D (G - n E[x] E[x]^T) D^T)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph, MatMul, Node, Tensor, UsageError
from ...ir.analysis.weights import NmWeight
from ...ir.ops.recurrent import _Recurrent
from ..merge.algebra.tensors import Array64, from_float64
from ..statistics.gram import GramMatrix, InputMoments
from ..statistics.im2col import columns_problem, columns_size, weight_rows
from ..statistics.requests import Calibration, Results
from .sparse_weights import output_change


@dataclass(frozen=True)
class BiasShift:
    """What is subtracted from the bias of a layer.

    Attributes:
        node: The layer.
        amount: The numbers, in the shape of the bias.
    """

    node: Node
    amount: Array64

    @property
    def index(self) -> int:
        """Which input of the layer the bias is."""
        return _bias_index(self.node)

    def applied(self) -> Tensor:
        """The new bias, from the one that the layer has now."""
        bias = _bias(self.node)
        assert bias is not None
        return from_float64(bias.float64() - self.amount, bias.dtype, bias)


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
            problem = _problem(weight)
            if problem:
                self.problems[weight] = f"{problem}: only method=magnitude supports it"
                continue
            requests: list[Any] = [GramMatrix(*use) for use in column_uses(weight)]
            problem = requests[0].problem()
            if problem and method == "wanda":
                requests = [InputMoments(*use) for use in column_uses(weight)]
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

    def biases(self, weight: NmWeight, change: Array64) -> dict[Node, BiasShift]:
        """How biases compensate the mean error of a change of the weight; empty if biases stay as they are."""
        if not self.is_centred(weight):
            return {}
        made: dict[Node, BiasShift] = {}
        for use, request in zip(column_uses(weight), self.requests[weight], strict=True):
            node, index = use
            bias = _bias(node)
            if bias is None:  # ``is_centred`` excludes it.
                continue
            rows = weight_rows(node, change, index)
            amount = np.einsum("grk,gk->gr", rows, self.results[request].mean)
            if isinstance(node.op, _Recurrent):
                # The biases of the input matrix are in front of those of the recurrent one.
                halves = np.zeros((2, *bias.shape[:1], bias.shape[1] // 2))
                halves[index - 1] = amount.reshape(halves.shape[1:])
                amount = np.concatenate(list(halves), axis=1)
            before = made.get(node)
            whole = amount.reshape(bias.shape) + (0 if before is None else before.amount)
            made[node] = BiasShift(node, whole)
        return made

    def error(self, weight: NmWeight, old: Array64, new: Array64) -> float | None:
        """The root mean square of the change of the outputs, relative to that of the outputs without bias.

        ``None`` if there are no Gram matrices.
        """
        requests = self.requests.get(weight)
        if not requests or not isinstance(requests[0], GramMatrix):
            return None
        node, index = column_uses(weight)[0]
        moved, size = (
            sum(map(output_change, weight_rows(node, array, index), gram))
            for array, gram in (
                (new - old, self.gram(weight)), (old, self.gram(weight, raw=True)),
            )
        )  # fmt: skip
        return float(np.sqrt(moved / size)) if size else 0.0


def gram_bytes(weight: NmWeight) -> int:
    """The bytes of the Gram matrices of a weight's inputs; 0 if they are not computed."""
    if _problem(weight):
        return 0
    requests = [GramMatrix(*use) for use in column_uses(weight)]
    return 0 if requests[0].problem() else sum(request.nbytes() for request in requests)


def column_uses(weight: NmWeight) -> list[tuple[Node, int]]:
    """The readers of a weight, each with the index of the weight among its inputs, as statistics of columns take them."""
    if not weight.is_recurrent:
        return [(node, 1) for node in weight.readers]
    return list(weight.uses)


def _problem(weight: NmWeight) -> str:
    """The reason why the inputs of a weight cannot be measured; empty if they can."""
    uses = column_uses(weight)
    problem = next((p for use in uses if (p := columns_problem(*use))), "")
    if not problem and weight.is_recurrent and len({columns_size(*use) for use in uses}) > 1:
        return "its readers multiply it with different inputs"
    return problem


def _bias(node: Node) -> Tensor | None:
    """The bias of a layer, or both of a recurrent one; ``None`` if there is none, or it is not a constant."""
    value = None if isinstance(node.op, MatMul) else node.input(_bias_index(node))
    return None if value is None else value.data


def _bias_index(node: Node) -> int:
    return 3 if isinstance(node.op, _Recurrent) else 2
