"""Networks of Hugging Face's transformers, tiny and with random weights, in LiteRT against torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from graphshrink import shrink
from support.litert import KERNELS, relative, run_saved

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')
transformers = pytest.importorskip("transformers", reason="pip install transformers")

BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}


@pytest.mark.parametrize("name", ["Bert", "Swin"])
def test_same_numbers_as_torch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(BERT if name == "Bert" else SWIN))
    model = getattr(transformers, f"{name}Model")(config).eval()
    inputs = (
        {"input_ids": torch.arange(1, 8)[None], "attention_mask": torch.tensor([[1] * 5 + [0] * 2])}
        if name == "Bert"
        else {"pixel_values": torch.rand(1, 3, 32, 32)}
    )
    with torch.no_grad():
        want = model(**inputs).last_hidden_state.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = shrink(model, example_inputs=inputs)
    done = result.save(tmp_path / f"{name}.tflite")
    for kernels in KERNELS:
        got = run_saved(done, {n: np.asarray(x) for n, x in inputs.items()}, kernels)
        assert relative(want, got[0]) < 1e-4
