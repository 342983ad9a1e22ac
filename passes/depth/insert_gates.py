"""``insert-gates``: activations that can be turned down, ``g * act(x) + (1 - g) * x``.

After Fu et al., "DepthShrinker: A New Compression Paradigm Towards Boosting Real-Hardware Efficiency of Compact
Neural Networks", ICML 2022: a network learns which of its activations matter, the others are removed
(:mod:`.remove_activations`), and what was between them merges. Gates start open, so that nothing changes until they
are trained; in torch they are :class:`graphshrink.nn.Gate`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from ...ir import (
    Activation,
    ArrayTensor,
    DType,
    Exactness,
    Gate,
    Graph,
    Node,
    PRelu,
    Rewriter,
    Value,
    check_gate,
)
from ..infra.conditions import NO_GATES
from ..infra.contract import Context, Pass, PassError, name_list
from ..infra.registry import register
from ..merge.merge_linear import MergeLinear
from .gate_sites import SHOWN, Site, chosen, survey

BLOCK = "block"
"""The word for tying the activations that only together let something merge."""


@register
@dataclass(frozen=True)
class InsertGates(Pass):
    """Put gates on activations, for training to tell which can go.

    Attributes:
        sites: Names of activations, or patterns with * and ?; not given: those whose removal lets something merge.
        mode: How the gates learn: soft, top-k or hard-concrete.
        tie: One gate for several sites: ``block`` for those that only together let something merge, or patterns
            such as ``features.*``: sites whose names begin alike up to the pattern's last part are tied.
        value: Where the gates start: 1 is the activation, 0 the identity.
        max_kernel: For choosing sites: merged kernels may not be larger than this along any axis.
        max_mac_growth: For choosing sites: how many times the present cost a merged map may cost.
    """

    name = "insert-gates"
    requires = (NO_GATES,)
    sites: str | tuple[str, ...] = ()
    mode: Literal["soft", "top-k", "hard-concrete"] = "soft"
    tie: str | tuple[str, ...] = ()
    value: float = 1.0
    max_kernel: int = 7
    max_mac_growth: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.merging()  # Checks the limits.
        check_gate(self.mode, self.value)

    def merging(self) -> MergeLinear:
        """What may merge where activations are gone and padding is hoisted."""
        return MergeLinear(
            max_kernel=self.max_kernel, allow_border=True, max_mac_growth=self.max_mac_growth
        )

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        found = survey(graph, self.merging())
        if not found:
            raise PassError("insert-gates: the graph has no activations")
        wanted = self._wanted(found, rw)
        exactness = Exactness.EXACT if self.value == 1 else Exactness.APPROXIMATE
        numbers: dict[str, Value] = {}
        groups = self._groups(wanted)
        for site in wanted:
            node, key = site.node, groups[site.name]
            with rw.rewrite(f"gate {_kind(site)}", node, exactness=exactness):
                if key not in numbers:
                    numbers[key] = rw.constant(gate_number(node, self.value), f"{key}.gate")
                slope = node.inputs[1:]
                rw.replace(
                    node, self._op(site), [node.inputs[0], numbers[key], *slope], name=site.name
                )

    def _wanted(self, found: Sequence[Site], rw: Rewriter) -> list[Site]:
        patterns = name_list(self.sites)
        if patterns:
            names = chosen([site.name for site in found], patterns, "insert-gates: site")
            return [site for site in found if site.name in names]
        for site in found:
            if site.reason:
                rw.skip(site.node, f"no gate: nothing would merge without it: {site.reason}")
        wanted = [site for site in found if not site.reason]
        if not wanted:
            reasons = [f"{site.name}: {site.reason}" for site in found[:SHOWN]]
            more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise PassError(
                "insert-gates: there is no activation whose removal would let anything merge "
                f"({'; '.join([*reasons, *more])}); name sites to put gates there all the same"
            )
        return wanted

    def _groups(self, sites: Sequence[Site]) -> dict[str, str]:
        """The name of the gate of each site: that of the first site it is tied to."""
        patterns = name_list(self.tie)
        first: dict[object, str] = {}
        made: dict[str, str] = {}
        used: set[str] = set()
        for site in sites:
            key: object = site.name
            for pattern in patterns:
                if pattern == BLOCK:
                    if site.group >= 0:
                        key = site.group
                        used.add(pattern)
                else:
                    depth = len(_parts(pattern))
                    start = _parts(site.name)[:depth]
                    if len(start) == depth and all(map(fnmatchcase, start, _parts(pattern))):
                        key = ("by name", *start)
                        used.add(pattern)
                if key != site.name:
                    break
            made[site.name] = first.setdefault(key, site.name)
        for pattern in patterns:
            if pattern not in used:
                raise PassError(f"insert-gates: tie {pattern!r} is about none of the gated sites")
        return made

    def _op(self, site: Site) -> Gate:
        op = site.node.op
        if isinstance(op, PRelu):
            return Gate("prelu", axis=op.axis, mode=self.mode)
        assert isinstance(op, Activation)
        return Gate(op.kind, op.params, mode=self.mode)


def gate_number(node: Node, value: float) -> ArrayTensor:
    """The number of a gate on the result of ``node``; float32 beside bfloat16."""
    dtype = node.output.type.dtype
    wide = dtype if dtype in (DType.F32, DType.F64, DType.F16) else DType.F32
    assert wide is not None
    return ArrayTensor(np.array([value], wide.numpy))


def _kind(site: Site) -> str:
    return site.node.op.kind if isinstance(site.node.op, Activation) else "prelu"


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)
