"""``hoist-padding``: move all padding of a region to its front, so that the region can merge into one convolution.

A region here is a part of the graph that ``merge-linear`` would merge into one map if the result could differ along the
border (:mod:`..merge.preview`); so both passes use the same cost model. ``merge-linear`` refuses a padded convolution
after another one, because the padding is zeros, while one composed kernel would see the first convolution evaluated
beyond its border (see :mod:`..merge.algebra.affine`). If the inner padding moves to the front of the region, both see
the same numbers, and merging is exact. Moving it changes the function along the border, so it is done before training or
calibration; then the trained network is the one that ships.

For each value of a region, along each axis and at each end, let ``e`` be the number of positions that it is computed
beyond its old border. The result of the region keeps its size: ``e = 0``. A window of stride ``s`` and padding ``p``
reads::

    need = p + s * e(result)

positions beyond the border of its operand, and has no padding afterwards. A value inside is computed as far as its
reader with the largest need; a reader with a smaller need (a skip, a 1x1 branch) crops it. The source of the region
cannot be computed further, so its readers pad it by their whole need: a chain of paddings p1, p2, ... gets
``p1 + s1*p2 + s1*s2*p3 + ...`` at its front. All sizes stay as before for every input size, even if a stride leaves
positions over: ``floor((n + p1 + s1*p2 - k1) / s1) + 1 = floor((n + p1 - k1) / s1) + 1 + p2``.

Biases inside a region do not change: no padding follows them, so they compose into a plain bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir import (
    Add,
    AveragePool,
    Conv,
    ConvTranspose,
    Exactness,
    Graph,
    Identity,
    Node,
    Op,
    Pad,
    Rewriter,
    Sub,
    Value,
)
from ...ir.errors import listed
from ..infra.contract import Context, Pass, name_list, named_nodes
from ..infra.registry import register
from ..merge.algebra.nodes import data_input
from ..merge.merge_linear import MergeLinear
from ..merge.preview import Merged, preview
from .gate_sites import matching_names, site_names

Ends = tuple[int, ...]
"""Numbers of positions beyond the border: all begins, then all ends."""


@register
@dataclass(frozen=True)
class HoistPadding(Pass):
    """Move all padding of a region to its front, so that ``merge-linear`` can merge it into one convolution.

    Changes the outputs along the spatial border: train or calibrate afterwards, then merge.

    Attributes:
        names: Names of nodes, or patterns with * and ?; only regions with such a node. All regions if not given.
        max_kernel: As in merge-linear: the largest size of a merged kernel along any axis.
        bias_maps: Skip regions that merge-linear can merge exactly with a bias map (static sizes only).
        force: As in merge-linear: also if the merged map costs more.
        max_mac_growth: As in merge-linear: how many times the present cost a merged map may cost.
        max_growth_mb: As in merge-linear: how many MiB of parameters one merge may add to the model.
        through: Names of activations, or patterns with * and ?, that are removed later: padding moves as if they were gone, so that a
            network in which they fade is trained with the border that it keeps.
    """

    name = "hoist-padding"
    exactness = Exactness.BORDER
    names: str | tuple[str, ...] = ()
    max_kernel: int = MergeLinear.max_kernel
    bias_maps: bool = False
    force: bool = False
    max_mac_growth: float = MergeLinear.max_mac_growth
    max_growth_mb: float = MergeLinear.max_growth_mb
    through: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.merging()

    def merging(self) -> MergeLinear:
        """The merge that the pass prepares."""
        return MergeLinear(
            max_kernel=self.max_kernel,
            allow_border=True,
            bias_maps=self.bias_maps,
            force=self.force,
            max_mac_growth=self.max_mac_growth,
            max_growth_mb=self.max_growth_mb,
        )

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        wanted = named_nodes(graph, self.names, self.name) if self.names else None
        coming = preview(graph, self.merging(), self._through(graph))
        for merged in coming.merged:
            if merged.exactness is not Exactness.BORDER:
                continue
            last = merged.nodes[-1]
            if wanted is not None and wanted.isdisjoint(merged.nodes):
                rw.skip(last, "padding not hoisted: none of its nodes is named in the options")
                continue
            plan = _Hoist.of(merged)
            if isinstance(plan, str):
                rw.skip(last, f"padding not hoisted: {plan}")
                continue
            plan.apply(rw)
        for node, reason in coming.reasons.items():
            if _is_padded(node) or isinstance(node.op, Add | Sub):
                rw.skip(node, f"padding not hoisted: {reason}")

    def _through(self, graph: Graph) -> set[Node]:
        """The activations that count as identities."""
        if not self.through:
            return set()
        names = site_names(graph)
        hits = matching_names(names.values(), name_list(self.through), "hoist-padding: through")
        return {node for node, name in names.items() if name in hits}


def _is_padded(node: Node) -> bool:
    return isinstance(node.op, Conv | AveragePool | Pad) and any(node.op.pads)


@dataclass(frozen=True)
class _Hoist:
    """A region and the new extents of its values.

    Attributes:
        merged: The region.
        extent: For each value inside, the positions that it is computed beyond its old border.
        needs: For each node, the positions that it reads beyond the old border of its operands.
    """

    merged: Merged
    extent: dict[Value, Ends]
    needs: dict[Node, Ends]

    @classmethod
    def of(cls, merged: Merged) -> _Hoist | str:
        """The plan for a region, or the reason why there is none."""
        rank = merged.affine.rank
        none = (0,) * (2 * rank)
        extent: dict[Value, Ends] = {merged.nodes[-1].output: none}
        needs: dict[Node, Ends] = {}
        for node in reversed(merged.nodes):
            # Only nodes of the region read the value, and the loop has visited all of them.
            beyond = extent.get(node.output)
            if beyond is None:
                return f"{node.name} does not lead to the end of its region"
            problem = _problem(node, beyond)
            if problem is not None:
                return problem
            needs[node] = need = _need(node.op, beyond, rank)
            for value in _operands(node):
                if value is not merged.source:
                    was = extent.get(value, none)
                    extent[value] = tuple(max(a, b) for a, b in zip(was, need, strict=True))
        return cls(merged, extent, needs)

    def apply(self, rw: Rewriter) -> None:
        """Rewrite the region."""
        nodes = self.merged.nodes
        padded = [n.name for n in nodes if _is_padded(n)]
        kernel = self.merged.affine.kernel_text
        with rw.rewrite(
            f"move the padding of {listed(padded, 4)} in front of a {kernel} kernel", *nodes
        ):
            # The results of removed Pads, each with the value that replaces it.
            replaced: dict[Value, Value] = {}
            for node in nodes:
                self._node(rw, node, replaced)
            for value in reversed(replaced):
                if value.producer is not None:
                    rw.erase(value.producer)

    def _node(self, rw: Rewriter, node: Node, replaced: dict[Value, Value]) -> None:
        """Rewrite one node with its new padding and operands."""
        op, need = node.op, self.needs[node]
        none = pads = (0,) * len(need)
        inputs = list(node.inputs)
        for i, value in enumerate(inputs):
            if value is None or value.data is not None:
                continue
            # Positive if the source is too small, negative if another reader needed more.
            gap = tuple(a - b for a, b in zip(need, self.extent.get(value, none), strict=True))
            operand = inputs[i] = replaced.get(value, value)
            if _can_pad(op, gap):
                pads = gap
            elif any(gap):
                word = "pad" if min(gap) >= 0 else "crop"
                made = rw.insert(_pad(gap), [operand], before=node, name=f"{node.name}.{word}")
                inputs[i] = made.output
        match op:
            case Conv():
                op = replace(op, pads=pads)
            case AveragePool():
                changed = pads != op.pads or any(self.extent[node.output])
                # The pool merges because rounding up makes no difference; at the new size it could make one.
                op = replace(op, pads=pads, ceil_mode=op.ceil_mode and not changed)
            case Pad() if any(pads):
                op = _pad(pads)
            case Pad() if node is self.merged.nodes[-1]:
                op = Identity()
            case Pad():
                replaced[node.output] = operand
                return
        if any(self.extent[node.output]):
            rw.resize(node, op, inputs)
        elif op != node.op:
            rw.replace(node, op, inputs)
        else:
            for i, value in enumerate(inputs):
                rw.set_input(node, i, value)


def _operands(node: Node) -> list[Value]:
    return [v for v in node.inputs if v is not None and v.data is None]


def _need(op: Op, beyond: Ends, rank: int) -> Ends:
    """The positions that an op reads beyond the border of its operand, if its result extends ``beyond`` its own."""
    match op:
        case Conv(strides=strides, pads=pads) | AveragePool(strides=strides, pads=pads):
            return tuple(p + strides[i % rank] * beyond[i] for i, p in enumerate(pads))
        case Pad(pads=pads):
            spatial = (*pads[2 : rank + 2], *pads[rank + 4 :])
            return tuple(p + e for p, e in zip(spatial, beyond, strict=True))
        case _:
            return beyond


def _problem(node: Node, beyond: Ends) -> str | None:
    """The reason why the result of a node cannot be computed beyond its border; ``None`` if it can."""
    if isinstance(node.op, ConvTranspose):
        return f"{node.name} is a transposed convolution"
    if any(beyond) and isinstance(node.op, Add | Sub) and data_input(node) is not None:
        return f"the constant map that {node.name} adds ends at the old border"
    return None


def _can_pad(op: Op, gap: Ends) -> bool:
    """Whether an op can fill the gap with its own padding."""
    match op:
        case Pad():
            return True
        case Conv():
            return min(gap) >= 0
        case AveragePool(pads=pads):
            # torch limits the padding of a pool by its kernel size.
            return gap == pads
        case _:
            return False


def _pad(spatial: Ends) -> Pad:
    half = len(spatial) // 2
    return Pad((0, 0, *spatial[:half], 0, 0, *spatial[half:]))
