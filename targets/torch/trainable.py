"""ONNX models as torch modules that are trained, and their weights as numbers of the model's initializers again.

Nothing but numbers changes: nodes, names and everything else in the model stay what they are. A weight that the module has in another
order of axes (a transposed matrix), or in another shape (slopes of a PRelu), is put back into the form of its initializer, and so are the
gates of recurrent layers. A weight that is dequantised from integers becomes integers again, with the scales that it had. A weight that no
initializer holds, because nodes compute it from several or the model has it in a form that neither explains, is not trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from ...hosts.onnx.origins import OnnxHost
from ...ir import ArrayTensor, Dequantize, Graph, Quantize, Tensor
from ...ir.analysis.integer_pairs import largest_within_limit
from ..emitted import Readers
from .anew import Anew, written_anew
from .batch_norms import norm_of
from .names import host_name
from .spell.recurrent import GateRows

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

_MOST_AXES = 5
"""Weights with more axes are found in the order of their initializers only."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the module belongs.

    Attributes:
        name: The initializer's name.
        axes: The order of axes that makes the tensor of the initializer.
        shape: The initializer's shape, if the tensor has the same numbers in the same order, but another shape.
    """

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)

    def restored(self, tensor: torch.Tensor, whole: Numbers | None) -> Numbers:
        """The numbers of the initializer.

        Args:
            tensor: The module's tensor.
            whole: The numbers that other tensors gave, if the tensor is only a part of the initializer.
        """
        made = np.ascontiguousarray(tensor.detach().cpu().numpy().transpose(np.argsort(self.axes)))
        return made if self.shape is None else made.reshape(self.shape)


@dataclass(frozen=True)
class _Rows(_Place):
    """A place in a weight or in the biases of a recurrent layer: the rows of all gates of one direction.

    Attributes:
        stored: The constant as it is stored.
        direction: The direction.
        start: The first row.
        order: Where torch's gates are in ONNX's order.
    """

    stored: Tensor
    direction: int
    start: int
    order: tuple[int, ...]

    def restored(self, tensor: torch.Tensor, whole: Numbers | None) -> Numbers:
        made = self.stored.numpy().copy() if whole is None else whole
        rows = super().restored(tensor, None)
        gates = rows.reshape(len(self.order), -1, *rows.shape[1:])[np.argsort(self.order)]
        made[self.direction, self.start : self.start + len(rows)] = gates.reshape(rows.shape)
        return made


@dataclass(frozen=True, eq=False)
class Steps:
    """Which floating-point numbers integers stand for: ``(q - zero) * scale`` for ``low <= q <= high``.

    Attributes:
        dtype: The element type of the integers.
        scale: The scales, of a shape that fits the weight's.
        zero: The zero points, of the same shape.
        low: The least integers, of the shape of the weight or one that fits it.
        high: The largest ones.
    """

    dtype: np.dtype[np.generic]
    scale: Floats
    zero: Floats
    low: Floats
    high: Floats

    def moved(self, axes: tuple[int, ...]) -> Steps:
        """The same for a weight whose axes are in another order."""
        arrays = (a.transpose(axes) for a in (self.scale, self.zero, self.low, self.high))
        return Steps(self.dtype, *arrays)

    def integers(
        self, numbers: np.ndarray[tuple[int, ...], np.dtype[Any]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """The nearest integers; halves are rounded to even."""
        made = np.rint(numbers / self.scale.astype(numbers.dtype))
        # Sums of int32 and its zero point are beyond what float32 holds.
        moved = np.clip(made.astype(np.float64) + self.zero, self.low, self.high)
        return np.asarray(moved, self.dtype)


@dataclass(frozen=True)
class _IntegerPlace(_Place):
    """A place that holds integers."""

    steps: Steps

    def restored(self, tensor: torch.Tensor, whole: Numbers | None) -> Numbers:
        return self.steps.integers(super().restored(tensor, whole))


class Trainable:
    """A module of an ONNX-born graph whose trained weights can be written back.

    Args:
        graph: The graph; it is not changed.
        readers: As for :func:`.anew.to_module`.

    Attributes:
        module: The module, in evaluation mode. Parameters that cannot be written back are frozen, and scales of integers.
        frozen: The names of the first.
        values: The FX node of each value, by the names of both.
        steps: The parameters that become integers, by their names, and what these stand for in the order of the parameter's axes.

    Raises:
        ModelError: If there are nodes that torch cannot express.
    """

    def __init__(self, graph: Graph, readers: Readers | None = None) -> None:
        assert isinstance(graph.host, OnnxHost)
        self.graph, self.host = graph, graph.host
        written = written_anew(graph, readers)
        self.module: fx.GraphModule = written.assembled()
        self.values = {host_name(v): n.name for v, n in written.nodes.items()}
        self.places: list[tuple[torch.Tensor, _Place]] = []
        self._find(written)
        placed = {id(tensor): place for tensor, place in self.places}
        scales = _scales(graph)
        self.frozen = []
        self.steps: dict[str, Steps] = {}
        for name, parameter in self.module.named_parameters():
            place = placed.get(id(parameter))
            if place is None:
                parameter.requires_grad_(False)
                self.frozen.append(name)
            elif place.name in scales:
                parameter.requires_grad_(False)
            elif isinstance(place, _IntegerPlace):
                self.steps[name] = place.steps.moved(place.axes)

    def trained(self) -> Graph:
        """A copy of the graph whose host model has the module's numbers; the constants of the graph itself keep the old ones."""
        numbers: dict[str, Numbers] = {}
        for tensor, place in self.places:
            numbers[place.name] = place.restored(tensor, numbers.get(place.name))
        made = self.graph.clone()
        stored: dict[str, Tensor] = {name: ArrayTensor(a) for name, a in numbers.items()}
        made.host = replace(self.host, numbers={**self.host.numbers, **stored})
        return made

    def _find(self, written: Anew) -> None:
        names, integers = _stored(written.graph), _dequantised(written.graph)
        own = _stored(self.graph).values()
        mine = {id(t) for t in itertools.chain(self.module.parameters(), self.module.buffers())}
        pairs = [(data, t) for data, t in written.parameters.all() if id(t) in mine]
        pairs += itertools.chain.from_iterable(_of_norm(*pair) for pair in written.norms)
        found: dict[str, list[tuple[torch.Tensor, _Place]]] = {}
        for data, tensor in pairs:
            place = _place(data, names) or _integer_place(data, integers)
            if place is not None and place.name in own:
                found.setdefault(place.name, []).append((tensor, place))
        # An initializer that is several tensors of the module would get the numbers of only one, unless each is a part of it.
        self.places = []
        for group in found.values():
            parts = {(p.direction, p.start) for _, p in group if isinstance(p, _Rows)}
            if len(group) == 1 or len(parts) == len(group):
                self.places += group


