"""graphshrink: a graph-level compiler that makes trained networks smaller and leaves them correct.

from graphshrink import shrink_graph
small = shrink_graph(traced)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import DEFAULT_PIPELINE, ShrinkResult, shrink, shrink_graph
    from .data.calibration import CalibrationData
    from .ir import (
        Exactness,
        Graph,
        GraphshrinkError,
        MissingExtra,
        ModelError,
        Rewriter,
        TrainingError,
        UsageError,
    )
    from .passes import Context, Pass, PassError, Pipeline, register
    from .report import Report
    from .training.blocks import insert_blocks
    from .training.gating import (
        GateSchedule,
        gate_penalty,
        gates,
        insert_gates,
        keep_top,
        kept_at,
        save_removal_plan,
    )
    from .training.recovery.recovery import Recovered, recover
    from .training.reorder import reorder_alike
    from .training.savings import removal_savings

from .targets.version import __version__ as __version__

__all__ = [
    "DEFAULT_PIPELINE", "CalibrationData", "Context", "Exactness", "GateSchedule", "Graph",
    "GraphshrinkError", "MissingExtra", "ModelError", "Pass", "PassError", "Pipeline", "Recovered",
    "Report", "Rewriter", "ShrinkResult", "TrainingError", "UsageError", "gate_penalty", "gates",
    "insert_blocks", "insert_gates", "keep_top", "kept_at", "recover", "register", "removal_savings", "reorder_alike",
    "save_removal_plan", "shrink", "shrink_graph",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("DEFAULT_PIPELINE", "ShrinkResult", "shrink", "shrink_graph"), ".api"),
    **dict.fromkeys(("Context", "Pass", "PassError", "Pipeline", "register"), ".passes"),
    **dict.fromkeys(
        (
            "GateSchedule",
            "gate_penalty",
            "gates",
            "insert_gates",
            "keep_top",
            "kept_at",
            "save_removal_plan",
        ),
        ".training.gating",
    ),
    "CalibrationData": ".data.calibration",
    **dict.fromkeys(("Recovered", "recover"), ".training.recovery.recovery"),
    "Report": ".report",
    "insert_blocks": ".training.blocks",
    "removal_savings": ".training.savings",
    "reorder_alike": ".training.reorder",
}


def __getattr__(name: str) -> Any:
    # Names are loaded on first use: `import graphshrink` costs nothing.
    if name == "nn":
        return import_module(".nn", __name__)
    if name not in __all__:
        raise AttributeError(f"module 'graphshrink' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, ".ir"), __name__), name)
