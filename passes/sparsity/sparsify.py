"""``sparsify``: prune weights of convolutions, dense and recurrent layers to an N:M pattern, or by a fraction of all numbers.

:mod:`graphshrink.ir.analysis.weights` decides which weights can have a pattern, and along which axis;
:mod:`.sparse_weights` has the methods. With calibration data, layers are pruned one after the other. The inputs of each
layer are measured after the layers before it are pruned (:mod:`.layer_waves`), so that later layers compensate the
errors of earlier ones.

The order of a pipeline: fold and merge, permute, then sparsify.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ...ir import (
    Conv,
    ConvTranspose,
    Exactness,
    Graph,
    LazyTensor,
    Linear,
    MaskedTensor,
    MatMul,
    Node,
    Rewriter,
    Tensor,
)
from ...ir.analysis.weights import LIKELY_CHANNELS, NO_RECURRENT_KERNELS, NmWeight, nm_weights
from ...ir.masks.nm_pattern import Mask, Pattern, unstructured_mask
from ...ir.ops.recurrent import _Recurrent
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA, Condition
from ..infra.contract import Context, Pass, PassError, name_list, named_nodes
from ..infra.registry import register
from ..merge.algebra.tensors import Array64, out_of_range
from ..statistics.im2col import tap_major, weight_from_rows, weight_rows
from ..statistics.requests import Calibration, groups_within_memory
from .layer_inputs import BiasShift, LayerInputs, column_uses, gram_bytes
from .layer_waves import layer_waves
from .sparse_weights import PruningRule, sparsegpt, wanda

Kind = Literal["conv", "conv-transpose", "linear", "matmul", "recurrent"]

OPS: dict[Kind, type] = {
    "conv": Conv, "conv-transpose": ConvTranspose, "linear": Linear, "matmul": MatMul,
    "recurrent": _Recurrent,
}  # fmt: skip
"""The choices of the option ``ops``."""

SHOWN = 3
"""The number of reasons that an error lists."""


@register
@dataclass(frozen=True)
class Sparsify(Pass):
    """Make weights sparse: keep at most n of every m numbers along the reduction axis.

    Attributes:
        n: The number of weights that are kept in each group of m.
        m: The size of a group.
        sparsity: The fraction of each weight that is pruned, at any position, instead of an N:M pattern.
        method: How numbers are chosen: ``magnitude``; ``wanda``, magnitude times the norm of the input; or
            ``sparsegpt``, which also changes the kept numbers so that the outputs change least. The latter two
            need calibration data.
        layers: Names of layers, or patterns with * and ?; all layers if not given.
        skip: Names of layers, or patterns, that stay dense.
        ops: Kinds of layers: conv, conv-transpose, linear, matmul, recurrent (LSTM, GRU, RNN); all kinds
            if not given.
        min_size: Weights with fewer numbers stay dense.
        dense_fallback: Keep layers dense if sparse kernels are not likely to be faster (fewer than 256 channels on
            either side, or groups).
        sequential: Measure the inputs of a layer after the layers before it were made sparse. Otherwise all layers are
            measured in one run, which is faster.
        refit_bias: With calibration data, change existing biases to compensate the mean error; the weights are then
            chosen for the least variance of the error.
        lasting: In torch, write masks as parametrizations, so that the zeros stay during training; fold-masks ends that.
        damping: SparseGPT: the number added to the diagonal of the Hessian, relative to its mean.
        block: SparseGPT: the number of columns that are updated together.
    """

    name = "sparsify"
    exactness = Exactness.APPROXIMATE
    n: int = 2
    m: int = 4
    sparsity: Annotated[float, Bounds(above=0, below=1)] | None = None
    method: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude"
    layers: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()
    ops: Kind | tuple[Kind, ...] = ()
    min_size: Annotated[int, Bounds(at_least=0)] = 0
    dense_fallback: bool = False
    sequential: bool = True
    refit_bias: bool = True
    lasting: bool = False
    damping: Annotated[float, Bounds(at_least=0)] = 0.01
    block: Annotated[int, Bounds(at_least=1)] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        Pattern(self.n, self.m)

    @property
    def keep(self) -> PruningRule:
        """Which weights are kept."""
        if self.sparsity is None:
            return PruningRule(Pattern(self.n, self.m), self.n / self.m)
        return PruningRule(None, 1 - self.sparsity)

    @property
    def requires(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """Calibration data, except for magnitudes."""
        return () if self.method == "magnitude" else (CALIBRATION_DATA,)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        chosen = self._chosen(graph, rw)
        done = 0
        for wave in self._waves(graph, chosen, ctx.calibration):
            made: list[_Pruned] = []
            # Measure a whole wave before any of its layers changes, in parts if memory is short.
            for part in groups_within_memory(wave, gram_bytes):
                inputs = LayerInputs(graph, part, ctx.calibration, self.method, self.refit_bias)
                for weight in part:
                    try:
                        made.append(self._pruned(weight, inputs))
                    except ValueError as reason:
                        rw.skip(weight.node, str(reason))
                    done += 1
                    ctx.progress(done, len(chosen), "layers made sparse")
            for found in made:
                found.write(rw)

    def _waves(
        self, graph: Graph, chosen: Sequence[NmWeight], calibration: Calibration | None
    ) -> Iterator[Sequence[NmWeight]]:
        if calibration is None or not self.sequential:
            yield chosen
            return
        yield from layer_waves(graph, {weight: weight.readers for weight in chosen})

    def _chosen(self, graph: Graph, rw: Rewriter) -> list[NmWeight]:
        """The weights that are to be made sparse; records a refusal for every other weight.

        Raises:
            PassError: If there are none, or a name matches nothing.
        """
        only = named_nodes(graph, self.layers, "sparsify: layers") if self.layers else None
        without = named_nodes(graph, self.skip, "sparsify: skip") if self.skip else set()
        kinds = tuple(kind for word, kind in OPS.items() if word in name_list(self.ops))
        chosen: list[NmWeight] = []
        refused: list[str] = []
        for weight in nm_weights(graph):
            if only is not None and only.isdisjoint(weight.readers):
                continue
            reason = self._reason(weight, without, kinds)
            if reason is None:
                chosen.append(weight)
            else:
                refused.append(f"{weight.name}: {reason}")
                rw.skip(weight.node, reason)
        if not chosen:
            shown = (
                "; ".join(refused[:SHOWN]) or "there are no convolutions, dense or recurrent layers"
            )
            more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
            raise PassError(f"sparsify: no layer can be made {self.keep} ({shown}{more})")
        return chosen

    def _reason(self, weight: NmWeight, without: set[Node], kinds: tuple[type, ...]) -> str | None:
        """The reason why a weight stays dense; ``None`` if it can be made sparse."""
        if not without.isdisjoint(weight.readers):
            return "the option skip names it"
        if kinds and not all(isinstance(node.op, kinds) for node in weight.readers):
            return f"the option ops names only {', '.join(name_list(self.ops))}"
        reason = weight.reason(Pattern(self.n, self.m), self.min_size)
        if self.sparsity is not None and weight.problem is None:
            size = (
                0 if weight.reduction is None else weight.reduction.count * weight.reduction.length
            )
            reason = (
                f"it has {size} numbers, fewer than {self.min_size}"
                if size < self.min_size
                else None
            )
        if reason is not None:
            return reason
        if self.dense_fallback and weight.is_recurrent:
            return NO_RECURRENT_KERNELS
        if self.dense_fallback and not weight.likely():
            return (
                "a sparse kernel is not likely to be faster: it has groups, or fewer than "
                f"{LIKELY_CHANNELS} input or output channels"
            )
        return None

    def _pruned(self, weight: NmWeight, inputs: LayerInputs) -> _Pruned:
        """The sparse form of a weight.

        Raises:
            ValueError: If it stays dense; the message is the reason.
        """
        data, reduction = _data(weight), weight.reduction
        if reduction is None:
            raise ValueError(weight.problem or "it has no reduction axis")
        old = data.float64()
        if not np.isfinite(old).all():
            raise ValueError("its weight is not finite everywhere")
        keep, note = self.keep, ""
        weights: Tensor = data
        if self.method != "magnitude":
            weights, mask, note = self._by_data(weight, old, inputs)
        elif keep.pattern is None:
            mask = unstructured_mask(np.abs(old), keep.density)
        else:
            mask = reduction.mask(np.abs(old), keep.pattern)
        total = np.abs(old).sum()
        measures = {"magnitude kept": float(np.abs(old[mask]).sum() / total) if total else 1.0}
        along = reduction if keep.pattern is not None else None
        made = MaskedTensor(weights, mask, keep.pattern, along, self.lasting)
        stored = made.numpy().astype(np.float64)
        error = inputs.error(weight, old, stored)
        if error is not None:
            measures["output error"] = error
        biases = inputs.biases(weight, stored - old)
        for shift in biases.values():
            tensor = shift.applied()
            if out_of_range(tensor):
                raise ValueError(f"its refitted bias would leave the range of {tensor.dtype.value}")
        return _Pruned(
            weight, made, biases, f"{_what(weight, keep)} by {self.method}{note}", measures
        )

    def _by_data(
        self, weight: NmWeight, old: Array64, inputs: LayerInputs
    ) -> tuple[Tensor, Mask, str]:
        """A weight pruned by the statistics of its inputs.

        Returns:
            The weight, the mask of the kept numbers, and a note for the report.

        Raises:
            ValueError: If there are no statistics, or they are not usable; the message is the reason.
        """
        problem = inputs.problems.get(weight)
        if problem:
            raise ValueError(problem)
        node, index = column_uses(weight)[0]
        order = tap_major(node, index)
        data = _data(weight)
        rows = weight_rows(node, old, index)[:, :, order]
        made, mask, damping = rows.copy(), np.empty(rows.shape, bool), self.damping
        if self.method == "wanda":
            for group, sizes in enumerate(inputs.squares(weight)):
                mask[group] = wanda(rows[group], sizes[order], self.keep)
        else:
            for group, gram in enumerate(inputs.gram(weight)):
                with np.errstate(all="ignore"):  # The result is checked below.
                    made[group], mask[group], used = sparsegpt(
                        rows[group], gram[np.ix_(order, order)], self.keep,
                        damping=self.damping, block=self.block,
                        rounded=lambda column: column.astype(data.dtype.numpy).astype(np.float64),
                    )  # fmt: skip
                damping = max(damping, used)
        made[:, :, order], mask[:, :, order] = made.copy(), mask.copy()
        kept = np.ascontiguousarray(weight_from_rows(node, mask, index))
        if self.method == "wanda":
            return data, kept, ""
        with np.errstate(over="ignore"):
            stored = weight_from_rows(node, made, index).astype(data.dtype.numpy, order="C")
        if not np.isfinite(stored.astype(np.float64)).all():
            raise ValueError(f"an updated number is beyond the range of {data.dtype.value}")
        note = "" if damping == self.damping else f" (damping raised to {damping:g})"
        # With the old weight as its source, a trainable parameter stays trainable.
        return LazyTensor(data.shape, data.dtype, lambda: stored, source=data), kept, note


def _what(weight: NmWeight, keep: PruningRule) -> str:
    """The description of the rewrite; it says which matrix of a recurrent layer it is."""
    if not weight.is_recurrent:
        return f"make {keep}"
    kinds = {"input" if index == 1 else "recurrent" for _, index in weight.uses}
    return f"make the {' and '.join(sorted(kinds))} matrix {keep}"


def _data(weight: NmWeight) -> Tensor:
    """The tensor of a weight.

    Raises:
        ValueError: If it is not a constant.
    """
    if weight.value is None or weight.value.data is None:
        raise ValueError(weight.problem or "its weight is not a constant")
    return weight.value.data


@dataclass(frozen=True)
class _Pruned:
    """A sparse weight that is not yet in the graph."""

    weight: NmWeight
    tensor: Tensor
    biases: dict[Node, BiasShift]
    what: str
    measures: dict[str, float]

    def write(self, rw: Rewriter) -> None:
        """Replace the weight in all its readers."""
        value, readers = self.weight.value, self.weight.readers
        if value is None:
            return
        with rw.rewrite(self.what, *readers, measures=self.measures):
            made = rw.constant(self.tensor, f"{value.name}.sparse")
            for node, index in value.uses:
                if node in readers:
                    rw.set_input(node, index, made)
            for node, shift in self.biases.items():
                # Both matrices of a recurrent layer change its bias.
                rw.set_input(node, shift.index, rw.constant(shift.applied(), f"{node.name}.bias"))
