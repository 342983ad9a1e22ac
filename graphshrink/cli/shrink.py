"""The command ``shrink``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..ir.errors import UsageError
from .parameters import (
    Augment,
    AugmentTokens,
    CalibrationBatch,
    CalibrationPath,
    CalibrationSamples,
    CustomOps,
    DeviceName,
    FixedShapes,
    FrontierPath,
    InputShapes,
    Json,
    Labels,
    LatencyBudget,
    LearningRate,
    MacsBudget,
    MaxLoss,
    Measure,
    PreprocessText,
    RayAddress,
    Repaired,
    Seed,
    SizeBudget,
    Speedup,
    Threads,
    Workers,
    whole_number,
)
from .planned import (
    DEVICE,
    THREADS,
    calibration_data,
    check_device,
    chosen_targets,
    chosen_workers,
    made_plan,
    read_plan,
    summary,
    write_frontier,
)
from .reports import check_report, device_table, report_data, write_report
from .target_options import given_options, with_target_options
from .terminal import STDOUT, console, fixed_shapes_of, shapes_of, writable
from .written import approximation, bytes_read, written

if TYPE_CHECKING:
    from ..api import ShrinkResult
    from ..emission import Emission
    from ..ir import Graph
    from ..planning.plan import Plan
    from ..report import Report
    from ..training.recovery.files import RecoveredFile


@with_target_options
def shrink(
    source: Annotated[str, typer.Argument(metavar="IN", help="The ONNX file to read.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to write.")],
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The pipeline; see 'graphshrink passes'.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the model before and after every pass.")
    ] = False,
    shapes: InputShapes = None,
    fixed: FixedShapes = None,
    overridable: Annotated[
        bool,
        typer.Option(
            "--overridable-initializers",
            help="Keep initializers that are also listed as inputs as inputs; without it they are weights.",
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Convert the model to this newer opset first, by onnx's converter: passes such as quantize need 13.",
        ),
    ] = None,
    calibration: CalibrationPath = None,
    calibration_samples: CalibrationSamples = None,
    calibration_batch: CalibrationBatch = None,
    preprocess: PreprocessText = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The original network, for the pass reconstruct, if IN was shrunk already.",
        ),
    ] = None,
    speedup: Speedup = None,
    latency: LatencyBudget = None,
    macs: MacsBudget = None,
    size: SizeBudget = None,
    max_loss: MaxLoss = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Apply a plan that 'graphshrink plan' wrote."),
    ] = None,
    device: DeviceName = None,
    threads: Threads = None,
    score: Measure = None,
    workers: Workers = 0,
    ray: RayAddress = None,
    frontier: FrontierPath = None,
    repair: Repaired = True,
    recover: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 10**6),
            metavar="EPOCHS",
            help="Train the shrunk network to give the outputs of the given one, on the calibration samples without labels.",
        ),
    ] = None,
    augment_tokens: AugmentTokens = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write checkpoints of --recover there; the same command goes on from the last one.",
        ),
    ] = None,
    labels: Labels = None,
    lr: LearningRate = None,
    measure: Measure = None,
    augment: Augment = True,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the report: a page if FILE ends in .html, else JSON; - is standard output, like --json.",
        ),
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    dump: Annotated[
        str | None,
        typer.Option("--dump-dir", metavar="FOLDER", help="Write the graph after every pass."),
    ] = None,
    libraries: CustomOps = None,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            help="Show what was left alone, and why; -vv logs each pass.",
        ),
    ] = 0,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The kind of file to write: onnx, tensorrt, tflite, torch, or a target of another package. Options of any target "
            "can be given in its text, 'NAME{option=value}'. If not given, the suffix of OUT decides.",
        ),
    ] = None,
    **target_options: Any,
) -> None:
    """Shrink an ONNX file."""
    from ..api import shrink as run
    from ..emission import emission
    from ..guarded import KeepData, check_outputs, files_read
    from ..page.outline import Outline
    from ..passes import Pipeline
    from ..passes.infra.default import DEFAULT_PIPELINE
    from ..running.sessions import custom_ops
    from .progress import watch_passes
    from .recover import destination, labels_read

    if report == STDOUT:
        report, as_json = None, True
    # Everything that can be refused is refused before the work, not after it.
    chosen = emission(out, target, given_options(target_options))
    outputs = [str(file) for file in chosen.files]
    for file in outputs:
        writable(file)
    if report is not None:
        check_report(report)
        outputs.append(report)
    if frontier is not None:
        writable(frontier, ".csv")
        outputs.append(frontier)
    if dump == STDOUT:
        raise UsageError("--dump-dir takes a folder, not standard output; ./- is a folder")
    pipeline = Pipeline(DEFAULT_PIPELINE if passes is None else passes)
    read = [*files_read(calibration, pipeline)]
    if plan is not None:
        read.append(("the plan", Path(plan)))
    if reference is not None:
        read.append(("the reference", Path(reference)))
    read += labels_read(labels)
    check_outputs(chosen, {"--report": report, "--frontier": frontier}, source, read)
    data = calibration_data(calibration, calibration_samples, calibration_batch, preprocess)
    targets = chosen_targets(
        speedup=speedup, latency=latency, macs=macs, size=size, max_loss=max_loss
    )
    shown: Plan | None = None
    if frontier is not None and not targets and plan is None:
        raise UsageError("--frontier is the trade-off of a plan: give a target such as --speedup")
    if not repair and not targets:
        raise UsageError("--no-repair is for a new plan: give a target such as --speedup")
    if (workers or ray is not None) and not targets:
        raise UsageError("--workers and --ray are for a new plan: give a target such as --speedup")
    if score is not None and not targets:
        raise UsageError("--score is for a new plan: give a target such as --speedup")
    check_device(targets, device, threads)
    training: dict[str, Any] = {
        "labels": labels, "lr": lr, "measure": measure or "auto", "augment": augment,
    }  # fmt: skip
    if recover is None:
        given = {
            "--checkpoint": checkpoint, "--labels": labels, "--lr": lr, "--measure": measure,
            "--augment-tokens": augment_tokens,
        }  # fmt: skip
        unused = [option for option, value in given.items() if value is not None]
        if unused or not augment:
            option = unused[0] if unused else "--no-augment"
            raise UsageError(f"{option} is for --recover EPOCHS")
    if passes is not None and (targets or plan is not None):
        raise UsageError("a plan has its own passes: leave out --passes")
    if opset is not None and (targets or plan is not None or recover is not None):
        raise UsageError(
            f"a plan and --recover need the file that they are for: first convert it, by graphshrink {source} newer.onnx --passes '' --opset {opset}"
        )
    if targets and plan is not None:
        raise UsageError("--plan has its target already: leave out the other")
    if recover is not None:
        from .recover import augmentation

        training["augment"] = augmentation(augment, augment_tokens)
        with custom_ops(libraries or ()):
            _check_recovery(source, data, checkpoint, training)
    if targets or plan is not None:
        shown = (
            made_plan(
                source,
                data,
                targets,
                device,
                threads,
                fixed_shapes_of(fixed),
                verbose,
                score=score,
                frontier=frontier is not None,
                repair=repair,
                workers=chosen_workers(workers, ray),
            )
            if plan is None
            else read_plan(plan, source, data, fixed)
        )
        pipeline = shown.pipeline()
    wanted = report is not None or as_json
    table = None
    if report is not None and plan is None:
        table = device_table(shown, device or DEVICE, THREADS if threads is None else threads)
    outline = Outline(timed=table is not None)
    with (
        custom_ops(libraries or ()),
        watch_passes(len(pipeline), verbose=bool(verbose)) as watch,
    ):
        result = run(
            source,
            pipeline,
            check=check,
            calibration=data,
            seed=seed,
            shapes=shapes_of(shapes),
            fixed_shapes=shown.fixed_shapes if shown else fixed_shapes_of(fixed),
            overridable_initializers=overridable,
            opset=opset,
            dump=dump,
            observers=[watch, KeepData(outputs), *([outline] if wanted else [])],
            target=chosen.target.name,
            progress=watch.progress_within,
            reference=reference,
        )
        result.report.planned = shown is not None
        if (note := _other_device(shown, chosen)) is not None:
            result.report.notes.append(note)
        recovered = None
        if recover is not None:
            recovered = _recovered(result, source, data, recover, checkpoint, seed, training)
        if data is not None:
            measured = getattr(chosen.options, "needs_ranges", False)
            chosen = _with_ranges(chosen, result.graph, data)
            if measured or shown is not None:
                result.report.calibration_used = True
        size = bytes_read(source, result.graph)
        path: Path | None = chosen.path
        if recovered is not None:
            path = destination(recovered, out, source, checkpoint)
        if path is not None:
            result.emit(replace(chosen, path=path))
    if recovered is not None and recovered.interrupted:
        raise KeyboardInterrupt
    if frontier is not None and shown is not None:
        write_frontier(frontier, shown)
    found = report_data(result, outline, source, seed, shown, table) if wanted else {}
    if report is not None:
        write_report(report, found)
    _print(result, written(result.report, size), found if as_json else None, verbose)
    if shown is not None and not as_json:
        typer.echo(summary(shown))
        for note in shown.notes:
            typer.echo(f"note: {note}")
    undone = [r.problem for r in result.report.passes if r.rolled_back]
    if undone:
        typer.echo(f"graphshrink: rolled back: {'; '.join(undone)}", err=True)
        raise typer.Exit(1)


def _other_device(plan: Plan | None, chosen: Emission) -> str | None:
    """A note if a plan was timed in another runtime than the one that the file is for."""
    wanted = {"tflite": "litert-cpu", "tensorrt": "tensorrt"}.get(chosen.target.name)
    timed = "" if plan is None else str(plan.cost.get("device", ""))
    if wanted is None or not timed or timed.startswith(f"{wanted} "):
        return None
    return f"the plan was timed on {timed.split(' ')[0]}, and the file is for another runtime: --device {wanted} times it there"


def _check_recovery(
    source: str, data: Any, checkpoint: str | None, training: dict[str, Any]
) -> None:
    """Refuse a recovery that cannot be made, before the work.

    Raises:
        UsageError: If there are no samples, they or their labels do not fit the model, or the checkpoints have no folder.
        MissingExtra: If torch is not installed.
    """
    from ..api import need_torch

    if data is None:
        raise UsageError("--recover needs samples: give --calibration PATH")
    if checkpoint is not None and Path(checkpoint).is_file():
        raise UsageError(f"--checkpoint {checkpoint} is a file: give a folder")
    need_torch("recovery")
    from ..training.recovery.files import check_recovery

    check_recovery(source, data, labels=training["labels"], measure=training["measure"])


def _recovered(
    result: ShrinkResult[Any],
    source: str,
    data: Any,
    epochs: int,
    checkpoint: str | None,
    seed: int,
    training: dict[str, Any],
) -> RecoveredFile:
    """Train the result's graph to do what the given model does; a note says what that achieved."""
    from .recover import recovery_text, run_recovery

    done = run_recovery(result.graph, source, data, epochs, checkpoint, seed=seed, **training)
    if done.improved:
        result.graph = done.reread()
    result.report.calibration_used = result.report.recovered = True
    result.report.notes += [recovery_text(done), *done.notes]
    return done


