"""The report file of the commands ``shrink`` and ``plan``: HTML or JSON by its suffix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import writable, write_json

if TYPE_CHECKING:
    from ..api import ShrinkResult
    from ..page import Outline
    from ..planning.latency import LatencyTable
    from ..planning.plan import Plan

HTML = (".html", ".htm")
"""The suffixes of reports that are pages; any other file gets JSON."""


def is_page(path: str) -> bool:
    """Whether a report is a page."""
    return Path(path).suffix.lower() in HTML


def check_report(path: str) -> None:
    """Check before the work that a report can be written.

    Raises:
        UsageError: If the file cannot be written.
        MissingExtra: If it is a page, and a package for pages is not installed.
    """
    writable(path, text=True)
    if is_page(path):
        from ..page import check_ready

        check_ready()


def write_report(path: str, data: dict[str, Any]) -> None:
    """Write a report, whole or not at all.

    Raises:
        UsageError: If the file cannot be written.
    """
    if not is_page(path):
        write_json(path, data)
        return
    from ..ir.files import write_text
    from ..page import page

    write_text(path, page(data))


def report_data(
    result: ShrinkResult[Any],
    outline: Outline,
    source: str,
    seed: int,
    plan: Plan | None,
    table: LatencyTable | None,
) -> dict[str, Any]:
    """The data of a report on a run of ``shrink``."""
    from ..page import Run, document

    emitted = result.report.emitted
    run = Run(command(), source, seed, () if emitted is None else emitted.files)
    return document(result.report, result.graph, outline, run, plan, table)


def command() -> list[str]:
    """The words of this command."""
    return ["graphshrink", *sys.argv[1:]]


def device_table(plan: Plan | None, device: str, threads: int) -> LatencyTable | None:
    """The latency table of the device that a plan was measured on; ``None`` if nothing was measured."""
    if plan is None or "device" not in plan.cost:
        return None
    from ..planning.latency import LatencyTable
    from ..planning.latency import device as device_of

    return LatencyTable(device_of(device, threads))
