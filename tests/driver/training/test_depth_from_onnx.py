"""``examples/depth_from_onnx.py`` from end to end, in its shortest form."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphshrink.datasets import Batches

EXAMPLE = Path(__file__).parents[3] / "examples" / "depth_from_onnx.py"


@pytest.mark.skipif(
    not os.environ.get("GRAPHSHRINK_SLOW_TESTS"),
    reason="trains for a minute: GRAPHSHRINK_SLOW_TESTS=1 pytest tests/driver/training/test_depth_from_onnx.py",
)
def test_the_example_writes_a_shallower_file_and_prints_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.onnx"
    command = [
        sys.executable, str(EXAMPLE), "--base", "2", "--search", "1", "--epochs", "2", "--output", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert not done.returncode, done.stderr[-2000:]
    rows = re.findall(r"(\w+)\.onnx +│ +(\d+) +│ +([\d,]+) +│ +([\d.]+)%", done.stdout)
    assert [row[0] for row in rows] == ["given", "out"]
    (_, before, macs, accuracy), (_, after, fewer, found) = rows
    assert int(after) < int(before)
    assert int(fewer.replace(",", "")) < int(macs.replace(",", ""))
    convolutions = [n for n in onnx.load(out).graph.node if n.op_type == "Conv"]
    assert len(convolutions) == int(after)
    # The accuracy that is printed is that of the file, on images that it was not trained on.
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    depthshrinker = import_module("depthshrinker")
    images = depthshrinker.images_of(argparse.Namespace(data=None))
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    right = [
        session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].argmax(1) == y.numpy()
        for x, y in Batches(images, 32, train=False)
    ]
    assert float(found) == pytest.approx(100 * np.concatenate(right).mean(), abs=0.006)
    assert float(accuracy) > 50
