"""The public calls: ``shrink_graph`` for graphs in a script, ``shrink`` for files and reports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .evaluate import fx_runner, onnx_runner, random_inputs
from .ir import Graph, MissingExtra, UsageError
from .passes import Check, Context, Dump, Observer, PassLike, Pipeline, Timing
from .report import Report, Size

DEFAULT_PIPELINE = "fold-constants,merge-linear,prune-dead"
"""The passes that run when none are given; all are exact."""

Passes = PassLike | Pipeline | Iterable[PassLike | Pipeline] | None


@dataclass
class ShrinkResult:
    """What ``shrink`` gives back.

    Attributes:
        graph: The graph after the passes.
        report: What the passes did.
    """

    graph: Graph
    report: Report
    _kind: str

    @property
    def model(self) -> Any:
        """The shrunk model, of the kind that came in: ``ModelProto`` or ``GraphModule``."""
        if self._kind == "onnx":
            from .targets.onnx import to_onnx

            return to_onnx(self.graph)
        from .targets.fx import to_fx

        return to_fx(self.graph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as ONNX: whole or not at all.

        Raises:
            UsageError: If the suffix is not ``.onnx`` or the file cannot be written.
        """
        if Path(path).suffix != ".onnx":
            raise UsageError(f"cannot write {path}: only .onnx files can be written")
        from .targets.onnx import save_onnx

        save_onnx(self.graph, path)


def shrink_graph(
    model: Any,
    passes: Passes = None,
    *,
    example_inputs: Any = None,
    check: bool = False,
    seed: int = 0,
) -> Any:
    """Shrink a model and give back one of its kind.

    Args:
        model: A ``torch.fx.GraphModule``, ``torch.nn.Module`` or ``torch.export.ExportedProgram``
            (these come out as a ``GraphModule``), or an ``onnx.ModelProto``. It is not changed.
        passes: A pipeline text, a ``Pipeline``, or a list of names, passes and functions
            ``(graph, rewriter)``; the exact default pipeline when not given.
        example_inputs: A tuple of inputs, from which shapes come (torch), or a dict of arrays by name
            (ONNX). Without them everything still works that needs no shapes.
        check: Run the model before and after every pass; raise if an exact pass moved the outputs.
        seed: The seed of random check inputs and of passes that draw random numbers.

    Raises:
        UsageError: If the model is of another kind.
        ModelError: If the model cannot be read, or holds a module in training mode.
        PassError: If a pass is unknown, or breaks the graph, or fails the check.
    """
    return shrink(
        model, passes, example_inputs=example_inputs, check=check, seed=seed, on_failure="raise"
    ).model


def shrink(
    model: Any,
    passes: Passes = None,
    *,
    example_inputs: Any = None,
    check: bool = False,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    on_failure: str = "rollback",
    dump: str | os.PathLike[str] | None = None,
) -> ShrinkResult:
    """Shrink a model or an ONNX file and say what was done.

    Args:
        model: What ``shrink_graph`` takes, or the path of an ONNX file.
        passes: As for ``shrink_graph``.
        example_inputs: As for ``shrink_graph``.
        check: Run the model before and after every pass.
        seed: The seed of random check inputs and of passes that draw random numbers.
        shapes: Input shapes for the check, by input name.
        on_failure: ``"rollback"`` undoes a pass that fails the check and goes on; ``"raise"`` stops.
        dump: A folder for the text of the graph after every pass.

    Raises:
        UsageError: If the model is of another kind, or inputs do not fit it.
        ModelError: If the model cannot be read.
        PassError: If a pass is unknown, or breaks the graph.
    """
    pipeline = Pipeline(DEFAULT_PIPELINE if passes is None else passes)
    if on_failure not in ("rollback", "raise"):
        raise UsageError(f"on_failure is 'rollback' or 'raise', not {on_failure!r}")
    graph, kind = load(model, example_inputs)
    observers: list[Observer] = [Timing()]
    if dump is not None:
        observers.append(Dump(Path(dump)))
    if check:
        if kind == "onnx":
            feeds = example_inputs if isinstance(example_inputs, dict) else None
            runner = onnx_runner(feeds or random_inputs(graph, shapes, seed))
        else:
            from .targets.fx import example_inputs_of

            given = example_inputs
            runner = fx_runner(_as_tuple(given) or example_inputs_of(graph))
        observers.append(Check(runner, "raise" if on_failure == "raise" else "rollback"))
    before = Size.of(graph)
    records = pipeline.run(graph, Context(seed=seed, target=kind), observers)
    report = Report(str(pipeline), before, Size.of(graph), records, list(graph.notes))
    return ShrinkResult(graph, report, kind)


def load(model: Any, example_inputs: Any = None) -> tuple[Graph, str]:
    """Import whatever was given; the second part is ``"onnx"`` or ``"fx"``.

    Raises:
        UsageError: If it is nothing that can be imported.
        ModelError: If it cannot be read.
    """
    if isinstance(model, (str, os.PathLike)):
        from .frontends.onnx import from_onnx

        return from_onnx(os.fspath(model)), "onnx"
    kinds = {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}
    if any(kind.endswith("ModelProto") for kind in kinds):
        from .frontends.onnx import from_onnx

        return from_onnx(model), "onnx"
    if "torch.nn.modules.module.Module" in kinds:
        from .frontends.fx import from_fx

        return from_fx(_traced(model, kinds), _as_tuple(example_inputs)), "fx"
    if "torch.export.exported_program.ExportedProgram" in kinds:
        from .frontends.export import from_export

        return from_export(model), "fx"
    raise UsageError(
        f"cannot shrink a {type(model).__name__}: give a GraphModule, nn.Module, ExportedProgram, "
        "ModelProto or the path of an ONNX file"
    )


def _as_tuple(inputs: Any) -> tuple[Any, ...] | None:
    if inputs is None or isinstance(inputs, tuple):
        return inputs
    return tuple(inputs) if isinstance(inputs, list) else (inputs,)


def _traced(model: Any, kinds: set[str]) -> Any:
    if "torch.fx.graph_module.GraphModule" in kinds:
        return model
    try:
        import torch.fx
    except ImportError as error:
        raise MissingExtra("shrinking a torch module", "torch", "torch") from error
    try:
        return torch.fx.symbolic_trace(model)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"torch.fx cannot trace {type(model).__name__} ({first}); "
            "give torch.export.export(model, example_inputs) instead"
        ) from error
