"""ONNX models as torch modules that are trained, and their weights as numbers of the model's initializers again.

Nothing but numbers changes: nodes, names and everything else in the model stay what they are. A weight that the module has in another
order of axes (a transposed matrix) is put back into the order of its initializer. A weight that no initializer holds, because nodes compute it
from several or the model has it in a form that no order of axes explains, is not trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from ...hosts.onnx.origins import OnnxHost
from ...ir import ArrayTensor, Graph, Tensor
from ..emitted import Readers
from .anew import Anew, written_anew
from .batch_norms import norm_of
from .names import host_name

_MOST_AXES = 5
"""Weights with more axes are compared with their initializers in the given order only."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the module belongs: the initializer's name, and the order of axes that makes one of the other."""

    name: str
    axes: tuple[int, ...]

    def restored(self, tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        back = np.argsort(self.axes)
        return np.ascontiguousarray(tensor.detach().cpu().numpy().transpose(back))


class Trainable:
    """A module of an ONNX-born graph whose trained weights can be written back.

    Args:
        graph: The graph; it is not changed.
        readers: As for :func:`.anew.to_module`.

    Attributes:
        module: The module, in evaluation mode. Parameters that cannot be written back are frozen.
        frozen: The names of these.
        values: The FX node of each value, by the names of both.

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
        placed = {id(tensor) for tensor, _ in self.places}
        self.frozen = []
        for name, parameter in self.module.named_parameters():
            if id(parameter) not in placed:
                parameter.requires_grad_(False)
                self.frozen.append(name)

    def trained(self) -> Graph:
        """A copy of the graph whose host model has the module's numbers; the constants of the graph itself keep the old ones."""
        numbers: dict[str, Tensor] = {}
        for tensor, place in self.places:
            numbers[place.name] = ArrayTensor(place.restored(tensor))
        made = self.graph.clone()
        made.host = replace(self.host, numbers={**self.host.numbers, **numbers})
        return made

    def _find(self, written: Anew) -> None:
        names = _stored(written.graph)
        own = _stored(self.graph).values()
        mine = {id(t) for t in itertools.chain(self.module.parameters(), self.module.buffers())}
        pairs = [(data, t) for data, t in written.parameters.all() if id(t) in mine]
        pairs += itertools.chain.from_iterable(_of_norm(*pair) for pair in written.norms)
        found: dict[str, list[tuple[torch.Tensor, _Place]]] = {}
        for data, tensor in pairs:
            place = _place(data, names)
            if place is not None and place.name in own:
                found.setdefault(place.name, []).append((tensor, place))
        # An initializer that is several tensors of the module would get the numbers of only one.
        self.places = [group[0] for group in found.values() if len(group) == 1]


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
    rank = len(source.shape)
    if rank != len(data.shape) or rank > _MOST_AXES:
        return None
    before, after = source.numpy(), data.numpy()
    for axes in itertools.permutations(range(rank)):
        moved = before.transpose(axes)
        if moved.shape == after.shape and np.array_equal(moved, after):
            return _Place(name, axes)
    return None


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


__all__ = ["Trainable"]
