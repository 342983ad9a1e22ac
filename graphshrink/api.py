"""The public calls: ``shrink_graph`` returns a model, ``shrink`` also takes files and returns a report."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, Unpack, overload

from .bodies import body_pipeline
from .emission import Emission, data_files, emission, known_target
from .guarded import files_read
from .ir import Graph, GraphshrinkError, MissingExtra, ModelError, Node, UsageError
from .ir.errors import one_line
from .not_understood import not_understood
from .passes import Check, Context, Dump, Observer, PassLike, Pipeline, Timing, relative_error
from .passes.infra.default import DEFAULT_PIPELINE
from .passes.infra.difference import largest_difference
from .passes.infra.tolerance import allowed_error, tolerance_of, unit_of
from .report import Report, size_with_bodies
from .running.inputs import check_shapes, fx_inputs, fx_nudges, named_inputs, nudges, running_inputs
from .running.sessions import (
    emitted_session,
    first_line,
    fx_runner,
    onnx_runner,
    run_given_file,
    run_given_module,
    run_session,
    running_module,
)
from .tables import html_of, text_of
from .targets.emitted import Emitted
from .torch_models import check_torch_model, not_a_torch_file, positional

if TYPE_CHECKING:
    from onnx import ModelProto
    from rich.console import Console
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule
    from typing_extensions import TypeVar

    from .passes.statistics.training import Trainer

    Model = TypeVar("Model", default=Any)
else:
    from typing import TypeVar

    Model = TypeVar("Model")

Passes = PassLike | Pipeline | Iterable[PassLike | Pipeline] | None


class GraphOptions(TypedDict, total=False):
    """The keyword arguments of :func:`shrink_graph`."""

    example_inputs: Any
    check: bool
    calibration: Any
    seed: int


class ShrinkOptions(GraphOptions, total=False):
    """The keyword arguments of :func:`shrink`."""

    reference: Any

    shapes: Mapping[str, Sequence[int]] | None
    fixed_shapes: Mapping[str, Sequence[int | None]] | None
    overridable_initializers: bool
    opset: int | None
    on_failure: str
    dump: str | os.PathLike[str] | None
    observers: Sequence[Observer]
    target: str | None
    progress: Callable[[int, int, str], None] | None


@dataclass(repr=False)
class ShrinkResult(Generic[Model]):
    """The result of ``shrink``; ``print(result)`` shows the tables of the report.

    Attributes:
        graph: The graph after the passes.
        report: The report of the passes.
    """

    graph: Graph
    report: Report
    _kind: str
    _target: str | None = None

    @cached_property
    def model(self) -> Model:
        """The shrunk model, of the same kind as the given one: ``ModelProto`` or ``GraphModule``; for the target ``torch`` always the latter.

        It is made on first use, so that a model which is only saved is never in memory as a whole. A ``GraphModule`` shares
        the parameters that no pass changed with the given module.

        Raises:
            ModelError: If it cannot be written, or a module does not run on the example inputs.
        """
        made: Any
        if self._kind == "onnx" and _is_torch_target(self._target):
            from .readers import HostReaders
            from .targets.torch.anew import to_module

            made = to_module(self.graph, HostReaders())
        elif self._kind == "onnx":
            from .targets.onnx.emitter import to_onnx

            with _utf8_text("the model"):
                made = to_onnx(self.graph)
        else:
            made = running_module(self.graph)
        found: Model = made
        return found

    def save(
        self, path: str | os.PathLike[str], target: str | None = None, **options: Any
    ) -> Emitted:
        """Write the model, whole or not at all.

        If it replaces the file that it was read from, and graphshrink had written a data file for that model, the data file
        is deleted: save other forms of the model first.

        Args:
            path: The file to write.
            target: A name in ``graphshrink.emission.TARGETS``, with options in braces if any
                (``"tflite{weights=float16}"``). If not given, the target that the passes ran for, if it writes files with
                this suffix; else the suffix decides.
            options: The target's own options, such as ``fp16=True``.

        Returns:
            The files that were written, with notes; the report has them too.

        Raises:
            UsageError: If there is no such target, suffix or option, or the file cannot be written, or the model reads
                its weights from that file.
            ModelError: If the target cannot express the model.
            MissingExtra: If the target needs a package that is not installed.
        """
        if target is None and self._target is not None:
            own = known_target(self._target)
            target = self._target if Path(path).suffix == own.suffix else None
        return self.emit(emission(path, target, options))

    def emit(self, chosen: Emission) -> Emitted:
        """Write the model by a target that :func:`graphshrink.emission.emission` chose."""
        with _utf8_text("the model"):
            done = chosen.run(self.graph)
        self.report.emitted = done
        return done

    def render(self, console: Console) -> None:
        """Print the tables of the report."""
        self.report.render(console)

    def __repr__(self) -> str:
        return f"<ShrinkResult {self.report.summary}>"

    def __str__(self) -> str:
        return text_of(self.render)

    def _repr_html_(self) -> str:
        return html_of(self.render)


@overload
def shrink_graph(
    model: ModelProto | str | os.PathLike[str],
    passes: Passes = None,
    **options: Unpack[GraphOptions],
) -> ModelProto: ...


@overload
def shrink_graph(
    model: nn.Module | ExportedProgram, passes: Passes = None, **options: Unpack[GraphOptions]
) -> GraphModule: ...


def shrink_graph(
    model: Any,
    passes: Passes = None,
    *,
    example_inputs: Any = None,
    check: bool = False,
    calibration: Any = None,
    seed: int = 0,
) -> Any:
    """Shrink a model and return one of the same kind.

    The given model is not changed. A ``GraphModule`` that is returned shares the parameters that no pass changed with it, so
    that training one trains the other: ``copy.deepcopy`` of the result is independent. Arguments of ``forward`` that
    ``example_inputs`` leave out are not arguments of the result; a warning names them.

    Args:
        model: A ``torch.fx.GraphModule``, ``torch.nn.Module`` or ``torch.export.ExportedProgram``
            (each is returned as a ``GraphModule``), or an ``onnx.ModelProto``.
        passes: A pipeline text, a ``Pipeline``, or a list of names, passes and functions
            ``(graph, rewriter)``; the exact default pipeline if not given.
        example_inputs: A tuple of inputs. For torch, shapes come from them; without them, rewrites that need
            shapes are skipped. ``check`` runs the model on them. They may be a dict by name too: names of inputs for ONNX, of arguments
            of ``forward`` for torch.
        check: Run the model as it was given, as it was read, and after every pass; raise if the first two differ, or if an
            exact pass changes the outputs. Without ``example_inputs``, inputs are random numbers of the known shapes, with 1
            for unknown sizes.
        calibration: Data for passes that need them: a path, arrays, an iterable of batches, or a
            :class:`graphshrink.CalibrationData`, which also has options for reading them.
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


