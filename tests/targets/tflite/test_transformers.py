"""A network of Hugging Face's transformers, tiny and with random weights, in LiteRT against torch."""

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


def test_bert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    mask = torch.tensor([[1] * 5 + [0] * 2])
    inputs = {"input_ids": torch.arange(1, 8)[None], "attention_mask": mask}
    with torch.no_grad():
        want = model(**inputs).last_hidden_state.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = shrink(model, example_inputs=inputs)
    done = result.save(tmp_path / "bert.tflite")
    for kernels in KERNELS:
        got = run_saved(done, {n: np.asarray(x) for n, x in inputs.items()}, kernels)
        assert relative(want, got[0]) < 1e-4
