"""Whole-process time of ``graphshrink in out`` compared with ``onnxslim in out``, and its growth with the size of the graph.

Runs of both alternate, and each pair gives one ratio; graphshrink is faster if it is below 1. The networks are those
of ``tests/zoo``, exported without optimization, so that there is work to do. Run from a checkout::

    python benchmarks/compile_time.py [--rounds 9] [--models resnet50,...] [--json]

The exit code is 1 when a target is missed: a median ratio above 1, or a chain of 100,000 nodes that takes
more than 12 times as long as one of 10,000.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "local" / "benchmarks"
"""The cache of exported models between runs; the folder is not part of the repository."""

MODELS = ("resnet50", "mobilenet_v2", "densenet121")
LENGTHS = (10_000, 100_000)
MOST_RATIO = 1.0
MOST_GROWTH = 12.0


def seconds(command: list[str]) -> float:
    """The wall time of a command from start to exit."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return taken


def tool(name: str) -> str:
    """The path of a command in this environment."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if found is None:
        sys.exit(f'{name} is not installed beside {sys.executable}: pip install -e ".[dev]"')
    return found


def network(name: str) -> Path:
    """The full-size network, exported by torch.onnx without optimization."""
    source = ROOT / "tests" / "zoo" / "models.py"
    path = CACHE / f"{name}.onnx"
    if path.exists() and path.stat().st_mtime > source.stat().st_mtime:
        return path
    sys.path.insert(0, str(ROOT / "tests"))
    import logging

    import torch
    from zoo.models import make

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    CACHE.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=CACHE) as folder:
        warnings.simplefilter("ignore")
        image = torch.randn(1, 3, 224, 224)
        torch.onnx.export(make(name), (image,), f"{folder}/m.onnx", dynamo=True, verbose=False,
                          optimize=False, external_data=False)  # fmt: skip
        os.replace(f"{folder}/m.onnx", path)
    return path


def chain(length: int, path: Path) -> Path:
    """Alternating 1x1 convolutions and ReLUs: no layers can merge, but all must be examined."""
    weight = np.full((4, 4, 1, 1), 0.25, np.float32)
    nodes = []
    for i in range(0, length, 2):
        nodes.append(helper.make_node("Conv", [f"v{i}", "w"], [f"v{i + 1}"]))
        nodes.append(helper.make_node("Relu", [f"v{i + 1}"], [f"v{i + 2}"]))
    shape = [1, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"v{length}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def spread(times: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def against(name: str, path: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Time both tools in turn on one file; the first round warms the disk cache and is not counted."""
    commands = [[tool(t), str(path), str(out)] for t in ("graphshrink", "onnxslim")]
    pairs: list[tuple[float, float]] = []
    nodes: list[int] = [0, 0]
    for turn in range(rounds + 1):
        taken = [0.0, 0.0]
        # The order within a pair alternates.
        for which in ((0, 1), (1, 0))[turn % 2]:
            out.unlink(missing_ok=True)
            taken[which] = seconds(commands[which])
            nodes[which] = len(onnx.load(out, load_external_data=False).graph.node)
        if turn:
            pairs.append((taken[0], taken[1]))
    return {
        "model": name,
        "nodes": len(onnx.load(path).graph.node),
        "graphshrink": spread([a for a, _ in pairs]) | {"nodes": nodes[0]},
        "onnxslim": spread([b for _, b in pairs]) | {"nodes": nodes[1]},
        "ratio": spread([a / b for a, b in pairs]),
    }


def growth(folder: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Time the chains in turn; the smallest time of each is used, because noise only adds time."""
    paths = {n: chain(n, folder / f"chain{n}.onnx") for n in LENGTHS}
    best = dict.fromkeys(LENGTHS, float("inf"))
    for _ in range(min(rounds, 3)):
        for length, path in paths.items():
            best[length] = min(best[length], seconds([tool("graphshrink"), str(path), str(out)]))
    return {"seconds": best, "growth": best[LENGTHS[1]] / best[LENGTHS[0]]}


def main() -> int:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        description="Compare the run times of graphshrink and onnxslim."
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed pairs for each model")
    parser.add_argument("--models", default=",".join(MODELS), help="names from tests/zoo")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is at least 2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            against(m, network(m), folder / "out.onnx", options.rounds)
            for m in options.models.split(",")
            if m
        ]
        scaling = growth(folder, folder / "out.onnx", options.rounds)
    versions = {p: version(p) for p in ("graphshrink", "onnxslim", "onnx", "numpy")}
    met = scaling["growth"] <= MOST_GROWTH and all(r["ratio"]["median"] <= MOST_RATIO for r in rows)
    if options.json:
        facts = {"python": platform.python_version(), "cores": os.cpu_count(), **versions}
        print(
            json.dumps(
                {"environment": facts, "models": rows, "chain": scaling, "met": met}, indent=1
            )
        )
        return 0 if met else 1
    print(f"whole-process seconds, median of {options.rounds} [quartiles]; onnxslim "
          f"{versions['onnxslim']}, {os.cpu_count()} cores")  # fmt: skip
    print(f"{'model':<16}{'nodes':>6}  {'graphshrink':<32}{'onnxslim':<32}ratio")
    for row in rows:
        cells = [
            f"{t['median']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for t in
            (row["graphshrink"], row["onnxslim"], row["ratio"])
        ]  # fmt: skip
        for i, key in enumerate(("graphshrink", "onnxslim")):
            cells[i] += f" {row[key]['nodes']} nodes"
        print(f"{row['model']:<16}{row['nodes']:>6}  {cells[0]:<32}{cells[1]:<32}{cells[2]}")
    for length, taken in scaling["seconds"].items():
        print(f"chain of {length:>7,} nodes: {taken:.2f} s")
    print(
        f"ten times the nodes take {scaling['growth']:.1f} times as long (at most {MOST_GROWTH:g})"
    )
    print("all targets met" if met else "a target was missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
