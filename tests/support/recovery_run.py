"""A recovery that uses every kind of state, to be run in this process or, as a script, in one that is killed.

``python recovery_run.py FOLDER WHERE``: writes checkpoints to FOLDER, and kills itself after step ``WHERE`` or, when it
is ``between``, between the two files of a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from graphshrink import GateSchedule, Recovered, gate_penalty, insert_gates, recover

EPOCHS, EVERY = 3, 2


class Noisy(Dataset[Any]):
    """Images with random noise, like augmented ones."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        made = torch.Generator().manual_seed(index)
        x = torch.randn(3, 8, 8, generator=made)
        return x + 0.1 * torch.randn(3, 8, 8), index % 4


def network() -> Any:
    """Gated convolutions with batch norms and dropout."""
    torch.manual_seed(0)
    convs = [m for i in (3, 6, 6) for m in (nn.Conv2d(i, 6, 1), nn.BatchNorm2d(6), nn.ReLU())]
    head = [nn.Dropout(0.3), nn.Flatten(1), nn.Linear(6 * 64, 4)]
    return nn.Sequential(*convs, *head).eval()


def run(folder: Path | None, after_step: Callable[[Any], object] = id, **options: Any) -> Recovered:
    """Run the recovery, from the beginning or from the checkpoint in ``folder``."""
    gated = insert_gates(network(), example_inputs=(torch.randn(1, 3, 8, 8),), mode="top-k")
    schedule = GateSchedule(gated, keep=1, steps=10)
    generator = torch.Generator().manual_seed(3)
    given = {
        "epochs": EPOCHS, "lr": 0.01, "teacher": network(), "features": ["0"], "callbacks": [schedule, after_step],
        "penalty": lambda m: 0.1 * gate_penalty(m), "checkpoint": folder, "checkpoint_every": EVERY,
        "evaluate": lambda m: float(m(torch.ones(1, 3, 8, 8)).sum()), "clip": 1.0, "progress": False,
    }  # fmt: skip
    loader = DataLoader(Noisy(), 4, shuffle=True, generator=generator)
    return recover(gated, loader, **{**given, **options})


def die() -> None:
    """Kill this process without any clean-up, like a power failure."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run until killed."""
    from graphshrink.training.recovery import checkpoints

    folder, where = Path(sys.argv[1]), sys.argv[2]
    if where != "between":
        run(folder, lambda step: die() if step.number == int(where) else None)
        return
    write, done = checkpoints.write_json, []

    def fourth(path: str, data: Any) -> None:
        done.append(path)
        if len(done) == 4:
            die()
        write(path, data)

    checkpoints.write_json = fourth
    run(folder)


if __name__ == "__main__":
    main()
