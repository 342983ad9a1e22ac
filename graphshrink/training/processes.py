"""Training in one process or in those that ``torchrun`` started: ranks, devices, shares of the data, agreement.

Each process has the whole module and computes the gradients of its own batches; ``DistributedDataParallel`` averages them,
over gloo on CPUs and NCCL on GPUs. Rank 0 makes the decisions that could differ between processes, such as a plan from
measured latencies, and broadcasts them as JSON.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..ir import MissingExtra, UsageError

try:
    import torch
except ImportError as missing:
    raise MissingExtra("training in processes", "torch", "torch") from missing

import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: The rank of this process.
        world: The number of processes.
        device: The device of this process.
    """

    rank: int
    world: int
    device: torch.device

    def all(self, flag: bool) -> bool:
        """Whether ``flag`` is true in all processes."""
        if self.world == 1:
            return flag
        found = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return bool(found)

    def mean(self, values: list[float]) -> list[float]:
        """The means over all processes."""
        if self.world == 1 or not values:
            return values
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return [value / self.world for value in found.tolist()]

    def from_first(self, data: Any) -> Any:
        """Broadcast rank 0's ``data``, which is plain data as in JSON; returns it in all processes."""
        if self.world == 1:
            return data
        text = json.dumps(data).encode() if self.rank == 0 else b""
        size = torch.tensor(len(text), device=self.device)
        dist.broadcast(size, 0)
        body = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0:
            body.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(body, 0)
        return json.loads(bytes(body.cpu().numpy()))

    def agree(self, data: Any, what: str) -> None:
        """Check that ``data`` is the same in all processes.

        Raises:
            UsageError: If it is not, with ``what`` as its text.
        """
        digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()
        if not self.all(digest == self.from_first(digest)):
            raise UsageError(what)

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy rank 0's tensors to all processes."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def agree_on_shapes(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Check that the module of each process has the same tensors, but for their numbers.

        Raises:
            UsageError: If it has not.
        """
        self.agree(
            {name: list(tensor.shape) for name, tensor in tensors.items()},
            "the processes have different modules: decide what is removed on rank 0 and share it by "
            "graphshrink.processes.from_rank_0",
        )

    def first_module(self, module: nn.Module) -> nn.Module:
        """A copy of the module with rank 0's tensors; the module itself if there is one process.

        Raises:
            UsageError: If the processes have different modules.
        """
        if self.world == 1:
            return module
        made = copy.deepcopy(module).to(self.device)
        tensors = tensors_of(made)
        self.agree_on_shapes(tensors)
        self.spread(tensors.values())
        return made

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, including masks of parametrizations and states of gates."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def join(device: str | torch.device | None = None, module: nn.Module | None = None) -> Processes:
    """The processes that train together; under ``torchrun`` the first call initialises the process group.

    Args:
        device: The device to compute on. If not given: under ``torchrun`` the process's own GPU if there are GPUs, else
            the device of the parameters of ``module``.
        module: The module to train.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    several = world > 1 or (dist.is_available() and dist.is_initialized())
    if device is None:
        parameter = None if module is None else next(module.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        if several and torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    device = torch.device(device)
    if not several:
        return Processes(0, 1, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_0(compute: Callable[[], Any]) -> Any:
    """Call ``compute()`` on rank 0 and return its result on all ranks, such as a plan that must be the same on all.

    Args:
        compute: Called on rank 0 only; returns plain data as in JSON. Without ``torchrun`` there is only rank 0.
    """
    processes = join()
    return processes.from_first(compute() if processes.rank == 0 else None)


def shard(loader: Iterable[Any], processes: Processes) -> Iterable[Any]:
    """This process's share of the batches; all shares have the same number of batches.

    A ``DataLoader`` loads only the batches of its own process; any other iterable is iterated whole in every process, and the
    batches of other processes are skipped. A loader with a ``DistributedSampler`` is returned as it is.
    """
    if processes.world == 1 or isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return loader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return _EveryNth(loader, processes)
    if loader.generator is not None:
        state = loader.generator.get_state().to(processes.device)
        processes.spread([state])
        loader.generator.set_state(state.cpu())
    return DataLoader(
        loader.dataset,
        batch_sampler=_BatchShard(loader.batch_sampler, processes),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _BatchShard(Sampler[list[int]]):
    """Every n-th batch of indices. Each process draws the whole order from the same seed."""

    def __init__(self, batches: Iterable[list[int]], processes: Processes) -> None:
        self.batches, self.processes = batches, processes
        self.seed = 0

    def __iter__(self) -> Iterator[list[int]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            order = list(self.batches)
        return islice(
            iter(order), self.processes.rank, self._whole(len(order)), self.processes.world
        )

    def _whole(self, count: int) -> int:
        return count - count % self.processes.world

    def __len__(self) -> int:
        return len(self.batches) // self.processes.world  # type: ignore[arg-type]


class _EveryNth:
    """Every n-th batch of an iterable; the last batches are dropped if there is not one for each process."""

    def __init__(self, batches: Iterable[Any], processes: Processes) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while len(group := list(islice(batches, self.processes.world))) == self.processes.world:
            yield group[self.processes.rank]

    def __len__(self) -> int:
        return len(self.batches) // self.processes.world  # type: ignore[arg-type]


def start_epoch(loader: Iterable[Any], epoch: int, seed: int) -> None:
    """Set the epoch of the loader's sampler; ``seed`` must be the same in all processes."""
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, _BatchShard):
        batches.seed = seed
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
