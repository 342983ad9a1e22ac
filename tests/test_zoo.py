"""Well-known networks keep their outputs: as FX, as an exported program, and as ONNX."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from zoo.models import MODELS, image_size, make

from graphshrink import shrink
from graphshrink.ir import Opaque

NORMS = {"densenet121": 121}


def images(name: str, dtype: torch.dtype) -> torch.Tensor:
    size = image_size(name)
    seeded = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, size, size, dtype=dtype, generator=seeded)


def error(want: torch.Tensor, got: torch.Tensor) -> float:
    assert want.abs().max() > 0.05
    return float((want - got).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fx(name: str) -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model, image = make(name, dtype), images(name, dtype)
        result = shrink(model, example_inputs=(image,))
        with torch.no_grad():
            assert error(model(image), result.model(image)) < limit
        assert result.report.changed or name == "vit"
        if name not in NORMS:
            assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())


def test_repvgg_blocks_become_one_convolution_each() -> None:
    result = shrink(make("repvgg"), example_inputs=(images("repvgg", torch.float32),))
    assert result.report.after.ops["Conv"] == 10
    assert "Add" not in result.report.after.ops
    assert "Scale" not in result.report.after.ops


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "repvgg", "vit"])
def test_exported_program(name: str) -> None:
    model, image = make(name, torch.float64), images(name, torch.float64)
    result = shrink(torch.export.export(model, (image,)))
    with torch.no_grad():
        assert error(model(image), result.model(image)) < 1e-10


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "repvgg", "vit"])
def test_onnx(name: str, tmp_path: Path) -> None:
    model, image = make(name), images(name, torch.float32)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (image,), source, dynamo=True, verbose=False, external_data=False,
                          optimize=name == "vit")  # fmt: skip
    result = shrink(source)
    result.save(target)
    outputs = []
    for path in (source, target):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-5 * np.abs(outputs[0]).max()
    with torch.no_grad():
        assert error(model(image), torch.from_numpy(outputs[1])) < 1e-5
    if name != "vit":
        # Both frontends see the same network: the shrunk graphs agree but for names and numbers.
        fx = shrink(model, example_inputs=(image,)).graph
        assert not any(isinstance(n.op, Opaque) for n in fx.nodes)
        assert structure(fx.text(names=False)) == structure(result.graph.text(names=False))


def structure(text: str) -> str:
    return re.sub(r"= (dense .*|elided)", "=", text)
