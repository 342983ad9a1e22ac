"""A module that was shrunk for one size of its inputs gives the given module's results for others."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphshrink import shrink
from graphshrink.ir import Graph, Reshape, Rewriter
from support.onnx_run import outputs_of

Forward = Callable[..., Any]


class Net(nn.Module):
    """Two convs and a batch norm, which a test puts together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.tokens, self.table = nn.Linear(6, 6), nn.Embedding(9, 6)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        self.eval()


def divided(s: Any, x: Any) -> Any:
    return s.norm(s.conv(x)) / x.shape[2]


def divided_by_root(s: Any, x: Any) -> Any:
    y = s.conv(x)
    return y / math.sqrt(y.shape[-1])


def times_area(s: Any, x: Any) -> Any:
    y = s.conv(x)
    _, _, h, w = y.shape
    return s.wide(s.norm(y) * (h * w))


def to_a_power(s: Any, x: Any) -> Any:
    y = s.conv(x)
    return s.norm(y).abs() ** (1 / y.size(-1))


def mean_by_hand(s: Any, x: Any) -> Any:
    y = s.conv(x)
    return s.norm(y).sum((2, 3)) / (y.shape[2] * y.size(3))


def over_numel(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return y / y.numel()


def over_batch_behind(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x)).permute(2, 3, 0, 1)
    return y / y.shape[2]


def plus_grid(s: Any, x: Any) -> Any:
    y = s.conv(x)
    h, w = y.shape[-2:]
    across = torch.linspace(-1, 1, w).view(1, 1, 1, w)
    return s.norm(y) + across + torch.arange(h).view(1, 1, h, 1)


