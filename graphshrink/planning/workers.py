"""Scoring in worker processes: each runs models on the scoring samples, which it gets once, and returns losses.

A job is the bytes of two models, so that it does not depend on how a process was started: one computes the values in front of a region, the other one what
follows, with a candidate in the region. Every job runs on one thread. So a loss does not depend on the number of workers, nor on which of them computes it,
and the job of a worker that was killed is given to another one.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..ir import Graph, ModelError, Value
from ..ir.errors import counted
from .quality import Outputs, Prefix, Scorer, joined, loss_of, model_runner
from .samples import Batch

RETRIES = 2
"""How often a job is given to another worker after its own one ended."""

Place = tuple[bool, int]
"""Where an array is: whether it is computed, and its index there; else its index among what is given."""


@dataclass(frozen=True)
class Part:
    """A part of a network as a model.

    Attributes:
        model: The bytes of the ONNX model.
        feeds: The names of its inputs, in the order of the given arrays.
        names: The names of the computed values.
        folder: The folder of the model's external data.
        places: Where each wanted array is.
    """

    model: bytes
    feeds: tuple[str, ...]
    names: tuple[str, ...]
    folder: Path | None
    places: tuple[Place, ...]

    @classmethod
    def of(cls, graph: Graph, given: Sequence[Value], wanted: Sequence[Value]) -> Part:
        """The part of a graph that computes values from others; wanted values may be given ones.

        Raises:
            ModelError: If it cannot be written.
        """
        from ..targets.onnx.emitter import part_model

        made = [v for v in wanted if v not in given]
        places = tuple((v in made, (made if v in made else list(given)).index(v)) for v in wanted)
        folder = getattr(graph.host, "base_dir", None)
        if not made:
            return cls(b"", (), (), folder, places)
        model, feeds, names = part_model(graph, given, made)
        return cls(model.SerializeToString(), tuple(feeds), tuple(names), folder, places)

    def runner(self) -> Callable[[Batch], Outputs]:
        """A function that computes the wanted arrays of a batch, on one thread."""
        if not self.model:
            return lambda batch: [batch[i] for _, i in self.places]
        from onnx import load_model_from_string

        proto = load_model_from_string(self.model)
        run = model_runner(proto, self.feeds, self.names, self.folder, threads=1)

        def wanted(batch: Batch) -> Outputs:
            made = run(batch)
            return [(made if computed else batch)[i] for computed, i in self.places]

        return wanted


@dataclass
class Worker:
    """Scores networks in two parts; the values behind the first part are kept for the next job.

    Attributes:
        batches: The scoring samples.
        kinds: How each output is compared.
        axes: The axes along which they are; see :class:`.quality.Scorer`.
        reference: The outputs of the original network.
    """

    batches: tuple[Batch, ...]
    kinds: tuple[str, ...]
    axes: tuple[int, ...]
    reference: Outputs
    _front: str = ""
    _values: list[Batch] = field(default_factory=list)

    @classmethod
    def of(cls, scorer: Scorer) -> Worker:
        """A worker for a network; its measure must not be the user's own function."""
        return cls(tuple(scorer.batches), tuple(scorer.kinds), tuple(scorer.axes), scorer.reference)

    def score(self, front: Part, behind: Part) -> float:
        """The loss of a network.

        Raises:
            ModelError: If it does not run.
        """
        name = hashlib.sha256(repr((front.places, front.names)).encode() + front.model).hexdigest()
        if self._front != name:
            run = front.runner()
            self._values, self._front = [tuple(run(b)) for b in self.batches], name
        run = behind.runner()
        outputs = joined([run(batch) for batch in self._values], self.kinds, self.axes)
        return loss_of(self.kinds, outputs, self.reference)


class WorkerLost(Exception):
    """The process that computed a job ended without a result; the message is the reason, if it is known."""


@dataclass
class Job:
    """A score that a worker computes.

    Attributes:
        front: What is computed in front of a region.
        behind: What follows, with a candidate in the region.
        running: The pool's handle of the running job.
        lost: The number of workers that ended while they had the job.
    """

    front: Part
    behind: Part
    running: Any
    lost: int = 0


class Pool(ABC):
    """Workers for the scores of a network.

    Attributes:
        ahead: The number of jobs that are submitted at a time: each holds a model in memory.
        lost: The number of jobs that were given to another worker.
    """

    ahead: int
    lost: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, prefix: Prefix, graph: Graph) -> Job:
        """Score a variant of the network that computes the same as the original in front of a region.

        Raises:
            ModelError: If it cannot be written.
        """
        values = {v.name: v for v in graph.values()}
        front = Part.of(prefix.scorer.graph, prefix.scorer.graph.inputs, prefix.alive)
        behind = Part.of(graph, [values[v.name] for v in prefix.alive], graph.outputs)
        return Job(front, behind, self.start(front, behind))

    def result(self, job: Job) -> float:
        """The loss of a job.

        Raises:
            ModelError: If the model does not run, or several workers ended one after the other while they had the job.
        """
        while True:
            try:
                return self.wait(job.running)
            except WorkerLost as error:
                job.lost += 1
                if job.lost > RETRIES:
                    why = f" ({error})" if str(error) else ""
                    raise ModelError(
                        f"{counted(job.lost, 'worker')} ended one after the other while scoring the same candidate{why}: "
                        "perhaps memory is short; use fewer --workers, or none"
                    ) from error
                self.lost += 1
                job.running = self.start(job.front, job.behind)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""
        if not self.lost:
            return []
        jobs = counted(self.lost, "scoring job")
        return [
            f"worker processes ended before their results came, perhaps for lack of memory: {jobs} ran again"
        ]

    @abstractmethod
    def start(self, front: Part, behind: Part) -> Any:
        """Give a job to a worker; returns a handle for :meth:`wait`."""

    @abstractmethod
    def wait(self, running: Any) -> float:
        """The loss of a running job.

        Raises:
            ModelError: If the model does not run.
            WorkerLost: If the worker ended.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers."""


class ProcessPool(Pool):
    """Worker processes of this machine.

    Args:
        scorer: Scores the network.
        workers: The number of processes.
    """

    def __init__(self, scorer: Scorer, workers: int) -> None:
        self.ahead = 2 * workers
        self._workers, self._given = workers, Worker.of(scorer)
        self._has_worked = False
        self._executor = self._started()

    def _started(self) -> ProcessPoolExecutor:
        # Threads of runtimes do not survive a fork.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, context, _start, (self._given,))

    def start(self, front: Part, behind: Part) -> Future[float]:
        """Give a job to a process."""
        try:
            return self._executor.submit(_score, front, behind)
        except BrokenProcessPool:
            # All processes end with one that was killed. If memory was short, one less may do.
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._workers = max(1, self._workers - 1)
            self._executor = self._started()
            return self._executor.submit(_score, front, behind)

    def wait(self, running: Future[float]) -> float:
        """The loss of a running job."""
        try:
            found = running.result()
        except BrokenProcessPool as error:
            if self._has_worked:
                raise WorkerLost from error
            raise WorkerLost(
                'none has finished a job; a script needs if __name__ == "__main__":'
            ) from error
        self._has_worked = True
        return found

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(wait=True, cancel_futures=True)


_worker: list[Worker] = []
"""The worker of this process, if it is one."""


def _start(worker: Worker) -> None:
    """Prepare a worker process: it ends with its parent, which alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(worker)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _score(front: Part, behind: Part) -> float:
    return _worker[0].score(front, behind)
