"""Well-known networks through LiteRT, from ONNX and from torch, against onnxruntime and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.exports import example, exported, small
from zoo.mobile_models import MOBILE
from zoo.models import SMALL
from zoo.more_models import MORE

from graphshrink import shrink
from graphshrink.targets.emitted import Emitted
from support.litert import KERNELS, relative, run_saved
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

NAMES = sorted({*SMALL, *MORE, *MOBILE})
NO_TRANSPOSE = [
    n for n in NAMES if n not in ("vit", "bert", "gpt2", "llama", "shufflenet_v1", "shufflenet_v2")
]
LIMIT = 1e-5


def saved(name: str, kind: str, onnx_files: Path, folder: Path, **options: Any) -> Emitted:
    if kind == "onnx":
        result = shrink(exported(name, onnx_files))
    else:
        result = shrink(small(name), example_inputs=(example(name),))
    return result.save(folder / f"{name}.tflite", **options)


# Exporting takes seconds: what others export too, and what has ops of its own. gpt2 as FX goes by the same way as lstm.
CASES = [
    (name, "onnx")
    for name in NAMES
    if name not in MOBILE or name in ("squeezenet", "unet", "audio")
]
CASES += [(name, "fx") for name in NAMES if name != "gpt2"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_numbers(name: str, kind: str, onnx_files: Path, tmp_path: Path) -> None:
    x = example(name)
    done = saved(name, kind, onnx_files, tmp_path)
    with torch.no_grad():
        want = small(name)(x).numpy()
    wanted = [want]
    if kind == "onnx":
        wanted += outputs_of(exported(name, onnx_files), x.numpy())
    for kernels in KERNELS:
        (got,) = run_saved(done, x.numpy(), kernels)
        assert max(relative(w, got) for w in wanted) <= LIMIT, kernels
    if name in NO_TRANSPOSE:
        assert "TRANSPOSE" not in done.data["operations"]