def resized_like(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    small = s.wide(F.max_pool2d(y, 2))
    return s.wide(F.interpolate(small, size=y.shape[2:], mode="bilinear") + y)


def pooled_whole(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return s.wide(F.avg_pool2d(y, y.shape[2:]))


def pixels_in_a_row(s: Any, x: Any) -> Any:
    y = s.conv(x)
    n, c, h, w = y.shape
    return s.norm(y).reshape(n, c, h * w).softmax(-1)


def there_and_back(s: Any, x: Any) -> Any:
    y = s.conv(x)
    n, c, h, w = y.shape
    rows = s.norm(y).view(n, c, h * w).transpose(1, 2)
    return s.wide(rows.transpose(1, 2).view(n, c, h, w))


def windows(s: Any, x: Any) -> Any:
    y = s.conv(x)
    n, c, h, w = y.shape
    parts = s.norm(y).view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    parts = s.wide(parts.reshape(-1, c, 2, 2)).view(n, h // 2, w // 2, c, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def upper_half(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return s.wide(y[:, :, : y.shape[2] // 2])


def padded(s: Any, x: Any) -> Any:
    y = s.conv(x)
    return s.wide(F.pad(s.norm(y), (0, y.shape[2] // 2, 0, y.shape[3] // 4)))


def expanded(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return y.mean((2, 3), keepdim=True).expand(-1, -1, y.shape[2], y.shape[3]) + y


def repeated(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return y.mean(3, keepdim=True).repeat(1, 1, 1, y.shape[3]) + y


def rolled(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return torch.roll(y, y.shape[2] // 2, 2)


def unflattened(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return y.flatten(2).unflatten(2, (y.shape[2], y.shape[3]))


IMAGES = [
    divided, divided_by_root, times_area, to_a_power, mean_by_hand, over_numel, over_batch_behind, plus_grid, resized_like,
    pooled_whole, pixels_in_a_row, there_and_back, windows, upper_half, padded, expanded, repeated, rolled, unflattened,
]  # fmt: skip

PASSES = ["fold-constants,merge-linear,prune-dead", "hoist-padding,merge-linear,prune-dead"]


def made(forward: Forward) -> Net:
    return type("Made", (Net,), {"forward": forward})()


def same(model: nn.Module, result: nn.Module, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(result(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("forward", IMAGES, ids=lambda f: f.__name__)
def test_images_of_other_sizes(forward: Forward, passes: str) -> None:
    torch.manual_seed(1)
    model = made(forward)
    result = shrink(model, passes, example_inputs=(torch.randn(2, 3, 8, 8),), check=True).model
    for shape in ((2, 3, 8, 8), (1, 3, 12, 12), (3, 3, 16, 8), (2, 3, 8, 20)):
        same(model, result, torch.randn(shape))


def averaged(s: Any, ids: Any) -> Any:
    y = s.tokens(s.table(ids))
    return s.tokens(y / ids.shape[1]).sum(1)


def scaled_scores(s: Any, ids: Any) -> Any:
    y = s.tokens(s.table(ids))
    t = y.shape[1]
    return (y @ y.transpose(1, 2) / t).softmax(-1) @ y


def positions(s: Any, ids: Any) -> Any:
    return s.tokens(s.table(ids) + s.table(torch.arange(ids.shape[1])))


@pytest.mark.parametrize("forward", [averaged, scaled_scores, positions], ids=lambda f: f.__name__)
def test_other_numbers_of_tokens(forward: Forward) -> None:
    torch.manual_seed(1)
    model = made(forward)
    result = shrink(model, example_inputs=(torch.randint(0, 9, (2, 6)),), check=True).model
    for shape in ((2, 6), (1, 4), (3, 8)):
        same(model, result, torch.randint(0, 9, shape))


def square_only(s: Any, x: Any) -> Any:
    y = s.norm(s.conv(x))
    return y @ y / y.shape[3]


def two_inputs(s: Any, x: Any, other: Any) -> Any:
    return s.norm(s.conv(x + other)) / other.shape[3]


def test_sizes_that_only_change_together() -> None:
    torch.manual_seed(1)
    square, both = made(square_only), made(two_inputs)
    x = torch.randn(1, 3, 8, 8)
    small = shrink(square, example_inputs=(x,), check=True).model
    joined = shrink(both, example_inputs=(x, x), check=True).model
    for size in (8, 12):
        z = torch.randn(2, 3, size, size)
        same(square, small, z)
        same(both, joined, z, z + 1)


def by_channels(s: Any, x: Any) -> Any:
    y = s.conv(x)
    return s.norm(y) / y.shape[1]


def test_sizes_of_the_module_are_numbers() -> None:
    """The number of channels is fixed by a weight: dividing by it merges."""
    model = made(by_channels)
    result = shrink(model, example_inputs=(torch.randn(1, 3, 8, 8),))
    assert result.report.after.ops == {"Conv": 1}
    same(model, result.model, torch.randn(2, 3, 12, 12))


def rewritten(graph: Graph, rw: Rewriter) -> None:
    """A pass that writes all reshapes anew."""
    for node in list(graph.nodes):
        if isinstance(node.op, Reshape):
            with rw.rewrite("write a reshape anew", node):
                rw.replace(node, node.op, node.inputs)


def test_sizes_that_a_pass_fixes_are_noted() -> None:
    model, x = made(windows), torch.randn(2, 3, 8, 8)
    notes = shrink(model, [rewritten], example_inputs=(x,), check=True).report.notes
    assert any("was rewritten with the sizes 4, which follow the inputs" in n for n in notes)
    assert not shrink(model, example_inputs=(x,)).report.notes
    # One size that is left over, or that is copied, stays open.
    for forward in (pixels_in_a_row, expanded):
        model = made(forward)
        result = shrink(model, [rewritten], example_inputs=(x,))
        assert not result.report.notes
        same(model, result.model, torch.randn(1, 3, 12, 16))


def test_sizes_that_do_not_fit_are_not_logged() -> None:
    """torch logs each of them as an error with its traceback, which is no message for a user."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        shrink(made(divided), example_inputs=(torch.randn(1, 3, 8, 8),))
        shrink(made(over_tokens), example_inputs=(torch.randn(2, 5, 6),))
        shrink(Branching().eval(), example_inputs=(torch.randn(3),))
    finally:
        logger.removeHandler(handler)
    assert not found
    assert not logger.disabled


class Branching(nn.Module):
    """A branch that torch.export alone follows; one sample more does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.ndim == 1 else x


def over_tokens(s: Any, x: Any) -> Any:
    return s.tokens(x) / x.shape[1]


def cut_off(s: Any, x: Any) -> Any:
    y = x[:, :16]
    return s.tokens(y) / y.shape[1]


@pytest.mark.parametrize("size", [20, 70])
def test_sizes_that_only_follow_smaller_inputs(size: int) -> None:
    model = made(cut_off)
    result = shrink(model, example_inputs=(torch.randn(1, size, 6),), check=True).model
    for other in (3, 9, 16, 33):
        same(model, result, torch.randn(2, other, 6))


def truncated(s: Any, x: Any) -> Any:
    return s.tokens(x[:, :16]).narrow(1, 0, 4)


def truncated_by_size(s: Any, x: Any) -> Any:
    return s.tokens(x[:, :16]) / x.shape[1]


@pytest.mark.parametrize("forward", [truncated, truncated_by_size])
def test_slices_that_cut_only_longer_inputs_stay(forward: Forward) -> None:
    model = made(forward)
    result = shrink(model, example_inputs=(torch.randn(1, 4, 6),), check=True).model
    for size in (4, 9, 16, 33):
        same(model, result, torch.randn(2, size, 6))


@pytest.mark.parametrize(
    "pool", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d((4, 2)), nn.AdaptiveAvgPool2d((None, 4))]
)
def test_windows_of_adaptive_pools_are_noted_where_a_pass_fixes_them(pool: nn.Module) -> None:
    x = torch.randn(1, 3, 8, 8)
    merged = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), pool, nn.Conv2d(4, 4, 1)).eval()
    kept = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.ReLU()).eval()
    for model in (merged, kept):
        result = shrink(model, example_inputs=(x,))
        other = torch.randn(2, 3, 18, 18)
        alike = result.model(other).shape == model(other).shape
        assert alike or any("follow the inputs" in n for n in result.report.notes)
    assert alike
    assert not result.report.notes


class Features(nn.Module):
    """A norm of the features of all positions, as LeViT has it."""

    def __init__(self, features: int, view: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, features, bias=False), nn.BatchNorm1d(features)
        self.view = view
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)
        self.eval()

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        z = self.norm(y.flatten(0, 1)).relu()
        return z.reshape_as(y) if self.view == "reshape_as" else z.view_as(y)


@pytest.mark.parametrize("view", ["reshape_as", "view_as"])
@pytest.mark.parametrize("features", [5, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_norm_of_flattened_features(batch: int, features: int, view: str) -> None:
    model = Features(features, view)
    result = shrink(model, example_inputs=(torch.randn(batch, 4, 6),), check=True)
    assert "Scale" not in result.report.after.ops
    # Without another value as large, the number of positions is fixed, and a note says so.
    noted = any("was rewritten with the sizes 4" in note for note in result.report.notes)
    assert noted is (features == 5)
    with torch.no_grad():
        for shape in ((batch, 4, 6), (3, 4, 6), *(() if noted else ((2, 7, 6), (1, 1, 6)))):
            x = torch.randn(shape)
            torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_scale_of_other_axes_stays_behind_its_reshape() -> None:
    class Crossed(Features):
        def forward(self, x: Any) -> Any:
            return self.norm(self.first(x).reshape(-1, 6, 4))

    model, x = Crossed(6, ""), torch.randn(2, 4, 6)
    result = shrink(model, example_inputs=(x,), check=True)
    assert "Scale" in result.report.after.ops
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.view(x.size(1), x.size(0), 4).transpose(0, 1), (4, 4, 4)),
        (lambda x: torch.stack([x, x], 0).view(2 * x.size(0), -1), (1, 4)),
        (lambda x: x.transpose(0, 1).reshape(x.numel() // 4, 4), (4, 4)),
    ],
)
def test_a_batch_that_is_as_large_as_another_axis_by_chance(
    function: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    class Called(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    shrink(Called().eval(), example_inputs=(torch.randn(shape),)).save(tmp_path / "made.onnx")
    for batch in (shape[0], 5):
        x = torch.randn(batch, *shape[1:])
        (found,) = outputs_of(tmp_path / "made.onnx", x.numpy())
        np.testing.assert_array_equal(found, Called()(x).numpy())
