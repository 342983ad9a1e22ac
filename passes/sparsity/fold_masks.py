"""``fold-masks``: lasting masks become zeros in ordinary weights.

A masked weight (:mod:`graphshrink.ir.masks.masked_tensor`) has zeros with either kind of mask. The torch target writes a
lasting mask as a parametrization, so that the zeros stay during training, and any other mask as zeros in an ordinary
parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, MaskedTensor, Rewriter
from ..infra.conditions import NO_LASTING_MASKS
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class FoldMasks(Pass):
    """Make weights with lasting masks ordinary weights with zeros. Run it after training."""

    name = "fold-masks"
    ensures = (NO_LASTING_MASKS,)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        for value in graph.constants:
            data = value.data
            if not isinstance(data, MaskedTensor) or not data.lasting or not value.uses:
                continue
            with rw.rewrite("fold the mask of a weight", *value.users):
                plain = rw.constant(data.plain(), value.name)
                for node, index in value.uses:
                    rw.set_input(node, index, plain)
                if not value.use_count:
                    rw.erase_constant(value)
