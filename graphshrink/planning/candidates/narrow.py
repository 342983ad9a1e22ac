"""*narrow*: hidden channels go, or whole heads, chosen by the optimal brain surgeon; the layers that read the others are refitted.

The channels of a coupled group stand in constants of several layers (:mod:`graphshrink.ir.analysis`): all of them lose the same
channels (:mod:`graphshrink.passes.channels.cuts`). The layers that sum over them are refitted in the same elimination
(:func:`..closed_forms.surgery`). A head is a block of columns of the layer behind attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ...ir import (
    Add,
    ArrayTensor,
    Conv,
    Exactness,
    Graph,
    GraphError,
    Linear,
    Node,
    Rewriter,
    Softmax,
    Value,
)
from ...ir.analysis import ChannelGroup, Placement
from ...passes.channels.cuts import Cuts, Followed, Keep, cut_graph
from ...passes.merge.algebra.tensors import Array64
from ..closed_forms import Reader, Sums, surgery
from ..column_sums import SUMS_BYTES, ColumnSums
from ..sites import Site
from ..windows import layer_matrix, layer_window
from .base import Candidate, Kind, Names, weaker_label

LEVELS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""The parts of the channels that are kept."""

MULTIPLE = 8
"""Numbers of channels are rounded to multiples of this: runtimes compute in vectors of 4, 8 or 16."""


@dataclass(frozen=True, eq=False)
class Narrowed(Candidate):
    """A hidden site with fewer channels.

    Attributes:
        kept: The units of its group that stay.
        weights: ``(O, k + 1)`` for each reader: its refitted weight and bias, over all taps of the channels that it still reads.
    """

    site: Site
    label: str
    error: float
    kept: tuple[int, ...]
    weights: tuple[Array64, ...]

    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Cut the constants, then infer the sizes inside anew."""
        names = Names.of(graph)
        cuts = self._cuts(names)
        followed = Followed(cuts, norms=False)
        nodes = [names.producer(n.outputs[0]) for n in self.site.nodes]
        inside = set(nodes)
        problem = followed.problem(n for n in graph.nodes if n in inside)
        if problem or names.values[self.site.exit.name] in followed.types:
            raise GraphError(problem or f"{self.site.name} would change what follows it")
        finish = {
            names.producer(node.output): partial(_refitted, rw, names.producer(node.output), weight)
            for node, weight in zip(self.site.readers, self.weights, strict=True)
        }
        with rw.rewrite(
            f"{self.label} of {self.site.name}", *nodes, exactness=Exactness.APPROXIMATE
        ):
            cut_graph(graph, rw, followed, cuts, finish)

    def weaker(self, strength: float) -> Candidate | None:
        """With a smaller weight of the closing layer, if its result is added to a skip."""
        if self.site.closer is None:
            return None
        users = self.site.closer.output.users
        if len(users) != 1 or not isinstance(users[0].op, Add):
            return None
        weights = tuple(w * strength for w in self.weights)
        return replace(self, label=weaker_label(self.label, strength), weights=weights)

    def rows(self) -> dict[str, tuple[int, ...]]:
        """The channels that stay of results of layers that make the group, by the names of these results."""
        made: dict[str, tuple[int, ...]] = {}
        for placement, left in _places(self.site, self.kept):
            if placement.axis == 0:
                for node, index in placement.value.uses:
                    if index == 1 and node.outputs:
                        made[node.output.name] = tuple(np.flatnonzero(left).tolist())
        return made

    def _cuts(self, names: Names) -> Cuts:
        """The cuts of a copy of the graph, whose constants may be others than those that the site was found with."""
        made: Cuts = {}

        def cut(node: Node, index: int, axis: int, left: Keep) -> None:
            value = node.input(index)
            if value is None:
                return
            if value.data is None or value.type.dim(axis) != len(left):
                raise GraphError(f"%{value.name} is not a constant any more, or has lost channels")
            axes = made.setdefault(value, {})
            axes[axis] = axes.get(axis, left) & left

        for placement, left in _places(self.site, self.kept):
            for given, index in placement.value.uses:
                if given not in self.site.nodes:
                    continue
                node = names.producer(given.outputs[0])
                cut(node, index, placement.axis, left)
                if index == 1 and placement.axis == 0 and isinstance(node.op, Conv | Linear):
                    # The layer may have got a bias when it was refitted as a reader of another site.
                    cut(node, 2, 0, left)
        return made


def _places(site: Site, kept: Sequence[int]) -> list[tuple[Placement, Keep]]:
    """The constants of a site's group, each with the positions along the axis that stay."""
    assert site.group is not None
    gone = np.delete(np.arange(site.group.size), list(kept))
    made = []
    for placement in site.group.placements:
        size = placement.value.type.dim(placement.axis)
        assert isinstance(size, int)
        left = np.ones(size, bool)
        left[placement.positions[gone].reshape(-1)] = False
        made.append((placement, left))
    return made


