"""The data of a report file: those of :class:`graphshrink.report.Report`, and what only a whole run knows."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir import Graph, ModelError
from .outline import Outline, lines_of, op_latencies, parts_after_passes, pieces_of, work

if TYPE_CHECKING:
    from ..planning.latency import LatencyTable
    from ..planning.plan import Plan
    from ..report import Report

PACKAGES = ("graphshrink", "ml-dtypes", "numpy", "onnx", "onnxruntime", "scipy")
"""The packages whose versions a report names."""


@dataclass(frozen=True)
class Run:
    """What has to be repeated to get the result again.

    Attributes:
        command: The words of the command.
        source: The file of the model.
        seed: The seed of random numbers.
        outputs: The files that were written.
    """

    command: Sequence[str]
    source: str
    seed: int = 0
    outputs: Sequence[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The command, versions, the seed, and digests of the files; files that cannot be read have none."""
        return {
            "command": shlex.join(self.command),
            "versions": {"python": platform.python_version(), **_versions()},
            "system": f"{platform.system()} {platform.machine()}",
            "seed": self.seed,
            "source": {"file": self.source, "sha256": _digest(Path(self.source))},
            "outputs": [{"file": str(path), "sha256": _digest(path)} for path in self.outputs],
        }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def document(
    report: Report,
    graph: Graph,
    outline: Outline,
    run: Run,
    plan: Plan | None = None,
    table: LatencyTable | None = None,
) -> dict[str, Any]:
    """The data of a run.

    Args:
        report: The report of the passes.
        graph: The graph after them.
        outline: The network before them.
        run: How to repeat it.
        plan: The plan that was applied.
        table: The table of the device that the ops are timed on; it is given if the plan timed regions on it.

    Returns:
        The report's own data, with four more keys: ``plan``, ``network`` (its parts in order), ``work`` (by kind of op) and ``run``.
    """
    data = report.to_dict()
    after = lines_of(graph)
    before = after if outline.lines is None else outline.lines
    parts = plan.regions if plan is not None and plan.regions else None
    if parts is None:
        parts = parts_after_passes(before, after, data["passes"])
    counted: dict[str, Any] = {"ops": work(before, after), "latency": None}
    if table is not None:
        counted["latency"] = _latency(graph, outline, table)
    return {
        **data,
        "plan": None if plan is None else plan.to_dict(),
        "network": {"chosen_by": "plan" if plan and plan.regions else "passes", "parts": parts},
        "work": counted,
        "run": run.to_dict(),
    }


def _latency(graph: Graph, outline: Outline, table: LatencyTable) -> dict[str, Any] | None:
    pieces, missing = pieces_of(graph)
    try:
        rows = op_latencies(outline.pieces, pieces, table)
    except ModelError:
        return None  # An op does not run alone on the device; the work is shown instead.
    return {"device": table.device.identity, "ops": rows, "missing": [outline.missing, missing]}


def plan_document(plan: Plan, run: Run) -> dict[str, Any]:
    """The data of a plan that was made and not applied; the keys are those of :func:`document`."""
    return {
        "plan": plan.to_dict(),
        "network": {"chosen_by": "plan", "parts": plan.regions},
        "not_understood": [entry.to_dict() for entry in plan.not_understood],
        "notes": plan.notes,
        "run": run.to_dict(),
    }
