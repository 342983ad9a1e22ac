"""The public calls: ``shrink_graph`` for graphs in a script, ``shrink`` for files and reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from .emission import Emission, data_files, emission, known_target
from .guarded import files_read
from .ir import Graph, GraphshrinkError, MissingExtra, ModelError, Node, UsageError
from .passes import Check, Context, Dump, Observer, PassLike, Pipeline, Timing, relative_error
from .passes.infra.tolerance import allowed, tolerance_of
from .report import Report, Size
from .running.inputs import check_shapes, fx_inputs, fx_nudges, named_inputs, nudges, running_inputs
from .running.sessions import (
    emitted_session,
    first_line,
    fx_runner,
    one_line,
    onnx_runner,
    run_given_file,
    run_given_module,
    run_session,
    running_module,
)
from .targets.emitted import Emitted

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
    _target: str | None = None

    @cached_property
    def model(self) -> Any:
        """The shrunk model, of the kind that came in: ``ModelProto`` or ``GraphModule``.

        Made when it is first asked for: a file that is only saved again is never held in memory whole.

        Raises:
            ModelError: If it cannot be written, or a module does not run on the example inputs.
        """
        if self._kind == "onnx":
            from .targets.onnx.emitter import to_onnx

            with _text_is_text("the model"):
                return to_onnx(self.graph)
        return running_module(self.graph)

    def save(
        self, path: str | os.PathLike[str], target: str | None = None, **options: Any
    ) -> Emitted:
        """Write the model, whole or not at all.

        Saved over the file that it was read from, a model that we had written with a data file beside it loses that
        file: save other forms of it first.

        Args:
            path: The file to write.
            target: What to write, with options in braces if any (``"tflite{weights=float16}"``): see
                ``graphshrink.emission.TARGETS``. Without it the target that the passes ran for,
                if this is one of its files; else the suffix decides.
            options: The target's own options, such as ``fp16=True``.

        Returns:
            The files and what there is to know of them; the report has it too.

        Raises:
            UsageError: If there is no such target, suffix or option, or the file cannot be written, or holds numbers
                of the model that was read.
            ModelError: If the target cannot say what the model does.
            MissingExtra: If the target needs a package that is not installed.
        """
        if target is None and self._target is not None:
            own = known_target(self._target)
            target = self._target if Path(path).suffix == own.suffix else None
        return self.emit(emission(path, target, options))

    def emit(self, chosen: Emission) -> Emitted:
        """Write the model by a target that was chosen before."""
        with _text_is_text("the model"):
            done = chosen.run(self.graph)
        self.report.emitted = done
        return done


def shrink_graph(
    model: Any,
    passes: Passes = None,
    *,
    example_inputs: Any = None,
    check: bool = False,
    calibration: Any = None,
    seed: int = 0,
) -> Any:
    """Shrink a model and give back one of its kind.

    Args:
        model: A ``torch.fx.GraphModule``, ``torch.nn.Module`` or ``torch.export.ExportedProgram``
            (these come out as a ``GraphModule``), or an ``onnx.ModelProto``. It is not changed.
        passes: A pipeline text, a ``Pipeline``, or a list of names, passes and functions
            ``(graph, rewriter)``; the exact default pipeline when not given.
        example_inputs: A tuple of inputs. For torch, shapes come from them; without them everything
            still works that needs no shapes. ``check`` runs the model on them; for ONNX they
            may be a dict by name too.
        check: Run the model as it was given, as it was read, and after every pass; raise if the first two differ, or if an
            exact pass moved the outputs. Without ``example_inputs`` on random numbers of the known shapes, unknown sizes being 1.
        calibration: Data for passes that ask for them: a path, arrays, an iterable of batches, or a
            :class:`graphshrink.CalibrationData` that also says how they are read.
        seed: The seed of random check inputs and of passes that draw random numbers.

    Raises:
        UsageError: If the model is of another kind.
        ModelError: If the model cannot be read, or holds a module in training mode.
        PassError: If a pass is unknown, or breaks the graph, or fails the check.
    """
    return shrink(
        model,
        passes,
        example_inputs=example_inputs,
        check=check,
        calibration=calibration,
        seed=seed,
        on_failure="raise",
    ).model


def shrink(
    model: Any,
    passes: Passes = None,
    *,
    example_inputs: Any = None,
    check: bool = False,
    calibration: Any = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    overridable_initializers: bool = False,
    on_failure: str = "rollback",
    dump: str | os.PathLike[str] | None = None,
    observers: Sequence[Observer] = (),
    target: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> ShrinkResult:
    """Shrink a model or an ONNX file and say what was done.

    Args:
        model: What ``shrink_graph`` takes, or the path of an ONNX file.
        passes: As for ``shrink_graph``.
        example_inputs: As for ``shrink_graph``.
        check: As for ``shrink_graph``; what a pass that fails it does is up to ``on_failure``.
        calibration: As for ``shrink_graph``.
        seed: The seed of random check inputs and of passes that draw random numbers.
        shapes: Input shapes for the check, by input name (ONNX).
        fixed_shapes: Input shapes to fix in the model, by input name (ONNX); ``None`` leaves a size as it is. What the
            model computes from its sizes becomes constant.
        overridable_initializers: Initializers that an ONNX model lists as inputs as well stay inputs with a default.
            Otherwise they are weights, and the report names them.
        on_failure: ``"rollback"`` undoes a pass that fails the check and goes on; ``"raise"`` stops.
        dump: A folder for the text of the graph after every pass.
        observers: What else watches the passes.
        target: The target that the result will be saved for, so that passes can take it into account.
        progress: Called with (done, total, what) inside long passes; the total is 0 when it is not known.

    Raises:
        UsageError: If the model is of another kind, or inputs or calibration data do not fit it.
        ModelError: If the model cannot be read, or does not run when it is checked.
        PassError: If a pass is unknown, or breaks the graph.
    """
    pipeline = Pipeline(DEFAULT_PIPELINE if passes is None else passes)
    if on_failure not in ("rollback", "raise"):
        raise UsageError(f"on_failure is 'rollback' or 'raise', not {on_failure!r}")
    if dump is not None and "\0" in os.fspath(dump):
        raise UsageError(f"cannot dump graphs into {os.fspath(dump)!r}: a path holds no NUL")
    chosen = None if target is None else known_target(target)
    if dump is not None and Path(dump).exists() and not Path(dump).is_dir():
        raise UsageError(f"cannot dump graphs into {dump}: it is a file")
    graph, kind = load(
        model,
        example_inputs,
        fixed_shapes,
        overridable_initializers=overridable_initializers
        and (chosen is None or chosen.defaults),
    )
    check_shapes(graph, shapes)
    watching: list[Observer] = [Timing(), *observers]
    if dump is not None:
        inputs = [*data_files(graph), *files_read(calibration, pipeline)]
        if isinstance(model, str | os.PathLike):
            inputs.append(("the model", Path(model)))
        watching.append(Dump(Path(dump), inputs))
    if check:
        failure: Literal["raise", "rollback"] = "raise" if on_failure == "raise" else "rollback"
        run, given, nudged = _runners(graph, kind, model, example_inputs, shapes, seed)
        watching.append(
            Check(run, failure, nudged=nudged, reference=_as_given(graph, run, given, nudged))
        )
    ctx = Context(
        seed=seed,
        target=chosen.name if chosen is not None else kind,
        unwritable=_unwritable(graph, kind),
    )
    if progress is not None:
        ctx.progress = progress
    if calibration is not None:
        from .data.calibration import calibrated

        ctx.calibration = calibrated(graph, kind, calibration, progress)
    before = Size.of(graph)
    records = pipeline.run(graph, ctx, watching)
    after = Size.of(graph)
    notes = [*graph.notes, *(note for note in before.notes if note not in graph.notes)]
    report = Report(str(pipeline), before, after, records, notes)
    return ShrinkResult(graph, report, kind, target)


def _unwritable(graph: Graph, kind: str) -> Callable[[Node], str | None]:
    """Why a node cannot be written for the host that the graph came from."""
    if kind == "onnx":
        from .targets.onnx.emitter import unwritable

        return unwritable(graph)
    from .targets.torch.emitter import problem

    return problem


_Run = Callable[[Graph], list[Any]]
_Given = Callable[[], list[Any]]


def _as_given(
    graph: Graph, run: _Run, given: _Given, nudged: Callable[[], list[_Run]]
) -> list[Any]:
    """The outputs of a graph on which no pass ran yet, held against those of the model that was given.

    Raises:
        ModelError: If they differ.
    """
    outputs = run(graph)
    try:
        wanted = given()
    except ModelError as error:
        graph.notes.append(
            f"checked against what was read of the model, not against the model itself: {error}"
        )
        return outputs
    moved = relative_error(wanted, outputs)
    limit = allowed(tolerance_of(graph), moved, outputs, graph, nudged)
    if moved > limit:
        raise ModelError(
            f"the model is not read right: before any pass its outputs differ by {moved:.2e} of their largest value "
            f"from those of the model that was given (allowed {limit:.1g}); this is a fault of graphshrink, or the "
            "model gives other outputs each time"
        )
    return outputs


def _runners(
    graph: Graph,
    kind: str,
    model: Any,
    given: Any,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> tuple[_Run, _Given, Callable[[], list[_Run]]]:
    """What runs a graph for the check; what runs the given model, both on the inputs; and, made when they are asked for,
    what runs a graph on inputs that rounding alone tells from them.
    """
    if kind == "onnx":
        if given is not None:
            feeds = named_inputs(graph, given)
        else:
            with emitted_session(graph) as loaded:
                feeds = running_inputs(
                    graph, shapes, seed, lambda x: run_session(loaded, x, "the model")
                )
        return (
            onnx_runner(feeds),
            lambda: run_given_file(model, feeds),
            lambda: [onnx_runner(x) for x in nudges(feeds, seed)],
        )
    if given is None:
        # An exported program keeps the inputs that it was exported with.
        kept = getattr(model, "example_inputs", None)
        if isinstance(kept, tuple) and len(kept) == 2 and not kept[1]:
            given = kept[0]
    inputs = fx_inputs(graph, shapes, seed) if given is None else _as_tuple(given)
    return (
        fx_runner(inputs),
        lambda: run_given_module(model, inputs),
        lambda: [fx_runner(x) for x in fx_nudges(inputs, seed)],
    )


def load(
    model: Any,
    example_inputs: Any = None,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    *,
    overridable_initializers: bool = False,
) -> tuple[Graph, str]:
    """Import whatever was given; the second part is ``"onnx"`` or ``"fx"``.

    Args:
        model: What ``shrink`` takes.
        example_inputs: As for ``shrink_graph``.
        fixed_shapes: As for ``shrink``.
        overridable_initializers: As for ``shrink``.

    Raises:
        UsageError: If it is nothing that can be imported, or fixed shapes do not fit.
        ModelError: If it cannot be read.
    """
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return _from_onnx(path, path, fixed_shapes, overridable_initializers), "onnx"
    kinds = _type_names(model)
    if any(kind.endswith("ModelProto") for kind in kinds):
        return _from_onnx(model, "the model", fixed_shapes, overridable_initializers), "onnx"
    if fixed_shapes:
        raise UsageError(
            "fixed_shapes are for ONNX models; shapes of a torch model come from example_inputs"
        )
    if _MODULE in kinds:
        _need_torch()
        from .frontends.torch.importer import from_fx

        inputs = None if example_inputs is None else _as_tuple(example_inputs)
        hooks = (model._forward_hooks, model._forward_pre_hooks)
        if "torch.fx.graph_module.GraphModule" in kinds and not any(hooks):
            return from_fx(model, inputs), "fx"
        return _traced(model, inputs), "fx"
    if _PROGRAM in kinds:
        from .frontends.torch.export import from_export

        return from_export(model), "fx"
    raise UsageError(
        f"cannot shrink a {type(model).__name__}: give a GraphModule, nn.Module, ExportedProgram, "
        "ModelProto or the path of an ONNX file"
    )


_MODULE = "torch.nn.modules.module.Module"
_PROGRAM = "torch.export.exported_program.ExportedProgram"


def _type_names(model: Any) -> set[str]:
    """The full names of a model's classes: what it is, with nothing imported to ask."""
    return {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}