def _refitted(
    rw: Rewriter, node: Node, weight: Array64, inputs: list[Value | None]
) -> list[Value | None]:
    """The inputs of a reader with its refitted weight, in the rows that it still has.

    Raises:
        GraphError: If other outputs of the layer are left than those that it was fitted for.
    """
    old = inputs[1]
    assert old is not None
    dtype, shape = old.type.dtype, old.type.static_shape
    assert dtype is not None
    assert shape is not None
    if shape[0] != len(weight):
        raise GraphError(f"{node.name} has lost outputs before its inputs")
    made = [weight[:, :-1].reshape(shape), weight[:, -1]]
    return [inputs[0], *(rw.constant(ArrayTensor(a.astype(dtype.numpy)), old.name) for a in made)]


class Narrow(Kind):
    """Fewer hidden channels, or heads.

    Args:
        levels: The parts of the channels that are kept.
    """

    name = "narrow"

    def __init__(self, levels: Sequence[float] = LEVELS) -> None:
        self.levels = tuple(levels)

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """The Gram matrices of what the readers read."""
        if site.group is None:
            return ""
        if not sizes_of(site, self.levels):
            return f"it has only {site.group.size} channels"
        requests = [ColumnSums(n.required(0), None, layer_window(n)) for n in site.readers]
        if sum(r.nbytes() for r in set(requests)) > SUMS_BYTES:
            size = max(r.size for r in requests)
            return f"the Gram matrices of its {size} inputs would be too large"
        return requests

    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """A candidate for each level."""
        assert site.group is not None
        readers = [
            Reader(sums.gram, layer_matrix(node), _columns(site.group, node))
            for node, sums in zip(site.readers, results, strict=True)
        ]
        targets = [
            Sums(r.gram, r.weight @ r.gram, ((r.weight @ r.gram) * r.weight).sum(1))
            for r in readers
        ]
        made: list[Candidate] = []
        for size, kept, refits in surgery(readers, sizes_of(site, self.levels)):
            errors = []
            for refit, reader, target in zip(refits, readers, targets, strict=True):
                spread = np.zeros_like(reader.weight)
                spread[:, refit.columns] = refit.weight
                errors.append(target.error(spread))
            weights = tuple(refit.weight for refit in refits)
            error = float(np.mean(errors))
            made.append(
                Narrowed(site, f"narrow {size}{_what(site, size)}", error, tuple(kept), weights)
            )
        return made


def sizes_of(site: Site, levels: Sequence[float] = LEVELS) -> list[int]:
    """The numbers of units that a hidden site may have instead of its own, largest first."""
    assert site.group is not None
    size = site.group.size
    multiple = max(1, MULTIPLE // _unit(site))
    made = {max(multiple, round(size * level / multiple) * multiple) for level in levels}
    return sorted((s for s in made if s < size), reverse=True)


def _unit(site: Site) -> int:
    """The number of neighbouring channels that a reader sees of each unit."""
    assert site.group is not None
    return min(int(_columns(site.group, node, taps=1).shape[1]) for node in site.readers)


def _what(site: Site, count: int) -> str:
    """What the units are, for labels; empty for single channels."""
    if _unit(site) == 1:
        return ""
    what = " head" if any(isinstance(n.op, Softmax) for n in site.nodes) else " block"
    return what + "s" * (count > 1)


def _columns(group: ChannelGroup, node: Node, taps: int | None = None) -> npt.NDArray[np.int64]:
    """The columns ``(units, width)`` of each unit in the matrix of a layer."""
    (placement,) = (p for p in group.placements if p.value is node.inputs[1] and p.axis == 1)
    shape = placement.value.type.static_shape
    assert shape is not None
    taps = taps or int(np.prod(shape[2:], dtype=int))
    spots = placement.positions[:, :, None] * taps + np.arange(taps)
    return spots.reshape(len(spots), -1)
