"""Many seeds in worker processes, which may crash, hang or ask for all memory without ending the run."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from . import findings
from .isolate import limit_memory
from .trial import Found, broken_generator, fronts, jobs_of, smallest, trial
from .verdict import CRASH, HANG, REFUSAL, Outcome

SEEDS_A_WORKER = 150
"""After so many seeds a worker is replaced, whatever has leaked."""

PATIENCE = 6
"""A worker that computes nothing is given up after so many times the limit."""

ALIKE = 8
"""So many cases of one fault are made small and kept; the others are counted."""


@dataclass
class Settings:
    """What a run does.

    Attributes:
        targets: Which targets.
        folder: Where findings go.
        seconds: How long one seed may take.
        minimising: How long one finding may be made smaller.
        gigabytes: The address space of a worker.
        share: The part of the jobs that each case does.
    """

    targets: tuple[str, ...]
    folder: Path
    seconds: float = 120.0
    minimising: float = 20.0
    gigabytes: float = 10.0
    share: float = 0.35


@dataclass
class Tally:
    """What came of a run."""

    cases: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    found: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    kept: dict[tuple[str, str, str], str] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int, front: str, said: dict[str, Any]) -> None:
        """Count one outcome."""
        outcome = Outcome(**said)
        self.outcomes[f"{front} {outcome.job}", outcome.kind] += 1
        if outcome.kind == REFUSAL:
            self.refusals[f"{front} {outcome.job}: {outcome.what}"] += 1
        if outcome.found:
            self.found.setdefault(
                (f"{front} {outcome.job}", outcome.kind, outcome.what), []
            ).append(seed)

    def known(self) -> list[list[str]]:
        """Faults of which there are enough small cases, whichever jobs they are of."""
        counted: Counter[tuple[str, str]] = Counter()
        for (_, kind, what), seeds in self.found.items():
            counted[kind, what] += len(seeds)
        return [list(key) for key, count in counted.items() if count >= ALIKE]

    def summary(self) -> str:
        """What there is to say at the end."""
        lines = [f"{self.cases} seeds"]
        jobs = sorted({job for job, _ in self.outcomes})
        for job in jobs:
            kinds = {k: n for (j, k), n in sorted(self.outcomes.items()) if j == job}
            lines.append(f"  {job:24} " + ", ".join(f"{n} {k}" for k, n in kinds.items()))
        if self.refusals:
            lines.append("most frequent refusals:")
            lines += [f"  {n:5} {text}" for text, n in self.refusals.most_common(15)]
        for what, count in self.lost.items():
            lines.append(f"{count} workers ended: {what}")
        lines.append(f"{len(self.found)} faults" if self.found else "nothing found")
        for (job, kind, what), seeds in sorted(self.found.items()):
            shown = ", ".join(map(str, seeds[:5])) + (
                f" and {len(seeds) - 5} more" if len(seeds) > 5 else ""
            )
            lines.append(f"  {kind} {job}: {what} (seeds {shown})")
        if self.kept:
            lines.append("smallest cases:")
        for (kind, what, made_of), place in sorted(self.kept.items()):
            lines.append(f"  {kind} {what}: {made_of}\n      {place}")
        return "\n".join(lines)


def long_run(
    settings: Settings, first: int, until: float, workers: int, most: int | None = None
) -> Tally:
    """Try seeds from ``first`` on until a time.

    Args:
        settings: What is done with each.
        first: The first seed.
        until: When to end, by ``time.monotonic``.
        workers: How many processes.
        most: How many seeds at most.
    """
    tally, lock, following = (
        Tally(),
        threading.Lock(),
        iter(range(first, first + most) if most else range(first, 2**62)),
    )
    threads = [
        threading.Thread(target=_tend, args=(settings, tally, lock, following, until), daemon=True)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    said = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:  # The workers end with their pipes.
            break
        if time.monotonic() - said > 60:
            said = time.monotonic()
            with lock:
                sys.stderr.write(f"{tally.cases} seeds, {len(tally.found)} faults\n")
    return tally


def _tend(
    settings: Settings, tally: Tally, lock: threading.Lock, following: Any, until: float
) -> None:
    """Feed one worker with seeds, and replace it when it ends."""
    worker: _Worker | None = None
    try:
        while time.monotonic() < until:
            with lock:
                seed = next(following, None)
            if seed is None:
                return
            if worker is None or worker.done >= SEEDS_A_WORKER:
                if worker is not None:
                    worker.close()
                worker = _Worker(settings)
            with lock:
                known = tally.known()
            how = worker.seed(seed, known, tally, lock)
            if how is not None:
                worker.close()
                # Which job it was, in a process for each.
                worker = _Worker(settings)
                again = worker.seed(seed, known, tally, lock, alone=True)
                with lock:
                    tally.lost[how] += 1
                if again is not None:
                    worker.close()
                    worker = None
            with lock:
                tally.cases += 1
    finally:
        if worker is not None:
            worker.close()


class _Worker:
    """A process that does seeds."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.done = settings, 0
        said = {**asdict(settings), "folder": str(settings.folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz", "--worker", json.dumps(said)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._rest = b""

    def seed(
        self,
        seed: int,
        known: list[list[str]],
        tally: Tally,
        lock: threading.Lock,
        alone: bool = False,
    ) -> str | None:
        """Do one seed; how the worker ended, if it did."""
        self.done += 1
        try:
            self._in.write(
                json.dumps({"seed": seed, "known": known, "alone": alone}).encode() + b"\n"
            )
            self._in.flush()
        except OSError:
            return "could not be reached"
        # Starting takes a while too; a child of its own for each job has a limit of its own.
        limit = self.settings.seconds + 30 + (20 * self.settings.seconds if alone else 0)
        while True:
            line = self._line(limit)
            if line is None:
                code = self._process.poll()
                return f"no answer after {limit:.0f} s" if code is None else f"exit code {code}"
            said = json.loads(line)
            if said["what"] == "end":
                return None
            if said["what"] == "minimising":
                limit = self.settings.minimising * 2 + self.settings.seconds
                continue
            with lock:
                if said["what"] == "outcome":
                    tally.add(seed, said["front"], said["outcome"])
                else:
                    outcome = said["outcome"]
                    key = (outcome["kind"], outcome["what"], said["signature"])
                    if key not in tally.kept:
                        sys.stderr.write(f"{' '.join(key)}: {said['place']}\n")
                    tally.kept.setdefault(key, said["place"])

    def _line(self, seconds: float) -> bytes | None:
        """The next answer; none if the worker ends, or takes so long that it hangs.

        On a busy machine a worker may be slow and not hang: it is waited for until it has computed for so long, but
        not for more than so many times that.
        """
        start, spent = time.monotonic(), self._computed()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._out], [], [], 1.0)
            if not ready:
                waited, computed = time.monotonic() - start, self._computed() - spent
                if waited > seconds and (computed > seconds or waited > PATIENCE * seconds):
                    return None
                continue
            part = os.read(self._out.fileno(), 1 << 16)
            if not part:
                self._process.wait()
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _computed(self) -> float:
        """Seconds of CPU time so far; where the system does not tell, those of the clock."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()


def worker(settings: Settings) -> None:
    """Do the seeds that standard input names; what came of each goes to standard output, a line each."""
    # What libraries print must not come between.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    limit_memory(settings.gigabytes)

    def say(what: str, **more: Any) -> None:
        answers.write(json.dumps({"what": what, **more}) + "\n")

    for line in sys.stdin:
        asked = json.loads(line)
        known = {tuple(key) for key in asked["known"]}
        alone = settings.seconds if asked["alone"] else None
        for front in fronts(settings.targets):
            for found in _outcomes(front, asked["seed"], settings, alone, say):
                key = (found.outcome.kind, found.outcome.what)
                if key in known:
                    continue
                known.add(key)
                say("minimising")
                dies = found.outcome.kind == HANG or (
                    found.outcome.kind == CRASH and alone is not None
                )
                small = smallest(front, found, settings.minimising, (10.0 if dies else None))
                place = findings.write(
                    settings.folder, asked["seed"], front, small.outcome, small.case
                )
                say(
                    "kept",
                    front=front,
                    outcome=asdict(small.outcome),
                    place=str(place),
                    signature=findings.signature(small.case),
                )
        say("end")


def _outcomes(
    front: str, seed: int, settings: Settings, alone: float | None, say: Any
) -> list[Found]:
    jobs = jobs_of(front, seed, settings.targets, settings.share)
    found: list[Found] = []
    try:
        for outcome, case in trial(front, seed, jobs, alone):
            say("outcome", front=front, outcome=asdict(outcome))
            if outcome.found:
                found.append(Found(outcome, case))
    except Exception as error:
        say("outcome", front=front, outcome=asdict(broken_generator(front, error)))
    return found


def targets_of(words: Sequence[str], all_targets: Sequence[str]) -> tuple[str, ...]:
    """The targets of a command line, all when there are none."""
    return tuple(words) or tuple(all_targets)