def is_torch(model: Any) -> bool:
    """Whether a model is a torch module or an exported program."""
    return not _type_names(model).isdisjoint((_MODULE, _PROGRAM))


def _from_onnx(
    model: Any, name: str, fixed_shapes: Any = None, overridable_initializers: bool = False
) -> Graph:
    from .frontends.onnx.importer import from_onnx

    try:
        with _text_is_text(name):
            return from_onnx(
                model, fixed_shapes, overridable_initializers=overridable_initializers
            )
    except (GraphshrinkError, MemoryError):
        raise
    except Exception as error:
        # Ours or the model's fault? onnx itself decides.
        import onnx

        try:
            onnx.checker.check_model(model)
        except Exception as reason:
            raise ModelError(f"{name} is not valid ONNX: {one_line(reason)}") from error
        raise


@contextmanager
def _text_is_text(name: str) -> Iterator[None]:
    """Protobuf hands out text that is not UTF-8 as bytes, and trips over it when it is copied."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is damaged: it holds text that is not UTF-8") from error


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    if isinstance(inputs, tuple):
        return inputs
    return tuple(inputs) if isinstance(inputs, list) else (inputs,)


def _need_torch() -> None:
    try:
        import_module("torch")
    except ImportError as error:
        raise MissingExtra("shrinking a torch module", "torch", "torch") from error


def _traced(model: Any, inputs: tuple[Any, ...] | None) -> Graph:
    """A module through ``torch.fx`` or, if that fails, through ``torch.export``."""
    from .frontends.torch.importer import DoesNotRun, from_fx
    from .frontends.torch.trace import traced

    name = type(model).__name__
    failure: Exception
    try:
        found = traced(model, inputs)
        graph = from_fx(found.module, inputs)
        graph.notes += found.notes
        return graph
    except DoesNotRun as error:
        reason, failure = f"what torch.fx traces of {name} does not run", error
    except ModelError:
        raise
    except Exception as error:
        reason, failure = f"torch.fx cannot trace {name} ({first_line(error)})", error
        if inputs is None:
            raise UsageError(
                f"{reason}; give example_inputs, so that torch.export can be tried, or an ExportedProgram"
            ) from error
    assert inputs is not None
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(f"{training} is in training mode: call model.eval() first")
    from .frontends.torch.export import exported, from_export

    try:
        program = exported(model, inputs)
    except ModelError:
        raise
    except Exception as error:
        if isinstance(failure, DoesNotRun):
            raise failure from error
        raise UsageError(f"{reason}, nor can torch.export ({first_line(error)})") from error
    graph = from_export(program)
    graph.notes.append(
        f"{reason}: torch.export was used, and what the model decides by its inputs is decided "
        "as for example_inputs"
    )
    return graph
