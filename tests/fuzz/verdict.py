"""The outcomes of jobs; tells differences that rounding explains from wrong results."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import graphshrink
from graphshrink.errors import GraphshrinkError, PassError
from graphshrink.passes import relative_error

EQUAL, REFUSAL, CHAOTIC, UNSUPPORTED = "equal", "refusal", "chaotic", "unsupported"
MISMATCH, CRASH, HANG = "MISMATCH", "CRASH", "HANG"

FINDINGS = (MISMATCH, CRASH, HANG)
"""The outcomes that are our faults."""

NUDGES = 12
"""The number of runs of the original on inputs and weights changed by rounding units, to judge a difference."""

SLACK = 8.0
"""A result may differ by this multiple of the change that rounding units in inputs and weights make in the original."""

CHAOS = 0.02
"""A case whose outputs change by this much through rounding alone is not judged."""

_ROOT = str(Path(graphshrink.__file__).resolve().parents[1])

Arrays = Sequence[npt.NDArray[Any]]


class Wrong(Exception):
    """A result is wrong.

    Attributes:
        kind: Two or three words, the same for all faults of a kind.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Unsupported(Exception):
    """A job does not apply to a case, or the host itself cannot run its first step."""


class Chaotic(Exception):
    """Rounding alone changes the outputs of the case too much for a judgement."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job on one case.

    Attributes:
        job: The job.
        kind: One of the words above.
        what: The fault or refusal, without names and numbers that differ from case to case.
        detail: The whole message.
    """

    job: str
    kind: str
    what: str = ""
    detail: str = ""

    @property
    def found(self) -> bool:
        """Whether it is our fault."""
        return self.kind in FINDINGS

    def like(self, other: Outcome) -> bool:
        """Whether it is the same fault."""
        return (self.job, self.kind, self.what) == (other.job, other.kind, other.what)


def judged(job: str, run: Callable[[], object]) -> Outcome:
    """Run a job; returns its outcome."""
    try:
        run()
    except Wrong as wrong:
        return Outcome(job, MISMATCH, wrong.kind, str(wrong))
    except Unsupported as error:
        return Outcome(job, UNSUPPORTED, str(error))
    except Chaotic as chaos:
        return Outcome(job, CHAOTIC, "", str(chaos))
    except GraphshrinkError as error:
        if isinstance(error, PassError) and _broken(error):
            return Outcome(job, CRASH, f"{general(str(error))}{_where(error)}", _trace(error))
        return Outcome(job, REFUSAL, general(str(error)), str(error))
    except Exception as error:
        said = f"{type(error).__name__}{_where(error) or ' in the fuzzer itself'}"
        return Outcome(job, CRASH, said, _trace(error))
    return Outcome(job, EQUAL)


def _broken(error: PassError) -> bool:
    """Whether a pass crashed, rather than refused."""
    if isinstance(error.__cause__, GraphshrinkError):
        return re.search(r"left a broken graph", str(error)) is not None
    return re.search(r"^pass .*( failed: | changed )", str(error)) is not None


def general(text: str) -> str:
    """A message without the parts that differ from case to case: names in quotes, paths, numbers."""
    text = " ".join(text.split())
    text = re.sub(r"(/[\w.+-]+)+", "PATH", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", text)
    text = re.sub(r"\b[vnwcxosik]\d+\w*\b", "…", text)
    text = re.sub(r"-?\d[\d.e+-]*", "#", text)
    return text[:160]


def _where(error: BaseException) -> str:
    """The innermost line of our code in the traceback of an error."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inside = frame.filename.startswith(_ROOT) and "site-packages" not in frame.filename
        if inside and "/tests/" not in frame.filename:
            return (
                f" in {Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.name}"
            )
    return ""


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def compare(
    want: Arrays,
    got: Arrays,
    tolerance: float,
    nudged: Callable[[int], Arrays],
    what: str = "wrong numbers",
) -> None:
    """Compare outputs with those of the original.

    Args:
        want: The outputs of the original.
        got: The outputs of the result.
        tolerance: The error that is allowed in any case, relative to the largest number of an output.
        nudged: Returns the outputs of the original with inputs and weights changed by rounding units, for a seed.
        what: The name of a difference in errors.

    Raises:
        Wrong: If the numbers differ by more than rounding explains.
        Chaotic: If they differ, but rounding alone changes the original as much.
    """
    if len(want) != len(got):
        raise Wrong("number of outputs", f"{len(want)} became {len(got)}")
    for i, (a, c) in enumerate(zip(want, got, strict=True)):
        if a.shape != c.shape:
            raise Wrong("shape of an output", f"output {i}: {a.shape} became {c.shape}")
        if a.dtype != c.dtype:
            raise Wrong("type of an output", f"output {i}: {a.dtype} became {c.dtype}")
    errors = [relative_error([a], [c]) for a, c in zip(want, got, strict=True)]
    if max(errors, default=0) <= tolerance:
        return
    moved = [nudged(seed) for seed in range(NUDGES)]
    for i, error in enumerate(errors):
        noise = max(relative_error([want[i]], [m[i]]) for m in moved)
        if error <= max(tolerance, SLACK * noise):
            continue
        if noise > CHAOS:
            raise Chaotic(f"output {i} moves by {noise:.1e} through rounding")
        raise Wrong(
            what,
            f"output {i} is off by {error:.2e} of its largest number; rounding moves it by {noise:.1e}\n"
            f"want {_shown(want[i])}\ngot  {_shown(got[i])}",
        )


def _shown(array: npt.NDArray[Any]) -> str:
    return np.array2string(array.ravel()[:8], precision=5, separator=", ")


def moved(array: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Floats, each changed by about one rounding unit; other types are unchanged."""
    if array.dtype.kind != "f":
        return array
    signs = rng.integers(-1, 2, array.shape).astype(array.dtype)
    step = 1 + signs * np.finfo(array.dtype).eps
    return np.asarray(array * step, array.dtype)
