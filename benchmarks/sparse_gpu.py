"""2:4 weights against dense ones on a GPU: single dense layers, and a transformer's feed-forward blocks, in one run.

    python benchmarks/sparse_gpu.py [--dtype float16] [--runs 50]

Weights are pruned to 2:4 by magnitude and compressed by ``graphshrink.nn.use_sparse_kernels``. Each line is a paired ratio:
dense and sparse calls alternate, each is timed by CUDA events, and the median of the ratios is printed. The dense network has the
same zeros, so that outputs can be compared. Without a CUDA device that has sparse tensor cores nothing is measured.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable

import torch
from torch import nn

from graphshrink.ir import Pattern
from graphshrink.nn import use_sparse_kernels
from graphshrink.training.sparse_kernels import CAPABILITY

LAYERS = [(768, 768), (3072, 768), (1024, 4096), (4096, 4096), (11008, 4096), (8192, 8192)]
"""(outputs, inputs)"""

TOKENS = (64, 1024, 8192)
"""Rows of the input."""

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


def prune(module: nn.Module) -> nn.Module:
    """Prune all dense layers to 2:4 by magnitude."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                mask = Pattern().mask(layer.weight.abs().float().cpu().numpy())
                layer.weight *= torch.from_numpy(mask).to(layer.weight.device)
    return module


def blocks(width: int, depth: int) -> nn.Module:
    """Feed-forward blocks with norms, as in a transformer."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    return nn.Sequential(*(Block() for _ in range(depth)))


def milliseconds(call: Callable[[], object]) -> float:
    """One call, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def compared(dense: nn.Module, x: torch.Tensor, runs: int) -> tuple[float, float, float, str]:
    """Median milliseconds of both, the median ratio, and a remark."""
    sparse = copy.deepcopy(dense)
    found = use_sparse_kernels(sparse)
    if found.skipped:
        name, reason = next(iter(found.skipped.items()))
        return 0.0, 0.0, 0.0, f"{len(found.skipped)} layers skipped: {name or 'it'}: {reason}"
    want, got = dense(x), sparse(x)
    error = float((want - got).abs().max() / want.abs().max())
    if error > TOLERANCE[x.dtype]:
        return 0.0, 0.0, 0.0, f"wrong by {error:.1e}"
    for _ in range(10):
        dense(x), sparse(x)
    pairs = []
    for i in range(runs):
        order = (dense, sparse) if i % 2 == 0 else (sparse, dense)
        times = {m: milliseconds(lambda m=m: m(x)) for m in order}
        pairs.append((times[dense], times[sparse]))
    middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return middle[0], middle[1], statistics.median(a / b for a, b in pairs), f"error {error:.0e}"


def main() -> int:
    """Print the table, or the reason why there is none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return 0
    if torch.cuda.get_device_capability() < CAPABILITY:
        print(f"skipped: {torch.cuda.get_device_name()} has no sparse tensor cores")
        return 0
    dtype = getattr(torch, options.dtype)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.dtype}\n")
    print("| what | tokens | dense ms | sparse ms | speed-up | |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    cases: list[tuple[str, nn.Module, int]] = [
        (f"Linear {o}x{i}", nn.Linear(i, o), i) for o, i in LAYERS
    ]
    cases += [(f"12 blocks of {w}", blocks(w, 12), w) for w in (768, 2048)]
    with torch.inference_mode():
        for what, module, width in cases:
            dense = prune(module.to("cuda", dtype).eval())
            for tokens in TOKENS:
                x = torch.randn(tokens, width, device="cuda", dtype=dtype)
                slow, fast, ratio, note = compared(dense, x, options.runs)
                print(f"| {what} | {tokens} | {slow:.3f} | {fast:.3f} | {ratio:.2f} | {note} |")
            module.to("cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
