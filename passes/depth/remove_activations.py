"""``remove-activations``: activations become identities or straight lines, so that the linear ops around them merge.

The pass removes activations whose learned gates are below a threshold, all gates except those with the largest values,
the activations of a saved plan (:mod:`.removal_plan`), or named activations. A kept gate becomes a plain activation
again. Removing a gate that is exactly 0, or keeping one that is exactly 1, does not change the function; every other
case changes it, and needs training afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ...ir import (
    Activation,
    Exactness,
    Gate,
    Graph,
    Identity,
    Node,
    Rewriter,
    UsageError,
)
from ...ir.errors import counted, listed
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA, Condition
from ..infra.contract import Context, Pass, PassError, name_list
from ..infra.registry import register
from .channel_lines import ChannelLines, fitted_lines, gate_value, own_line, replace_by_line
from .gate_sites import check_parameterless, ending_places, matching_names, site_names
from .insert_gates import InsertGates
from .removal_plan import activation_kind, read_plan


@register
@dataclass(frozen=True)
class RemoveActivations(Pass):
    """Remove activations, by their gates or by name.

    Attributes:
        names: Names of activations, or patterns with * and ?. Gates that are not named stay gates.
        threshold: Remove the gates with a value below this; 0.5 if no other option chooses.
        keep: Keep this number of gates, those with the largest values; tied gates count as one.
        plan: The path of a removal plan.
        by: The replacement: ``identity``, or the line of a gate that has one; or ``affine``, for each channel the straight line
            ``a*x + b`` that fits the activation best on calibration data.
        ending: A kind of activation without parameters, such as relu6, to insert after each merge that the removal
            allows (after the addition if it ends in one), unless an activation is there already. Without it, adjacent
            merged blocks have no nonlinearity between them, and training recovers little.
    """

    name = "remove-activations"
    exactness = Exactness.APPROXIMATE
    names: str | tuple[str, ...] = ()
    threshold: Annotated[float, Bounds(at_least=0, at_most=1)] | None = None
    keep: Annotated[int, Bounds(at_least=0)] | None = None
    plan: str = ""
    by: Literal["identity", "affine"] = "identity"
    ending: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [
            word
            for word, value in (
                ("names", self.names or None), ("threshold", self.threshold), ("keep", self.keep),
                ("plan", self.plan or None),
            )
            if value is not None
        ]  # fmt: skip
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not several")
        if self.ending:
            check_parameterless("ending", self.ending)

    @property
    def requires(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """Calibration data, to fit lines."""
        return (CALIBRATION_DATA,) if self.by == "affine" else ()

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        decided = self._decided(graph)
        gone = [node for node, keep in decided.items() if not keep]
        _note_unfinished(decided, graph)
        # All moments are measured before any activation is removed.
        open_ = [node for node in gone if gate_value(node) != 0]
        lines = fitted_lines(open_, graph, ctx, self.name) if self.by == "affine" else {}
        if self.ending:
            self._end(gone, graph, rw)
        for node, keep in decided.items():
            if keep:
                _keep_activation(node, rw)
            else:
                _remove_activation(node, rw, lines.get(node))
        for node in graph.nodes:
            if isinstance(node.op, Gate):
                rw.skip(node, "the gate stays: it is neither named nor in the plan")

    def _end(self, gone: Sequence[Node], graph: Graph, rw: Rewriter) -> None:
        """Insert an activation after each merge that removing ``gone`` allows."""
        for place in ending_places(graph, gone, InsertGates().merging()):
            with rw.rewrite(f"end in {self.ending}", place.site, exactness=Exactness.APPROXIMATE):
                place.insert(rw, Activation(self.ending))

    def _decided(self, graph: Graph) -> dict[Node, bool]:
        """The activations that the options choose, each with whether it is kept."""
        if self.names:
            names = site_names(graph)
            hits = matching_names(names.values(), name_list(self.names), "remove-activations: name")
            return {node: False for node, name in names.items() if name in hits}
        if self.plan:
            try:
                return read_plan(self.plan).match(graph, self.plan)
            except UsageError as error:
                raise PassError(f"remove-activations: {error}") from error
        values = gate_values(graph)
        if not values:
            raise PassError(
                "remove-activations: the graph has no gates; insert and train gates first, or give names "
                "of activations or a plan"
            )
        if self.keep is not None:
            return _keep_largest(values, self.keep)
        threshold = 0.5 if self.threshold is None else self.threshold
        return {node: value >= threshold for node, value in values.items()}


def gate_values(graph: Graph) -> dict[Node, float]:
    """The gates of a graph and their values, in order.

    Raises:
        PassError: If a gate's value is computed by the graph, or is not between 0 and 1.
    """
    found: dict[Node, float] = {}
    for node in graph.nodes:
        if isinstance(node.op, Gate):
            number = node.inputs[1]
            if number is None or number.data is None:
                raise PassError(
                    f"remove-activations: the value of gate {node.name} is not a constant"
                )
            found[node] = float(number.data.float64()[0])
            if not 0 <= found[node] <= 1:
                raise PassError(
                    f"remove-activations: gate {node.name} is {found[node]}, not between 0 and 1"
                )
    return found


def _keep_largest(values: Mapping[Node, float], keep: int) -> dict[Node, bool]:
    """Keep the gates with the largest values; tied gates are kept or removed together."""
    groups: dict[object, list[Node]] = {}
    for node in values:
        groups.setdefault(node.inputs[1], []).append(node)
    ranked = sorted(groups.values(), key=lambda nodes: -values[nodes[0]])
    if keep > len(ranked):
        raise PassError(
            f"remove-activations: keep={keep}, but there {'is' if len(ranked) == 1 else 'are'} only {counted(len(ranked), 'gate')}"
        )
    if 0 < keep < len(ranked):
        last, first = ranked[keep - 1][0], ranked[keep][0]
        if values[last] == values[first]:
            raise PassError(
                f"remove-activations: keep={keep} would keep {last.name} and remove {first.name}, but both "
                f"gates are {values[last]:g}; train them further, or choose by name or by a plan"
            )
    stay = {node for nodes in ranked[:keep] for node in nodes}
    return {node: node in stay for node in values}


def _note_unfinished(decided: Mapping[Node, bool], graph: Graph) -> None:
    """Note gates that are neither open nor closed, such as those of a schedule that has not come to its end."""
    values = {node.name: value for node in decided if (value := gate_value(node)) is not None}
    partly = [f"{name} at {value:.3g}" for name, value in values.items() if 0 < value < 1]
    if partly:
        graph.notes.append(
            f"remove-activations: {counted(len(partly), 'gate')} had not come to 0 or 1 ({listed(partly)}): the outputs change; "
            "let a schedule run to its end first, or train afterwards"
        )


def _keep_activation(node: Node, rw: Rewriter) -> None:
    """Replace a gate by its activation; a plain activation stays as it is."""
    if not isinstance(node.op, Gate):
        return
    value = gate_value(node)
    exactness = Exactness.EXACT if value == 1 else Exactness.APPROXIMATE
    with rw.rewrite(f"keep {node.op.kind} (gate {value:g})", node, exactness=exactness):
        slope = [node.inputs[2]] if node.op.kind == "prelu" else []
        rw.replace(node, node.op.activation, [node.inputs[0], *slope])


def _remove_activation(node: Node, rw: Rewriter, line: ChannelLines | None) -> None:
    value, own = gate_value(node), own_line(node)
    exactness = Exactness.EXACT if value == 0 else Exactness.APPROXIMATE
    gate = "" if value is None else f" (gate {value:g})"
    how = "" if line is None else ", a line for each channel instead"
    how = ", the line of its gate instead" if line is None and own is not None else how
    with rw.rewrite(f"remove {activation_kind(node)}{gate}{how}", node, exactness=exactness):
        if line is not None:
            replace_by_line(node, rw, line.axis, line.constants(rw, node.name))
        elif isinstance(node.op, Gate) and own is not None:
            replace_by_line(node, rw, node.op.axis, own)
        else:
            rw.replace(node, Identity(), node.inputs[:1])
