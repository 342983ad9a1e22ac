"""Training in one process or in those that ``torchrun`` started: ranks, devices, shares of the data."""

from .training.processes import Processes, from_rank_0, join, shard, start_epoch

__all__ = ["Processes", "from_rank_0", "join", "shard", "start_epoch"]
