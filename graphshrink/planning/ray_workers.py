"""Scoring on the machines of a Ray cluster; see :mod:`.workers`, whose jobs these are.

graphshrink must be installed on all machines. A model with external data is read from its folder, which they must share.
"""

from __future__ import annotations

from concurrent.futures import Future
from importlib import import_module
from itertools import cycle
from typing import Any

from ..ir import MissingExtra, ModelError, UsageError
from ..running.sessions import one_line
from .quality import Scorer
from .workers import Part, Pool, Worker

LOCAL = "local"
"""The address that starts Ray on this machine alone."""


class RayPool(Pool):
    """One worker for each processor of a cluster.

    Args:
        scorer: Scores the network.
        address: The address of the cluster: ``auto`` finds the one that this machine belongs to; :data:`LOCAL` starts Ray here.

    Raises:
        MissingExtra: If Ray is not installed.
        UsageError: If there is no cluster.
    """

    def __init__(self, scorer: Scorer, address: str) -> None:
        self._ray: Any = ray_package()
        self._owned = not self._ray.is_initialized()
        if self._owned:
            try:
                self._ray.init(
                    address=address, log_to_driver=False, logging_level="error",
                    **({"include_dashboard": False} if address == LOCAL else {}),
                )  # fmt: skip
            except Exception as error:
                raise UsageError(
                    f"there is no Ray cluster at {address!r} ({one_line(error)}): 'ray start --head' starts one, --ray {LOCAL} uses this machine"
                ) from error
        count = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        given = self._ray.put(Worker.of(scorer))
        made = self._ray.remote(num_cpus=1)(_Actor)
        self._actors = [made.remote(given) for _ in range(count)]
        self._next = cycle(self._actors)
        self.ahead = 2 * count

    def start(self, front: Part, behind: Part) -> Future[float]:
        """Give a job to the next worker."""
        job: Future[float] = next(self._next).score.remote(front, behind).future()
        return job

    def result(self, job: Future[float]) -> float:
        """The loss of a job."""
        try:
            return job.result()
        except self._ray.exceptions.RayTaskError as error:
            raise ModelError(one_line(error.cause)) from error
        except self._ray.exceptions.RayError as error:
            raise ModelError(f"a Ray worker ended: {one_line(error)}") from error

    def close(self) -> None:
        """End the workers, and Ray if it was started or joined here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._owned:
            self._ray.shutdown()


class _Actor:
    """A worker as Ray makes it, in a process of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def score(self, front: Part, behind: Part) -> float:
        return self._worker.score(front, behind)


def ray_package() -> Any:
    """The package.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtra("--ray", "ray", "ray") from error