def _stored(graph: Graph) -> dict[int, str]:
    """The names of the constants that the host model stores, by the ids of their handles and of the host's tensors."""
    assert isinstance(graph.host, OnnxHost)
    stored = {t.name: t for t in graph.host.model.graph.initializer}
    found = {}
    for value in graph.constants:
        name = value.host
        if isinstance(name, str) and (name in stored or name in graph.host.constant_nodes):
            assert value.data is not None
            found[id(value.data)] = name
            if isinstance(value.data.host, TensorProto):
                found[id(value.data.host)] = name
    return found


def _place(data: Tensor, names: dict[int, str]) -> _Place | None:
    """The initializer that a constant is, or has the numbers of in another order of axes."""
    if id(data) in names:
        return _Place(names[id(data)], tuple(range(len(data.shape))))
    if isinstance(data, GateRows):
        stored, direction, start, order = data.place
        place = _place(stored, names)
        if place is None or place.axes != tuple(range(len(stored.shape))):
            return None
        axes = tuple(range(len(data.shape)))
        return _Rows(place.name, axes, stored, direction, start, order)
    sources = [h for h in data.hosts or () if id(h) in names]
    if len(sources) != 1 or len(data.hosts or ()) != 1 or not isinstance(sources[0], TensorProto):
        return None
    name, proto = names[id(sources[0])], sources[0]
    if isinstance(data.host, TensorProto):
        return _Place(name, tuple(range(len(data.shape))))
    return _reordered(data, proto, name)


def _reordered(data: Tensor, proto: TensorProto, name: str) -> _Place | None:
    source = getattr(data, "source", None)
    if not isinstance(source, Tensor) or source.host is not proto:
        return None
    axes = _order(source, data)
    if axes is not None:
        return _Place(name, axes)
    if _is_reshaped(source, data):
        return _Place(name, tuple(range(len(data.shape))), shape=source.shape)
    return None


