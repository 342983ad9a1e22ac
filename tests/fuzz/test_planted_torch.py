"""What is wrong on purpose with torch modules is found and made small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphshrink.targets.torch.spell  # noqa: F401 - its rules are registered before one is replaced
from graphshrink import ir
from graphshrink.targets.support import Spelling
from graphshrink.targets.torch.speller import spells

from . import torch_jobs
from .torch_menu import torch_case
from .torch_programs import Program, Step
from .trial import Found, smallest, trial
from .verdict import MISMATCH, UNSUPPORTED, Outcome


def test_a_wrong_spelling_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(s: Any, op: Any) -> Any:
        x, y = s.values()
        return s.call(torch.add, x, s.call(torch.mul, y, 2))

    monkeypatch.setitem(spells.table, (ir.Add, None), Spelling(twice))
    for seed in range(8, 40):
        for outcome, case in trial("torch", seed, ["respell"]):
            if outcome.found and outcome.what == "wrong numbers":
                small = smallest("torch", Found(outcome, case), 60.0)
                assert small.outcome.like(outcome)
                assert len(small.case.steps) <= 2
                assert Program.from_json(small.case.to_json()) == small.case
                return
    raise AssertionError("the planted fault was not found")


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> Outcome:
    """What is said of a call that does something to the given model."""
    right = torch_jobs.shrink

    def careless(model: Any, *args: Any, **options: Any) -> Any:
        made = right(model, *args, **options)
        change(model, made)
        return made

    monkeypatch.setattr(torch_jobs, "shrink", careless)
    steps = (Step("y1", ("y1 = self.m(x1)",), ("self.m = nn.BatchNorm1d(4)",)),)
    return torch_jobs.run_job(Program(1, (("x1", (3, 4)),), steps, "y1"), "default")


CHANGES: dict[str, Any] = {
    "training": lambda model, _: setattr(model, "training", True),
    "hooks": lambda model, _: model.m.register_forward_hook(lambda *_: None),
    "attributes": lambda model, _: setattr(model, "more", 1),
    "versions": lambda model, _: model.m.running_mean.mul_(1),
    "numbers": lambda model, _: model.m.num_batches_tracked.data.add_(1),
    "tensors": lambda model, _: setattr(model.m, "running_var", model.m.running_var.clone()),
    "frozen": lambda model, _: model.m.weight.requires_grad_(False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_given_model_that_changes_is_found(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    outcome = changed(monkeypatch, CHANGES[what])
    assert outcome.kind == MISMATCH
    assert "changed (by shrinking)" in outcome.what


def test_a_given_model_that_stays_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(monkeypatch, lambda *_: None).kind == "equal"


def test_a_seed_always_gives_the_same_module() -> None:
    for seed in range(5):
        first, second = torch_case(seed), torch_case(seed)
        assert first == second
        x, y = (p.loaded()["inputs"](torch.float64)[0] for p in (first, second))
        assert torch.equal(x, y)


def test_writes_into_inputs_are_compared() -> None:
    program = Program(1, (("x1", (2, 3)),), (Step("", ("x1.mul_(2)",)),), "x1 + 1")
    wanted = torch_jobs.Prepared(program)
    inputs = wanted.inputs()
    ran = wanted.wanted(inputs)[0]
    assert (ran.arrays[1] == inputs[0].numpy() * 2).all()
    assert torch_jobs.run_job(program, "onnx").kind == UNSUPPORTED
