"""Write a recurrent layer with blocks as k smaller layers side by side: Split, k layers, Concat.

Block ``i`` has its hidden units of all gates and of both directions, its part of the biases, peepholes and initial states, and
its part of the inputs, or all inputs. Its results are concatenated along the axis of the hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import (
    Concat,
    DerivedTensor,
    Exactness,
    LazyTensor,
    MovedTensor,
    Node,
    Rewriter,
    Split,
    Tensor,
    Value,
)
from ...ir.ops.recurrent import _Recurrent
from ..merge.algebra.tensors import Array64, from_float64
from .blocks import Ids
from .lower import ChainWriter, bring_channels, certain_sizes
from .order import BlockAccess

_HIDDEN_AXIS = 2
"""The axis of a state that has the hidden units."""


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """A recurrent layer that is ready to be written in blocks.

    Attributes:
        node: The layer.
        hidden: For each direction, its hidden units in the order of the blocks, as indices into the original ones.
        sizes: The number of hidden units of each block.
        inputs: How the inputs get to the blocks; ``None`` if each block reads all inputs.
        input_sizes: The number of inputs of each block.
        input_order: The inputs as the graph orders them now, as indices into the original ones.
        constants: The constants that it reads, by index, as they are in the original order.
        refitted: New matrices and bias by index, in the original order.
        fixed: Whether known sizes hold for every run.
    """

    node: Node
    hidden: tuple[Ids, ...]
    sizes: Ids
    inputs: BlockAccess | None
    input_sizes: Ids
    input_order: Ids
    constants: dict[int, Tensor]
    refitted: dict[int, Array64]
    fixed: bool = True

    @property
    def op(self) -> _Recurrent:
        """Its op."""
        assert isinstance(self.node.op, _Recurrent)
        return self.node.op

    def part(self, index: int, block: int) -> Tensor | None:
        """The part of a constant that belongs to a block; ``None`` if the layer has no such constant."""
        data = self.constants.get(index)
        new = self.refitted.get(index)
        if data is None and new is None:
            return None
        units = [np.split(own, np.cumsum(self.sizes)[:-1])[block] for own in self.hidden]
        columns = self.input_order
        if self.inputs is not None:
            columns = np.split(self.inputs.channels, np.cumsum(self.input_sizes)[:-1])[block]

        def take(array: Any) -> Any:
            return _block(array, index, self.op, units, columns)

        if new is not None:
            like = data if data is not None else self.constants[1]
            return from_float64(take(new), like.dtype, like)
        assert data is not None
        return _moved(data, take)


def _block(array: Any, index: int, op: _Recurrent, units: list[Ids], columns: Ids) -> Any:
    """The part of an array that belongs to some hidden units of each direction."""
    made = []
    for own, chosen in zip(array, units, strict=True):
        if 5 <= index < 5 + op.states:  # A state: (batch, hidden).
            made.append(own[:, chosen])
            continue
        # The rows of all gates: (gates, hidden, ...).
        gates = own.reshape(-1, op.hidden, *own.shape[1:])[:, chosen]
        if index == 2:
            gates = gates[:, :, chosen]
        elif index == 1:
            gates = gates[:, :, columns]
        made.append(gates.reshape(-1, *gates.shape[2:]))
    return np.stack(made)


def _moved(data: Tensor, take: Callable[[Any], Any]) -> Tensor:
    """Some numbers of a tensor, as a lazy tensor."""
    shape = take(np.broadcast_to(np.zeros((), np.int8), data.shape)).shape
    if isinstance(data, DerivedTensor):
        return MovedTensor(data, take, shape)
    return LazyTensor(shape, data.dtype, lambda: take(data.numpy()), source=data)


def write_recurrent(rw: Rewriter, layer: RecurrentLayer, what: str, exactness: Exactness) -> None:
    """Replace a recurrent layer by its blocks.

    Args:
        rw: The rewriter.
        layer: The layer.
        what: The description of the rewrite.
        exactness: Its exactness class.
    """
    node, op, before = layer.node, layer.op, layer.node.inputs
    with rw.rewrite(what, node, exactness=exactness):
        given = _inputs(rw, layer)
        states = {i: _states(rw, layer, i) for i in range(5, 5 + op.states)}
        made = []
        for block, size in enumerate(layer.sizes.tolist()):
            own = f"{node.name}.block{block}"
            operands: list[Value | None] = [given[block]]
            for index in range(1, max(len(before), 4)):
                if index == 4:
                    operands.append(node.input(4))
                elif index in states and states[index] is not None:
                    operands.append(states[index][block])
                else:
                    data = layer.part(index, block)
                    name = f"{own}.{_NAMES.get(index, 'peepholes')}"
                    operands.append(None if data is None else rw.constant(data, name))
            while operands[-1] is None:
                operands.pop()
            smaller = replace(op, hidden=size)
            made.append(rw.insert(smaller, operands, before=node, name=own))
        for number, value in enumerate(node.outputs):
            if not value.use_count:
                continue
            axis = _HIDDEN_AXIS if number else 3
            parts: list[Value | None] = [one.outputs[number] for one in made]
            name = f"{node.name}.concat" if not number else f"{node.name}.concat{number}"
            joined = rw.insert(Concat(axis), parts, before=node, name=name)
            rw.replace_uses(value, joined.output)
        rw.erase(node)
        for value in dict.fromkeys(v for v in before if v is not None and v.data is not None):
            if value.producer is None and not value.use_count:
                rw.erase_constant(value)


_NAMES = {1: "w", 2: "r", 3: "bias", 5: "h", 6: "c"}


def _inputs(rw: Rewriter, layer: RecurrentLayer) -> list[Value]:
    """What each block reads."""
    node, x = layer.node, layer.node.required(0)
    count = layer.sizes.size
    if layer.inputs is None:
        return [x] * count
    writer = ChainWriter(rw, node)
    shape = certain_sizes(x.type.shape or (), layer.fixed)
    bring_channels(writer, layer.inputs, 2, shape, back=False)
    sizes = tuple(int(s) for s in layer.input_sizes)
    cut = rw.insert(Split(sizes, 2), [writer.flush()], before=node, name=f"{node.name}.split")
    return list(cut.outputs)


def _states(rw: Rewriter, layer: RecurrentLayer, index: int) -> Any:
    """The parts of a computed initial state; ``None`` if it is a constant or left out."""
    node, start = layer.node, layer.node.input(index)
    if start is None or start.data is not None:
        return None
    sizes = tuple(int(s) for s in layer.sizes)
    name = f"{node.name}.split_{_NAMES[index]}"
    cut = rw.insert(Split(sizes, _HIDDEN_AXIS), [start], before=node, name=name)
    return cut.outputs


__all__ = ["RecurrentLayer", "write_recurrent"]
