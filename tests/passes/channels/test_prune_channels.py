"""Removed channels: networks in which some channels do nothing must compute the same without them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphshrink import ShrinkResult, shrink
from graphshrink.passes import PassError
from graphshrink.passes.channels.prune_channels import kept_count


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    for tensor in (made.running_mean, made.bias):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    for tensor in (made.running_var, made.weight):
        nn.init.uniform_(tensor, 0.5, 2)  # type: ignore[arg-type]
    return made


def without(module: nn.Module, weak: list[int]) -> None:
    """Weaken the filters of these channels."""
    with torch.no_grad():
        module.weight[weak] *= 1e-2  # type: ignore[index, operator]


def unread(module: nn.Module, weak: list[int]) -> None:
    """Let a layer not read these channels."""
    with torch.no_grad():
        module.weight[:, weak] = 0  # type: ignore[index, operator]


class Chain(nn.Module):
    """Convolution, norm, slopes, depthwise convolution, pool; a dense layer reads the pixels."""

    def __init__(self, weak: list[int]) -> None:
        super().__init__()
        self.make, self.norm, self.slope = nn.Conv2d(3, 16, 3, bias=False), norm(16), nn.PReLU(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.read = nn.Linear(16 * 9, 5)
        without(self.make, weak)
        unread(self.read, [9 * c + i for c in weak for i in range(9)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.norm(self.make(x)))
        x = nn.functional.max_pool2d(torch.tanh(self.deep(x)), 2)
        return self.read(torch.flatten(x, 1))


class Stream(nn.Module):
    """A residual stream that two blocks write and read, and squeeze-and-excitation."""

    def __init__(self, weak: list[int]) -> None:
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.first = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(2))
        self.second = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.norm = norm(16)
        for layer in (self.stem, *self.second, self.excite):
            without(layer, weak)
        for layer in (*self.first, self.end, self.squeeze):
            unread(layer, weak)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(x)))
        x = self.norm(x)
        gate = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.end(x * torch.sigmoid(self.excite(gate)))


class Branches(nn.Module):
    """One branch of a concatenation has weak channels, behind a resize and a pad."""

    def __init__(self, weak: list[int]) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
        self.read = nn.Conv2d(24, 4, 3)
        without(self.other, weak)
        unread(self.read, [8 + c for c in weak])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.one(x)), nn.functional.elu(self.other(x))], 1)
        both = nn.functional.interpolate(both, scale_factor=2, mode="nearest")
        return self.read(nn.functional.pad(both, (1, 1, 1, 1)))


class Perceptron(nn.Module):
    """The dense layers of a transformer."""

    def __init__(self, weak: list[int]) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)
        without(self.up, weak)
        unread(self.down, weak)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(3)[..., :1].transpose(1, 2).expand(-1, 1, 3).repeat(1, 1, 4)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


NETWORKS: list[Callable[[list[int]], nn.Module]] = [Chain, Stream, Branches, Perceptron]


def ran(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def exported(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    return onnx.load_from_string(file.getvalue())


def parameters(result: ShrinkResult) -> tuple[int, int]:
    return result.report.before.parameters, result.report.after.parameters


LAYERS: dict[Any, str] = {Chain: "make", Stream: "stem", Branches: "other", Perceptron: "up"}
"""The layer that makes the weak channels."""


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 0.5, 0.75]), st.booleans())
def test_channels_that_nothing_reads_go(
    network: Callable[[list[int]], nn.Module], seed: int, ratio: float, norms_stay: bool
) -> None:
    torch.manual_seed(seed)
    weak = torch.randperm(16)[: int(16 * ratio)].tolist()
    module, x = network(weak).eval(), torch.randn(2, 3, 8, 8)
    text = f"prune-channels{{ratio={ratio},multiple=4,layers=[{LAYERS[network]}]}}"
    result = shrink(module, text if norms_stay else f"merge-linear,{text}", example_inputs=(x,))
    before, after = parameters(result)
    assert after < before
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), module(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.model(x[:1]), module(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_files(network: Callable[[list[int]], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = network([1, 2, 5, 15]).eval(), torch.randn(2, 3, 8, 8)
    file = exported(module, x)
    text = f"prune-channels{{ratio=0.25,multiple=4,layers=[/{LAYERS[network]}/*]}}"
    result = shrink(file, text)
    assert any(p.rewrites for p in result.report.passes)
    np.testing.assert_allclose(ran(result.model, x), ran(file, x), rtol=1e-3, atol=1e-4)


def test_the_mean_of_what_goes_stays() -> None:
    """Half of the channels are constant: their readers' biases take them up, whether they have one or not."""
    torch.manual_seed(0)
    make, read = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1, bias=False)
    weak = [0, 3, 4, 5, 9, 10, 11, 14]
    with torch.no_grad():
        make.weight[weak] = 0
    module = nn.Sequential(make, nn.Sigmoid(), read, nn.Tanh(), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(16, 3, 5, 5)
    text = "prune-channels{ratio=0.5,method=variance,layers=[0]}"
    result = shrink(module, text, example_inputs=(x[:1],), calibration=x)
    assert parameters(result) == (64 + 64 + 10, 32 + 36 + 10)
    torch.testing.assert_close(result.model(x), module(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(PassError, match="calibration"):
        shrink(module, text, example_inputs=(x[:1],))


def test_norms_and_parameters_train_on() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    module[3].requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    made: Any = shrink(module, "prune-channels{ratio=0.5}", example_inputs=(x,)).model
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [8]
    assert norms[0].running_mean is not None
    assert set(norms[0].running_mean.tolist()) < set(before["1.running_mean"].tolist())
    made.train()
    made(x).sum().backward()
    learns = {name for name, p in made.named_parameters() if p.requires_grad}
    assert learns == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("case", ["reshape", "groups", "sum", "pairs", "output"])
def test_what_cannot_follow_stays(case: str) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Conv2d(3, 16, 1)
            self.groups = nn.Conv2d(16, 16, 1, groups=2)
            self.read = nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> Any:
            x = torch.relu(self.make(x))
            if case == "reshape":
                x = x.reshape(-1, 4, 4, 64).transpose(1, 2).reshape(-1, 16, 8, 8)
            if case == "groups":
                x = self.groups(x)
            if case == "sum":
                x = x * torch.sigmoid(x.mean(1, keepdim=True))
            if case == "pairs":  # One axis of channels is summed over, another one stays.
                v = x.mean((2, 3))
                v = (v.unsqueeze(2) * torch.tanh(v).unsqueeze(1)).mean(2)
                x = v.unsqueeze(2).unsqueeze(3)
            return (self.read(x), x) if case == "output" else self.read(x)

    x = torch.randn(1, 3, 8, 8)
    text = "prune-channels{ratio=0.5,multiple=1,layers=[make]}"
    module = Net().eval()
    result = shrink(module, text, example_inputs=(x,))
    assert parameters(result)[0] == parameters(result)[1]
    torch.testing.assert_close(result.model(x), module(x))
    refused = [r for p in result.report.passes for r in p.refusals]
    if case != "output":  # The channels of an output are in no group.
        assert refused


def test_options() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.ReLU(), nn.Conv2d(12, 2, 1)).eval()  # fmt: skip
    x = torch.randn(1, 3, 4, 4)

    def widths(text: str) -> list[int]:
        made = shrink(module, text, example_inputs=(x,)).model
        return [m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)]

    assert widths("prune-channels") == [16, 8, 2]
    assert widths("prune-channels{multiple=1}") == [18, 9, 2]
    assert widths("prune-channels{layers=[0]}") == [16, 12, 2]
    assert widths("prune-channels{skip=[0]}") == [24, 8, 2]
    assert widths("prune-channels{ratio=0.99,multiple=1}") == [1, 1, 2]
    for wrong in ("ratio=0", "ratio=1", "multiple=0", "layers=[nothing]", "method=luck"):
        with pytest.raises(PassError):
            shrink(module, f"prune-channels{{{wrong}}}", example_inputs=(x,))


def test_zeros() -> None:
    """Channels that are all alike: the first ones stay."""
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1)).eval()
    with torch.no_grad():
        module[0].weight.zero_()
        module[2].weight.zero_()
    x = torch.randn(4, 3, 4, 4)
    for method in ("magnitude", "variance"):
        text = f"prune-channels{{ratio=0.5,method={method}}}"
        made = shrink(module, text, example_inputs=(x,), calibration=x).model
        torch.testing.assert_close(made(x), module(x))
        torch.testing.assert_close(made.get_parameter("0.bias"), module[0].bias[:8])


@given(st.integers(1, 4096), st.floats(0.01, 0.99), st.integers(1, 64))
def test_kept_count(size: int, ratio: float, multiple: int) -> None:
    kept = kept_count(size, ratio, multiple)
    assert 1 <= kept <= size
    assert kept == size or kept % multiple == 0
