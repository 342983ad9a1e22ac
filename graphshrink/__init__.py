"""graphshrink: a graph-level compiler that makes trained networks smaller and leaves them correct.

``shrink_graph(model)`` shrinks a model and returns one of the same kind; ``shrink`` returns a report too; ``to_torch`` makes a torch
module of an ONNX model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advice import Advice, advise
    from .api import ShrinkResult, shrink, shrink_graph
    from .conversion import to_torch
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
    from .passes.infra.default import DEFAULT_PIPELINE
    from .planning.plan import Plan
    from .planning.planner import plan
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
    from .training.recovery.augmentation import Augmentation
    from .training.recovery.files import RecoveredFile, recover_file
    from .training.recovery.recovery import Recovered, recover
    from .training.recovery.token_augmentation import TokenAugmentation
    from .training.reorder import reorder_alike
    from .training.savings import removal_savings

from .targets.version import __version__ as __version__

__all__ = [
    "DEFAULT_PIPELINE",
    "Advice",
    "Augmentation",
    "CalibrationData",
    "Context",
    "Exactness",
    "GateSchedule",
    "Graph",
    "GraphshrinkError",
    "MissingExtra",
    "ModelError",
    "Pass",
    "PassError",
    "Pipeline",
    "Plan",
    "Recovered",
    "RecoveredFile",
    "Report",
    "Rewriter",
    "ShrinkResult",
    "TokenAugmentation",
    "TrainingError",
    "UsageError",
    "advise",
    "gate_penalty",
    "gates",
    "insert_blocks",
    "insert_gates",
    "keep_top",
    "kept_at",
    "plan",
    "recover",
    "recover_file",
    "register",
    "removal_savings",
    "reorder_alike",
    "save_removal_plan",
    "shrink",
    "shrink_graph",
    "to_torch",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Advice", "advise"), ".advice"),
    **dict.fromkeys(("ShrinkResult", "shrink", "shrink_graph"), ".api"),
    "DEFAULT_PIPELINE": ".passes.infra.default",
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
    "Augmentation": ".training.recovery.augmentation",
    "TokenAugmentation": ".training.recovery.token_augmentation",
    **dict.fromkeys(("RecoveredFile", "recover_file"), ".training.recovery.files"),
    "Plan": ".planning.plan",
    "plan": ".planning.planner",
    "Report": ".report",
    "insert_blocks": ".training.blocks",
    "removal_savings": ".training.savings",
    "to_torch": ".conversion",
    "reorder_alike": ".training.reorder",
}


_MODULES = ("accuracy", "datasets", "errors", "ir", "nn", "passes", "processes")
"""The public modules, which are attributes without an import of their own."""


def __getattr__(name: str) -> Any:
    # Names are loaded when they are first used: `import graphshrink` itself imports nothing heavy.
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module 'graphshrink' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, ".ir"), __name__), name)


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__") and name.endswith("__")]
    return sorted([*__all__, *_MODULES, *special])
