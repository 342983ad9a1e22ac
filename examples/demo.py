"""Shrinks a network trained on real images, as an FX graph and as an ONNX file, and measures both."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import digits
import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from graphshrink import shrink
from graphshrink.api import load
from graphshrink.passes import relative_error
from graphshrink.report import Size
from graphshrink.running.latency import PairedLatency, paired_latency

BATCH = 32
PAIRS = 60


class Results:
    """The table: two rows for each kind of input."""

    def __init__(self, title: str) -> None:
        columns = (
            "",
            "nodes",
            "convs",
            "parameters",
            "MACs",
            "accuracy",
            "ms a batch",
            "max error",
        )
        self.table = Table(*columns, title=title)
        for column in self.table.columns[1:]:
            column.justify = "right"
        self.speeds: list[str] = []

    def add(
        self,
        name: str,
        sizes: tuple[Size, Size],
        outputs: tuple[np.ndarray, np.ndarray],
        labels: np.ndarray,
        latency: PairedLatency,
    ) -> None:
        """Add the measurements before and after."""
        errors = ("", f"{relative_error(outputs[:1], outputs[1:]):.1e}")
        for i, when in enumerate(("before", "after")):
            size = sizes[i]
            self.table.add_row(
                f"{name} {when}",
                f"{size.nodes}",
                f"{size.ops.get('Conv', 0)}",
                f"{size.parameters:,}",
                f"{size.macs:,}",
                f"{(outputs[i].argmax(1) == labels).mean():.2%}",
                f"{latency.milliseconds[i]:.2f}",
                errors[i],
            )
        self.speeds.append(f"{name}: {latency}")


def fx(model: torch.nn.Module, x: torch.Tensor, labels: np.ndarray, results: Results) -> None:
    """One call in a script: module in, GraphModule out."""
    batch = x[:BATCH]
    result = shrink(model, example_inputs=(batch,), check=True)
    small = result.model
    with torch.no_grad():
        # The shrunk graph has bias maps for one image size; the batch size is free.
        outputs = (model(x).numpy(), small(x).numpy())
        latency = paired_latency(lambda: model(batch), lambda: small(batch), PAIRS)
    sizes = (result.report.before, result.report.after)
    results.add("FX in torch", sizes, outputs, labels, latency)


def onnx(
    model: torch.nn.Module, x: torch.Tensor, labels: np.ndarray, results: Results, folder: Path
) -> str:
    """One command: file in, file out. Returns its output."""
    batch, source, target = x[:BATCH], folder / "digits.onnx", folder / "small.onnx"
    torch.onnx.export(
        model, (batch,), source, dynamo=True, verbose=False, optimize=False, external_data=False
    )
    command = [sys.executable, "-m", "graphshrink", str(source), str(target), "--check"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, second = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"])
        for p in (source, target)
    )
    name = first.get_inputs()[0].name
    # The file accepts only whole batches: the last one is filled up with the first images.
    whole = np.resize(x.numpy(), (-(-len(x) // BATCH) * BATCH, *x.shape[1:]))
    parts = np.split(whole, len(whole) // BATCH)
    outputs = tuple(
        np.concatenate([session.run(None, {name: part})[0] for part in parts])[: len(x)]
        for session in (first, second)
    )
    feed = {name: batch.numpy()}
    latency = paired_latency(lambda: first.run(None, feed), lambda: second.run(None, feed), PAIRS)
    sizes = (Size.of(load(source)[0]), Size.of(load(target)[0]))
    results.add("ONNX in onnxruntime", sizes, (outputs[0], outputs[1]), labels, latency)
    return done.stdout.strip().replace(f"{target}: ", "")


def main() -> None:
    """Run the demo."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    console = Console(width=120)
    model = digits.trained()
    _, _, x, y = digits.images()
    labels = y.numpy()
    results = Results(
        f"digits: {len(x)} test images, batches of {BATCH}, {torch.get_num_threads()} threads"
    )
    fx(model, x, labels, results)
    with tempfile.TemporaryDirectory() as folder:
        printed = onnx(model, x, labels, results, Path(folder))
    console.print(results.table)
    console.print("Speed after beside before, as the median ratio of alternating runs just now:")
    for line in results.speeds:
        console.print(f"  {line}")
    console.print("The largest error is relative to the largest output. The command was:")
    console.print(f"  graphshrink digits.onnx small.onnx --check\n  {printed}", soft_wrap=True)


if __name__ == "__main__":
    main()
