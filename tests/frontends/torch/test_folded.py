"""Weights that torch computes at every call become plain ones, and merge."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from graphshrink import shrink

WAYS: list[Callable[[nn.Module], nn.Module]] = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    weight_norm,
    spectral_norm,
    lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_computed_weights_merge(way: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    nn.init.uniform_(layers[1].running_var, 0.5, 2.0)
    layers[0], layers[3] = WAYS[way](layers[0]), WAYS[way](layers[3])
    model, x = nn.Sequential(*layers), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    made = shrink(model, example_inputs=(x,), check=True)
    assert made.report.after.ops == {"Conv": 2, "Activation": 1}
    assert any("a plain weight now: 0.weight, 3.weight" in note for note in made.report.notes)
    assert {*made.model.state_dict()} == {"0.weight", "0.bias", "3.weight", "3.bias"}
    file = io.BytesIO()
    torch.save(made.model, file)
    file.seek(0)
    z = torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        want = model(z)
        for result in (made.model, torch.load(file, weights_only=False)):
            torch.testing.assert_close(result(z), want, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
