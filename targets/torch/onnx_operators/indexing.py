"""How ONNX operators that scatter, pick and count elements are written in torch."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ....ir import DType
from ..speller import Results
from .operator import Operator, writes

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""Reductions by torch's names."""


@writes("ScatterElements", "Scatter")
def scatter_elements(o: Operator) -> fx.Node:
    """``torch.scatter`` or ``torch.scatter_reduce``, whose indices are not below zero."""
    data, indices, updates = (o.value(i) for i in range(3))
    axis, reduction = o.attributes.get("axis", 0), o.text("reduction", "none")
    indices = _from_front(o, indices, o.size(0, axis))
    if reduction == "none":
        return o.call(torch.scatter, data, axis, indices, updates)
    return o.call(torch.scatter_reduce, data, axis, indices, updates, _REDUCTIONS[reduction])


def _from_front(o: Operator, indices: fx.Node, size: Any) -> fx.Node:
    """Indices counted from the front."""
    return o.call(torch.remainder, o.call("to", indices, torch.int64), size)


@writes("ScatterND")
def scatter_nd(o: Operator) -> fx.Node:
    """``torch.index_put``; maxima and minima by ``scatter_reduce`` are refused for slices."""
    data, updates = o.value(), o.value(2)
    reduction, count = o.text("reduction", "none"), o.node.required(1).type.dim(-1)
    if not isinstance(count, int):
        raise o.refuse_operator("how many axes it indexes is not known")
    indices = o.call("to", o.value(1), torch.int64)
    parts = tuple(o.call(torch.select, indices, -1, i) for i in range(count))
    if reduction in ("none", "add"):
        return o.call(torch.index_put, data, parts, updates, reduction == "add")
    sizes = o.shape()
    if len(sizes) == 0 or reduction not in _REDUCTIONS:
        raise o.refuse_operator(f"torch has no such scatter with {reduction}")
    # As a scatter along one axis: that of all indexed axes together.
    place, flat = o.call(torch.zeros_like, parts[0]), o.call(torch.flatten, data, 0, count - 1)
    for part, size in zip(parts, sizes, strict=False):
        own = o.call(torch.remainder, part, size)
        place = o.call(torch.add, o.call(torch.mul, place, size), own)
    inner = len(sizes) - count
    rows = o.call(torch.reshape, updates, (-1, *sizes[count:]))
    place = o.call(torch.reshape, place, (-1, *[1] * inner))
    place = o.call("expand_as", place, rows)
    made = o.call(torch.scatter_reduce, flat, 0, place, rows, _REDUCTIONS[reduction])
    return o.call(torch.reshape, made, tuple(sizes))


@writes("NonZero")
def non_zero(o: Operator) -> fx.Node:
    """``torch.nonzero``, transposed."""
    return o.call(torch.transpose, o.call(torch.nonzero, o.value()), 0, 1)


@writes("Compress")
def compress(o: Operator) -> fx.Node:
    """``torch.index_select`` of the places of a condition that may be short."""
    x, axis = o.value(), o.attributes.get("axis")
    if axis is None:
        x, axis = o.call(torch.flatten, x), 0
    places = o.call(torch.reshape, o.call(torch.nonzero, o.value(1)), (-1,))
    return o.call(torch.index_select, x, axis, places)


@writes("OneHot")
def one_hot(o: Operator) -> fx.Node:
    """A comparison with the places along the new axis; indices outside give the off-value everywhere."""
    depth, values = o.numbers(1)[0], o.value(2)
    axis, rank = o.attributes.get("axis", -1), o.node.required(0).type.rank
    if rank is None:
        raise o.refuse_operator("the number of axes of its indices is not known")
    axis %= rank + 1
    indices = o.value()
    known = o.dtype is not None and o.dtype.is_int
    indices = indices if o.dtype is DType.I64 else o.call("to", indices, torch.int64)
    if not known:
        raise o.refuse_operator("its indices are no integers")
    indices = o.call(
        torch.where, o.call(torch.lt, indices, 0), o.call(torch.add, indices, depth), indices
    )
    places = o.call(torch.arange, depth, **o.device(0))
    places = o.call(torch.reshape, places, (-1, *[1] * (rank - axis)))
    hot = o.call(torch.eq, o.call(torch.unsqueeze, indices, axis), places)
    off, on = (o.call(torch.select, values, 0, i) for i in range(2))
    return o.call(torch.where, hot, on, off)


