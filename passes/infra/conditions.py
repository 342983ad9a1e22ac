"""Conditions on a graph that a pass requires or ensures, as data on the class of the pass.

The runner checks ``requires`` before a pass and ``ensures`` after it. The error names the pass, the node or value that
breaks the condition, and the remedy. If the conditions depend on the options of a pass, ``requires`` is a property.
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
    """A condition on a graph and on the context of the pipeline.

    Attributes:
        name: The condition, such as ``"no gates"``.
        problem: Returns a text such as ``"act1 is a gate"`` if the condition does not hold, else an empty text.
        remedy: What the user can do, such as ``"run fold-masks first"``.
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
    return f"the mask of %{found} is lasting" if found is not None else ""


def _no_calibration(graph: Graph, ctx: Context) -> str:
    return "none were given" if ctx.calibration is None else ""


def _no_reference(graph: Graph, ctx: Context) -> str:
    return "no pass before it is approximate" if ctx.reference is None else ""


KNOWN_RANKS = Condition(
    "known ranks",
    _unknown_rank,
    "give example_inputs (torch) or fix the inputs' shapes (--fix-shape)",
)
"""The rank of every value is known."""

NO_GATES = Condition("no gates", _gate, "remove gates by remove-activations first")
"""No activation is gated."""

NO_LASTING_MASKS = Condition("no lasting masks", _lasting_mask, "run fold-masks first")
"""No weight has a lasting mask, one that the torch target writes as a parametrization."""

CALIBRATION_DATA = Condition(
    "calibration data", _no_calibration, "give --calibration PATH (calibration=... in Python)"
)
"""There is calibration data to compute statistics from."""

REFERENCE = Condition(
    "a reference",
    _no_reference,
    "run it behind the approximate passes of the same pipeline, or give the original network: --reference FILE (reference=... in Python)",
)
"""The network that approximate passes should stay close to is known."""
