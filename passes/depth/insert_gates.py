"""``insert-gates``: gated activations, ``g * act(x) + (1 - g) * line(x)`` with a learnable number ``g``, the gate.

After Fu et al., "DepthShrinker: A New Compression Paradigm Towards Boosting Real-Hardware Efficiency of Compact
Neural Networks", ICML 2022: a network learns which of its activations matter, the others are removed
(:mod:`.remove_activations`), and the linear ops around them merge. Gates start open (1), so that the outputs do not
change before training; in torch they are :class:`graphshrink.nn.Gate`. The line is the identity, or for each channel the one
that fits the activation best (:mod:`.affine_fit`), so that closing a gate does less harm.
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
from ...ir.errors import listed
from ..infra.conditions import CALIBRATION_DATA, NO_GATES, Condition
from ..infra.contract import Context, Pass, PassError, name_list
from ..infra.registry import register
from ..merge.merge_linear import MergeLinear
from .channel_lines import fitted_lines
from .gate_sites import (
    SHOWN,
    ActivationSite,
    check_parameterless,
    ending_places,
    matching_names,
    survey_activations,
)

BLOCK = "block"
"""The choice of ``tie`` for one gate on all activations that a merge needs to be removed."""


@register
@dataclass(frozen=True)
class InsertGates(Pass):
    """Put gates on activations, to learn by training which of them can be removed.

    Attributes:
        sites: Names of activations, or patterns with * and ?; if not given, those whose removal allows a merge.
        mode: How the gates learn: soft, top-k or hard-concrete.
        tie: One gate for several sites: ``block`` for sites that a merge needs to be removed together, or patterns
            such as ``features.*``: sites share a gate if their names are equal up to the last part of the pattern.
        value: The initial value of the gates: 1 is the activation, 0 the line.
        by: The line that a closed gate computes: ``identity``, or ``affine``, for each channel the straight line ``a*x + b`` that
            fits the activation best on calibration data. Endings are closed as identities.
        ending: A kind of activation without parameters, such as relu6, for gates behind the parts that merge once the gated activations
            are gone, unless an activation is there already. These gates start at 0, so that they change nothing, and
            their names end in ``ending``. They need mode soft: see ``GateSchedule(kind="fade", sites="*ending", to=1)``.
        max_kernel: To choose sites: the largest size of a merged kernel along any axis.
        max_mac_growth: To choose sites: how many times the present cost a merged map may cost.
    """

    name = "insert-gates"
    sites: str | tuple[str, ...] = ()
    mode: Literal["soft", "top-k", "hard-concrete"] = "soft"
    tie: str | tuple[str, ...] = ()
    value: float = 1.0
    by: Literal["identity", "affine"] = "identity"
    ending: str = ""
    max_kernel: int = 7
    max_mac_growth: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.merging()  # Checks the limits.
        check_gate(self.mode, self.value)
        if self.ending:
            check_parameterless("ending", self.ending)
            if self.mode != "soft":
                raise ValueError(
                    f"ending needs gates of mode soft, not {self.mode}: an ending stays closed until GateSchedule(kind='fade') opens it"
                )

    @property
    def requires(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """No gates; calibration data, to fit lines."""
        return (NO_GATES, CALIBRATION_DATA) if self.by == "affine" else (NO_GATES,)

    def merging(self) -> MergeLinear:
        """The merge that is possible after activations are removed and padding is hoisted."""
        return MergeLinear(
            max_kernel=self.max_kernel, allow_border=True, max_mac_growth=self.max_mac_growth
        )

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        found = survey_activations(graph, self.merging())
        if not found:
            raise PassError("insert-gates: the graph has no activations")
        wanted = self._wanted(found, rw)
        exactness = Exactness.EXACT if self.value == 1 else Exactness.APPROXIMATE
        gates: dict[str, Value] = {}
        groups = self._groups(wanted)
        named = [pattern for pattern in name_list(self.tie) if pattern != BLOCK]
        if named and 1 < len(groups) == len(set(groups.values())):
            graph.notes.append(
                f"insert-gates: tie {listed(named)} ties none of the {len(groups)} sites: a pattern ties those whose names are equal up to its last part"
            )
        nodes = [site.node for site in wanted]
        lines = fitted_lines(nodes, graph, ctx, self.name) if self.by == "affine" else {}
        self._end(nodes, graph, rw)
        for site in wanted:
            node, key = site.node, groups[site.name]
            with rw.rewrite(f"gate {_site_kind(site)}", node, exactness=exactness):
                if key not in gates:
                    gates[key] = rw.constant(gate_tensor(node, self.value), f"{key}.gate")
                inputs = [node.inputs[0], gates[key], *node.inputs[1:]]
                line, axis = lines.get(node), 1
                if line is not None:
                    axis = line.axis
                    inputs += [*[None] * (3 - len(inputs)), *line.constants(rw, site.name)]
                rw.replace(node, self._op(site, axis), inputs, name=site.name)

    def _end(self, gated: Sequence[Node], graph: Graph, rw: Rewriter) -> None:
        """Insert the closed gates behind what will merge."""
        if not self.ending:
            return
        for place in ending_places(graph, gated, self.merging()):
            with rw.rewrite(
                f"end in a closed gate of {self.ending}", place.site, exactness=Exactness.EXACT
            ):
                number = rw.constant(gate_tensor(place.site, 0.0), f"{place.name}.gate")
                place.insert(rw, Gate(self.ending, mode=self.mode), number)

    def _wanted(self, found: Sequence[ActivationSite], rw: Rewriter) -> list[ActivationSite]:
        patterns = name_list(self.sites)
        if patterns:
            names = matching_names([site.name for site in found], patterns, "insert-gates: site")
            return [site for site in found if site.name in names]
        for site in found:
            if site.reason:
                rw.skip(site.node, f"no gate: nothing would merge without it: {site.reason}")
        wanted = [site for site in found if not site.reason]
        if not wanted:
            reasons = [f"{site.name}: {site.reason}" for site in found[:SHOWN]]
            more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise PassError(
                "insert-gates: there is no activation whose removal would allow a merge "
                f"({'; '.join([*reasons, *more])}); to insert gates all the same, name sites"
            )
        return wanted

    def _groups(self, sites: Sequence[ActivationSite]) -> dict[str, str]:
        """For the name of each site, the name of its gate: that of the first site with the same gate."""
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
                    depth = len(_name_parts(pattern))
                    start = _name_parts(site.name)[:depth]
                    if len(start) == depth and all(map(fnmatchcase, start, _name_parts(pattern))):
                        key = ("by name", *start)
                        used.add(pattern)
                if key != site.name:
                    break
            made[site.name] = first.setdefault(key, site.name)
        for pattern in patterns:
            if pattern not in used:
                raise PassError(f"insert-gates: tie {pattern!r} matches none of the gated sites")
        return made

    def _op(self, site: ActivationSite, axis: int) -> Gate:
        op = site.node.op
        if isinstance(op, PRelu):
            return Gate("prelu", axis=axis if self.by == "affine" else op.axis, mode=self.mode)
        assert isinstance(op, Activation)
        return Gate(op.kind, op.params, axis, self.mode)


def gate_tensor(node: Node, value: float) -> ArrayTensor:
    """The number of a gate, of the element type of ``node``; float32 for bfloat16 and unknown types."""
    dtype = node.output.type.dtype
    wide = DType.F32 if dtype not in (DType.F64, DType.F16) else dtype
    return ArrayTensor(np.array([value], wide.numpy))


def _site_kind(site: ActivationSite) -> str:
    return site.node.op.kind if isinstance(site.node.op, Activation) else "prelu"


def _name_parts(name: str) -> list[str]:
    return re.split(r"[./]", name)