@writes("TopK")
def top_k(o: Operator) -> Results:
    """``torch.sort``, which keeps the order of equal numbers, and as many as a computed number says."""
    if not o.is_given(1):
        raise o.refuse_operator("it has no input that says how many")
    axis = o.attributes.get("axis", -1)
    largest = bool(o.attributes.get("largest", 1))
    made = o.call(torch.sort, o.value(), dim=axis, descending=largest, stable=True)
    k = o.numbers(1)[0]
    return [o.call(torch.narrow, o.call(operator.getitem, made, i), axis, 0, k) for i in range(2)]


@writes("Unique")
def unique(o: Operator) -> Results:
    """``torch.unique``; places of first occurrences are the smallest ones."""
    if not o.attributes.get("sorted", 1):
        raise o.refuse_operator("torch gives unique elements in sorted order only")
    x, axis = o.value(), o.attributes.get("axis")
    if axis is None:
        x, axis = o.call(torch.flatten, x), 0
        size = None
    else:
        size = o.size(0, axis)
    made = o.call(torch.unique, x, True, True, True, axis)
    values, inverse, counts = (o.call(operator.getitem, made, i) for i in range(3))
    last = size if size is not None else o.call("size", x, 0)
    places = o.call(torch.arange, last, **o.device(0))
    start = o.call(torch.full_like, counts, last)
    first = o.call(torch.scatter_reduce, start, 0, inverse, places, "amin")
    return [values, first, inverse, counts][: len(o.node.outputs)]


@writes("ReverseSequence")
def reverse_sequence(o: Operator) -> fx.Node:
    """A gather of places that are mirrored up to the length of each sequence."""
    batch, time = o.attributes.get("batch_axis", 1), o.attributes.get("time_axis", 0)
    sizes = o.shape()
    if {batch, time} != {0, 1}:
        raise o.refuse_operator("its axes are not the first two")
    lengths = o.call("to", o.value(1), torch.int64)
    steps = o.call(torch.arange, sizes[time], **o.device(0))
    lengths, steps = (o.call(torch.unsqueeze, v, a) for v, a in ((lengths, time), (steps, batch)))
    mirrored = o.call(torch.sub, o.call(torch.sub, lengths, 1), steps)
    places = o.call(torch.where, o.call(torch.lt, steps, lengths), mirrored, steps)
    places = o.call(torch.reshape, places, (*sizes[:2], *[1] * (len(sizes) - 2)))
    return o.call(torch.gather, o.value(), time, o.call("expand", places, tuple(sizes)))


@writes("NegativeLogLikelihoodLoss")
def nll_loss(o: Operator) -> fx.Node:
    """``F.nll_loss``."""
    return _nll_loss(o, o.value())


@writes("SoftmaxCrossEntropyLoss")
def cross_entropy(o: Operator) -> Results:
    """``F.nll_loss`` of ``F.log_softmax``, which is the second result."""
    logs = o.call(F.log_softmax, o.value(), 1)
    return [_nll_loss(o, logs), logs][: len(o.node.outputs)]


def _nll_loss(o: Operator, logs: fx.Node) -> fx.Node:
    target = o.call("to", o.value(1), torch.int64)
    rest = {
        "weight": o.optional(2),
        "ignore_index": o.attributes.get("ignore_index", -100),
        "reduction": o.text("reduction", "mean"),
    }
    return o.call(F.nll_loss, logs, target, **rest)