@overload
def shrink(
    model: ModelProto | str | os.PathLike[str],
    passes: Passes = None,
    **options: Unpack[ShrinkOptions],
) -> ShrinkResult[ModelProto]: ...


@overload
def shrink(
    model: nn.Module | ExportedProgram, passes: Passes = None, **options: Unpack[ShrinkOptions]
) -> ShrinkResult[GraphModule]: ...


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
    opset: int | None = None,
    on_failure: str = "rollback",
    dump: str | os.PathLike[str] | None = None,
    observers: Sequence[Observer] = (),
    target: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    reference: Any = None,
) -> ShrinkResult[Any]:
    """Shrink a model or an ONNX file and return it with a report.

    Args:
        model: A model as for ``shrink_graph``, or the path of an ONNX file.
        passes: As for ``shrink_graph``.
        example_inputs: As for ``shrink_graph``.
        check: As for ``shrink_graph``; ``on_failure`` decides what happens after a pass that fails.
        calibration: As for ``shrink_graph``.
        seed: The seed of random check inputs and of passes that draw random numbers.
        shapes: Input shapes for the check, by input name (ONNX).
        fixed_shapes: Input shapes to fix in the model, by input name (ONNX); ``None`` does not fix a size. Values that the
            model computes from fixed sizes become constants.
        overridable_initializers: Keep initializers that an ONNX model also lists as inputs as inputs with a default.
            Otherwise they are weights, and the report names them.
        opset: Convert an ONNX model to this newer version of ONNX's operators first, by onnx's own converter. A torch model gets its opset when
            it is saved.
        on_failure: ``"rollback"`` undoes a pass that fails the check and continues; ``"raise"`` stops.
        dump: A folder for the text of the graph after every pass.
        observers: Further observers of the pipeline.
        target: The target that the result will be saved for; passes can take it into account.
        progress: Called with (done, total, what) inside long passes; the total is 0 if it is unknown.
        reference: The original model, of the same kind, for passes that keep close to it (``reconstruct``), if the given one was shrunk
            already. If not given, it is the network before the first approximate pass.

    Raises:
        UsageError: If the model is of another kind, or inputs or calibration data do not fit it.
        ModelError: If the model cannot be read, or does not run when it is checked.
        PassError: If a pass is unknown, or breaks the graph.
    """
    pipeline = Pipeline(DEFAULT_PIPELINE if passes is None else passes)
    if on_failure not in ("rollback", "raise"):
        raise UsageError(f"on_failure is 'rollback' or 'raise', not {on_failure!r}")
    if dump is not None and "\0" in os.fspath(dump):
        raise UsageError(
            f"cannot dump graphs into {os.fspath(dump)!r}: a path cannot contain a NUL character"
        )
    chosen = None if target is None else known_target(target)
    if _is_torch_target(target):
        need_torch("the target torch")
    if dump is not None and Path(dump).exists() and not Path(dump).is_dir():
        raise UsageError(f"cannot dump graphs into {dump}: it is a file")
    keeps = chosen is None or chosen.defaults
    graph, kind = _load(
        model,
        example_inputs,
        fixed_shapes,
        overridable_initializers and keeps,
        "--overridable-initializers keeps them as inputs" if keeps else "",
        inline=bool(pipeline.passes) or _is_torch_target(target),
        opset=opset,
    )
    if kind == "onnx" and _is_torch_target(target):
        from .readers import HostReaders
        from .targets.torch.anew import best_reading

        graph = best_reading(graph, HostReaders())
    check_shapes(graph, shapes)
    if opset is not None and not check:
        _check_converted(graph, model, shapes, seed)
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
        # A module takes inputs of any size, whatever it will be saved as.
        target=kind
        if chosen is None or (kind == "fx" and _is_torch_target(target))
        else chosen.name,
        unwritable=_unwritable(graph, kind, target),
        host_nodes=_host_nodes(graph, kind),
    )
    if progress is not None:
        ctx.progress = progress
    if any(step.uses_reference for step in pipeline.passes):
        ctx.trainer = _trainer()
        if reference is not None:
            ctx.reference = _reference(graph, kind, reference, example_inputs, fixed_shapes)
    elif reference is not None:
        raise UsageError(
            "reference is for passes that keep close to it, such as reconstruct; there is none"
        )
    if calibration is not None:
        from .data.calibration import calibrated

        ctx.calibration = calibrated(graph, kind, calibration, progress)
    before = size_with_bodies(graph)
    records = body_pipeline(pipeline, graph).run(graph, ctx, watching)
    after = size_with_bodies(graph)
    notes = [*graph.notes, *(note for note in before.notes if note not in graph.notes)]
    if kind == "fx":
        from .targets.torch.fixed_sizes import fixed_sizes

        notes += fixed_sizes(graph)
    notes += _without_numbers(graph)
    report = Report(
        str(pipeline),
        before,
        after,
        records,
        notes,
        not_understood=not_understood(graph),
        calibration_used=None if ctx.calibration is None else ctx.calibration.used,
    )
    return ShrinkResult(graph, report, kind, target)


