"""The latency of a model for advice: from the table of a device, or measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..ir import Graph, ModelError
from ..planning.latency import LatencyTable
from ..planning.latency import device as device_of
from ..planning.latency.network import pieces
from .advice import Finding

if TYPE_CHECKING:
    from .examine import Examined

ROUNDS = 31
"""The rounds in which the model and the result of the exact passes are timed in turn."""

_SHOWN = 3


def latency_finding(
    e: Examined,
    device: str,
    threads: int,
    measure: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Finding:
    """What is known about the latency on a device; with ``measure``, after it was measured.

    Raises:
        UsageError: If there is no such device, or it is used by another process for too long.
        ModelError: If it is to be measured and cannot be.
    """
    where = device_of(device, threads)
    table = LatencyTable(where)
    figures: dict[str, Any] = {"device": where.identity}
    default = (device, threads) == ("ort-cpu", 1)
    options = "" if default else f"--device {device} --threads {threads}"
    text = ""
    gain = "unknown"
    if measure:
        speedup = _measured(e, table, figures, progress)
        gain = "yes" if speedup >= 1.03 else "no"
        text = f"exact passes: {figures['before_ms']:.4g} -> {figures['after_ms']:.4g} ms on {device} ({speedup:.2f}x, measured)"
    elif not table.store.path.exists():
        return _not_timed(e, device, options, figures)
    ops = _ops(e.given, table)
    if isinstance(ops, str):
        figures["ops_missing"] = ops
    else:
        total = sum(ops.values())
        figures["ops_ms"] = ops
        slow = ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in list(ops.items())[:_SHOWN])
        text += f"{'; ' if text else ''}{total:.4g} ms is the sum of its ops on {device}: {slow}"
    if not text:
        return _not_timed(e, device, options, figures)
    return Finding("latency", gain, text, e.commands.tool("bench", options), figures)


def _not_timed(e: Examined, device: str, options: str, figures: dict[str, Any]) -> Finding:
    text = f"not timed on {device} yet: --measure times it"
    if e.commands.path is None:
        text = f"not timed on {device} yet: measure=True times it"
    command = e.commands.tool("advise", f"--measure {options}".rstrip())
    return Finding("latency", "unknown", text, command, figures)


def _measured(
    e: Examined,
    table: LatencyTable,
    figures: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> float:
    """Time the model beside the result of the exact passes, then its ops; returns the speedup."""
    import numpy as np

    from ..planning.latency import paired

    times = np.array(paired(table.device, [e.given, e.exact], ROUNDS), np.float64)
    before, ratio = float(np.median(times[0])), float(np.median(times[0] / times[1]))
    figures.update(before_ms=before, after_ms=before / ratio, speedup=ratio)
    try:
        table.measure([piece.graph for piece in pieces(e.given, one=True)[0]], progress=progress)
    except ModelError as error:
        figures["ops_not_timed"] = str(error)
    return ratio


def _ops(graph: Graph, table: LatencyTable) -> dict[str, float] | str:
    """The milliseconds of each kind of op, the slowest first; or why they are not known."""
    found: dict[str, float] = {}
    parts, left = pieces(graph, one=True)
    if left or not parts:
        return left[0] if left else "the model has no ops"
    for piece in parts:
        try:
            latency = table.lookup(piece.graph)
        except ModelError as error:
            return str(error)
        if latency is None:
            return f"{piece.graph.name} is not in the table"
        found[piece.kind] = found.get(piece.kind, 0.0) + latency.milliseconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))
