"""Conversion time and latency compared with litert-torch, Google's converter; and a shrunk MobileNetV2 with the original.

    python benchmarks/tflite.py --oracle /path/to/python [--markdown benchmarks/results/tflite.md]

``--oracle`` is the Python of another environment in which litert-torch is installed (it needs 2 GB of packages, so it is not
a dependency). Both converters get the same modules with the same weights; each conversion is timed inside its process, after
a small one that loads all libraries: the median of three for ours, one run for the other. Latencies are paired: runs alternate in one
process, and the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

MODELS = ("mobilenet_v2", "resnet18", "efficientnet_b0", "densenet121", "vit")
SIZE = 224
BLOCKS = 6
"""How many of the first blocks of MobileNetV2 are merged."""
BARS = {"latency": 1.02, "conversion": 10.0}

ORACLE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import litert_torch
from zoo.models import make
litert_torch.convert(make("mobilenet_v2", small=True), (torch.zeros(1, 3, 96, 96),))
found = {}
for name, size in json.loads(sys.argv[3]).items():
    model, x = make(name), torch.zeros(1, 3, size, size)
    start = time.perf_counter()
    made = litert_torch.convert(model, (x,))
    made.export(f"{sys.argv[2]}/{name}-litert.tflite")
    found[name] = time.perf_counter() - start
print("RESULT" + json.dumps(found))
"""


def sizes() -> dict[str, int]:
    """The side of the images of each model."""
    return {name: 64 if name == "vit" else SIZE for name in MODELS}


def convert_ours(folder: Path) -> dict[str, float]:
    """Write the files; returns the seconds from the module to the file."""
    import torch
    from zoo.models import make

    from graphshrink import shrink

    torch.set_num_threads(1)
    shrink(make("mobilenet_v2", small=True), example_inputs=(torch.zeros(1, 3, 96, 96),)).save(
        folder / "warm-up.tflite"
    )
    found = {}
    for name, size in sizes().items():
        times = []
        for _ in range(3):
            model = make(name)
            start = time.perf_counter()
            shrink(model, example_inputs=(torch.zeros(1, 3, size, size),)).save(
                folder / f"{name}-ours.tflite"
            )
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def convert_theirs(python: str, folder: Path) -> dict[str, float]:
    """The same by litert-torch, in its own process."""
    done = subprocess.run(
        [python, "-c", ORACLE, str(ROOT / "tests"), str(folder), json.dumps(sizes())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            found: dict[str, float] = json.loads(line.removeprefix("RESULT"))
            return found
    raise SystemExit(f"litert-torch failed:\n{done.stderr[-2000:]}")


def paired(first: Path, second: Path, threads: int, pairs: int) -> tuple[float, float, str]:
    """Median milliseconds of both, and the ratio of the first time to the second with its interval."""
    import numpy as np

    from graphshrink.running.latency import paired_latency
    from graphshrink.running.litert import LiteModel

    models = []
    for path in (first, second):
        model = LiteModel(path, threads)
        rng = np.random.default_rng(0)
        model.feed(
            {
                p.name: rng.standard_normal([d or 1 for d in p.type.shape or ()]).astype(np.float32)
                for p in model.inputs
            }
        )
        models.append(model)
    found = paired_latency(models[0].invoke, models[1].invoke, pairs=pairs, warm_up=5)
    low, high = found.interval
    return *found.milliseconds, f"{found.speedup:.3f} ({low:.3f} to {high:.3f})"


def shrunk(folder: Path) -> tuple[Path, Path]:
    """MobileNetV2, and the same with the activations of its first blocks removed by name, padding hoisted and blocks merged."""
    import torch
    from zoo.models import make

    from graphshrink import shrink
    from graphshrink.passes.depth.remove_activations import RemoveActivations

    x = torch.zeros(1, 3, SIZE, SIZE)
    plain, small = folder / "original.tflite", folder / "shrunk.tflite"
    model = make("mobilenet_v2")
    shrink(model, example_inputs=(x,)).save(plain)
    # Layer 0 is the stem; block i of layers 1 to 17 has its activations in body.0 and body.1.
    names = tuple(
        f"{i}.body.{j}.2" for i in range(1, 1 + BLOCKS) for j in range(1 if i == 1 else 2)
    )  # The first block does not expand.
    passes: list[Any] = [
        RemoveActivations(names=names, ending="relu6"), "hoist-padding", "fold-constants", "merge-linear", "prune-dead"
    ]  # fmt: skip
    shrink(model, passes, example_inputs=(x,)).save(small)
    return plain, small


def main() -> int:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--oracle", help="the Python of an environment with litert-torch")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    options = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = convert_ours(folder)
        if options.oracle:
            theirs = convert_theirs(options.oracle, folder)
            lines += [
                "| model | conversion, s | litert-torch, s | times faster | threads | ms | litert-torch, ms | "
                "ratio (95 % interval) |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            for model in MODELS:
                for threads in (1, 2):
                    a, b, ratio = paired(
                        folder / f"{model}-ours.tflite", folder / f"{model}-litert.tflite", threads, options.pairs
                    )  # fmt: skip
                    lines.append(
                        f"| {model} | {ours[model]:.2f} | {theirs[model]:.1f} | "
                        f"{theirs[model] / ours[model]:.0f} | {threads} | {a:.2f} | {b:.2f} | {ratio} |"
                    )
        plain, small = shrunk(folder)
        lines += [
            "",
            "| MobileNetV2 | threads | ms | shrunk, ms | times faster (95 % interval) |",
            "| --- | --- | --- | --- | --- |",
        ]
        for threads in (1, 2):
            a, b, ratio = paired(plain, small, threads, options.pairs)
            lines.append(
                f"| 224, first {BLOCKS} blocks merged | {threads} | {a:.2f} | {b:.2f} | {ratio} |"
            )
    print("\n".join(lines))
    if options.markdown is not None:
        head = (
            f"Made by `python benchmarks/tflite.py --oracle PYTHON`; bars: {json.dumps(BARS)}. "
            "Ratios are ours over theirs. On a busy machine of two cores the rows with two threads are not reliable: "
            "the same file compared with itself gave between 0.9 and 1.6 for the smallest model.\n\n"
        )
        options.markdown.write_text(head + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
