"""The processor cores that this process may use: fewer than the machine has in containers and under ``taskset``."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def session_threads(threads: int = 0) -> int:
    """The number of threads to give onnxruntime: 0 leaves it the choice.

    onnxruntime's own choice is a thread for each physical core, each bound to its core; where the process may not use all cores, it prints an error for each
    of the others. There, the number is stated.

    Args:
        threads: The wanted number; 0 for all cores.
    """
    usable = usable_cores()
    return threads or (usable if usable < (os.cpu_count() or 1) else 0)
