"""One slope for all numbers: torch has it on values without channels too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphshrink import shrink


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 4)])
@pytest.mark.parametrize(
    "passes",
    [
        "permute-channels",
        "pivot{method=zeros,blocks=2,force=true}",
        "insert-gates{sites=[*]},remove-activations",
        "prune-channels{multiple=1}",
    ],
)
def test_any_rank(shape: tuple[int, ...], passes: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.PReLU(), nn.Tanh(), nn.PReLU()).eval(), torch.randn(shape)
    result = shrink(module, passes, example_inputs=(x,))
    torch.testing.assert_close(result.model(x), module(x))
