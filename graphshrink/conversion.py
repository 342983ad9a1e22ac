"""The public call that makes a torch module of any model: ``to_torch``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from .api import Passes, need_torch, shrink
from .ir import Graph, UsageError
from .passes import Context, Pipeline


def to_torch(
    model: Any,
    passes: Passes = (),
    *,
    fresh_norms: bool | str = False,
    calibration: Any = None,
    example_inputs: Any = None,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    seed: int = 0,
) -> Any:
    """Return a model as a ``torch.fx.GraphModule`` of ordinary ``nn`` modules, in evaluation mode.

    Modules have dotted names that follow the model's own (``/layer1/conv1/Conv`` is ``layer1.conv1``), the arguments of ``forward`` the
    names of the inputs, where they are identifiers; ``module.meta["inputs"]`` maps one to the other. Weights are
    parameters, running statistics and other constants are buffers, dropout and batch norms train. Sizes are computed from the inputs
    wherever the model leaves them open.

    Args:
        model: The path of an ONNX file, an ``onnx.ModelProto``, a :class:`graphshrink.Graph` (``graphshrink.ir.parse`` reads one from text), or
            a torch model as for ``shrink_graph``.
        passes: Passes to run before, as for ``shrink_graph``; none if not given.
        fresh_norms: Put batch norms that change nothing in evaluation mode behind convolutions whose norms were folded away, by the
            pass ``fresh-norms``; a text is that pass with its options (``"fresh-norms{linear=true}"``).
        calibration: Data for running statistics and for passes that need them, as for ``shrink_graph``.
        example_inputs: As for ``shrink_graph``.
        fixed_shapes: As for ``shrink``.
        seed: As for ``shrink_graph``.

    Raises:
        UsageError: If the model is of another kind, or calibration data are given that nothing uses.
        ModelError: If it cannot be read, or torch cannot express some of its nodes; the error names all of them.
        MissingExtra: If torch is not installed.
    """
    need_torch("to_torch")
    steps: list[Any] = [Pipeline(passes)] if passes is not None else []
    if fresh_norms:
        steps.append(fresh_norms if isinstance(fresh_norms, str) else "fresh-norms")
    pipeline = Pipeline(steps)
    if calibration is not None and not len(pipeline):
        raise UsageError("calibration is for fresh_norms and for passes, and there are none")
    if isinstance(model, Graph):
        made, notes = _from_graph(model, pipeline, calibration, seed)
    else:
        result = shrink(
            model,
            pipeline,
            example_inputs=example_inputs,
            calibration=calibration,
            fixed_shapes=fixed_shapes,
            seed=seed,
            target="torch",
        )
        made, notes = result.model, result.report.notes
    for note in notes:
        if note.startswith("fresh-norms"):
            warnings.warn(note, stacklevel=2)
    return made


def _from_graph(
    graph: Graph, pipeline: Pipeline, calibration: Any, seed: int
) -> tuple[Any, list[str]]:
    """The module of a copy of a graph, and its notes."""
    from .hosts.torch import is_from_torch
    from .readers import HostReaders
    from .targets.torch.anew import best_reading, to_module
    from .targets.torch.emitter import problem

    graph = best_reading(graph.clone(), HostReaders())
    kind = "fx" if is_from_torch(graph) else "onnx"
    target = kind if kind == "fx" else "torch"
    ctx = Context(seed=seed, target=target, unwritable=problem)
    if calibration is not None:
        from .data.calibration import calibrated

        ctx.calibration = calibrated(graph, kind, calibration)
    pipeline.run(graph, ctx)
    return to_module(graph, HostReaders()), graph.notes


__all__ = ["to_torch"]
