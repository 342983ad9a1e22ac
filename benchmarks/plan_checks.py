"""Two promises of plans, on EfficientNet-Lite0: latencies are as planned, and no plan by hand is better.

Files and folders are those of ``planner.py``::

    python benchmarks/plan_checks.py --weights SITE --data DATA --work WORK

- *latency*: networks are planned for several speed-ups; each is timed in turn with the given network, again and apart from the planner. The table compares
  that with the latency that the plan predicts from other networks.
- *by hand*: sets of replacements that one would choose without a planner. Each is timed, and a network is planned for its latency; both losses are
  those of the scoring samples, which no fit has seen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from planner import Benchmark

import graphshrink
from graphshrink.ir import UsageError
from graphshrink.planning.candidates import Candidate
from graphshrink.planning.planner import Target, finished, make_plan
from graphshrink.planning.quality import Scorer
from graphshrink.planning.samples import read_samples
from graphshrink.planning.sites import find_sites
from graphshrink.planning.survey import apply, fit

SPEEDUPS = tuple(round(1.05 + 0.05 * i, 2) for i in range(20))
RESULTS = Path(__file__).parent / "results" / "plan_checks.md"


def planned(bench: Benchmark, target: Target) -> tuple[Path, float, float]:
    """The file of a plan, its predicted milliseconds and its loss."""
    made = make_plan(
        bench.given, bench.calibration, target, bench.cost, repair=False,
        progress=lambda done, total, what: print(f"\r{target.value:.4g}: {what} {done}/{total}   ", end="", file=sys.stderr),
    )  # fmt: skip
    file = bench.work / "checked.onnx"
    made.apply().save(file)
    # The plan's own figure for the given network, so that the ratio is what was predicted.
    return file, made.before / made.predicted, made.loss


def latencies(bench: Benchmark, speedups: Sequence[float], rounds: int) -> list[str]:
    """The table of predicted and measured speeds."""
    lines = [
        "| wanted | predicted | measured | quartiles | off |", "| ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    off = []
    for wanted in speedups:
        try:
            file, predicted, _ = planned(bench, Target("speedup", wanted))
        except UsageError as error:
            lines.append(f"| {wanted:.2f}x | {error} | | | |")
            continue
        times = bench.timed([bench.given, file], rounds)
        low, middle, high = np.quantile(times[0] / times[1], (0.25, 0.5, 0.75))
        off.append(abs(middle / predicted - 1))
        spread = f"{low:.2f} to {high:.2f}"
        lines.append(
            f"| {wanted:.2f}x | {predicted:.2f}x | {middle:.2f}x | {spread} | {off[-1]:.1%} |"
        )
    lines += ["", f"Median of {len(off)}: {np.median(off):.1%} off, at most {max(off):.1%}."]
    return lines


def by_hand(bench: Benchmark) -> list[str]:
    """The table of plans by hand beside planned ones."""
    graph = bench.prepared()
    samples = read_samples(graph, str(bench.calibration))
    found = fit(graph, find_sites(graph).found, samples, {}, lambda *_: None)
    scorer = Scorer(graph, samples.scoring)
    blocks = [c.site for c in found if c.label == "skip"]

    def some(label: str, sites: Sequence[object] | None = None) -> list[Candidate]:
        fitting = [c for c in found if c.label == label and (sites is None or c.site in sites)]
        return free(fitting)

    def halves() -> list[Candidate]:
        made = []
        for site in {c.site: None for c in found if c.site.closer is not None}:
            own = [c for c in found if c.site is site]
            assert site.group is not None
            wanted = site.group.size / 2
            made.append(min(own, key=lambda c: abs(int(c.label.split()[1]) - wanted)))
        return free(made)

    plans: dict[str, Callable[[], list[Candidate]]] = {
        "all blocks become linear, 3x3": lambda: some("linear 3x3", blocks),
        "all blocks become linear, depthwise and 1x1": lambda: some("linear depthwise 3x3", blocks),
        "all blocks skipped": lambda: some("skip"),
        "first three blocks skipped": lambda: some("skip", blocks[:3]),
        "first six blocks skipped": lambda: some("skip", blocks[:6]),
        "last four blocks skipped": lambda: some("skip", blocks[-4:]),
        "half of all hidden channels": halves,
    }
    lines = [
        "| by hand | speed | its loss | planned | its loss |", "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, chosen in plans.items():
        candidates = chosen()
        loss = scorer.loss(apply(graph, candidates))
        before, after = bench.cost.networks(
            [graphshrink.shrink(bench.given, []).graph, finished(graph, candidates)]
        )
        if after >= before:
            lines.append(f"| {name} | {before / after:.2f}x | {loss:.3f} | | |")
            continue
        _, speed, own = planned(bench, Target("speedup", before / after))
        lines.append(f"| {name} | {before / after:.2f}x | {loss:.3f} | {speed:.2f}x | {own:.3f} |")
    return lines


def free(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in order, without those that one before them excludes."""
    made: list[Candidate] = []
    for candidate in candidates:
        if not any(candidate.site.excludes(c.site) for c in made):
            made.append(candidate)
    return made


def main() -> None:
    """Check both promises and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder with the two packages")
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that is kept"
    )
    parser.add_argument("--samples", type=int, default=128, help="number of training photographs")
    parser.add_argument("--speedups", default=",".join(f"{s:g}" for s in SPEEDUPS))
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    bench = Benchmark(args.weights, args.data, args.work, args.samples)
    hand = by_hand(bench)
    times = latencies(bench, [float(s) for s in args.speedups.split(",")], args.rounds)
    versions = " ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "numpy")
    )
    lines = [
        "# Are plans as good as they say?", "",
        "    python benchmarks/plan_checks.py --weights SITE --data DATA --work WORK", "",
        f"EfficientNet-Lite0, {args.samples} photographs, nothing trained, no repair. One thread of {bench.cost.table.device.identity}. "
        f"graphshrink {graphshrink.__version__}, {versions}.", "",
        "## Latency", "", f"Predicted from other networks; measured in {args.rounds} rounds in turn with the given network, medians and quartiles.", "",
        *times, "", "## Plans by hand", "", "Losses are KL divergences in nats on samples that no fit has seen.", "", *hand,
    ]  # fmt: skip
    args.out.write_text("\n".join(lines) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