def _is_reshaped(source: Tensor, data: Tensor) -> bool:
    """Whether ``data`` has the numbers of ``source`` in the same order."""
    move = getattr(data, "move", None)
    if move is None or source.size != math.prod(data.shape):
        return False
    before = np.arange(source.size)
    return np.array_equal(move(before.reshape(source.shape)).reshape(-1), before)


def _order(source: Tensor, data: Tensor) -> tuple[int, ...] | None:
    """The order of the axes of ``source`` that makes it ``data``.

    It is found from the positions of the numbers: a symmetric matrix has the numbers of its transpose.
    """
    rank, move = len(source.shape), getattr(data, "move", None)
    if rank != len(data.shape) or rank > _MOST_AXES or move is None:
        return None
    before = np.arange(source.size).reshape(source.shape)
    after = move(before)
    for axes in itertools.permutations(range(rank)):
        moved = before.transpose(axes)
        if moved.shape == after.shape and np.array_equal(moved, after):
            return axes
    return None


def _scales(graph: Graph) -> set[str]:
    """The names of the scales of integers, which stay as they are: weights may have the same ones."""
    quantised = (n for n in graph.nodes if isinstance(n.op, Quantize | Dequantize))
    return {host_name(node.required(1)) for node in quantised}


def _dequantised(graph: Graph) -> dict[int, tuple[str, Tensor, Steps]]:
    """The constants that are dequantised from stored integers, by their ids: the name of the initializer, the constant, and its steps."""
    names, found = _stored(graph), {}
    for node in graph.nodes:
        op = node.op
        if not isinstance(op, Dequantize) or op.block or node.output.data is None:
            continue
        stored, scale, zero = (
            v.data if v is not None else None for v in (node.input(0), node.input(1), node.input(2))
        )
        if stored is None or scale is None or id(stored) not in names:
            continue
        if (node.input(2) is not None and zero is None) or not (scale.float64() > 0).all():
            continue
        steps = _steps(stored, scale, zero, op.axis)
        found[id(node.output.data)] = (names[id(stored)], node.output.data, steps)
    return found


def _steps(stored: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Steps:
    integers = stored.numpy()
    shape = [1] * integers.ndim
    if scale.shape not in ((), (1,)):
        shape[axis] = -1
    scales = np.asarray(scale.numpy(), np.float64).reshape(shape)
    zeros = np.zeros(scales.shape) if zero is None else zero.float64().reshape(shape)
    limits = np.iinfo(integers.dtype)
    low: Floats = np.full(zeros.shape, float(limits.min))
    high: Floats = np.full(zeros.shape, float(limits.max))
    # Most tools leave out -128, so that the range is symmetric; a file that has it keeps it.
    if integers.dtype == np.int8 and not zeros.any() and (integers > limits.min).all():
        most = (
            largest_within_limit(integers, axis) if integers.ndim > 1 and scales.size > 1 else None
        )
        high = high if most is None else most
        low = -high
    return Steps(integers.dtype, scales, zeros, low, high)


def _integer_place(
    data: Tensor, integers: dict[int, tuple[str, Tensor, Steps]]
) -> _IntegerPlace | None:
    """The integers that a constant is dequantised from, perhaps in another order of axes."""
    known = integers.get(id(data)) or integers.get(id(getattr(data, "source", None)))
    if known is None:
        return None
    name, source, steps = known
    axes = tuple(range(len(data.shape))) if source is data else _order(source, data)
    return None if axes is None else _IntegerPlace(name, axes, steps)


def _of_norm(node: object, module: nn.Module) -> Iterator[tuple[Tensor, torch.Tensor]]:
    """The tensors of a batch norm, where its channels are in their order."""
    from ...ir import Node

    assert isinstance(node, Node)
    found = norm_of(node)
    if found is None or not np.array_equal(found[1], np.arange(len(found[1]))):
        return
    norm = found[0]
    tensors = (norm.gamma, norm.beta, norm.mean, norm.var)
    for data, name in zip(tensors, ("weight", "bias", "running_mean", "running_var"), strict=True):
        tensor = getattr(module, name)
        if data is not None and tensor is not None:
            yield data, tensor


__all__ = ["Steps", "Trainable"]
