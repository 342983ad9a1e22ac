"""The latency that removing each gated activation saves, measured; the weights of :func:`graphshrink.gate_penalty`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..api import ShrinkResult, shrink
from ..ir import ModelError
from ..passes import HoistPadding, MergeLinear, PassLike, RemoveActivations
from ..running.inputs import random_inputs
from ..running.latency import paired_latency
from ..running.sessions import session
from .gating import switches

Measure = Callable[[ShrinkResult, ShrinkResult], float]
"""Returns the milliseconds by which the second of two shrunk models is faster than the first."""


def removal_savings(
    model: Any,
    gated: Any,
    *,
    example_inputs: Any,
    ending: str = "",
    max_mac_growth: float = 1.0,
    measure: Measure | None = None,
) -> dict[str, float]:
    """Measure the milliseconds that removing each gated site saves.

    For each switch, its sites alone are removed from the network without gates; the result is merged and timed against
    the merged network with all activations. The saving is divided equally among tied sites.

    Args:
        model: The network without gates, in evaluation mode.
        gated: The network with gates, for the names of the sites.
        example_inputs: A tuple of inputs; their shapes are timed.
        ending: As in ``remove-activations``.
        max_mac_growth: As in ``merge-linear``.
        measure: Compares two shrunk models; onnxruntime on one thread if not given.

    Returns:
        The saving by site, at least 0, for ``gate_penalty(gated, latency=...)``.

    Raises:
        UsageError: If ``gated`` has no gates.
    """
    measure = measure or onnxruntime_saving
    groups = list(switches(gated).values())

    def merged(names: tuple[str, ...]) -> ShrinkResult:
        removal = [RemoveActivations(names, ending=ending)] if names else []
        merging = [
            HoistPadding(max_mac_growth=max_mac_growth),
            MergeLinear(max_mac_growth=max_mac_growth),
        ]
        steps: list[PassLike] = ["fold-constants", *removal, "prune-dead", *merging, "prune-dead"]
        return shrink(model, steps, example_inputs=example_inputs)

    whole = merged(())
    saved = {tuple(names): measure(whole, merged(tuple(names))) for names in groups}
    return {name: max(0.0, value) / len(names) for names, value in saved.items() for name in names}


def onnxruntime_saving(first: ShrinkResult, second: ShrinkResult) -> float:
    """The median of paired differences in onnxruntime, on one thread, with the input shapes of the models."""
    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        paths = [Path(folder) / "first.onnx", Path(folder) / "second.onnx"]
        for result, path in zip((first, second), paths, strict=True):
            _write(result, path)
        one, two = (session(path, threads=1) for path in paths)
        # An open batch is that of the example inputs; the file keeps the order of inputs.
        arrays = random_inputs(first.graph).values()
        feeds = dict(zip((port.name for port in one.get_inputs()), arrays, strict=True))
        found = paired_latency(lambda: one.run(None, feeds), lambda: two.run(None, feeds), pairs=15)
    before = found.milliseconds[0]
    return before - before / found.speedup


def _write(result: ShrinkResult, path: Path) -> None:
    """Write the model as ONNX; torch's exporter, which takes seconds, is used only if the IR cannot express the model."""
    from ..hosts.onnx.origins import OnnxHost
    from ..targets.onnx.emitter import save_onnx

    graph = result.graph.clone()
    if not isinstance(graph.host, OnnxHost):
        graph.host = None
    try:
        save_onnx(graph, path)
    except ModelError:
        result.save(path)
