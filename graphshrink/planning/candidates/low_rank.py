"""*low-rank*: one layer becomes two thin ones.

Of all maps of rank r, the best approximation of what a layer computes from the samples projects its result onto the r principal axes of this
result: with the covariance C of what the layer reads, these are eigenvectors of ``W C W^T``. That is the singular value decomposition of
``W C^(1/2)`` (as in Hsu et al., *Language model compression with weighted low-rank factorization*, 2022, with the whole covariance
for weights). The bias takes up the mean of what is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import Conv, Linear
from ...passes.merge.algebra.tensors import Array64
from ..closed_forms import Sums
from ..column_sums import SUMS_BYTES, ColumnSums
from ..sites import Site
from ..windows import layer_matrix, layer_window
from .base import Candidate, Kind
from .linear import Layer, LinearMap

LEVELS = (0.75, 0.5, 0.25)
"""Ranks, as parts of the rank at which the two layers have as many weights as the one."""

MULTIPLE = 8
"""Ranks are multiples of this: runtimes compute in vectors of 4, 8 or 16."""


class LowRank(Kind):
    """Two thin layers in place of one."""

    name = "low-rank"

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """The Gram matrix of what the layer reads."""
        if site.kind not in ("layer", "matrix"):
            return ""
        (node,) = site.nodes
        if isinstance(node.op, Conv) and node.op.groups != 1:
            return ""
        request = ColumnSums(site.entry, None, layer_window(node))
        outputs = node.required(1).type.dim(0) or 0
        if not _ranks(outputs, request.size - 1):
            return f"no smaller rank of its {outputs} outputs saves anything"
        if request.nbytes() > SUMS_BYTES:
            return f"the Gram matrix of its {request.size} inputs would be too large"
        return [request]

    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """A candidate for each rank."""
        (node,), (sums,) = site.nodes, results
        whole = layer_matrix(node)
        inner, gram = whole[:, :-1], sums.gram / sums.count
        mean = gram[-1, :-1]
        covariance = gram[:-1, :-1] - np.outer(mean, mean)
        _, axes = np.linalg.eigh(inner @ covariance @ inner.T)
        targets = Sums(sums.gram, whole @ sums.gram, ((whole @ sums.gram) * whole).sum(1))
        made: list[Candidate] = []
        for rank in _ranks(*inner.shape):
            basis = axes[:, -rank:]
            thin = basis.T @ inner
            bias = whole[:, -1] + (inner - basis @ thin) @ mean
            error = targets.error(np.concatenate([basis @ thin, bias[:, None]], 1))
            made.append(
                LinearMap(site, f"low-rank {rank}", error, _layers(site, thin, basis, bias))
            )
        return made


def _ranks(outputs: int, inputs: int) -> list[int]:
    """The ranks to try, largest first."""
    even = outputs * inputs / max(outputs + inputs, 1)
    made = {round(even * level / MULTIPLE) * MULTIPLE for level in LEVELS}
    return sorted((r for r in made if 0 < r < min(even, outputs, inputs)), reverse=True)


def _layers(site: Site, thin: Array64, basis: Array64, bias: Array64) -> tuple[Layer, ...]:
    (node,) = site.nodes
    if isinstance(node.op, Linear):
        return Layer(Linear(), (thin,)), Layer(Linear(), (basis, bias))
    shape = node.required(1).type.static_shape
    assert isinstance(node.op, Conv)
    assert shape is not None
    ones = (1,) * (len(shape) - 2)
    point = Conv(ones, (0,) * 2 * len(ones), ones)
    return (
        Layer(node.op, (thin.reshape(-1, *shape[1:]),)),
        Layer(point, (basis.reshape(*basis.shape, *ones), bias)),
    )