def _print(
    result: ShrinkResult[Any], files: str, found: dict[str, Any] | None, verbose: int
) -> None:
    """Print the report: as JSON if its data are given, as tables, or in one line and the notes; ``files`` says what was written."""
    report = result.report
    if found is not None:
        typer.echo(json.dumps(found, indent=1))
    elif verbose or sys.stdout.isatty():
        out = console()
        report.render(out, verbose=bool(verbose))
        line = f"wrote {files}{approximation(report)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        typer.echo(_summary(report, files))
        undone = [r.problem for r in report.passes if r.problem and not r.rolled_back]
        for note in (*undone, *report.warnings, *report.all_notes):
            typer.echo(f"note: {note}")


def _summary(report: Report, files: str) -> str:
    left = sum(len(r.refusals) for r in report.passes)
    checked = [r.error for r in report.passes if r.error is not None]
    error = f", error {max(checked):.1e}" if checked else ""
    alone = (
        f"; {left:,} {'node' if left == 1 else 'nodes'} left alone (-v says why)" if left else ""
    )
    return f"{files}, {report.summary}{error}{alone}{approximation(report)}"


def _with_ranges(chosen: Emission, graph: Graph, data: Any) -> Emission:
    """Give a target in low precision the calibration data, so that it can measure how large activations get."""
    from ..data.calibration import named_batches

    if not getattr(chosen.options, "needs_ranges", False):
        return chosen
    return replace(chosen, options=replace(chosen.options, ranges=named_batches(graph, data)))
