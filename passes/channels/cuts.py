"""Cutting channels: constants lose positions along their axes, and everything behind them follows.

A *cut* is a mask for each axis of a constant: which positions stay. :class:`Followed` carries the masks through a graph by the ties of its
ops (:meth:`graphshrink.ir.Op.channels`), through reshapes as products (whole heads of an axis of heads and dimensions), and infers all sizes
anew. It only reads, so that it is a trial too: :meth:`Followed.problem` names the node that cannot follow. :func:`cut_graph` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import (
    Activation,
    Add,
    AveragePool,
    Cast,
    Concat,
    Conv,
    DerivedTensor,
    Div,
    Embedding,
    Flatten,
    Gate,
    GlobalAveragePool,
    Graph,
    Identity,
    InferenceError,
    LayerNorm,
    LazyTensor,
    Linear,
    MatMul,
    Max,
    MaxPool,
    Min,
    MovedTensor,
    Mul,
    Node,
    Op,
    Pad,
    Pow,
    PRelu,
    Reduce,
    Reshape,
    Resize,
    Rewriter,
    Scale,
    Select,
    Slice,
    Softmax,
    Split,
    Squeeze,
    Sub,
    Tensor,
    TensorType,
    Transpose,
    Unary,
    Unsqueeze,
    Value,
)
from ...ir.analysis import ChannelGroup
from ...ir.analysis.channels.reshapes import axis_runs
from ...ir.ops.base import axis_of

Keep = npt.NDArray[np.bool_]

Cuts = dict[Value, dict[int, Keep]]
"""For each constant and axis, which positions stay."""

Finish = Callable[[list[Value | None]], list[Value | None]]

CARRIES: tuple[type[Op], ...] = (
    Activation, Add, AveragePool, Cast, Div, Embedding, Gate, GlobalAveragePool, Identity, LayerNorm, MatMul, Max,
    MaxPool, Min, Mul, PRelu, Pad, Pow, Reduce, Resize, Scale, Softmax, Squeeze, Sub, Transpose, Unary, Unsqueeze,
)  # fmt: skip
"""Ops that hold no number of channels: with fewer of them, they compute the same for the others."""


def cuts_of(units: Iterable[tuple[ChannelGroup, Keep]]) -> Cuts:
    """The cuts of groups, from the units of each that stay."""
    made: Cuts = {}
    for group, keep in units:
        for placement in group.placements:
            size = placement.value.type.dim(placement.axis)
            assert isinstance(size, int)
            axes = made.setdefault(placement.value, {})
            left = axes.setdefault(placement.axis, np.ones(size, bool))
            left[placement.positions[~keep].reshape(-1)] = False
    return made


def one_less(group: ChannelGroup) -> Keep:
    """Units to try whether a graph can follow: if it follows where the first one goes, so it does for any others, as all are used alike."""
    return np.arange(group.size) > 0


class Followed:
    """The values of a graph in which constants are cut.

    Args:
        cuts: The cuts.
        norms: Whether channels may go that a layer norm takes its statistics over, which changes the others too.

    Attributes:
        kept: Which positions stay along the axes of values.
        types: The types that change.
        ops: The ops that change with them: depthwise convolutions, reshapes and splits that state sizes.
    """

    def __init__(self, cuts: Cuts, norms: bool = True) -> None:
        self.kept: Cuts = {v: dict(axes) for v, axes in cuts.items()}
        self.types: dict[Value, TensorType] = {
            v: v.type.with_shape(_smaller(v.type, axes)) for v, axes in cuts.items()
        }
        self.ops: dict[Node, Op] = {}
        self.norms = norms

    def problem(self, nodes: Iterable[Node]) -> str:
        """Follow through nodes in topological order; returns the reason why one of them cannot follow, or an empty text."""
        for node in nodes:
            if any(v in self.types for v in node.inputs):
                reason = self._follow(node)
                if reason:
                    return reason
        return ""

    def _follow(self, node: Node) -> str:
        found = self._masks(node)
        if isinstance(found, str):
            return found
        op = self.ops.get(node, node.op)
        try:
            inferred = op.infer(
                [None if v is None else self.types.get(v, v.type) for v in node.inputs]
            )
        except InferenceError as error:
            return f"{node.name} would not fit: {error}"
        if inferred is None:
            return f"{node.name} cannot infer its result"
        for value, type_, masks in zip(node.outputs, inferred, found, strict=True):
            if value.type.rank is None or type_.rank != value.type.rank:
                return f"the rank of what {node.name} makes is not known"
            for now, wanted in zip(type_.shape or (), _smaller(value.type, masks), strict=True):
                if isinstance(wanted, int) and now != wanted:
                    return f"{node.name} would not fit: it has {now} of them instead of {wanted}"
            if not masks:
                continue
            if value.is_output:
                return f"{node.name} makes an output of the model of them"
            if value.data is not None:
                return f"{node.name} computes a constant of them"
            self.types[value], self.kept[value] = type_, masks
        return ""

    def _masks(self, node: Node) -> list[dict[int, Keep]] | str:
        """Which positions of the results stay, or the reason why the node cannot follow."""
        op = node.op
        if isinstance(op, Reshape | Flatten):
            return self._reshaped(node, op)
        if isinstance(op, Conv) and op.groups > 1:
            return self._depthwise(node, op)
        if isinstance(op, Split | Slice | Select | Concat):
            return self._along(node, op)
        if not isinstance(op, (Conv, Linear, *CARRIES)):
            return f"{node.name} ({op.name}) may hold their number"
        return self._tied(node)

    def _tied(self, node: Node, own: int | None = None) -> list[dict[int, Keep]] | str:
        """Masks by the ties of an op, except along an axis that is taken care of elsewhere."""
        ties = node.op.channels(node.input_types)
        if ties is None:
            return f"{node.name} ({node.op.name}) may hold their number"
        made: list[dict[int, Keep]] = [{} for _ in node.outputs]
        left = {
            (i, axis)
            for i, v in enumerate(node.inputs)
            if v is not None
            for axis in self.kept.get(v, {})
            if axis != own
        }
        for tie in ties:
            read = [a for a in tie if a.operand >= 0 and a.axis != own]
            cut = [a for a in read if (a.operand, a.axis) in left]
            if not cut:
                continue
            left -= {(a.operand, a.axis) for a in cut}
            masks = [self.kept[_input(node, a.operand)][a.axis] for a in cut]
            whole = [
                a for a in read if a not in cut and _input(node, a.operand).type.dim(a.axis) != 1
            ]
            if whole or any(not np.array_equal(m, masks[0]) for m in masks):
                return f"{node.name} joins them with channels that stay"
            results = [a for a in tie if a.operand < 0]
            weighs = isinstance(node.op, Conv | Linear) and any(
                (a.operand, a.axis) == (1, 1) for a in cut
            )
            if not results and not weighs:
                return f"{node.name} sums over them, without a weight"
            for a in results:
                if self._is_normalised(node, a.axis):
                    return f"{node.name} normalises over them"
                made[-1 - a.operand][a.axis] = masks[0]
        if left:
            return f"{node.name} ({node.op.name}) may hold their number"
        return made

    def _is_normalised(self, node: Node, axis: int) -> bool:
        rank = node.output.type.rank or 0
        if isinstance(node.op, Softmax):
            return axis == axis_of(node.op.axis, rank)
        return (
            isinstance(node.op, LayerNorm)
            and not self.norms
            and axis >= axis_of(node.op.axis, rank)
        )

    def _depthwise(self, node: Node, op: Conv) -> list[dict[int, Keep]] | str:
        weight = node.required(1)
        if weight.type.dim(1) != 1 or weight not in self.kept:
            return f"{node.name} is a convolution of groups"
        if weight.type.dim(0) != op.groups:
            return f"{node.name} makes several channels of each"
        mask = self.kept[weight].get(0)
        read = self.kept.get(node.required(0), {})
        if mask is None or set(read) != {1} or not np.array_equal(read[1], mask):
            return f"{node.name} is a convolution of groups"
        self.ops[node] = replace(op, groups=int(mask.sum()))
        return [{1: mask}]

    def _along(
        self, node: Node, op: Split | Slice | Select | Concat
    ) -> list[dict[int, Keep]] | str:
        """Masks of ops that cut or join values along an axis."""
        rank = node.required(0).type.rank
        if rank is None:
            return f"the rank of what {node.name} reads is not known"
        if isinstance(op, Concat):
            own = axis_of(op.axis, rank)
            parts = [self._mask(_input(node, i), own) for i in range(len(node.inputs))]
            if any(p is None for p in parts):
                return f"{node.name} joins them with an axis whose size is not known"
            found = self._tied(node, own)
            joined = np.concatenate([p for p in parts if p is not None])
            return found if isinstance(found, str) else [_with(found[0], own, joined)]
        cut = op.axes if isinstance(op, Slice) else (op.axis,)
        axes = [axis_of(a, rank) for a in cut]
        masks = self.kept[node.required(0)]
        touched = [a for a in axes if a in masks]
        if not touched:
            return self._tied(node)
        if isinstance(op, Select) or len(axes) > 1:
            return f"{node.name} picks some of them by their number"
        (own,), mask = axes, masks[axes[0]]
        found = self._tied(node, own)
        if isinstance(found, str):
            return found
        if isinstance(op, Split):
            pieces = np.split(mask, np.cumsum(op.sizes)[:-1])
            self.ops[node] = replace(op, sizes=tuple(int(p.sum()) for p in pieces))
        else:
            begin, end, step = slice(op.starts[0], op.ends[0], op.steps[0]).indices(len(mask))
            if step != 1 or end < begin:
                return f"{node.name} picks some of them by their number"
            pieces = [mask[begin:end]]
            first = int(mask[:begin].sum())
            last = first + int(pieces[0].sum())
            self.ops[node] = replace(op, starts=(first,), ends=(last,))
        if any(not p.any() for p in pieces):
            return f"{node.name} would keep none of them"
        return [_with(one, own, piece) for one, piece in zip(found, pieces, strict=True)]

    def _reshaped(self, node: Node, op: Reshape | Flatten) -> list[dict[int, Keep]] | str:
        x = node.required(0)
        source, target = x.type.shape, node.output.type.shape
        if source is None or target is None:
            return f"the rank of what {node.name} reads is not known"
        masks, made = self.kept[x], dict[int, Keep]()
        for run in axis_runs(op, source, target):
            if not any(a in masks for a in range(run.first, run.last)):
                continue
            if (run.last - run.first, run.end - run.begin) == (1, 1):
                made[run.begin] = masks[run.first]
                continue
            parts = [self._mask(x, a) for a in range(run.first, run.last)]
            sizes = [d for d in target[run.begin : run.end] if isinstance(d, int)]
            known = [p for p in parts if p is not None]
            whole = prod(len(p) for p in known)
            if len(known) < len(parts) or not run.known or prod(sizes) != whole:
                return f"{node.name} reshapes them with sizes that are not known"
            if len(sizes) < run.end - run.begin:
                return f"{node.name} reshapes them with sizes that are not known"
            grid = reduce(np.logical_and.outer, known).reshape(sizes)
            every = range(len(sizes))
            split = [
                np.asarray(grid.any(axis=tuple(b for b in every if b != a)), bool) for a in every
            ]
            if not np.array_equal(reduce(np.logical_and.outer, split), grid):
                return f"{node.name} reshapes them, and what stays would fill no whole axis"
            made |= {run.begin + a: m for a, m in enumerate(split) if not m.all()}
        if isinstance(op, Reshape):
            shape = tuple(
                int(made[b].sum()) if b in made and d is not None and d > 0 else d
                for b, d in enumerate(op.shape)
            )
            self.ops[node] = replace(op, shape=shape)
        return [made]

    def _mask(self, value: Value, axis: int) -> Keep | None:
        """Which positions of an axis stay; ``None`` if its size is not known."""
        found = self.kept.get(value, {}).get(axis)
        size = value.type.dim(axis)
        if found is None and isinstance(size, int):
            return np.ones(size, bool)
        return found


def cut_graph(
    graph: Graph,
    rw: Rewriter,
    followed: Followed,
    cuts: Cuts,
    finish: Mapping[Node, Finish] | None = None,
) -> None:
    """Cut constants, and give the nodes behind them, which could follow, their new sizes.

    Args:
        graph: The graph.
        rw: Its rewriter.
        followed: What followed from the cuts.
        cuts: The cuts.
        finish: For layers that get other constants: the new inputs from those that were cut.
    """
    finish = finish or {}
    smaller = {v: rw.constant(_cut(v, axes), v.name) for v, axes in cuts.items()}
    changed = set(followed.types)
    for node in list(graph.nodes):
        if not any(v in changed for v in node.inputs):
            continue
        inputs = [None if v is None else smaller.get(v, v) for v in node.inputs]
        if node in finish:
            inputs = finish[node](inputs)
        op = followed.ops.get(node, node.op)
        if any(v in changed for v in node.outputs):
            rw.resize(node, op, inputs, anew=True)
        else:
            rw.replace(node, op, inputs)
    for value in smaller.values():
        if not value.use_count:
            rw.erase_constant(value)


def _cut(value: Value, axes: Mapping[int, Keep]) -> Tensor:
    """A constant without the channels that go."""
    data = value.data
    assert data is not None
    shape = list(data.shape)
    for axis, keep in axes.items():
        shape[axis] = int(keep.sum())

    def cut(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        for axis, keep in axes.items():
            array = array.compress(keep, axis)
        return array

    if isinstance(data, DerivedTensor):
        return MovedTensor(data, cut, tuple(shape))
    return LazyTensor(tuple(shape), data.dtype, lambda: cut(data.numpy()), source=data)


def _input(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _with(masks: dict[int, Keep], axis: int, mask: Keep) -> dict[int, Keep]:
    return masks if mask.all() else {**masks, axis: mask}


def _smaller(type_: TensorType, masks: Mapping[int, Keep]) -> tuple[Any, ...]:
    return tuple(int(masks[a].sum()) if a in masks else d for a, d in enumerate(type_.shape or ()))


__all__ = ["CARRIES", "Cuts", "Finish", "Followed", "Keep", "cut_graph", "cuts_of", "one_less"]
