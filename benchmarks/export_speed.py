"""ONNX files of torch models: graphshrink beside ``torch.onnx.export(dynamo=True)``, in one process, in turn.

Each round writes both files of a model; a pair gives one ratio. Three times are compared: writing the file of a graph that was
read (``save``), all of reading, the default passes and writing (``whole``), and torch's exporter. onnxslim then takes what it can from
torch's file. The networks are those of ``tests/zoo``, at full size, and some of timm (see ``torch_models.py``)::

    python benchmarks/export_speed.py [--site FOLDER] [--rounds 3] [--only WORD,...] [--markdown FILE]

The exit code is 1 when a target is missed: a median ratio of torch's exporter to ``save`` below 10, an error above 1e-5 of the largest
output (or 20 times the model's own rounding), more nodes than onnxslim leaves of torch's file, or a batch that is not open.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch_models  # noqa: E402
from zoo.mobile_models import MOBILE, make_mobile, mobile_input  # noqa: E402
from zoo.models import MODELS, image_size, make  # noqa: E402
from zoo.more_models import MORE, make_more, more_inputs  # noqa: E402

from graphshrink import shrink  # noqa: E402

TIMM = (
    "mobilenetv3_small_050", "mobilenetv2_035", "ghostnet_050", "regnetx_002", "starnet_s1", "semnasnet_075", "convnext_atto",
    "resnet18", "vit_tiny_patch16_224", "poolformer_s12", "botnet26t_256", "efficientvit_m0",
)  # fmt: skip
"""Models of timm."""

LEAST_RATIO = 10.0
MOST_ERROR = 1e-5

Sample = tuple[nn.Module, torch.Tensor]


def samples(site: str | None) -> dict[str, Callable[[], Sample]]:
    """The models, each with an input."""
    found: dict[str, Callable[[], Sample]] = {}
    for name in MODELS:
        found[name] = lambda name=name: (make(name), _image(name))
    for name in MORE:
        found[name] = lambda name=name: (make_more(name), more_inputs(name, torch.float32))
    for name in MOBILE:
        found[name] = lambda name=name: (make_mobile(name), mobile_input(name))
    if site:
        sys.path.insert(0, site)
        sys.meta_path.append(torch_models._NoTorchvision())
        for name in TIMM:
            found[f"timm/{name}"] = lambda name=name: _of_timm(name)
    return found


def _image(name: str) -> torch.Tensor:
    size = 224 if image_size(name) > 64 else image_size(name)
    return torch.randn(1, 3, size, size)


def _of_timm(name: str) -> Sample:
    sample = torch_models.sample(f"timm/{name}")
    assert isinstance(sample.inputs, tuple)
    return sample.model, sample.inputs[0]


@dataclass
class Line:
    """What was found of a model.

    Attributes:
        name: The model.
        save: Seconds of writing the file of a graph that was read.
        whole: Seconds of reading, the default passes and writing.
        torch: Seconds of torch's exporter.
        ratios: The ratio of torch's exporter to ``save`` in each round.
        nodes: The nodes of our file, of torch's, and of what onnxslim leaves of torch's.
        error: The largest difference to the module, for the example's batch and for two others, relative to the largest output.
        rounding: The same for torch's file, for the example's batch.
        remark: What else the reader should know.
    """

    name: str
    save: float
    whole: float
    torch: float
    ratios: list[float]
    nodes: tuple[int, int, int]
    error: float
    rounding: float
    remark: str

    @property
    def missed(self) -> list[str]:
        """The targets that are missed."""
        found = []
        if statistics.median(self.ratios) < LEAST_RATIO:
            found.append(f"ratio below {LEAST_RATIO:g}")
        if not self.error <= max(MOST_ERROR, 20 * self.rounding):
            found.append(f"error above {MOST_ERROR:g}")
        if self.nodes[0] > self.nodes[2]:
            found.append("more nodes than onnxslim leaves")
        return found + ([self.remark] if self.remark else [])


def measure(name: str, sample: Sample, rounds: int, folder: Path) -> Line:
    """The line of a model."""
    module, x = sample
    module.eval()
    ours, theirs = folder / "ours.onnx", folder / "torch.onnx"
    times: list[tuple[float, float, float]] = []
    notes: tuple[str, ...] = ()
    for _ in range(rounds):
        start = time.perf_counter()
        result = shrink(module, example_inputs=(x,))
        read = time.perf_counter()
        notes = result.save(ours).notes
        saved = time.perf_counter()
        torch.onnx.export(module, (x,), theirs, dynamo=True, verbose=False, external_data=False)
        times.append((saved - read, saved - start, time.perf_counter() - saved))
    import onnxslim

    slim = onnxslim.slim(onnx.load(theirs))
    counts = [len(onnx.load(path).graph.node) for path in (ours, theirs)]
    largest = max(distance(module, ours, other) for other in (x, *_batches(x)))
    save, whole, exported = (statistics.median(column) for column in zip(*times, strict=True))
    return Line(
        name, save, whole, exported, [t[2] / t[0] for t in times], (counts[0], counts[1], len(slim.graph.node)),
        largest, distance(module, theirs, x), "; ".join(notes)[:160].replace("|", "/"),
    )  # fmt: skip


def _batches(x: torch.Tensor) -> list[torch.Tensor]:
    """Two other batches."""
    return [torch.cat([x, x.flip(0)]), torch.cat([x, x, x[:1]])]


def distance(module: nn.Module, path: Path, x: torch.Tensor) -> float:
    """The largest difference of a file's outputs to those of a module, relative to the largest number of each output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    try:
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    except Exception:  # onnxruntime has no common class of errors.
        return float("inf")
    with torch.no_grad():
        wanted = [w.numpy() for w in tree_leaves(module(x)) if isinstance(w, torch.Tensor)]
    return max(
        float(np.abs(a - b).max()) / (float(np.abs(b).max()) or 1.0) if a.shape == b.shape else float("inf")
        for a, b in zip(got, wanted, strict=True)
    )  # fmt: skip


