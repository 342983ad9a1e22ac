"""Fixed seeds of torch modules."""

from __future__ import annotations

import pytest
import torch

from .trial import jobs_of, trial

SEEDS = range(16)
CHUNK = 4


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_random_modules_keep_their_function_and_themselves(first: int) -> None:
    threads, equal = torch.get_num_threads(), 0
    try:
        for seed in SEEDS[first : first + CHUNK]:
            for outcome, _ in trial("torch", seed, jobs_of("torch", seed, {"torch"}, 0.1)):
                again = f"python -m fuzz --front torch --seed {seed} --job {outcome.job}"
                assert not outcome.found, f"{again}\n{outcome.detail}"
                equal += outcome.kind == "equal"
    finally:
        torch.set_num_threads(threads)
    assert equal >= CHUNK
