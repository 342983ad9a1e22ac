"""``quantize``: 8-bit integers for weights and activations, written as QuantizeLinear and DequantizeLinear.

Weights have one scale for each output channel and are symmetric; activations have one scale and one zero point, from their ranges on
calibration data (:mod:`.ranges`). :mod:`.placement` decides what computes in integers. With ``max_loss``, the layers whose quantisation
costs most stay in float32: the loss is the squared error of the outputs divided by their variance, on the first calibration samples.

The order of a pipeline: fold and merge, sparsify or block, then quantise: merged layers have their final weights, and zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ...ir import (
    Conv,
    Dequantize,
    DType,
    DynamicQuantize,
    Exactness,
    Graph,
    IntegerMatMul,
    Linear,
    Node,
    QuantizedConv,
    QuantizedMatMul,
    Rewriter,
    TensorType,
    Value,
    sketch,
)
from ...ir import Quantize as QuantizeOp
from ...ir.errors import counted
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA, Condition
from ..infra.contract import Context, Pass, PassError, named_nodes
from ..infra.registry import register
from ..infra.tolerance import squared_error
from ..merge.algebra.tensors import Array64
from ..statistics.im2col import Array
from .blocks import block_problem, write_blocks
from .correction import mean_errors
from .equalize import equalize
from .placement import (
    DEFAULT_SCHEME,
    SCHEMES,
    Placement,
    Scheme,
    layer_problem,
    place,
    share_scales,
)
from .ranges import Extent, Extremes, Histogram, Levels, Method, mse_range, percentile_range
from .weights import QuantizedWeight
from .write import WeightRule, Writer, parameters_of

SHOWN = 3
"""The number of names that a note lists."""

SCORED = 128
"""The number of samples that losses are measured on."""

_INTEGERS = (QuantizeOp, Dequantize, DynamicQuantize, QuantizedConv, QuantizedMatMul, IntegerMatMul)


def _quantized_already(graph: Graph, ctx: Context) -> str:
    found = next((n for n in graph.nodes if isinstance(n.op, _INTEGERS)), None)
    return f"{found.name} is a {found.op.name}" if found is not None else ""


NOT_QUANTIZED = Condition(
    "a model in floats", _quantized_already, "give the model as it was before it was quantized"
)
"""Nothing in the model is quantised."""

ACTIVATIONS = {
    "uint8": Levels("u8"),
    "int8": Levels("i8"),
    "symmetric": Levels("i8", symmetric=True),
}
"""The choices of the option ``activations``."""


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantise weights and activations to 8-bit integers.

    Attributes:
        method: How ranges of activations are chosen: ``min-max``; ``percentile``; or ``mse``, the least squared error, which chooses the
            scales of weights too.
        percentile: The quantile for the method percentile, in percent.
        weights_only: Quantise only weights; the arithmetic stays in float32, and no data is needed.
        weights: The integers of weights; ``int4`` is for dense layers with ``weights_only``, in blocks, and needs opset 21: onnxruntime has
            a kernel for it, MatMulNBits. Other layers get int8.
        block: With int4, the number of inputs of a block.
        activations: The integers of activations: ``uint8``, ``int8``, or ``symmetric``, int8 with zero point 0. ``auto`` is symmetric for
            TensorRT, int8 for TFLite, uint8 elsewhere.
        keep: Names of layers, or patterns with * and ?, that stay in float32.
        max_loss: Keep layers in float32 until the loss of the outputs, their squared error divided by their variance, is at most this.
        equalize: Scale channels between layers before ranges are measured, so that the network stays the same: by the largest
            ``weights`` on both sides (cross-layer equalisation), or by the ranges of ``activations`` on the data.
        bias_correction: Subtract the mean error that quantised weights cause from the bias.
        reduce_range: Keep the sum of any two weights of a channel at most 128, so that processors without VNNI (AVX2, AVX-512) do not
            saturate when they add products in 16 bits. If not given, only for uint8 activations.
    """

    name = "quantize"
    asks_first = True
    exactness = Exactness.APPROXIMATE
    method: Method = "min-max"
    percentile: Annotated[float, Bounds(above=50, at_most=100)] = 99.99
    weights_only: bool = False
    weights: Literal["int8", "int4"] = "int8"
    block: Annotated[int, Bounds(at_least=16)] = 32
    activations: Literal["auto", "uint8", "int8", "symmetric"] = "auto"
    keep: str | tuple[str, ...] = ()
    max_loss: Annotated[float, Bounds(above=0)] | None = None
    equalize: Literal["none", "weights", "activations"] = "none"
    bias_correction: bool = True
    reduce_range: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "int4" and (not self.weights_only or self.max_loss is not None):
            raise PassError("quantize: weights=int4 needs weights-only=true, and no max-loss")
        if self.block & (self.block - 1):
            raise PassError(f"quantize: block must be a power of 2, not {self.block}")

    @property
    def requires(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """A model in floats, and calibration data for activations."""
        needed = (
            not self.weights_only or self.max_loss is not None or self.equalize == "activations"
        )
        return (NOT_QUANTIZED, CALIBRATION_DATA) if needed else (NOT_QUANTIZED,)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        layers = self._layers(graph, rw)
        scheme = SCHEMES.get(ctx.target, DEFAULT_SCHEME)
        if self.activations != "auto":
            scheme = Scheme(ACTIVATIONS[self.activations], scheme.integer_bias, scheme.float_results, scheme.fused_sums)  # fmt: skip
        if self.equalize != "none":
            equalize(graph, rw, self.equalize, ctx.calibration)
        job = _Job(self, graph, ctx, scheme)
        job.write(rw, layers)

    def _layers(self, graph: Graph, rw: Rewriter) -> list[Node]:
        """The layers to quantise; records a refusal for the others.

        Raises:
            PassError: If there are none.
        """
        kept = named_nodes(graph, self.keep, "quantize: keep") if self.keep else set()
        found, refused = self.candidates(graph, rw, kept)
        for node, reason in refused.items():
            rw.skip(node, reason)
        if not found:
            first = [f"{node.name}: {reason}" for node, reason in [*refused.items()][:SHOWN]]
            shown = "; ".join(first) or "there are no convolutions or dense layers"
            more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
            raise PassError(f"quantize: no layer can be quantized ({shown}{more})")
        return found

    def candidates(
        self, graph: Graph, rw: Rewriter, kept: Collection[Node] = ()
    ) -> tuple[list[Node], dict[Node, str]]:
        """The layers that can compute in integers, or whose weights can be integers, and why the others cannot.

        Args:
            graph: The graph; it is not changed.
            rw: Knows what the target can write.
            kept: Nodes that stay in float32.
        """
        found: list[Node] = []
        refused: dict[Node, str] = {}
        for node in graph.nodes:
            reason = layer_problem(node)
            if reason == "":
                continue
            if reason is None and node in kept:
                reason = "the option keep names it"
            if reason is None and self.weights_only and node.required(1).data is None:
                reason = "it has no weight"
            if reason is None:
                reason = self._unwritable(node, rw)
            if reason is None:
                found.append(node)
            else:
                refused[node] = reason
        return found, refused

    def _unwritable(self, node: Node, rw: Rewriter) -> str | None:
        """Why the target cannot write the quantised form of a layer."""
        w = node.required(1)
        size = w.type.dim(0) or 1
        numbers = Value("w", TensorType(DType.I8, w.type.shape))
        scales = Value("s", TensorType(DType.F32, (size,)))
        zeros = Value("z", TensorType(DType.I8, (size,)))
        one, zero = Value("s", TensorType(DType.F32, ())), Value("z", TensorType(DType.U8, ()))
        asked = [sketch(Dequantize(0), [numbers, scales, zeros])]
        if not self.weights_only:
            asked.append(sketch(QuantizeOp("u8"), [node.required(0), one, zero]))
        return next((why for n in asked if (why := rw.unwritable(n)) is not None), None)


@dataclass
class _Job:
    """One run of the pass on one graph."""

    options: Quantize
    graph: Graph
    ctx: Context
    scheme: Scheme

    def __post_init__(self) -> None:
        self.extents: dict[str, Extent] = {}
        self.kept: dict[tuple[str, int, bytes], QuantizedWeight] = {}
        self.corrections: dict[str, Array64] = {}
        self.sensitive: dict[Node, float] = {}
        self.used: dict[str, QuantizedWeight] = {}
        self.losses: tuple[float, float] | None = None
        self.without_int4: dict[str, str] = {}

    def write(self, rw: Rewriter, layers: Sequence[Node]) -> None:
        """Quantise layers, or as many of them as the largest loss allows."""
        if not self.options.weights_only:
            everything = place(self.graph, layers, self.scheme)
            self.extents = self._measured([*everything.points, *everything.raw])
        usable = [node for node in layers if self._finite(node, rw)]
        if not usable:
            raise PassError(
                "quantize: no layer can be quantized (none has a weight and a bias that are finite everywhere)"
            )
        self._correct(usable)
        chosen = usable if self.options.max_loss is None else self._allowed(usable)
        for node, loss in self.sensitive.items():
            rw.skip(
                node,
                f"quantizing it alone costs a loss of {loss:.2g}: it stays float32 for max-loss",
            )
        self._apply(self.graph, rw, chosen)
        self._report(rw, layers, chosen)

    def _report(self, rw: Rewriter, layers: Sequence[Node], chosen: Sequence[Node]) -> None:
        """Note what the user should know; the counts go into the last rewrite."""
        measures = {"layers in integers": float(len(chosen)), "layers in float32": float(len(layers) - len(chosen))}  # fmt: skip
        if self.losses is not None:
            measures |= {"loss of all layers": self.losses[0], "loss": self.losses[1]}
        rw.rewrites[-1].measures.update(measures)
        if self.without_int4:
            first = {reason: name for name, reason in reversed(self.without_int4.items())}
            shown = "; ".join(f"{name}: {reason}" for reason, name in [*first.items()][:SHOWN])
            self.graph.notes.append(
                f"quantize: {len(self.without_int4)} of {counted(len(chosen), 'layer')} have int8 weights "
                f"instead of int4 ({shown})"
            )
        for node in chosen:
            weight = self.used.get(node.output.name)
            if weight is not None and weight.empty:
                shown = ", ".join(map(str, weight.empty[:SHOWN]))
                more = f" and {len(weight.empty) - SHOWN} more" if len(weight.empty) > SHOWN else ""
                self.graph.notes.append(
                    f"quantize: {node.name}: the weights of output channels {shown}{more} are all 0: "
                    "they get the usual scale of the others"
                )

    def _allowed(self, layers: list[Node]) -> list[Node]:
        """The layers that are quantised so that the loss stays within the largest allowed one.

        Each layer's own loss decides the order in which layers return to float32; bisection finds how many have to.

        Raises:
            PassError: If even one quantised layer loses more.
        """
        most, score = self.options.max_loss or 0.0, self._scorer()
        total = score(layers)
        if total <= most:
            self.losses = (total, total)
            return layers
        own = {}
        for done, node in enumerate(layers):
            own[node] = score([node])
            self.ctx.progress(done + 1, len(layers), "layers quantized alone")
        order = sorted(layers, key=lambda node: -own[node])
        # With ``low`` layers in float32 the loss is too large, with ``high`` it is small enough.
        low, high, best = 0, len(order), 0.0
        while high - low > 1:
            middle = (low + high) // 2
            loss = score([n for n in layers if n not in order[:middle]])
            if loss <= most:
                high, best = middle, loss
            else:
                low = middle
        if high == len(order):
            raise PassError(
                f"quantize: no layer can be quantized with a loss of at most {most:g}: that of "
                f"{order[-1].name} alone is {own[order[-1]]:.2g}; allow a larger max-loss"
            )
        self.losses = (total, best)
        self.sensitive = {node: own[node] for node in order[:high]}
        return [node for node in layers if node not in self.sensitive]

    def _scorer(self) -> Callable[[Sequence[Node]], float]:
        """A function that returns the loss of the outputs if some layers are quantised."""
        calibration = self.ctx.calibration
        assert calibration is not None

        def outputs(graph: Graph) -> list[list[Array]]:
            found, count = [], 0
            for arrays in calibration.stream(graph, graph.outputs):
                found.append([a.astype(np.float64) for a in arrays])
                count += max((len(a) for a in arrays if a.ndim), default=1)
                if count >= SCORED:
                    break
            return [list(column) for column in zip(*found, strict=True)]

        reference = outputs(self.graph)
        for value, arrays in zip(self.graph.outputs, reference, strict=True):
            if not all(np.isfinite(a).all() for a in arrays):
                raise PassError(
                    f"quantize: the output %{value.name} is not finite everywhere on the calibration data, so that "
                    "no loss can be measured: leave out max-loss, or mend the model"
                )

        def score(layers: Sequence[Node]) -> float:
            copy = self.graph.clone()
            twins = dict(zip(self.graph.nodes, copy.nodes, strict=True))
            self._apply(copy, Rewriter(copy), [twins[node] for node in layers])
            losses = [
                _loss(made, wanted) for made, wanted in zip(outputs(copy), reference, strict=True)
            ]
            return float(np.mean(losses))

        return score

    def _finite(self, node: Node, rw: Rewriter) -> bool:
        """Whether the weight and the bias of a layer can be quantised."""
        bias = node.input(2) if isinstance(node.op, Conv | Linear) else None
        for what, value in (("weight", node.required(1)), ("bias", bias)):
            data = None if value is None else value.data
            if data is not None and not np.isfinite(data.float64()).all():
                rw.skip(node, f"its {what} is not finite everywhere")
                return False
        return True

    def _measured(self, values: Sequence[Value]) -> dict[str, Extent]:
        """The ranges of values on the calibration data, by name."""
        calibration, method = self.ctx.calibration, self.options.method
        assert calibration is not None
        extremes = {v: Extremes(v) for v in values}
        found = calibration.collect(self.graph, extremes.values())
        extents = {v: found[r] for v, r in extremes.items()}
        for value, extent in extents.items():
            if extent.low > extent.high:
                raise PassError(
                    f"quantize: %{value.name} has no numbers on the calibration data, so its range is not known; "
                    "give samples on which it is not empty"
                )
            if extent.low == extent.high == 0:
                self.graph.notes.append(
                    f"quantize: %{value.name} is 0 everywhere on the calibration data: its scale is 1"
                )
        if method != "min-max":
            histograms = {
                v: Histogram(v, extent) for v, extent in extents.items() if extent.high > extent.low
            }
            counts = calibration.collect(self.graph, histograms.values())
            for value, request in histograms.items():
                whole = extents[value]
                extents[value] = (
                    percentile_range(whole, counts[request], self.options.percentile)
                    if method == "percentile"
                    else mse_range(whole, counts[request], self.scheme.levels)
                )
        return {v.name: extent for v, extent in extents.items()}

    def _correct(self, layers: Sequence[Node]) -> None:
        """Measure the mean errors of the layers' outputs that quantised weights cause."""
        if not self.options.bias_correction or self.ctx.calibration is None:
            return
        if self.options.weights == "int4":
            return  # The corrections of int8 weights are not those of int4 ones.
        writer = self._writer(self.graph)
        weights = {
            node: writer.weight(node) for node in layers
            if isinstance(node.op, Conv | Linear) and node.required(1).data is not None
        }  # fmt: skip
        errors = mean_errors(self.graph, self.ctx.calibration, weights)
        self.corrections = {node.output.name: -error for node, error in errors.items()}

    def _writer(self, graph: Graph) -> Writer:
        limited = self.options.reduce_range
        if limited is None:
            limited = not self.options.weights_only and self.scheme.levels.dtype == "u8"
        rule = WeightRule(self.options.method == "mse", limited)
        return Writer(graph, self.scheme, rule, self.kept, self.used)

    def _apply(self, graph: Graph, rw: Rewriter, layers: Sequence[Node]) -> None:
        """Quantise some layers of the graph, or of a copy with the same names."""
        writer = self._writer(graph)
        biases = {
            node: self._corrected(node) for node in layers if isinstance(node.op, Conv | Linear)
        }
        if self.options.weights_only:
            rest = [node for node in layers if not self._in_blocks(rw, node)]
            writer.write(rw, Placement(rest), {}, biases)
            return
        placement = place(graph, layers, self.scheme)
        extents = {v: self.extents[v.name] for v in placement.points}
        parameters = parameters_of(share_scales(placement, extents), self.scheme.levels)
        writer.write(rw, placement, parameters, biases)

    def _in_blocks(self, rw: Rewriter, node: Node) -> bool:
        """Write the weight of a layer as int4 if that is asked for and possible."""
        if self.options.weights != "int4":
            return False
        reason = block_problem(node, self.options.block, rw)
        if reason is not None:
            rw.skip(node, f"no int4 but int8 weights: {reason}")
            self.without_int4[node.name] = reason
            return False
        write_blocks(rw, node, self.options.block)
        return True

    def _corrected(self, node: Node) -> Array64 | None:
        """The bias of a layer with its correction; ``None`` if it has neither."""
        value, correction = node.input(2), self.corrections.get(node.output.name)
        bias = None if value is None or value.data is None else value.data.float64()
        if bias is None or correction is None:
            return correction if bias is None else bias
        return bias + correction


def _loss(made: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The squared error of an output, one array for each batch; infinite if a shape depends on numbers and differs."""
    if any(a.shape != b.shape for a, b in zip(made, wanted, strict=True)):
        return float("inf")
    a, b = (np.concatenate([each.reshape(-1) for each in x]) for x in (made, wanted))
    return squared_error(a, b)
