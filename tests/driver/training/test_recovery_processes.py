"""Recovery under torchrun: two processes over gloo, looked at from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from graphshrink import gate_penalty, recover
from support import recovery_processes
from support.recovery_processes import COUNT, MODES, Indices, Plain, gated

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What rank 0 and rank 1 told, and their tensors."""
    folder = tmp_path_factory.mktemp("processes")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(recovery_processes.__file__), str(folder),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert not done.returncode, done.stderr[-3000:]
    told = [json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)]
    return told, [load_file(folder / f"tensors{rank}.safetensors") for rank in (0, 1)]


def test_all_end_with_the_same_module(two: Any) -> None:
    told, (first, second) = two
    assert told[0]["world"] == 2
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    # Masks were rank 0's, and batch norms, gates and scores are among what was compared.
    assert first["random.layer.parametrizations.weight.0.mask"].tolist() == [1, 0, 1, 0]
    assert {"whole.1.running_mean", "whole.2.switch.open", "whole.2.switch.score"} <= first.keys()
    assert told[0]["kept"] == told[1]["kept"]
    assert len(told[0]["kept"]) == 1


@pytest.mark.parametrize("name", ["ordered", "random", "generator", "iterable", "sampler"])
def test_shares_are_equal_and_apart(name: str, two: Any) -> None:
    (a, b), _ = two
    one, other = a[name]["seen"], b[name]["seen"]
    assert len(one) == len(other)
    for epoch in (0, 1):
        half = len(one) // 2
        seen = [*one[epoch * half : (epoch + 1) * half], *other[epoch * half : (epoch + 1) * half]]
        assert len(set(seen)) == len(seen) >= COUNT - 2 * 4
    if name in ("random", "generator"):
        assert sorted(one) != one
        assert one[: len(one) // 2] != one[len(one) // 2 :]
    assert a[name]["loss"] == b[name]["loss"]
    assert a[name]["evaluated"] == b[name]["evaluated"]


def test_the_same_as_one_process_with_batches_twice_as_large(two: Any) -> None:
    """24 of the 26 numbers, in order: two processes with batches of 4 are one with batches of 8."""
    _, (first, _) = two
    for name in ("ordered", "iterable"):
        model = Plain()
        recover(model, DataLoader(Indices(), 8, drop_last=True), optimizer="sgd", lr=0.1, epochs=2, progress=False)  # fmt: skip
        for key, want in model.state_dict().items():
            assert torch.allclose(first[f"{name}.{key}"], want, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_gates_in_two_processes(mode: str, two: Any) -> None:
    """Switches and what is open are rank 0's; gradients are averaged, unless each process draws its own noise."""
    _, (first, second) = two
    names = [name for name in first if name.startswith(f"{mode}.1.")]
    assert len(names) == (2 if mode == "top-k" else 1)
    assert all(torch.equal(first[name], second[name]) for name in names)
    if mode == "top-k":
        assert first["top-k.1.switch.open"] == 1
    model = gated(mode)
    start = float(model[1].switch.score.detach())
    recover(
        model, list(DataLoader(Indices(), 8, drop_last=True)), optimizer="sgd", lr=0.1, epochs=2, progress=False,
        penalty=lambda m: 0.1 * gate_penalty(m),
    )  # fmt: skip
    score = float(first[f"{mode}.1.switch.score"])
    assert score != start
    for key, want in model.state_dict().items():
        same = torch.allclose(first[f"{mode}.{key}"], want, atol=1e-5)
        assert same or mode == "hard-concrete", key


def test_interrupted_is_the_same_as_uninterrupted(two: Any) -> None:
    told, both = two
    for rank in (0, 1):
        assert told[rank]["stopped"]
        whole = {k[6:]: v for k, v in both[rank].items() if k.startswith("whole.")}
        assert whole
        assert all(torch.equal(both[rank][f"again.{name}"], whole[name]) for name in whole)


def test_integers_are_those_of_rank_0(two: Any) -> None:
    """Each process starts with weights and an order of batches of its own; the given modules do not change."""
    told, _ = two
    assert told[0]["integers"] == told[1]["integers"]
    assert told[0]["untouched"]
    assert told[1]["untouched"]


def test_plans_are_rank_0s(two: Any) -> None:
    for told in two[0]:
        assert told["plan"] == {"keep": 7}


def test_errors_are_the_same_in_all_processes(two: Any) -> None:
    for told in two[0]:
        different, little, options, folders, ranges = told["errors"]
        assert different.startswith("the processes have different modules: decide what is removed")
        assert little.startswith("the loader yields nothing: it has no batches, or fewer than")
        assert options.startswith("the processes were started with different options")
        assert folders.startswith("the processes see different checkpoints")
        assert ranges.startswith("the processes measured different ranges for quantize")
