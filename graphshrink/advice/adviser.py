"""The call ``advise``: reads a model, runs the exact passes on a copy, and asks every capability."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..api import is_torch, shrink
from ..ir import Graph
from ..not_understood import summary
from ..passes import Context, Pass, PassRecord, Pipeline
from ..planning.plan import PREPARATION
from .advice import Advice
from .commands import Commands
from .examine import Examined, findings
from .timing import latency_finding


def advise(
    model: Any,
    *,
    example_inputs: Any = None,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    device: str = "ort-cpu",
    threads: int = 1,
    measure: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """What each capability could gain for a model: without data, in seconds.

    Nothing is written and nothing is trained. Exact gains are those of the exact passes, which are run; what approximate changes
    would lose is not known without samples.

    Args:
        model: The path of an ONNX file, an ``onnx.ModelProto``, or a torch model as for :func:`graphshrink.shrink`.
        example_inputs: As for :func:`graphshrink.shrink_graph`; a torch model needs them for shapes.
        fixed_shapes: Input shapes to fix in the model, by input name (ONNX).
        device: The device whose latency table is looked up.
        threads: The threads of its runtime.
        measure: Time the model and the result of the exact passes on the device, and add the ops to the table.
        progress: Called with the number of finished measurements and of all.

    Raises:
        UsageError: If the model is of another kind, or there is no such device.
        ModelError: If the model cannot be read, or timed if it is to be measured.
    """
    first = _First()
    result = shrink(
        model, example_inputs=example_inputs, fixed_shapes=fixed_shapes, observers=[first]
    )
    report = result.report
    path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    given = first.graph
    prepared = given.clone()
    Pipeline(PREPARATION).run(prepared, Context())
    examined = Examined(
        given,
        result.graph,
        report.before,
        report.after,
        report.passes,
        prepared,
        Commands(path, is_torch(model), fixed_shapes),
    )
    found = [*findings(examined), latency_finding(examined, device, threads, measure, progress)]
    notes = list(report.notes)
    if report.not_understood:
        where = examined.commands.tool("inspect")
        notes.append(
            summary(
                report.not_understood,
                f"{where} lists them" if where else "shrink(...).report lists them",
            )
        )
    return Advice(path or type(model).__name__, report.before, tuple(found), tuple(notes))


class _First:
    """An observer that keeps the graph as it is before the first pass."""

    graph: Graph

    def before(self, step: Pass, graph: Graph) -> None:
        """Keep a copy, once."""
        if not hasattr(self, "graph"):
            self.graph = graph.clone()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Do nothing."""