COLUMNS = ("model", "save s", "whole s", "torch s", "torch / save", "torch / whole", "nodes", "torch's", "onnxslim", "error", "torch's error", "missed")  # fmt: skip


def cells(line: Line) -> list[str]:
    """A row of the table."""
    middle = statistics.median(line.ratios)
    return [
        line.name, f"{line.save:.3f}", f"{line.whole:.2f}", f"{line.torch:.2f}",
        f"{middle:.0f} ({min(line.ratios):.0f} to {max(line.ratios):.0f})", f"{line.torch / line.whole:.1f}",
        *map(str, line.nodes), f"{line.error:.0e}", f"{line.rounding:.0e}", "; ".join(line.missed),
    ]  # fmt: skip


def table(lines: list[Line], rounds: int, load: tuple[float, float]) -> str:
    """The results as Markdown."""
    ratio = [statistics.median(line.ratios) for line in lines]
    whole = [line.torch / line.whole for line in lines]
    seconds = [
        sum(column) for column in zip(*((n.save, n.whole, n.torch) for n in lines), strict=True)
    ]
    more = sum(line.nodes[0] > line.nodes[2] for line in lines)
    packages = ", ".join(f"{n} {version(n)}" for n in ("torch", "onnxruntime", "onnxslim"))
    head = f"""# ONNX files of torch models

`python benchmarks/export_speed.py --site FOLDER --rounds {rounds} --markdown FILE`: {len(lines)} models, batch of the example, {rounds} rounds in
turn in one process, one thread, {packages}, Python {platform.python_version()}. The machine was shared: load {load[0]:.1f} at the start,
{load[1]:.1f} at the end, on {os.cpu_count()} cores; ratios are of neighbouring runs.

- save: writing the file of a graph that was read; whole: reading, the default passes and writing; torch: `torch.onnx.export(dynamo=True)`.
- torch / save: median of the rounds (smallest to largest). Over all models: median {statistics.median(ratio):.0f}, least {min(ratio):.0f};
  torch / whole: median {statistics.median(whole):.1f}, least {min(whole):.1f}. One after the other, all models take torch's exporter {seconds[2]:.1f} s,
  ``save`` {seconds[0]:.1f} s ({seconds[2] / seconds[0]:.0f} times as fast), and all of it {seconds[1]:.1f} s.
- nodes: of our file, of torch's, and of torch's behind onnxslim. {more} of {len(lines)} files have more than the last.
- error: the largest difference to the module in onnxruntime relative to the largest output, also with two other batch sizes; torch's error: the same
  of torch's file for the example.

"""
    rows = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS))]
    rows += [" | ".join(cells(line)) for line in lines]
    return head + "\n".join(f"| {row} |" for row in rows) + "\n"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", help="a folder with timm; without it, the zoo alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="words of names, separated by commas")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    words = [w for w in options.only.split(",") if w]
    lines, load = [], os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        folder = Path(name)
        measure("warm-up", (nn.Linear(3, 3), torch.randn(2, 3)), 1, folder)  # Imports.
        for model, sample in samples(options.site).items():
            if words and not any(w in model for w in words):
                continue
            torch.manual_seed(0)
            try:
                lines.append(measure(model, sample(), options.rounds, folder))
            except Exception as error:
                print(f"{model}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                continue
            print(" | ".join(cells(lines[-1])), flush=True)
    if lines and options.markdown:
        options.markdown.write_text(table(lines, options.rounds, (load, os.getloadavg()[1])))
    return int(any(line.missed for line in lines))


if __name__ == "__main__":
    sys.exit(main())