def _reference(
    graph: Graph,
    kind: str,
    model: Any,
    example_inputs: Any,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None,
) -> Graph:
    """The graph of the original model.

    Raises:
        UsageError: If it is of another kind, or has other inputs or outputs than the graph.
    """
    found, other = load(model, example_inputs, fixed_shapes)
    if other != kind:
        raise UsageError(
            f"the reference is for {other}, the model is for {kind}: give two of the same kind"
        )
    for what, one, two in (
        ("inputs", [v.name for v in graph.inputs], [v.name for v in found.inputs]),
        ("outputs", graph.output_names, found.output_names),
    ):
        if list(one) != list(two):
            raise UsageError(
                f"the reference has other {what} than the model: {', '.join(two) or 'none'}, not {', '.join(one) or 'none'}"
            )
    return found


def _trainer() -> Trainer | None:
    """What trains pieces of networks; ``None`` where torch is not installed."""
    if find_spec("torch") is None:
        return None
    from .training.pieces import PieceTrainer

    return PieceTrainer()


def _without_numbers(graph: Graph) -> list[str]:
    """Notes on inputs and outputs that hold no numbers, because one of their sizes is 0."""
    named = [("input", v.name, v) for v in graph.inputs]
    named += [
        ("output", name, v) for name, v in zip(graph.output_names, graph.outputs, strict=True)
    ]
    return [
        f"{what} {name} is {value.type}: a size of 0 leaves no numbers in it"
        for what, name, value in named
        if 0 in (value.type.shape or ())
    ]


def _is_torch_target(target: str | None) -> bool:
    """Whether the text of a target names the one for torch modules."""
    return target is not None and known_target(target).name == "torch"


