"""The command line: ``python -m fuzz --help``, in the folder ``tests``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from . import findings
from .farm import Settings, long_run, worker
from .trial import TARGETS, Found, front, fronts, jobs_of, smallest, trial

FOLDER = Path(__file__).parents[2] / "local" / "fuzz"


def main() -> int:
    """Run; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--seed", type=int, help="one seed alone, with all its jobs; with --minutes the first seed"
    )
    parser.add_argument("--minutes", type=float, help="seeds for so long, on all cores")
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        default=[],
        help="only this target; may be given again",
    )
    parser.add_argument(
        "--front", choices=("onnx", "torch"), help="with --seed: models of one kind only"
    )
    parser.add_argument("--job", help="with --seed: one job only")
    parser.add_argument("--show", action="store_true", help="with --seed: print the case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--share", type=float, default=0.35, help="the part of its jobs that each case does"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where findings go")
    parser.add_argument(
        "--replay", type=Path, help="the folder of a finding: run its smallest case"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        said = json.loads(options.worker)
        worker(
            Settings(**{**said, "folder": Path(said["folder"]), "targets": tuple(said["targets"])})
        )
        return 0
    targets = tuple(options.target) or TARGETS
    if options.replay is not None:
        return _replay(options.replay)
    if options.minutes is None:
        if options.seed is None:
            parser.error("give --seed, --minutes or --replay")
        return _one(options, targets)
    first = int(time.time()) * 1000 if options.seed is None else options.seed
    sys.stderr.write(f"seeds from {first} on, findings in {options.folder}\n")
    settings = Settings(targets, options.folder, share=options.share)
    tally = long_run(settings, first, time.monotonic() + 60 * options.minutes, options.workers)
    sys.stdout.write(tally.summary() + "\n")
    return 1 if tally.found else 0


def _one(options: argparse.Namespace, targets: tuple[str, ...]) -> int:
    code = 0
    for name in [options.front] if options.front else fronts(targets):
        jobs = [options.job] if options.job else jobs_of(name, options.seed, targets, 1.0)
        if options.show:
            sys.stdout.write(findings.describe(front(name).make(options.seed)) + "\n")
        for outcome, case in trial(name, options.seed, jobs):
            sys.stdout.write(f"{name} {outcome.job}: {outcome.kind} {outcome.what}\n")
            if outcome.found:
                code = 1
                small = smallest(name, Found(outcome, case))
                place = findings.write(
                    options.folder, options.seed, name, small.outcome, small.case
                )
                sys.stdout.write((place / "report.txt").read_text() + "\n")
    return code


def _replay(place: Path) -> int:
    said, case = findings.read(place)
    outcome = front(said["front"]).run(case, said["job"])
    sys.stdout.write(f"{outcome.kind} {outcome.what}\n{outcome.detail}\n")
    return 1 if outcome.found else 0


if __name__ == "__main__":
    sys.exit(main())
