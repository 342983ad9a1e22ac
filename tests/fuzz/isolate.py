"""Runs functions that may crash or hang in a child process."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable

from .verdict import CRASH, HANG, Outcome

NO_CASE = "no case"
"""The verdict on a case that the original runtime does not run."""


def limit_memory(gigabytes: float) -> None:
    """Limit the memory of this process."""
    size = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def in_child(run: Callable[[], Outcome], job: str, seconds: float) -> Outcome:
    """Run a function in a forked child; returns its findings, or how the child ended.

    Args:
        run: The function that the child calls.
        job: The name of the job.
        seconds: The time after which the child is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            try:
                outcome = run()
            except Exception as error:
                outcome = Outcome(job, NO_CASE, type(error).__name__, repr(error))
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(outcome, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    data, deadline = b"", time.monotonic() + seconds
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return Outcome(job, HANG, "does not end", f"no end after {seconds:.0f} s")
            part = os.read(reading, 1 << 16)
            if not part:
                break
            data += part
    finally:
        os.close(reading)
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data:
        found: Outcome = pickle.loads(data)
        return found
    code = os.waitstatus_to_exitcode(status)
    said = f"died of signal {-code}" if code < 0 else "ended without an answer"
    return Outcome(job, CRASH, said, f"the process {said}")