def _unwritable(graph: Graph, kind: str, target: str | None = None) -> Callable[[Node], str | None]:
    """A function that returns why a node cannot be written for the graph's own host, nor for torch if that is the target, or ``None``."""
    if kind == "onnx":
        from .targets.onnx.emitter import unwritable

        own = unwritable(graph)
        if not _is_torch_target(target):
            return own
        from .targets.torch.emitter import problem

        return lambda node: own(node) or problem(node)
    from .targets.torch.emitter import problem

    return problem


def _host_nodes(graph: Graph, kind: str) -> Callable[[Node], int] | None:
    """A function that returns the number of nodes that the graph's own host would write a node with, for hosts that have several forms."""
    if kind != "onnx":
        return None
    from .targets.onnx.emitter import node_count

    return node_count(graph)


_Run = Callable[[Graph], list[Any]]
_Given = Callable[[], list[Any]]


def _check_converted(
    graph: Graph, model: Any, shapes: Mapping[str, Sequence[int]] | None, seed: int
) -> None:
    """Compare a graph that onnx converted to a newer opset with the given model; a note says why where that is not possible.

    Raises:
        ModelError: If their outputs differ.
    """
    try:
        run, given, nudged = _runners(graph, "onnx", model, None, shapes, seed)
        wanted = given()
    except GraphshrinkError as error:
        graph.notes.append(
            f"the model in its new opset was not compared with the given one: {error}"
        )
        return
    why = "onnx's converter changes what it computes: export it with a newer opset"
    _as_given(graph, run, lambda: wanted, nudged, why)


def _as_given(
    graph: Graph,
    run: _Run,
    given: _Given,
    nudged: Callable[[], list[_Run]],
    why: str = "this is a bug in graphshrink, or the model computes different outputs in every run",
) -> list[Any]:
    """The outputs of a graph before any pass, after a comparison with those of the given model; ``why`` ends the error if they differ.

    Raises:
        ModelError: If the two differ.
    """
    outputs = run(graph)
    try:
        wanted = given()
    except ModelError as error:
        graph.notes.append(
            f"the check compares with the graph that was read, not with the given model: {error}"
        )
        return outputs
    moved = relative_error(wanted, outputs)
    limit = allowed_error(
        tolerance_of(graph), moved, outputs, lambda: (perturbed(graph) for perturbed in nudged())
    )
    if moved > limit:
        where = largest_difference(wanted, outputs, graph.output_names, limit)
        raise ModelError(
            f"the model was read wrongly: before any pass its outputs differ by {moved:.2e} of their largest value "
            f"from those of the given model (allowed {limit:.1g}{'' if where is None else f': {where}'}); {why}"
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
    """Functions for the check.

    Returns:
        A function that runs a graph on the inputs of the check; one that runs the given model on them; and one that makes
        functions which run a graph on inputs changed by one rounding unit.
    """
    unit = unit_of(graph)
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
            lambda: [onnx_runner(x) for x in nudges(feeds, seed, unit)],
        )
    if given is None:
        # An exported program holds the inputs that it was exported with.
        kept = getattr(model, "example_inputs", None)
        if isinstance(kept, tuple) and len(kept) == 2 and not kept[1]:
            given = kept[0]
    inputs = fx_inputs(graph, shapes, seed) if given is None else positional(model, given)
    return (
        fx_runner(inputs),
        lambda: run_given_module(model, inputs),
        lambda: [fx_runner(x) for x in fx_nudges(inputs, seed, unit)],
    )


def load(
    model: Any,
    example_inputs: Any = None,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    *,
    overridable_initializers: bool = False,
) -> tuple[Graph, str]:
    """Import a model; returns its graph, and ``"onnx"`` or ``"fx"``.

    Args:
        model: As for ``shrink``.
        example_inputs: As for ``shrink_graph``.
        fixed_shapes: As for ``shrink``.
        overridable_initializers: As for ``shrink``.

    Raises:
        UsageError: If the model is of another kind, or fixed shapes do not fit it.
        ModelError: If it cannot be read.
    """
    return _load(model, example_inputs, fixed_shapes, overridable_initializers)


