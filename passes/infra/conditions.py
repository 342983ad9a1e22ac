"""Conditions: what must hold of a graph before a pass, or holds behind it, as data on the pass's class.

The runner checks ``requires`` before a pass and ``ensures`` behind it; the error names the pass, what breaks the
condition, and the remedy. A pass whose conditions depend on its options makes ``requires`` a property.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ir import Gate, Graph, MaskedTensor

if TYPE_CHECKING:
    from .contract import Context


@dataclass(frozen=True)
class Condition:
    """Something that holds of a graph, or of what was given beside it.

    Attributes:
        name: What holds, such as ``"no gates"``.
        problem: Finds what breaks it, in words such as ``"act1 is a gate"``; empty if it holds.
        remedy: What the user does about it.
    """

    name: str
    problem: Callable[[Graph, Context], str]
    remedy: str

    def __str__(self) -> str:
        return self.name


def _unknown_rank(graph: Graph, ctx: Context) -> str:
    found = next(
        (v.name for n in graph.nodes for v in n.outputs if v.type.rank is None and v.use_count),
        None,
    )
    return f"the rank of %{found} is not known" if found is not None else ""


def _gate(graph: Graph, ctx: Context) -> str:
    found = next((n.name for n in graph.nodes if isinstance(n.op, Gate)), None)
    return f"{found} is a gate" if found is not None else ""


def _lasting_mask(graph: Graph, ctx: Context) -> str:
    found = next(
        (
            v.name
            for v in graph.constants
            if v.uses and isinstance(v.data, MaskedTensor) and v.data.lasting
        ),
        None,
    )
    return f"the mask of %{found} outlasts training" if found is not None else ""


def _no_calibration(graph: Graph, ctx: Context) -> str:
    return "none were given" if ctx.calibration is None else ""


KNOWN_RANKS = Condition(
    "known ranks",
    _unknown_rank,
    "give example_inputs (torch) or fix the inputs' shapes (--fix-shape)",
)
"""The number of axes of every value is known."""

NO_GATES = Condition("no gates", _gate, "remove gates by remove-activations first")
"""No activation is gated."""

NO_LASTING_MASKS = Condition("no lasting masks", _lasting_mask, "run fold-masks first")
"""No weight has a mask that outlasts training."""

CALIBRATION_DATA = Condition(
    "calibration data", _no_calibration, "give --calibration PATH (calibration=... in Python)"
)
"""There are samples to compute statistics from."""
