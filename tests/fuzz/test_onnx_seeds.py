"""Fixed seeds of ONNX models, so that what holds for random graphs is seen with every change."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from .trial import TARGETS, jobs_of, trial

SEEDS = range(30)
CHOSEN = set(TARGETS) - {"torch"} - ({"to-torch"} if find_spec("torch") is None else set())
CHUNK = 6


@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_random_models_keep_their_function_in_every_target(first: int) -> None:
    equal = 0
    for seed in SEEDS[first : first + CHUNK]:
        for outcome, _ in trial("onnx", seed, jobs_of("onnx", seed, CHOSEN, 0.2)):
            assert not outcome.found, (
                f"python -m fuzz --front onnx --seed {seed} --job {outcome.job}\n{outcome.detail}"
            )
            equal += outcome.kind == "equal"
    assert equal >= 2 * CHUNK