def _load(
    model: Any,
    example_inputs: Any,
    fixed_shapes: Mapping[str, Sequence[int | None]] | None,
    overridable: bool,
    remedy: str = "",
    inline: bool = False,
    opset: int | None = None,
) -> tuple[Graph, str]:
    """Like :func:`load`; ``remedy`` is how the user keeps inputs that have a default, ``inline`` and ``opset`` as for ``from_onnx``."""
    onnx_options: dict[str, Any] = {
        "overridable_initializers": overridable, "remedy": remedy, "inline": inline, "opset": opset,
    }  # fmt: skip
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        try:
            return _from_onnx(path, path, fixed_shapes, **onnx_options), "onnx"
        except ModelError as error:
            raise not_a_torch_file(path, error) from error
    kinds = _type_names(model)
    if any(kind.endswith("ModelProto") for kind in kinds):
        return _from_onnx(model, "the model", fixed_shapes, **onnx_options), "onnx"
    if opset is not None:
        raise UsageError(
            "opset is for ONNX models; that of a torch model is chosen when it is saved: save(path, opset=...)"
        )
    if fixed_shapes:
        raise UsageError(
            "fixed_shapes are for ONNX models; shapes of a torch model come from example_inputs"
        )
    if _MODULE in kinds:
        need_torch()
        from .frontends.torch.importer import from_fx

        check_torch_model(model, kinds)
        inputs = None if example_inputs is None else positional(model, example_inputs)
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
    """The full names of a model's classes; they tell its kind without an import of torch or onnx."""
    return {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}


def is_torch(model: Any) -> bool:
    """Whether a model is a torch module or an exported program."""
    return not _type_names(model).isdisjoint((_MODULE, _PROGRAM))


def _from_onnx(model: Any, name: str, fixed_shapes: Any, **options: Any) -> Graph:
    from .frontends.onnx.importer import from_onnx

    try:
        with _utf8_text(name):
            return from_onnx(model, fixed_shapes, **options)
    except (GraphshrinkError, MemoryError):
        raise
    except Exception as error:
        # onnx's checker decides whether the model is invalid or the importer has a bug.
        import onnx

        try:
            onnx.checker.check_model(model)
        except Exception as reason:
            raise ModelError(f"{name} is not valid ONNX: {one_line(reason)}") from error
        raise


@contextmanager
def _utf8_text(name: str) -> Iterator[None]:
    """Turn the error that protobuf raises for text which is not UTF-8, when it copies it, into one for the user."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is damaged: it contains text that is not UTF-8") from error


def need_torch(what: str = "shrinking a torch module") -> None:
    """Check that torch is installed.

    Raises:
        MissingExtra: If it is not.
    """
    try:
        import_module("torch")
    except ImportError as error:
        raise MissingExtra(what, "torch", "torch") from error


def _frames_inside() -> int:
    """The number of frames on the stack, from the caller on, that are this package's."""
    count, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__):
        count, frame = count + 1, frame.f_back
    return count


def _traced(model: Any, inputs: tuple[Any, ...] | None) -> Graph:
    """The graph of a module that ``torch.fx`` traces or, if that fails, ``torch.export``."""
    from .frontends.torch.folded import folded

    name = type(model).__name__
    model, weights = folded(model)
    graph = _traced_or_exported(model, name, inputs)
    if weights:
        shown = ", ".join(weights[:3]) + (", ..." if len(weights) > 3 else "")
        graph.notes.append(f"computed at every call before, a plain weight now: {shown}")
    return graph


def _traced_or_exported(model: Any, name: str, inputs: tuple[Any, ...] | None) -> Graph:
    from .frontends.torch.importer import DoesNotRun, from_fx
    from .frontends.torch.trace import traced

    failure: Exception
    try:
        found = traced(model, inputs)
        graph = from_fx(found.module, inputs)
    except DoesNotRun as error:
        reason, failure = f"the torch.fx trace of {name} does not run", error
    except ModelError:
        raise
    except Exception as error:
        reason, failure = f"torch.fx cannot trace {name} ({first_line(error)})", error
        if inputs is None:
            raise UsageError(
                f"{reason}; give example_inputs, so that torch.export can be tried, or an ExportedProgram"
            ) from error
    else:
        graph.notes += found.notes
        # Points in which the result does not behave like the given module.
        for note in found.notes:
            warnings.warn(f"{name}: {note}", stacklevel=_frames_inside() + 1)
        return graph
    assert inputs is not None
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(f"{training} is in training mode: call model.eval() first")
    from .frontends.torch.export import exported, from_export

    try:
        made = exported(model, inputs)
    except ModelError:
        raise
    except Exception as error:
        if isinstance(failure, DoesNotRun):
            raise failure from error
        raise UsageError(f"{reason}, nor can torch.export ({first_line(error)})") from error
    graph = from_export(made.program, inputs, model.forward)
    graph.notes += [made.note] if made.note else []
    graph.notes.append(
        f"{reason}: torch.export was used, and branches that depend on inputs are fixed as example_inputs "
        "take them"
    )
    return graph
