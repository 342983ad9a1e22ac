"""One seed from beginning to end: the case, its jobs, and the smallest case of whatever fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import onnx_jobs, onnx_minimise
from .draw import Draw
from .isolate import in_child
from .minimise import minimise
from .onnx_forms import onnx_case
from .verdict import CRASH, Outcome

TARGETS = ("onnx", "tensorrt", "tflite", "to-torch", "torch")
"""The targets that can be chosen."""


@dataclass(frozen=True)
class Front:
    """One kind of input model: ONNX or torch.

    Attributes:
        make: Makes the case of a seed.
        run: Runs one job on a case.
        smaller: Yields simpler cases.
        jobs: The jobs by target.
        often: Jobs that are run for every case.
        rare: Slow jobs, which are run for few cases.
    """

    make: Callable[[int], Any]
    run: Callable[[Any, str], Outcome]
    smaller: Callable[[Any], Iterator[Any]]
    jobs: dict[str, tuple[str, ...]]
    often: tuple[str, ...]
    rare: tuple[str, ...] = ()


def front(name: str) -> Front:
    """The front of a name; torch is imported only for torch's."""
    if name == "onnx":
        return Front(
            onnx_case,
            onnx_jobs.run_job,
            onnx_minimise.smaller,
            onnx_jobs.TARGETS,
            ("default", "respell"),
            ("exported",),
        )
    from . import torch_jobs, torch_minimise
    from .torch_menu import torch_case

    return Front(
        torch_case,
        torch_jobs.run_job,
        torch_minimise.smaller,
        torch_jobs.TARGETS,
        torch_jobs.OFTEN,
        torch_jobs.RARE,
    )


def fronts(targets: Collection[str]) -> list[str]:
    """The fronts that targets need."""
    return [
        *(["onnx"] if set(targets) - {"torch"} else []),
        *(["torch"] if "torch" in targets else []),
    ]


def jobs_of(name: str, seed: int, targets: Collection[str], share: float = 0.35) -> list[str]:
    """The jobs of a seed: those that are run for every case, and some of the others.

    Args:
        name: The front.
        seed: The seed.
        targets: The targets.
        share: The fraction of the others.
    """
    draw, it = Draw(f"jobs {name} {seed}"), front(name)
    found = []
    for target, jobs in it.jobs.items():
        for job in jobs:
            chosen = draw.chance(share) and (job not in it.rare or share == 1 or draw.chance(0.2))
            chosen = chosen or job in it.often
            if target in targets and chosen:
                found.append(job)
    return found


@dataclass(frozen=True)
class Found:
    """A fault and its case.

    Attributes:
        outcome: The outcome of the job.
        case: The case that fails.
    """

    outcome: Outcome
    case: Any


def trial(
    name: str, seed: int, jobs: Sequence[str], alone: float | None = None
) -> Iterator[tuple[Outcome, Any]]:
    """Run the jobs of a seed in order; yields each outcome with the case.

    Args:
        name: The front.
        seed: The seed.
        jobs: The jobs.
        alone: Run each job in its own process, with this limit in seconds.
    """
    it = front(name)
    case = it.make(seed)
    for job in jobs:
        if alone is None:
            yield it.run(case, job), case
        else:
            yield in_child(lambda job=job: it.run(case, job), job, alone), case


def smallest(name: str, found: Found, seconds: float = 30.0, alone: float | None = None) -> Found:
    """The smallest case that fails alike.

    Args:
        name: The front.
        found: The failing case.
        seconds: The time limit.
        alone: As for :func:`trial`.
    """
    it = front(name)

    def outcome(case: Any) -> Outcome:
        if alone is None:
            return it.run(case, found.outcome.job)
        return in_child(lambda: it.run(case, found.outcome.job), found.outcome.job, alone)

    case = minimise(found.case, it.smaller, lambda c: outcome(c).like(found.outcome), seconds)
    last = outcome(case)
    return Found(last if last.like(found.outcome) else found.outcome, case)


def broken_generator(name: str, error: BaseException) -> Outcome:
    """The outcome of a seed for which no case could be made: a fault of the fuzzer itself."""
    return replace(
        Outcome(f"{name} generator", CRASH), what=type(error).__name__, detail=repr(error)
    )
