"""Torch models written as ONNX by torch's own exporter: what it writes loads, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from graphshrink import ModelError, shrink


class Squeezed(nn.Module):
    """Torch leaves an axis alone that is longer than one; a Squeeze of ONNX does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu().squeeze(1)


def test_a_model_that_no_runtime_loads_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    result = shrink(Squeezed().eval(), example_inputs=(torch.randn(2, 3, 40),))
    with pytest.raises(ModelError, match=r"torch\.onnx writes a model that no runtime loads"):
        result.save(path)
    assert not path.exists()


def test_a_model_that_loads_is_written(tmp_path: Path) -> None:
    path, x = tmp_path / "m.onnx", torch.randn(2, 1, 40)
    model = Squeezed().eval()
    shrink(model, example_inputs=(x,)).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_writes_to_data_are_written(tmp_path: Path) -> None:
    class Data(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2.0
            y.data.add_(1.0)
            return y.relu()

    path, x = tmp_path / "m.onnx", torch.randn(2, 3)
    shrink(Data().eval(), example_inputs=(x,)).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(got, Data()(x).numpy())
