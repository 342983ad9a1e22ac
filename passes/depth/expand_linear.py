"""``expand-linear``: a convolution becomes a wider block with activations that can go again.

The expanding half of DepthShrinker+ (Fu et al., "DepthShrinker", ICML 2022: expand, then shrink): a network trains
better while it is larger, and a block without its activations is the convolution it came from. The block is made so
that it computes exactly what the convolution did while its gates are closed (the identity); ``value`` opens them
from the start. Once :mod:`.remove_activations` has taken the gates away, ``merge-linear`` makes one
convolution of the old shape, strides, padding and groups, exactly: all padding stands in front of the block
(see :mod:`.hoist_padding`), whatever the biases inside have become.

For a kernel ``K`` of ``T`` taps, with I inputs and O outputs (of each group)::

    kxk-pw      K[o,i,t] = sum over m of P[o,m] * F[m,i,t]             m < expansion * O
    pw-dw-pw    K[o,i,t] = sum over m of P[o,m] * D[m,t] * E[m,i]      m < expansion * min(I, O)

``kxk-pw`` is exact from expansion 1 on: P gets random orthonormal rows, ``P P' = 1``, and
``F = P' K + (1 - P' P) R``: a pseudo-inverse, and a random part R as large as the rest that P does not see, so that the
hidden channels differ. A dense kernel is a ``pw-dw-pw`` in general only if every tap has a full set of channels:
from expansion T on (1 for 1x1, 9 for 3x3). With an orthogonal T x T matrix Q, the filter j is row j of Q, on a set of
channels of its own, whose pointwise halves compose to ``A[j] = sum over t of Q[j,t] * K[..t]``, because
``sum over j of Q[j,t] * A[j] = K[..t]``. Below that the pass refuses, rather than approximate.

The bias goes to the last convolution; the others get biases of zeros, for training.
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
from .gate_sites import check_plain
from .insert_gates import gate_number

_WIDEST = 1024
"""The largest expansion."""


@register
@dataclass(frozen=True)
class ExpandLinear(Pass):
    """Replace convolutions by wider blocks with gated activations that merge back to them.

    Exact while the gates are closed. Train, remove the activations, merge.

    Attributes:
        names: Names of convolutions, or patterns with * and ?; all convolutions when not given.
        form: What a convolution becomes: ``kxk-pw`` (its own kernel, then 1x1) or ``pw-dw-pw`` (1x1, one filter for
            each channel, 1x1).
        expansion: How many times wider: than the outputs (kxk-pw), or than the smaller of inputs and outputs
            (pw-dw-pw, at least the number of taps: 9 for 3x3).
        activation: The kind of activation between, one without parameters.
        mode: How the gates learn: soft, top-k or hard-concrete. A block has one gate for all its activations.
        value: Where the gates start: 0 is the identity, which keeps the function, 1 the activation.
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
        check_plain("activation", self.activation)

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
        """What stands against expanding a node."""
        if not isinstance(node.op, Conv):
            return "it is no convolution"
        if data_input(node) is None:
            return weight_problem(node) or (
                "its numbers are not of a floating-point type of 16 bits or more"
            )
        if min(node.op.pads) < 0:
            return "it has negative padding"
        kernel = _Kernel.of(node)
        if out_of_range(kernel.weight):
            return "its weight is not finite everywhere"
        if self.form == "pw-dw-pw" and self.expansion < kernel.taps:
            return (
                f"as pw-dw-pw, a kernel of {kernel.taps} taps takes an expansion of at least "
                f"{kernel.taps}, not {self.expansion:g}; or take form=kxk-pw"
            )
        return None

    def _expand(self, rw: Rewriter, node: Node, seed: int) -> None:
        kernel, op = _Kernel.of(node), node.op
        assert isinstance(op, Conv)
        n = op.spatial_rank
        ones, none = (1,) * n, (0,) * (2 * n)
        exactness = Exactness.EXACT if self.value == 0 else Exactness.APPROXIMATE
        with rw.rewrite(f"expand Conv to {self.form}", node, exactness=exactness):
            gate = rw.constant(gate_number(node, self.value), f"{node.name}.gate")
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
    """A kernel of ``groups`` blocks, each with ``inputs`` and ``outputs``."""

    weight: Tensor
    groups: int

    @classmethod
    def of(cls, node: Node) -> _Kernel:
        assert isinstance(node.op, Conv)
        weight = node.inputs[1]
        assert weight is not None
        assert weight.data is not None
        return cls(weight.data, node.op.groups)

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
        """``(groups, outputs, inputs, taps)``."""
        found = self.weight.float64()
        return found.reshape(self.groups, self.outputs, self.inputs, self.taps)

    def dense(self, width: int, seed: int) -> tuple[Tensor, Tensor]:
        """F and P of ``kxk-pw`` with ``width`` channels a group."""
        g, spatial = self.groups, self.weight.shape[2:]
        ones = (1,) * len(spatial)

        def factors() -> tuple[Array64, Array64]:
            kernel = self._read().reshape(g, self.outputs, self.inputs * self.taps)
            return _split(kernel, width, np.random.default_rng(seed), by_rows=True)

        return (
            self._made((g * width, self.inputs, *spatial), lambda: factors()[1]),
            self._made((g * self.outputs, width, *ones), lambda: factors()[0]),
        )

    def separable(self, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """E, D and P of ``pw-dw-pw`` with ``width`` channels a group."""
        g, taps, spatial = self.groups, self.taps, self.weight.shape[2:]
        ones = (1,) * len(spatial)
        # A set of channels for each filter, none smaller than the smaller side of the kernel.
        sizes = [width // taps + (j < width % taps) for j in range(taps)]

        def turn() -> tuple[np.random.Generator, Array64]:
            rng = np.random.default_rng(seed)
            return rng, _orthogonal(rng, 1, taps, taps)[0]

        def factors() -> tuple[Array64, Array64]:
            rng, q = turn()
            kernel = self._read() @ q.T  # Its taps turned: A[j] at place j.
            by_rows = self.outputs <= self.inputs
            parts = [
                _split(kernel[..., j], size, rng, by_rows=by_rows) for j, size in enumerate(sizes)
            ]
            return (
                np.concatenate([p for p, _ in parts], axis=2),
                np.concatenate([e for _, e in parts], axis=1),
            )

        def filters() -> Array64:
            return np.tile(np.repeat(turn()[1], sizes, axis=0), (g, 1))

        return (
            self._made((g * width, self.inputs, *ones), lambda: factors()[1]),
            self._made((g * width, 1, *spatial), filters),
            self._made((g * self.outputs, width, *ones), lambda: factors()[0]),
        )

    def _made(self, shape: tuple[int, ...], compute: Callable[[], Array64]) -> Tensor:
        return Derived(shape, self.dtype, lambda: compute().reshape(shape), (self.weight,))


def _split(
    product: Array64, width: int, rng: np.random.Generator, *, by_rows: bool
) -> tuple[Array64, Array64]:
    """Random factors ``(g, O, width)`` and ``(g, width, n)`` of a product ``(g, O, n)``.

    One of them has orthonormal rows or columns, the other one is its transpose times the product, and a
    random part that the first one does not see.

    Args:
        product: The product.
        width: The size in between: at least O (by rows), or at least n.
        rng: Where the random numbers come from.
        by_rows: Whether the rows of the left factor are orthonormal, or the columns of the right one.
    """
    if not by_rows:
        right, left = _split(product.transpose(0, 2, 1), width, rng, by_rows=True)
        return left.transpose(0, 2, 1), right.transpose(0, 2, 1)
    p = _orthogonal(rng, product.shape[0], width, product.shape[1]).transpose(0, 2, 1)
    seen = p.transpose(0, 2, 1) @ product
    free = rng.standard_normal(seen.shape) * math.sqrt(float(np.mean(seen**2)))
    return p, seen + free - p.transpose(0, 2, 1) @ (p @ free)


def _orthogonal(rng: np.random.Generator, count: int, rows: int, columns: int) -> Array64:
    """Random matrices ``(count, rows, columns)`` with orthonormal columns, evenly distributed."""
    q, r = np.linalg.qr(rng.standard_normal((count, rows, columns)))
    signs = np.sign(np.diagonal(r, axis1=1, axis2=2))
    return np.asarray(q * signs[:, None, :])
