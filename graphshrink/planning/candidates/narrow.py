"""*narrow*: hidden channels go, chosen by the optimal brain surgeon; the layer that reads the others is refitted.

The channels of a coupled group stand in constants of several layers (:mod:`graphshrink.ir.analysis`): all of them lose the same
channels. The closing layer, which sums over them, is refitted in the same elimination (:func:`..closed_forms.surgery`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir import (
    Add,
    ArrayTensor,
    Conv,
    Exactness,
    Graph,
    GraphError,
    Linear,
    Node,
    Op,
    Rewriter,
    Value,
)
from ...passes.merge.algebra.tensors import Array64
from ..closed_forms import Sums, surgery
from ..column_sums import SUMS_BYTES, ColumnSums, Window
from ..sites import Site
from .base import Candidate, Kind, Names, weaker_label

LEVELS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""The parts of the channels that are kept."""

MULTIPLE = 8
"""Numbers of channels are rounded to multiples of this: runtimes compute in vectors of 4, 8 or 16."""


@dataclass(frozen=True, eq=False)
class Narrowed(Candidate):
    """A hidden site with fewer channels.

    Attributes:
        kept: The channels that stay.
        weight: ``(O, kept * taps + 1)``: the refitted weight and bias of the closing layer.
    """

    site: Site
    label: str
    error: float
    kept: tuple[int, ...]
    weight: Array64

    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Cut the constants, then infer the sizes inside anew."""
        group, closer = self.site.group, self.site.closer
        assert group is not None
        assert closer is not None
        names = Names.of(graph)
        cut: dict[tuple[str, int], int] = {}
        for placement in group.placements:
            for node, index in placement.value.uses:
                cut[node.output.name, index] = placement.axis
                if index == 1 and placement.axis == 0:
                    # The layer may have got a bias when it was refitted as the closing layer of another site.
                    cut[node.output.name, 2] = 0
        nodes = [names.producer(n.output) for n in self.site.nodes if n is not closer]
        end = names.producer(closer.output)
        with rw.rewrite(
            f"{self.label} of {self.site.name}", *nodes, end, exactness=Exactness.APPROXIMATE
        ):
            narrowed: set[Value] = set()
            for node in nodes:
                inputs = [
                    self._cut(rw, v, cut.get((node.output.name, i)))
                    for i, v in enumerate(node.inputs)
                ]
                if inputs != list(node.inputs) or any(v in narrowed for v in inputs):
                    rw.resize(node, self._op(node, inputs), inputs, anew=True)
                    narrowed.update(node.outputs)
            self._close(rw, end)

    def weaker(self, strength: float) -> Candidate | None:
        """With a smaller weight of the closing layer, if its result is added to a skip."""
        assert self.site.closer is not None
        users = self.site.closer.output.users
        if len(users) != 1 or not isinstance(users[0].op, Add):
            return None
        return replace(
            self, label=weaker_label(self.label, strength), weight=self.weight * strength
        )

    def _cut(self, rw: Rewriter, value: Value | None, axis: int | None) -> Value | None:
        if value is None or axis is None:
            return value
        if value.data is None:
            raise GraphError(f"%{value.name} is not a constant any more")
        return rw.constant(ArrayTensor(value.data.numpy().take(self.kept, axis)), value.name)

    def _op(self, node: Node, inputs: Sequence[Value | None]) -> Op:
        if isinstance(node.op, Conv) and node.op.groups > 1 and inputs[1] is not node.inputs[1]:
            return replace(node.op, groups=len(self.kept))
        return node.op

    def _close(self, rw: Rewriter, node: Node) -> None:
        """Give the closing layer its refitted weight, in the rows that it still has."""
        old = node.required(1)
        dtype, shape = old.type.dtype, old.type.static_shape
        assert dtype is not None
        assert shape is not None
        if shape[0] != len(self.weight):
            raise GraphError(f"{node.name} has lost outputs before its inputs")
        weight = self.weight[:, :-1].reshape(shape[0], len(self.kept), *shape[2:])
        made = [weight, self.weight[:, -1]]
        inputs = [rw.constant(ArrayTensor(a.astype(dtype.numpy)), old.name) for a in made]
        rw.replace(node, node.op, [node.inputs[0], *inputs])


class Narrow(Kind):
    """Fewer hidden channels.

    Args:
        levels: The parts of the channels that are kept.
    """

    name = "narrow"

    def __init__(self, levels: Sequence[float] = LEVELS) -> None:
        self.levels = tuple(levels)

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """The Gram matrix of what the closing layer reads."""
        if site.closer is None:
            return ""
        if not sizes_of(site, self.levels):
            return f"it has only {site.group.size if site.group else 0} channels"
        request = ColumnSums(site.closer.required(0), None, _window(site.closer))
        if request.nbytes() > SUMS_BYTES:
            return f"the Gram matrix of its {request.size} inputs would be too large"
        return [request]

    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """A candidate for each level."""
        (sums,) = results
        closer = site.closer
        assert closer is not None
        data = closer.required(1).data
        assert data is not None
        matrix = data.float64().reshape(data.shape[0], -1)
        given = closer.input(2)
        bias = (
            np.zeros(len(matrix)) if given is None or given.data is None else given.data.float64()
        )
        whole = np.concatenate([matrix, bias.reshape(-1, 1)], 1)
        targets = Sums(sums.gram, whole @ sums.gram, ((whole @ sums.gram) * whole).sum(1))
        taps = int(np.prod(data.shape[2:], dtype=int))
        made: list[Candidate] = []
        for size, kept, weight in surgery(sums.gram, whole, taps, sizes_of(site, self.levels)):
            spread = np.zeros_like(whole)
            columns = [c * taps + t for c in kept for t in range(taps)]
            spread[:, [*columns, -1]] = weight
            made.append(
                Narrowed(site, f"narrow {size}", targets.error(spread), tuple(kept), weight)
            )
        return made


def sizes_of(site: Site, levels: Sequence[float] = LEVELS) -> list[int]:
    """The numbers of channels that a hidden site may have instead of its own, largest first."""
    assert site.group is not None
    size = site.group.size
    made = {max(MULTIPLE, round(size * level / MULTIPLE) * MULTIPLE) for level in levels}
    return sorted((s for s in made if s < size), reverse=True)


def _window(node: Node) -> Window:
    if isinstance(node.op, Linear):
        return Window()
    assert isinstance(node.op, Conv)
    shape = node.required(1).type.static_shape
    assert shape is not None
    return Window(1, shape[2:], node.op.strides, node.op.pads, node.op.dilations)
