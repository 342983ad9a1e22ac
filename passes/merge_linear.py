"""Compose runs of linear maps into one.

Two walks alternate until nothing changes. The first takes every maximal chain of linear ops whose interior
values nobody else reads, and cuts it into segments by dynamic programming, so that the total cost is least:
each segment becomes one op (pw-dw-pw is found although no two of the three are worth merging). The second
adds parallel branches of the same value, identities included. The algebra is in :mod:`.affine`.

The cost is the number of multiply-accumulates for each position of the chain's input, which needs no shapes;
of two equal costs the one with fewer nodes wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import (
    Add,
    AveragePool,
    Conv,
    ConvTranspose,
    DerivedTensor,
    DType,
    Graph,
    Linear,
    Node,
    Op,
    Pad,
    Rewriter,
    Scale,
    SplatTensor,
    Sub,
    Tensor,
    Value,
)
from .affine import Affine, Refused, Rules
from .base import Context, Pass, PassError, register

_WINDOW = 8
"""The longest run that becomes one op at once; longer ones take several rounds."""
_ROUNDS = 16


@register
@dataclass(frozen=True)
class MergeLinear(Pass):
    """Compose convolutions, dense layers, batch norms, skips, pools and pads into fewer ops; exact.

    Attributes:
        max_kernel: The largest kernel size that a merge may make out of smaller ones.
        bias_maps: Whether a bias that errs only at the border may become a constant map.
        allow_border: Whether a merge may be wrong in a rim of the spatial border.
        max_growth: How many times the multiply-accumulates of its parts a merge may cost.
    """

    name = "merge-linear"
    max_kernel: int = 7
    bias_maps: bool = True
    allow_border: bool = False
    max_growth: float = 1.0

    def __post_init__(self) -> None:
        if self.max_kernel < 1 or not self.max_growth > 0:
            raise PassError("merge-linear: max-kernel and max-growth must be positive")

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        rules = Rules(self.allow_border, self.bias_maps)
        for _ in range(_ROUNDS):
            before = rw.mutations
            self._chains(graph, rw, rules)
            self._sums(graph, rw)
            if rw.mutations == before:
                break

    # Chains.

    def _chains(self, graph: Graph, rw: Rewriter, rules: Rules) -> None:
        chains: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if not _is_linear(node):
                continue
            source = node.inputs[0]
            before = source.producer if source is not None else None
            chain = chains.pop(before, None) if before is not None else None
            if chain is not None and before is not None and before.output.has_one_use:
                chain.append(node)
                chains[node] = chain
            else:
                if chain is not None and before is not None:
                    chains[before] = chain
                if before is not None and _is_linear(before) and not before.output.has_one_use:
                    why = "is returned" if before.output.is_output else "has other users"
                    rw.skip(node, f"the result of {before.name} {why}")
                chains[node] = [node]
        for chain in chains.values():
            for run in _same_rank(chain):
                if len(run) > 1:
                    self._chain(run, rw, rules)

    def _chain(self, chain: list[tuple[Node, int]], rw: Rewriter, rules: Rules) -> None:
        maps: list[Affine] = []
        density, scales = 1.0, []
        for node, rank in chain:
            made = as_affine(node, rank)
            if made is None:
                return
            maps.append(made)
            scales.append(density)
            density *= _density(made)
        n = len(chain)
        best: list[tuple[float, int]] = [(0.0, 0)] + [(math.inf, 0)] * n
        choice: list[tuple[int, Affine]] = [(0, maps[0])] * (n + 1)
        refused: dict[int, str] = {}
        for i in range(n):
            current: Affine | None = None
            parts, widest = 0.0, self.max_kernel
            for j in range(i, min(i + _WINDOW, n)):
                step = maps[j]
                parts += _cost(step, scales[j])
                widest = max(widest, *step.taps, 1)
                if current is None:
                    current = step
                else:
                    joined = current.then(step, rules)
                    if isinstance(joined, Refused):
                        refused.setdefault(j, joined.reason)
                        break
                    current = joined
                cost = _cost(current, scales[i]) if j > i else parts
                if j > i and (max((*current.taps, 1)) > widest or not _finite(current)):
                    refused.setdefault(
                        j,
                        f"a {current.kernel_text} kernel is more than max-kernel={self.max_kernel}"
                        if _finite(current)
                        else f"the merged weights overflow {current.dtype.value}",
                    )
                    continue
                if j > i and cost > parts * self.max_growth * (1 + 1e-9):
                    refused.setdefault(
                        j,
                        f"a {current.kernel_text} kernel would cost {cost / parts:.2f}x "
                        "the multiply-accumulates",
                    )
                    continue
                total = (best[i][0] + min(cost, parts), best[i][1] + 1)
                if total < best[j + 1]:
                    best[j + 1], choice[j + 1] = total, (i, current)
        end = n
        while end > 0:
            start, merged = choice[end]
            nodes = [node for node, _ in chain[start:end]]
            if len(nodes) > 1:
                _emit(nodes, merged, rw)
            if start > 0:
                reason = refused.get(start, "keeping the parts costs less")
                rw.skip(nodes[0], f"not merged with {chain[start - 1][0].name}: {reason}")
            end = start

    # Sums of branches.

    def _sums(self, graph: Graph, rw: Rewriter) -> None:
        for node in graph.nodes:
            if not isinstance(node.op, (Add, Sub)):
                continue
            a, b = node.inputs
            if a is None or b is None or a is b or a.data is not None or b.data is not None:
                continue
            self._sum(node, a, b, rw)

    def _sum(self, node: Node, a: Value, b: Value, rw: Rewriter) -> None:
        first, second = _branch(a), _branch(b)
        if first is None and second is None:
            return
        sources = [p.inputs[0] for p in (first, second) if p is not None]
        if first is not None and second is not None and sources[0] is sources[1]:
            pair: tuple[Node | None, Node | None] = (first, second)
        elif first is not None and first.inputs[0] is b:
            pair, sources = (first, None), [b]
        elif second is not None and second.inputs[0] is a:
            pair, sources = (None, second), [a]
        else:
            return
        source = sources[0]
        rank = next((r for p in pair if p is not None and (r := _rank(p)) is not None), None)
        if source is None or rank is None:
            return
        maps = [as_affine(p, rank) if p is not None else None for p in pair]
        known = next((m for m in maps if m is not None), None)
        if known is None or any(
            m is None and p is not None for m, p in zip(maps, pair, strict=True)
        ):
            return
        whole = [m if m is not None else _identity(known) for m in maps]
        left, right = whole[0], whole[1]
        if left is None or right is None:
            rw.skip(node, "the skip and the branch differ in channels")
            return
        joined = left + (right.negated() if isinstance(node.op, Sub) else right)
        if isinstance(joined, Refused):
            rw.skip(node, joined.reason)
            return
        parts = sum(_cost(m, 1.0) for m in (left, right))
        cost = _cost(joined, 1.0)
        if cost > parts * self.max_growth * (1 + 1e-9):
            rw.skip(node, f"one kernel would cost {cost / parts:.2f}x the multiply-accumulates")
            return
        if not _finite(joined):
            rw.skip(node, f"the merged weights overflow {joined.dtype.value}")
            return
        branches = [p for p in pair if p is not None]
        _emit([*branches, node], joined, rw, source=source)


def _is_linear(node: Node) -> bool:
    """Whether a node is an affine map of its first input, by constants, in floating point."""
    source = node.inputs[0] if node.inputs else None
    if not isinstance(node.op, (Conv, ConvTranspose, Linear, Scale, Pad, AveragePool)):
        return False
    if source is None or source.data is not None:
        return False
    dtype = node.output.type.dtype
    if dtype is not None and not dtype.is_wide_float:
        return False
    return all(v is None or v.data is not None for v in node.inputs[1:])


def _rank(node: Node) -> int | None:
    """The spatial rank; ``None`` where it depends on the neighbours."""
    op = node.op
    if isinstance(op, (Conv, ConvTranspose, AveragePool)):
        return op.spatial_rank
    if isinstance(op, Linear):
        return 0
    if isinstance(op, Pad):
        return len(op.pads) // 2 - 2
    return None


def _same_rank(chain: Sequence[Node]) -> list[list[tuple[Node, int]]]:
    """Runs of one spatial rank; a Scale takes the rank of what stands before it, or behind."""
    runs: list[list[tuple[Node, int]]] = []
    pending: list[Node] = []
    rank: int | None = None
    for node in chain:
        own = _rank(node)
        if own is None:
            (pending.append(node) if rank is None else runs[-1].append((node, rank)))
            continue
        if rank != own:
            runs.append([(p, own) for p in pending])
            pending, rank = [], own
        runs[-1].append((node, own))
    if pending:
        dims = pending[0].output.type.rank
        if dims is not None:
            own = max(dims - 2, 0)
            runs.append([(p, own) for p in pending])
    return runs


def _branch(value: Value) -> Node | None:
    node = value.producer
    return node if node is not None and value.has_one_use and _is_linear(node) else None


def as_affine(node: Node, rank: int) -> Affine | None:
    """A node as an affine map of ``rank`` spatial axes; ``None`` when it is not one."""
    op, x = node.op, node.inputs[0]
    assert x is not None
    data = [v.data if v is not None else None for v in node.inputs[1:]]
    weight = data[0] if data else None
    bias = data[1] if len(data) > 1 else None
    size: tuple[int | None, ...] = tuple(x.type.dim(2 + a) for a in range(rank))
    dims = x.type.rank
    if isinstance(op, Conv) and weight is not None:
        if any(p < 0 for p in op.pads):
            return None
        return Affine(weight, bias, op.strides, op.pads, op.dilations, op.groups, size=size)
    if isinstance(op, ConvTranspose) and weight is not None:
        if any(p < 0 for p in op.pads):
            return None
        return Affine(
            weight,
            bias,
            op.strides,
            op.pads,
            op.dilations,
            op.groups,
            True,
            op.output_padding,
            size,
        )
    if isinstance(op, Linear) and weight is not None:
        return Affine(weight, bias, (), (), ())
    axis = 1 if rank else -1
    channels = x.type.dim(axis) if dims is not None else None
    if channels is None:
        channels = next((t.size for t in data if t is not None and t.size > 1), None)
    dtype = node.output.type.dtype or x.type.dtype
    if channels is None or dtype is None:
        return None
    ones, zeros, tail = (1,) * rank, (0,) * (2 * rank), (1,) * rank
    if isinstance(op, Scale):
        if dims is None or (rank and dims != rank + 2):
            return None
        if op.axis % dims != axis % dims and any(t is not None and t.size > 1 for t in data):
            return None
        factor = _vector(weight, channels) if weight is not None else None
        kernel: Tensor = SplatTensor((channels, 1, *tail), dtype, 1.0)
        if factor is not None:
            found = factor
            kernel = DerivedTensor(
                kernel.shape, dtype, lambda: found.float64().reshape(channels, 1, *tail)
            )
        const = _vector(bias, channels) if bias is not None else None
        return Affine(kernel, const, ones, zeros, ones, channels, size=size)
    if isinstance(op, Pad) and dims == rank + 2:
        if op.mode != "constant" or op.value != 0 or any(p < 0 for p in op.pads):
            return None
        pads = (*op.pads[2 : 2 + rank], *op.pads[4 + rank :])
        if any(op.pads[i] for i in (0, 1, 2 + rank, 3 + rank)):
            return None
        kernel = SplatTensor((channels, 1, *tail), dtype, 1.0)
        return Affine(kernel, None, ones, pads, ones, channels, size=size)
    if isinstance(op, AveragePool):
        if op.ceil_mode or (any(op.pads) and not op.count_include_pad):
            return None
        kernel = SplatTensor((channels, 1, *op.kernel), dtype, 1.0 / math.prod(op.kernel))
        kernel = _exact_splat(kernel)
        return Affine(kernel, None, op.strides, op.pads, op.dilations, channels, size=size)
    return None


def _exact_splat(splat: SplatTensor) -> Tensor:
    """A splat whose float64 numbers are not rounded to the storage type."""
    shape, value = splat.shape, splat.value
    return DerivedTensor(shape, splat.dtype, lambda: np.full(shape, value))


def _vector(data: Tensor, channels: int) -> Tensor:
    if data.shape == (channels,):
        return data
    return DerivedTensor(
        (channels,), data.dtype, lambda: np.broadcast_to(data.float64().reshape(-1), (channels,))
    )


def _identity(like: Affine) -> Affine | None:
    """The identity beside a branch; its channels must not change."""
    if like.inputs != like.outputs or like.transposed:
        return None
    rank, channels = like.rank, like.inputs
    kernel = SplatTensor((channels, 1, *(1,) * rank), like.dtype, 1.0)
    ones, zeros = (1,) * rank, (0,) * (2 * rank)
    return Affine(kernel, None, ones, zeros, ones, channels, size=like.size)


def _density(made: Affine) -> float:
    """How many output positions there are for each input position."""
    stride = math.prod(made.strides)
    return float(stride) if made.transposed else 1.0 / stride


def _cost(made: Affine, density: float) -> float:
    """Multiply-accumulates for each position of the chain's input, a bias map's addition included."""
    out = density if made.transposed else density * _density(made)
    return made.weight.size * out + (made.outputs * density * _density(made) if made.has_map else 0)


def _finite(made: Affine) -> bool:
    """Whether composed half-precision numbers stay in range."""
    if made.dtype is not DType.F16:
        return True
    limit = float(np.finfo(np.float16).max)
    for tensor in (made.weight, made.const):
        if tensor is None:
            continue
        try:
            if not float(np.abs(tensor.float64()).max(initial=0.0)) <= limit:
                return False
        except ValueError:
            continue
    return True


def _emit(nodes: Sequence[Node], merged: Affine, rw: Rewriter, source: Value | None = None) -> None:
    """Let the last node compute the merged map; remove the others."""
    last = nodes[-1]
    source = source if source is not None else nodes[0].inputs[0]
    kinds = ", ".join(n.op.name for n in nodes)
    name = next(
        (n.name for n in nodes if isinstance(n.op, (Conv, ConvTranspose, Linear))), nodes[0].name
    )
    op, weight = _op(merged, nodes)
    what = f"merge {kinds} into {op.name}" + (" and a bias map" if merged.has_map else "")
    with rw.rewrite(what, *nodes, exactness=merged.exactness):
        kernel = rw.constant(weight, f"{name}.weight")
        bias = merged.const
        if bias is None or merged.has_map:
            operands: list[Value | None] = [source, kernel]
        else:
            operands = [source, kernel, rw.constant(bias, f"{name}.bias")]
        if merged.has_map and bias is not None:
            inner = rw.insert(op, operands, before=last, name=name)
            constant = rw.constant(bias, f"{name}.bias_map")
            rw.replace(last, Add(), [inner.output, constant], name=f"{name}.add")
        else:
            rw.replace(last, op, operands, name=name)
        for node in reversed(nodes[:-1]):
            rw.erase(node)


def _op(merged: Affine, nodes: Sequence[Node]) -> tuple[Op, Tensor]:
    scales = [n.op for n in nodes if isinstance(n.op, Scale)]
    weight = merged.weight
    if len(scales) == len(nodes):
        dims = nodes[0].output.type.rank
        axis = 1 if merged.rank or dims is None else dims - 1
        vector = DerivedTensor(
            (merged.outputs,), weight.dtype, lambda: weight.float64().reshape(-1)
        )
        return Scale(axis), vector
    if merged.transposed:
        return ConvTranspose(
            merged.strides, merged.pads, merged.dilations, merged.groups, merged.output_padding
        ), weight
    if merged.rank == 0:
        return Linear(), weight
    return Conv(merged.strides, merged.pads, merged.dilations, merged.groups), weight
