"""Plans for the commands ``plan`` and ``shrink``: options, progress, and a summary."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import typer

from ..ir.errors import UsageError
from .terminal import fixed_shapes_of

if TYPE_CHECKING:
    from ..planning.plan import Plan


DEVICE, THREADS = "ort-cpu", 1
"""The device that plans are timed on, and the threads of its runtime, if none are given."""


def calibration_data(
    path: str | None, samples: int | None, batch: int | None, preprocess: str | None
) -> Any:
    """The calibration data of the options, or ``None``.

    Raises:
        UsageError: If an option about calibration data is given without them.
    """
    if path is None:
        for option, value in (
            ("--calibration-samples", samples),
            ("--calibration-batch", batch),
            ("--preprocess", preprocess),
        ):
            if value is not None:
                raise UsageError(f"{option} is about calibration data: give --calibration PATH")
        return None
    from ..data.calibration import CalibrationData

    return CalibrationData(path, samples, batch, preprocess)


def chosen_targets(**targets: float | None) -> dict[str, float]:
    """The targets that were given; at most one.

    Raises:
        UsageError: If there are several.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise UsageError(
            f"give one target, not {' and '.join('--' + n.replace('_', '-') for n in given)}"
        )
    return given


TIMED = ("speedup", "latency", "max_loss")
"""The targets of plans that are timed on a device."""


def check_device(targets: Collection[str], device: str | None, threads: int | None) -> None:
    """Refuse a device that nothing is timed on.

    Args:
        targets: The names of the targets of a new plan; none without one.
        device: The device, if it is given.
        threads: Its threads, if they are given.

    Raises:
        UsageError: If nothing is timed.
    """
    given = {"--device": device, "--threads": threads}
    for option, value in given.items():
        if value is not None and not any(target in TIMED for target in targets):
            why = "is not timed" if targets else "has no target"
            raise UsageError(
                f"{option} is for plans that are timed, and this one {why}: leave it out, or give a target such as --speedup"
            )


def chosen_workers(workers: int, ray: str | None) -> int | str:
    """The workers of the options.

    Raises:
        UsageError: If both are given, or the address is empty.
        MissingExtra: If Ray is not installed.
    """
    if ray is None:
        return workers
    if workers or not ray:
        raise UsageError("give --workers N or --ray ADDRESS")
    from ..planning.ray_workers import ray_package

    ray_package()
    return ray


def made_plan(
    source: str,
    data: Any,
    targets: dict[str, float],
    device: str | None,
    threads: int | None,
    fixed: dict[str, tuple[int | None, ...]],
    verbose: int = 0,
    score: str | None = None,
    frontier: bool = False,
    repair: bool = True,
    workers: int | str = 0,
) -> Plan:
    """Plan for a file, with progress on standard error.

    Raises:
        UsageError: If there are no calibration data; else as for :func:`graphshrink.plan`.
    """
    if data is None:
        raise UsageError("a plan needs samples: give --calibration PATH")
    from ..planning.planner import plan
    from .progress import watch_passes

    try:
        with watch_passes(1, verbose=bool(verbose)) as watch:
            return plan(
                source,
                data,
                **targets,
                device=device or DEVICE,
                threads=THREADS if threads is None else threads,
                score=score or "auto",
                fixed_shapes=fixed,
                frontier=frontier,
                repair=repair,
                workers=workers,
                progress=watch.progress_within,
            )
    except KeyboardInterrupt:
        from ..planning.latency import default_path

        typer.echo(
            f"graphshrink: what was measured and scored is kept in {default_path()}; "
            "the same command goes on from there",
            err=True,
        )
        raise


def read_plan(path: str, source: str, data: Any, fixed: list[str] | None) -> Plan:
    """Read a plan for a file.

    Raises:
        UsageError: If it is not a plan for this file, or shapes are fixed differently.
    """
    from ..planning.plan import Plan

    plan = Plan.load(path)
    shapes = {name: list(shape) for name, shape in fixed_shapes_of(fixed).items()}
    if shapes and shapes != plan.fixed_shapes:
        raise UsageError(f"the plan {path} fixes other shapes: leave out --fix-shape")
    plan.bind(source, data)
    return plan


def write_frontier(path: str, plan: Plan) -> None:
    """Write the trade-off of a plan as CSV, whole or not at all.

    Raises:
        UsageError: If the file cannot be written.
    """
    from ..ir.files import write_text
    from ..planning.frontier import to_csv

    write_text(path, to_csv(plan.frontier, plan.before, str(plan.cost.get("unit", ""))))


def summary(plan: Plan) -> str:
    """What a plan does, in one line."""
    from ..planning.costs import cost_text

    unit = plan.cost.get("unit", "")
    device = plan.cost.get("device")
    # The name is a key of stored latencies, too.
    where = f" on {re.sub(r'(?<= )1 threads', '1 thread', device)}" if device else ""
    expected = f", predicted {plan.before / plan.predicted:.2f}x" if plan.predicted else ""
    layers = len({r["layer"] for r in plan.repairs})
    repaired = f", {layers} layer{'' if layers == 1 else 's'} corrected" if layers else ""
    before = cost_text(plan.before, unit).removesuffix(f" {unit}")
    after = cost_text(plan.after, unit)
    return (
        f"{len(plan.sites)} of {len({c.site for c in plan.menu})} regions replaced: {before} -> {after}"
        f"{where} ({plan.speedup:.2f}x{expected}), loss {plan.loss:.3g}{_loss_unit(plan)}{repaired}"
    )


def _loss_unit(plan: Plan) -> str:
    from ..planning.quality import DISTRIBUTIONS

    kinds = set(plan.measures)
    if kinds and kinds <= set(DISTRIBUTIONS):
        return " nats"
    return " of the outputs' variance" if kinds == {"error"} else ""
