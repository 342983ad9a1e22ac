"""The command ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ir.errors import UsageError
from .parameters import (
    CalibrationBatch,
    CalibrationPath,
    CalibrationSamples,
    DeviceName,
    FixedShapes,
    FrontierPath,
    Json,
    LatencyBudget,
    MacsBudget,
    MaxLoss,
    Measure,
    PreprocessText,
    RayAddress,
    Repaired,
    SizeBudget,
    Speedup,
    Threads,
    Workers,
)
from .planned import (
    calibration_data,
    check_device,
    chosen_targets,
    chosen_workers,
    made_plan,
    summary,
    write_frontier,
)
from .reports import check_report, command, is_page, write_report
from .terminal import fixed_shapes_of, writable


def plan(
    source: Annotated[str, typer.Argument(metavar="IN", help="The ONNX file to plan for.")],
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The plan to write, as JSON.")
    ],
    calibration: CalibrationPath = None,
    calibration_samples: CalibrationSamples = None,
    calibration_batch: CalibrationBatch = None,
    preprocess: PreprocessText = None,
    speedup: Speedup = None,
    latency: LatencyBudget = None,
    macs: MacsBudget = None,
    size: SizeBudget = None,
    max_loss: MaxLoss = None,
    device: DeviceName = None,
    threads: Threads = None,
    fixed: FixedShapes = None,
    score: Measure = None,
    workers: Workers = 0,
    ray: RayAddress = None,
    frontier: FrontierPath = None,
    repair: Repaired = True,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="Write a page with the plan, too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan what each region of a network becomes, so that it gets faster and loses little.

    Regions become thin or linear, or go; nothing is trained and no labels are needed. 'graphshrink IN OUT --plan FILE' applies the plan.
    """
    targets = chosen_targets(
        speedup=speedup, latency=latency, macs=macs, size=size, max_loss=max_loss
    )
    if not targets:
        raise UsageError("give a target: --speedup, --latency, --macs, --size or --max-loss")
    check_device(targets, device, threads)
    from ..guarded import check_different, files_read
    from ..ir.files import check_overwrites
    from ..passes import Pipeline

    writable(out, ".json")
    read = [("the model", Path(source)), *files_read(calibration, Pipeline("prune-dead"))]
    outputs = [out]
    if frontier is not None:
        writable(frontier, ".csv")
        outputs.append(frontier)
    if report is not None:
        if not is_page(report):
            raise UsageError(f"--report {report} is a page, .html: -o has the plan as JSON")
        check_report(report)
        outputs.append(report)
    texts = {"-o": out, "--frontier": frontier, "--report": report}
    check_different({option: path for option, path in texts.items() if path is not None})
    check_overwrites(outputs, read)
    data = calibration_data(calibration, calibration_samples, calibration_batch, preprocess)
    made = made_plan(
        source,
        data,
        targets,
        device,
        threads,
        fixed_shapes_of(fixed),
        score=score,
        frontier=frontier is not None,
        repair=repair,
        workers=chosen_workers(workers, ray),
    )
    made.save(out)
    if frontier is not None:
        write_frontier(frontier, made)
    if report is not None:
        from ..page import Run, plan_document

        write_report(report, plan_document(made, Run(command(), source, outputs=[Path(out)])))
    typer.echo(made.to_json() if as_json else f"{out}: {summary(made)}", nl=not as_json)
    for note in made.notes:
        typer.echo(f"note: {note}", err=as_json)
    if made.not_understood and not as_json:
        from ..not_understood import summary as line

        shown = f"'graphshrink inspect {source}' lists them"
        typer.echo(f"note: {line(made.not_understood, shown)}")
