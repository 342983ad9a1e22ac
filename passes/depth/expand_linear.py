"""``expand-linear``: a convolution becomes a wider block with removable activations.

This is the expanding half of DepthShrinker+ (Fu et al., "DepthShrinker", ICML 2022: expand, then shrink): a network
trains better while it is larger, and a block without its activations can merge into one convolution again. While its
gates are closed (the identity), the block computes exactly what the convolution computed; the option ``value`` can open
them from the start. After :mod:`.remove_activations` has removed the gates, ``merge-linear`` merges the block into one
convolution of the old shape, strides, padding and groups. This is exact with any biases inside the block, because all
padding is at its front (see :mod:`.hoist_padding`).

For a kernel ``K`` of ``T`` taps, with I inputs and O outputs (of each group)::

    kxk-pw      K[o,i,t] = sum over m of P[o,m] * F[m,i,t]             m < expansion * O
    pw-dw-pw    K[o,i,t] = sum over m of P[o,m] * D[m,t] * E[m,i]      m < expansion * min(I, O)

``kxk-pw`` is exact from expansion 1 on: P gets random orthonormal rows, ``P P' = 1``, and
``F = P' K + (1 - P' P) R``. Here R is random, of the same size as ``P' K``, and in the null space of P, so that the
hidden channels differ. A dense kernel is a ``pw-dw-pw`` in general only if every tap has a full set of channels, from
expansion T on (1 for 1x1, 9 for 3x3). With an orthogonal T x T matrix Q, filter j is row j of Q, on its own set of
channels, whose pointwise convolutions compose to ``A[j] = sum over t of Q[j,t] * K[..t]``, because
``sum over j of Q[j,t] * A[j] = K[..t]``. With a smaller expansion the pass refuses.

The last convolution gets the bias; the others get biases of zeros, for training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ...ir import (
    Conv,
    DType,
    Exactness,
    Gate,
    Graph,
    GraphError,
    Node,
    Op,
    Rewriter,
    SplatTensor,
    Tensor,
    Value,
    check_gate,
)
from ...ir.options import Bounds
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from ..merge.algebra.nodes import data_input, weight_problem
from ..merge.algebra.tensors import Array64, Derived, out_of_range
from .gate_sites import check_parameterless
from .insert_gates import gate_tensor

_WIDEST = 1024
"""The largest expansion."""


@register
@dataclass(frozen=True)
class ExpandLinear(Pass):
    """Replace convolutions by wider blocks with gated activations, which merge back after training.

    Exact while the gates are closed. Train, remove the activations, merge.

    Attributes:
        names: Names of convolutions, or patterns with * and ?; all convolutions if not given.
        form: The form of a block: ``kxk-pw`` (the same kernel size, then 1x1) or ``pw-dw-pw`` (1x1, depthwise, 1x1).
        expansion: The hidden channels per output channel (kxk-pw), or per channel of the smaller side (pw-dw-pw; at
            least the number of taps, 9 for 3x3).
        activation: The kind of the activations inside a block, one without parameters.
        mode: How the gates learn: soft, top-k or hard-concrete. All activations of a block share one gate.
        value: The initial value of the gates: 0 is the identity, which keeps the function, 1 the activation.
    """

    name = "expand-linear"
    names: str | tuple[str, ...] = ()
    form: Literal["kxk-pw", "pw-dw-pw"] = "kxk-pw"
    expansion: Annotated[float, Bounds(at_least=1, at_most=_WIDEST)] = 2.0
    activation: str = "relu6"
    mode: Literal["soft", "top-k", "hard-concrete"] = "soft"
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gate(self.mode, self.value)
        check_parameterless("activation", self.activation)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        wanted = named_nodes(graph, self.names, self.name) if self.names else None
        for node in list(graph.nodes):
            if wanted is not None and node not in wanted:
                continue
            problem = self._problem(node)
            if problem is None:
                self._expand(rw, node, int(ctx.rng.integers(2**63)))
            elif wanted is not None or isinstance(node.op, Conv):
                rw.skip(node, f"not expanded: {problem}")

    def _problem(self, node: Node) -> str | None:
        """The reason why a node cannot be expanded; ``None`` if it can."""
        if not isinstance(node.op, Conv):
            return "it is not a convolution"
        if data_input(node) is None:
            return weight_problem(node) or (
                "its element type is not a floating-point type of at least 16 bits"
            )
        if min(node.op.pads) < 0:
            return "it has negative padding"
        kernel = _Kernel.of(node)
        if out_of_range(kernel.weight):
            return "its weight is not finite everywhere"
        if self.form == "pw-dw-pw" and self.expansion < kernel.taps:
            return (
                f"as pw-dw-pw, a kernel of {kernel.taps} taps needs an expansion of at least "
                f"{kernel.taps}, not {self.expansion:g}; or use form=kxk-pw"
            )
        return None

    def _expand(self, rw: Rewriter, node: Node, seed: int) -> None:
        kernel, op = _Kernel.of(node), node.op
        assert isinstance(op, Conv)
        n = op.spatial_rank
        ones, none = (1,) * n, (0,) * (2 * n)
        exactness = Exactness.EXACT if self.value == 0 else Exactness.APPROXIMATE
        with rw.rewrite(f"expand Conv to {self.form}", node, exactness=exactness):
            gate = rw.constant(gate_tensor(node, self.value), f"{node.name}.gate")
            if self.form == "kxk-pw":
                first, last = kernel.dense(math.ceil(self.expansion * kernel.outputs), seed)
                steps: list[tuple[str, Op, Tensor]] = [("expand", op, first)]
            else:
                width = math.ceil(self.expansion * min(kernel.inputs, kernel.outputs))
                first, filters, last = kernel.separable(width, seed)
                channels = filters.shape[0]
                steps = [
                    ("expand", Conv(ones, op.pads, ones, op.groups), first),
                    ("filter", Conv(op.strides, none, op.dilations, channels), filters),
                ]
            value = node.inputs[0]
            for word, part, weight in steps:
                name = f"{node.name}.{word}"
                made = self._conv(rw, node, part, value, weight, name)
                act = f"{node.name}.act" if word == "expand" else f"{node.name}.{word}_act"
                gated = rw.insert(
                    Gate(self.activation, mode=self.mode),
                    [made.output, gate],
                    before=node,
                    name=act,
                )
                value = gated.output
            name = f"{node.name}.project"
            inputs = [value, rw.constant(last, f"{name}.weight"), *node.inputs[2:3]]
            if node.input(2) is None:
                inputs[2:] = [_zeros(rw, last, name)]
            rw.replace(node, Conv(ones, none, ones, op.groups), inputs, name=name)

    @staticmethod
    def _conv(
        rw: Rewriter, node: Node, op: Op, value: Value | None, weight: Tensor, name: str
    ) -> Node:
        inputs = [value, rw.constant(weight, f"{name}.weight"), _zeros(rw, weight, name)]
        return rw.insert(op, inputs, before=node, name=name)


def _zeros(rw: Rewriter, weight: Tensor, name: str) -> Value:
    return rw.constant(SplatTensor(weight.shape[:1], weight.dtype, 0.0), f"{name}.bias")


@dataclass(frozen=True)
class _Kernel:
    """A kernel of ``groups`` blocks; ``inputs`` and ``outputs`` are those of one block."""

    weight: Tensor
    groups: int

    @classmethod
    def of(cls, node: Node) -> _Kernel:
        assert isinstance(node.op, Conv)
        weight = node.required(1).data
        if weight is None:
            raise GraphError(f"the weight of {node.name} is not a constant")
        return cls(weight, node.op.groups)

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] // self.groups

    @property
    def taps(self) -> int:
        return math.prod(self.weight.shape[2:])

    @property
    def dtype(self) -> DType:
        return self.weight.dtype

    def _read(self) -> Array64:
        """The numbers as ``(groups, outputs, inputs, taps)``."""
        found = self.weight.float64()
        return found.reshape(self.groups, self.outputs, self.inputs, self.taps)

    def dense(self, width: int, seed: int) -> tuple[Tensor, Tensor]:
        """F and P of ``kxk-pw`` with ``width`` hidden channels for each group."""
        g, spatial = self.groups, self.weight.shape[2:]
        ones = (1,) * len(spatial)

        def factors() -> tuple[Array64, Array64]:
            kernel = self._read().reshape(g, self.outputs, self.inputs * self.taps)
            return _random_factors(kernel, width, np.random.default_rng(seed), by_rows=True)

        return (
            self._derived((g * width, self.inputs, *spatial), lambda: factors()[1]),
            self._derived((g * self.outputs, width, *ones), lambda: factors()[0]),
        )

    def separable(self, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """E, D and P of ``pw-dw-pw`` with ``width`` hidden channels for each group."""
        g, taps, spatial = self.groups, self.taps, self.weight.shape[2:]
        ones = (1,) * len(spatial)
        # The channels of each filter: at least as many as the smaller side of the kernel.
        sizes = [width // taps + (j < width % taps) for j in range(taps)]

        def rotation() -> tuple[np.random.Generator, Array64]:
            rng = np.random.default_rng(seed)
            return rng, _orthogonal(rng, 1, taps, taps)[0]

        def factors() -> tuple[Array64, Array64]:
            rng, q = rotation()
            kernel = self._read() @ q.T  # A[j] at index j of the last axis.
            by_rows = self.outputs <= self.inputs
            parts = [
                _random_factors(kernel[..., j], size, rng, by_rows=by_rows)
                for j, size in enumerate(sizes)
            ]
            return (
                np.concatenate([p for p, _ in parts], axis=2),
                np.concatenate([e for _, e in parts], axis=1),
            )

        def filters() -> Array64:
            return np.tile(np.repeat(rotation()[1], sizes, axis=0), (g, 1))

        return (
            self._derived((g * width, self.inputs, *ones), lambda: factors()[1]),
            self._derived((g * width, 1, *spatial), filters),
            self._derived((g * self.outputs, width, *ones), lambda: factors()[0]),
        )

    def _derived(self, shape: tuple[int, ...], compute: Callable[[], Array64]) -> Tensor:
        return Derived(shape, self.dtype, lambda: compute().reshape(shape), (self.weight,))


def _random_factors(
    product: Array64, width: int, rng: np.random.Generator, *, by_rows: bool
) -> tuple[Array64, Array64]:
    """Random factors ``(g, O, width)`` and ``(g, width, n)`` of a product ``(g, O, n)``.

    One factor has orthonormal rows or columns. The other one is its transpose times the product, plus a random part in
    the null space of the first one.

    Args:
        product: The product.
        width: The inner size: at least O if ``by_rows``, else at least n.
        rng: The random generator.
        by_rows: Whether the rows of the left factor are orthonormal, or the columns of the right one.
    """
    if not by_rows:
        right, left = _random_factors(product.transpose(0, 2, 1), width, rng, by_rows=True)
        return left.transpose(0, 2, 1), right.transpose(0, 2, 1)
    p = _orthogonal(rng, product.shape[0], width, product.shape[1]).transpose(0, 2, 1)
    inverse = p.transpose(0, 2, 1) @ product
    noise = rng.standard_normal(inverse.shape) * math.sqrt(float(np.mean(inverse**2)))
    return p, inverse + noise - p.transpose(0, 2, 1) @ (p @ noise)


def _orthogonal(rng: np.random.Generator, count: int, rows: int, columns: int) -> Array64:
    """Random matrices ``(count, rows, columns)`` with orthonormal columns, uniformly (Haar) distributed."""
    q, r = np.linalg.qr(rng.standard_normal((count, rows, columns)))
    signs = np.sign(np.diagonal(r, axis1=1, axis2=2))
    return np.asarray(q * signs[:, None, :])
