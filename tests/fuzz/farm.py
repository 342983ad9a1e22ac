"""Many seeds in worker processes, which may crash, hang or exhaust their memory without ending the run."""

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
"""A worker is replaced after this number of seeds, so that leaks do not accumulate."""

PATIENCE = 6
"""A worker that uses no CPU time is killed after this multiple of the time limit."""

ALIKE = 8
"""This number of cases of one fault is minimised and kept; more are only counted."""


@dataclass
class Settings:
    """The settings of a run.

    Attributes:
        targets: The targets to test.
        folder: The folder for findings.
        seconds: The time limit for one seed.
        minimising: The time limit for minimising one finding.
        gigabytes: The limit on the address space of a worker.
        share: The fraction of the jobs that is run for each case.
    """

    targets: tuple[str, ...]
    folder: Path
    seconds: float = 120.0
    minimising: float = 20.0
    gigabytes: float = 10.0
    share: float = 0.35


@dataclass
class Tally:
    """The outcomes of a run."""

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
        """Faults with enough minimised cases, counted over all jobs."""
        counted: Counter[tuple[str, str]] = Counter()
        for (_, kind, what), seeds in self.found.items():
            counted[kind, what] += len(seeds)
        return [list(key) for key, count in counted.items() if count >= ALIKE]

    def summary(self) -> str:
        """The summary that is printed at the end."""
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
        settings: The settings of the run.
        first: The first seed.
        until: The time to end, by ``time.monotonic``.
        workers: The number of processes.
        most: The largest number of seeds.
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
        except KeyboardInterrupt:  # Workers end when their pipes close.
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
                # Find out which job it was: run each in its own process.
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
    """A process that runs seeds."""

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
        """Run one seed; returns how the worker ended, if it did."""
        self.done += 1
        try:
            self._in.write(
                json.dumps({"seed": seed, "known": known, "alone": alone}).encode() + b"\n"
            )
            self._in.flush()
        except OSError:
            return "could not be reached"
        # The start takes time too; a job that runs in its own child process has its own limit.
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
        """The next answer; ``None`` if the worker ends or hangs.

        On a busy machine a slow worker need not hang: the limit counts its CPU time, and a multiple of it
        limits the time by the clock.
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
        """Seconds of CPU time so far; if the system does not report it, seconds of the clock."""
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
    """Run the seeds from standard input, and write the outcome of each to standard output, one line each."""
    # Output of libraries must not be mixed with the answers.
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
    """The targets of a command line; all if it names none."""
    return tuple(words) or tuple(all_targets)
