"""Scoring on the machines of a Ray cluster; see :mod:`.workers`, whose jobs these are.

graphshrink must be installed on all machines. A model with external data is read from its folder, which they must share. A job is a task of Ray, so that
it waits for any free processor, also if other programs use the cluster or machines join and leave it.
"""

from __future__ import annotations

import uuid
from importlib import import_module
from typing import Any

from ..ir import MissingExtra, ModelError, UsageError
from ..ir.errors import one_line
from .quality import Scorer
from .workers import Part, Pool, Worker, WorkerLost

LOCAL = "local"
"""The address that starts Ray on this machine alone."""


class RayPool(Pool):
    """The processors of a cluster.

    Args:
        scorer: Scores the network.
        address: The address of the cluster: ``auto`` finds the one that this machine belongs to; :data:`LOCAL` starts Ray here.

    Raises:
        MissingExtra: If Ray is not installed.
        UsageError: If there is no cluster, or it has no processors.
    """

    def __init__(self, scorer: Scorer, address: str) -> None:
        self._ray: Any = ray_package()
        self._started: list[Any] = []
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
        count = int(self._ray.cluster_resources().get("CPU", 0))
        if not count:
            self.close()
            raise UsageError(
                f"the Ray cluster at {address!r} has no processors for jobs: add a machine with 'ray start', or give it --num-cpus"
            )
        self.ahead = 2 * count
        # The samples are in the object store once; tasks of one machine share them.
        self._name, self._given = uuid.uuid4().hex, self._ray.put(Worker.of(scorer))
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(score_task)

    def start(self, front: Part, behind: Part) -> Any:
        """Give a job to the cluster."""
        running = self._task.remote(self._name, self._given, front, behind)
        self._started.append(running)
        return running

    def wait(self, running: Any) -> float:
        """The loss of a running job."""
        failures = self._ray.exceptions
        try:
            return float(self._ray.get(running))
        except failures.RayTaskError as error:
            raise ModelError(one_line(error.cause)) from error
        except failures.RayError as error:
            raise WorkerLost(one_line(error)) from error

    def close(self) -> None:
        """Cancel what still runs, and end Ray if it was started or joined here."""
        if self._owned:
            self._ray.shutdown()
            return
        for running in self._started:
            self._ray.cancel(running, force=True)


_held: dict[str, Worker] = {}
"""The worker of this process of Ray, by the name of its pool: it keeps values from one job to the next."""


def score_task(pool: str, worker: Worker, front: Part, behind: Part) -> float:
    """A job in a process of Ray.

    Args:
        pool: A name of the pool.
        worker: Its worker, as Ray hands it over.
        front: See :meth:`.workers.Worker.score`.
        behind: See there.
    """
    if pool not in _held:
        _held.clear()
        _held[pool] = worker
    return _held[pool].score(front, behind)


def ray_package() -> Any:
    """The package.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtra("--ray", "ray", "ray") from error
