"""The alternatives to pivoted networks in ``pivot_accuracy.py``: low rank, and fewer channels.

All accept a ``nn.Sequential`` of convolutions, dense layers, batch norms and layers without weights, and the names of the layers
to make smaller; they return a new network that is really smaller.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from graphshrink.api import ShrinkResult
from graphshrink.running.latency import PairedLatency, paired_latency_for
from graphshrink.running.sessions import session

ROUND = 8
"""Widths are multiples of this: onnxruntime's convolutions are several times slower on others."""

Call = Callable[[], object]


def low_rank(model: nn.Sequential, layers: list[str], k: int) -> nn.Sequential:
    """Replace each layer by two with 1/k of its weights, by singular value decomposition."""
    model = copy.deepcopy(model)
    for name in layers:
        layer = model.get_submodule(name)
        weight = layer.weight.detach()
        flat = weight.reshape(len(weight), -1)
        rank = max(1, flat.numel() // (k * sum(flat.shape)))
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        first, last = v[:rank] * s[:rank, None].sqrt(), u[:, :rank] * s[:rank].sqrt()
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            pair = [nn.Linear(flat.shape[1], rank, False), nn.Linear(rank, len(flat), bias)]
        else:
            pair = [
                nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False),
                nn.Conv2d(rank, len(flat), 1, bias=bias),
            ]  # fmt: skip
        pair[0].weight.data = first.reshape(pair[0].weight.shape)
        pair[1].weight.data = last.reshape(pair[1].weight.shape)
        if bias:
            pair[1].bias.data = layer.bias.data
        model.set_submodule(name, nn.Sequential(*pair))
    return model.eval()


def narrower(model: nn.Sequential, layers: list[str], keep: list[int]) -> nn.Sequential:
    """Only so many channels, those of largest norm, on both sides of each layer: of what it reads, and of what it gives.

    The norm is that of the weights that make a channel (Li et al., *Pruning Filters for Efficient ConvNets*, 2017), with
    what a batch norm behind them multiplies them by.
    """
    model = copy.deepcopy(model)
    kept: torch.Tensor | None = None
    widths = iter(keep)
    names = [name for name, m in model.named_children() if isinstance(m, (nn.Conv2d, nn.Linear))]
    cut = {names.index(name) for name in layers}
    for at, name in enumerate(names):
        layer = model.get_submodule(name)
        weight = layer.weight.detach() if kept is None else layer.weight.detach()[:, kept]
        kept = None
        if at in cut or at + 1 in cut:
            norm = _norm_behind(model, name)
            size = weight.flatten(1).norm(dim=1)
            if norm is not None:
                size = size * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
            kept = size.topk(next(widths)).indices.sort().values
            weight = weight[kept]
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[kept])
            if norm is not None:
                _select(norm, kept)
        layer.weight = nn.Parameter(weight.clone())
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        else:
            layer.out_channels, layer.in_channels = weight.shape[:2]
    return model.eval()


def _norm_behind(model: nn.Sequential, name: str) -> nn.BatchNorm2d | None:
    modules = list(model.named_children())
    at = [n for n, _ in modules].index(name)
    behind = modules[at + 1][1] if at + 1 < len(modules) else None
    return behind if isinstance(behind, nn.BatchNorm2d) else None


def _select(norm: nn.BatchNorm2d, kept: torch.Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[kept])
    norm.bias = nn.Parameter(norm.bias.detach()[kept])
    norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
    norm.num_features = len(kept)


# Latency.


def in_onnxruntime(made: ShrinkResult, x: torch.Tensor) -> Call:
    """A call of the deployed model in onnxruntime, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        made.save(path)
        run = session(path, threads=1)
    (slot,) = run.get_inputs()
    given = {slot.name: x.numpy()}
    return lambda: run.run(None, given)


def timed(first: Call, second: Call, seconds: float) -> PairedLatency:
    """Both, side by side, in many pairs: equal latency is decided by their interval."""
    return paired_latency_for(seconds, first, second, least=31, most=2001)


def equal_widths(
    most: int, boundaries: int, call: Callable[[list[int]], Call], other: Call, seconds: float
) -> list[int]:
    """The largest widths that are not slower than ``other``, as far as timing can tell (the 95 % interval).

    The largest multiple of 8 that can be the width of all boundaries is bisected; then as many as possible, from the first
    one on, get 8 more.
    """

    def fits(widths: list[int]) -> bool:
        return timed(call(widths), other, seconds).interval[0] <= 1

    low, high = 1, most // ROUND + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits([middle * ROUND] * boundaries) else (low, middle)
    widths = [low * ROUND] * boundaries
    for at in range(boundaries):
        more = [*widths[:at], widths[at] + ROUND, *widths[at + 1 :]]
        if more[at] <= most and more != [more[0]] * boundaries and fits(more):
            widths = more
    return widths
