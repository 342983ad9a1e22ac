"""The script that each process of ``torchrun`` runs in the tests: ``recovery_processes.py FOLDER``."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from graphshrink import UsageError, gate_penalty, gates, recover
from graphshrink.nn import Gate
from graphshrink.processes import from_rank_0, join
from support import recovery_run

COUNT = 26
MODES = ("soft", "top-k", "hard-concrete")


class Half(nn.Module):
    """A mask that differs between processes until that of rank 0 is copied to all."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(4) % 2 == rank).float())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


class Indices(Dataset[Any]):
    """A data set whose samples contain their own index."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return torch.cat([x, torch.tensor([float(index)])]), index % 3


class Plain(nn.Module):
    """A dense layer that records its inputs."""

    def __init__(self, rank: int = 0, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(rank)  # Other weights in each process.
        self.layer = nn.Linear(4, 3)
        self.seen: list[int] = []
        if masked:
            parametrize.register_parametrization(self.layer, "weight", Half(rank))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += x[:, 4].int().tolist()
        return self.layer(x[:, :4])


def gated(mode: str, rank: int = 0) -> nn.Module:
    """Two dense layers with a gate between; different in each process."""
    torch.manual_seed(rank)
    gate = Gate(nn.ReLU(), mode=mode, value=0.0 if mode == "top-k" and rank else 1.0)
    return nn.Sequential(nn.Linear(5, 6), gate, nn.Linear(6, 3))


def sgd(model: nn.Module, batches: Any, **options: Any) -> Any:
    return recover(
        model, batches, **{"optimizer": "sgd", "lr": 0.1, "epochs": 2, "progress": False, **options}
    )


def main() -> None:
    """Run all cases, and write the results that the test checks to files."""
    folder = Path(sys.argv[1])
    processes = join()
    rank = processes.rank
    told: dict[str, Any] = {"world": processes.world}
    tensors: dict[str, torch.Tensor] = {}

    # Shares: of a data loader, in order and at random, of any iterable, and by a sampler of the caller's.
    for name, batches in {
        "ordered": DataLoader(Indices(), 4),
        "random": DataLoader(Indices(), 4, shuffle=True),
        "generator": DataLoader(Indices(), 4, shuffle=True, generator=torch.Generator().manual_seed(rank)),
        "iterable": list(DataLoader(Indices(), 4)),
        "sampler": DataLoader(Indices(), 4, sampler=DistributedSampler(Indices(), drop_last=True)),
    }.items():  # fmt: skip
        model = Plain(rank, masked=name == "random")
        done = sgd(model, batches, evaluate=lambda m: float(m.layer.weight.sum()))
        told[name] = {"seen": model.seen, "loss": done.history[-1]["loss"]}
        told[name]["evaluated"] = done.history[-1]["accuracy"]
        tensors |= {f"{name}.{k}": v.clone() for k, v in model.state_dict().items()}

    # Every kind of gate.
    for mode in MODES:
        model = gated(mode, rank)
        sgd(model, list(DataLoader(Indices(), 4)), penalty=lambda m: 0.1 * gate_penalty(m))
        tensors |= {f"{mode}.{k}": v.clone() for k, v in model.state_dict().items()}

    # Gates, batch norms and dropout, uninterrupted and interrupted.
    whole = recovery_run.run(None)
    told["kept"] = [name for name, gate in gates(whole.model).items() if gate.kept]
    tensors |= {f"whole.{k}": v.clone() for k, v in whole.model.state_dict().items()}

    def stop(step: Any) -> None:
        if step.number == 4:  # 2 steps an epoch, kept after each epoch.
            raise KeyboardInterrupt

    try:
        recovery_run.run(folder / "kept", stop)
    except KeyboardInterrupt:
        told["stopped"] = True
    again = recovery_run.run(folder / "kept")
    tensors |= {f"again.{k}": v.clone() for k, v in again.model.state_dict().items()}

    # Integers: of other weights, and of batches in another order, in each process.
    torch.manual_seed(rank)
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    before = plain[0].weight.detach().clone()
    drawn = torch.Generator().manual_seed(rank)
    done = sgd(plain, DataLoader(Indices(), 4, shuffle=True, generator=drawn), quantize=True)
    tensors |= {f"integers.{k}": v.clone() for k, v in done.model.state_dict().items()}
    done.save(folder / f"integers{rank}.onnx")
    told["integers"] = hashlib.sha256((folder / f"integers{rank}.onnx").read_bytes()).hexdigest()
    told["untouched"] = torch.equal(before, plain[0].weight)

    # Decisions of rank 0, and what happens without them.
    told["plan"] = from_rank_0(lambda: {"keep": rank + 7})
    errors = told["errors"] = []
    for broken in (
        lambda: sgd(nn.Linear(4, 3 + rank), [(torch.randn(2, 4), torch.zeros(2).long())] * 2),
        lambda: sgd(Plain(), TensorDatasetLoader(1)),
        lambda: sgd(Plain(), DataLoader(Indices(), 4), epochs=rank + 1),
        lambda: [
            sgd(Plain(), DataLoader(Indices(), 4), checkpoint=folder / f"own{rank}")
            for _ in range(2)
        ],
        lambda: sgd(nn.Linear(5, 3), [(torch.randn(2, 5) + rank, torch.zeros(2).long())] * 2, quantize=True),
    ):  # fmt: skip
        try:
            broken()
        except UsageError as error:
            errors.append(str(error))
    (folder / f"told{rank}.json").write_text(json.dumps(told))
    save_file(tensors, folder / f"tensors{rank}.safetensors")


class TensorDatasetLoader(DataLoader[Any]):
    """One batch, for two processes."""

    def __init__(self, count: int) -> None:
        super().__init__(TensorDataset(torch.randn(count, 5), torch.zeros(count).long()), 1)


if __name__ == "__main__":
    main()
