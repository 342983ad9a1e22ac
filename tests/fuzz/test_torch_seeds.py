"""Fixed seeds of torch modules."""

from __future__ import annotations

import pytest
import torch

from .trial import jobs_of, trial

CHUNK = 3


@pytest.mark.parametrize("first", range(0, 24, CHUNK))
def test_random_modules_keep_their_function_and_themselves(first: int) -> None:
    assert torch.get_num_threads() >= 1
    equal = 0
    for seed in range(first, first + CHUNK):
        for outcome, _ in trial("torch", seed, jobs_of("torch", seed, {"torch"}, 0.1)):
            assert not outcome.found, (
                f"python -m fuzz --front torch --seed {seed} --job {outcome.job}\n{outcome.detail}"
            )
            equal += outcome.kind == "equal"
    assert equal >= CHUNK
