"""Shrinks a network trained on real images, as an FX graph and as an ONNX file, and measures both."""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import digits
import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from graphshrink import shrink

BATCH = 32
PAIRS = 60


def paired(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median ratio over alternating pairs."""
    for _ in range(5):
        first(), second()
    times = []
    for turn in range(PAIRS):
        pair = [0.0, 0.0]
        for which in ((0, 1), (1, 0))[turn % 2]:
            start = time.perf_counter()
            (first, second)[which]()
            pair[which] = (time.perf_counter() - start) * 1e3
        times.append(pair)
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def main() -> None:
    """Run the demo."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    console = Console(width=100)
    model = digits.trained()
    _, _, x, y = digits.images()
    batch = x[:BATCH]
    table = Table("", "nodes", "convs", "parameters", "MACs", "accuracy", "ms a batch", title=(
        f"digits, {len(x)} test images, batches of {BATCH}, {torch.get_num_threads()} threads"))  # fmt: skip

    def row(title: str, size: object, hits: float, milliseconds: float) -> None:
        s: object = size
        table.add_row(
            title,
            f"{s.nodes}",  # type: ignore[attr-defined]
            f"{s.ops.get('Conv', 0)}",  # type: ignore[attr-defined]
            f"{s.parameters:,}",  # type: ignore[attr-defined]
            f"{s.macs:,}" if s.macs else "?",  # type: ignore[attr-defined]
            f"{hits:.2%}",
            f"{milliseconds:.2f}",
        )

    # FX: one call.
    result = shrink(model, example_inputs=(batch,), check=True)
    small = result.model
    with torch.no_grad():
        before = (model(x).argmax(1) == y).float().mean().item()
        # The shrunk graph has bias maps for one image size; the batch size is free.
        want, got = model(x), small(x)
        after = (got.argmax(1) == y).float().mean().item()
        first, second, fx_ratio = paired(lambda: model(batch), lambda: small(batch))
    fx_error = ((want - got).abs().max() / want.abs().max()).item()
    row("FX before", result.report.before, before, first)
    row("FX after", result.report.after, after, second)

    # ONNX: one command.
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "digits.onnx", Path(folder) / "small.onnx"
        torch.onnx.export(
            model, (batch,), source, dynamo=True, verbose=False, optimize=False, external_data=False
        )
        command = [sys.executable, "-m", "graphshrink", str(source), str(target), "--check"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sizes = [
            shrink(path, passes="fold-constants,prune-dead").report.after
            for path in (source, target)
        ]
        sessions = [
            onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"])
            for p in (source, target)
        ]
        name = sessions[0].get_inputs()[0].name
        outputs = []
        for session in sessions:
            parts = [x[i : i + BATCH].numpy() for i in range(0, len(x) // BATCH * BATCH, BATCH)]
            outputs.append(np.concatenate([session.run(None, {name: p})[0] for p in parts]))
        labels = y.numpy()[: len(outputs[0])]
        scores = [float((o.argmax(1) == labels).mean()) for o in outputs]
        feed = {name: batch.numpy()}
        first, second, onnx_ratio = paired(
            lambda: sessions[0].run(None, feed), lambda: sessions[1].run(None, feed)
        )
        onnx_error = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
    row("ONNX before", sizes[0], scores[0], first)
    row("ONNX after", sizes[1], scores[1], second)
    console.print(table)
    console.print(
        f"graphshrink digits.onnx small.onnx --check\n  {done.stdout.strip().split(': ', 1)[1]}"
    )
    console.print(
        f"FX (torch):         {fx_ratio:.2f}x the speed, largest output error {fx_error:.1e} of the largest output"
    )
    console.print(
        f"ONNX (onnxruntime): {onnx_ratio:.2f}x the speed, largest output error {onnx_error:.1e} of the largest output"
    )
    console.print(
        "Speeds are medians over alternating pairs of runs, measured just now on this machine."
    )


if __name__ == "__main__":
    main()
