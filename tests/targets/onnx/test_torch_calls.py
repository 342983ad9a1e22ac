"""Calls of torch without an op in the IR, written as ONNX nodes: torch against onnxruntime, on the example and on other numbers."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import rnn as rnn_utils

from graphshrink import ModelError, shrink
from support.onnx_run import outputs_of


class Called(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def traced(function: Callable[..., Any], count: int) -> fx.GraphModule:
    """A function as a module, with calls on numbers of Python that a trace by fx does not see written by hand."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{i}") for i in range(count)]
    function(graph, *given)
    return fx.GraphModule(nn.Module(), graph)


def written(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> onnx.ModelProto:
    """The file that graphshrink writes itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = shrink(module.eval(), (), example_inputs=inputs).save(path)
    assert not any("torch" in note for note in result.notes), result.notes
    return onnx.load(path)


def check(module: nn.Module, path: Path, *draws: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """Compare the file of a module with the module, for the inputs that it was written with and for others."""
    model = written(module, draws[0], path)
    for inputs in draws:
        feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, inputs, strict=True)}
        want = module(*inputs)
        for a, b in zip(
            [want] if isinstance(want, torch.Tensor) else want,
            outputs_of(model, feeds),
            strict=True,
        ):
            assert a.shape == b.shape
            assert a.numpy().dtype == b.dtype
            largest = float(a.double().nan_to_num().abs().max()) if a.numel() else 0.0
            error = 1e-3 if a.dtype is torch.float16 else 1e-6
            np.testing.assert_allclose(b, a.numpy(), rtol=0, atol=error * largest)
    return model


def floats(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def ints(
    *sizes: int, low: int = -9, high: int = 9, seed: int = 0, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    return torch.randint(low, high, sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(found: Any) -> tuple[Any, Any]:
    """The first two results of a call, taken one by one."""
    return found[0], found[1]


X, Y = floats(3, 4), floats(3, 4, seed=1)
N, M = ints(3, 4), ints(3, 4, low=1, seed=1)
PLACES = ints(3, 4, low=0, high=3, seed=2)

GAPS = X.clone()
GAPS[0, 1] = GAPS[2, 0] = GAPS[2, 3] = torch.nan

PLAIN: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "sorted along the batch, returned whole": (lambda x: torch.sort(x, 0, descending=True), (X,)),
    "most along an axis": (lambda x: torch.max(x, 1), (X,)),
    "least along an axis": (lambda n: torch.min(n, dim=0, keepdim=True), (N,)),
    "most of booleans": (lambda x: both((x > 0).max(-1)), (X,)),
    "pieces by name": (lambda x: (x.max(1).indices, x.topk(2).values), (X,)),
    "a mask of bytes": (lambda x: x[(x > 0).byte()], (X,)),
    "a mask of bytes of the batch": (lambda x: x[(x[:, 0] > 0).to(torch.uint8)], (X,)),
    "short integers": (lambda x: (x * 9).short(), (X,)),
    "mixed types": (lambda x, n: x * n + 2, (X, N)),
    "true division of integers": (lambda n, m: n / m, (N, M)),
    "rounded down": (lambda n, m: torch.div(n, m, rounding_mode="floor"), (N, M)),
    "rounded towards zero": (lambda n, m: torch.div(n, m, rounding_mode="trunc"), (N, M)),
    "remainder of integers": (lambda n: torch.remainder(n, -4), (N,)),
    "bytes wrap around": (lambda n: n * 37 - 5, (ints(3, 4, low=0, high=200, dtype=torch.uint8),)),
    "half beside a number": (lambda x: x * 0.1, (X.half(),)),
    "bits": (lambda n, m: (n & m) | (n ^ 5), (N, M)),
    "not": (torch.bitwise_not, (N,)),
    "compares types": (lambda x, n: x > n, (X, N)),
    "clamped integers": (lambda n: n.clamp(-2, 3), (N,)),
    "clamped by tensors": (lambda x, y: torch.clamp(x, min=y), (X, Y)),
    "where with a number": (lambda x: torch.where(x > 0, x, 1.0), (X,)),
    "infinite": (lambda x: torch.isinf(x / (x - x.amax())), (X,)),
    "sum of integers": (lambda n: n.sum(1), (N.int(),)),
    "product of integers": (lambda n: n.prod(1), (N,)),
    "any": (lambda x: (x > 1).any(1), (X,)),
    "all": (lambda x: (x > -1).all(), (X,)),
    "running sums of integers": (lambda n: torch.cumsum(n, 1), (N.int(),)),
    "running products": (lambda x: torch.cumprod(x, 1), (X,)),
    "determinants": (torch.linalg.det, (floats(2, 3, 3),)),
    "einsum": (lambda x, y: torch.einsum("ij,kj->ik", x, y), (X, Y)),
    "flip": (lambda x: torch.flip(x, (0, 1)), (X,)),
    "triangle": (lambda x: torch.triu(x, 1), (X,)),
    "tiles": (lambda x: x.repeat(2, 1, 20), (X,)),
    "scatter": (lambda x, i, y: torch.scatter(x, 0, i, y), (X, PLACES[:1], Y[:1])),
    "scatter of a number": (lambda x, i: torch.scatter(x, 0, i, 2.0), (X, PLACES)),
    "scatter adds": (lambda x, i, y: torch.scatter_reduce(x, 0, i, y, "sum"), (X, PLACES, Y)),
    "scatter of fewer": (lambda x, i, y: torch.scatter_add(x, 0, i, y), (X, PLACES[:1], Y)),
    "index_put": (lambda x, i, y: torch.index_put(x, (i,), y), (X, torch.tensor([2, 0]), Y[:2])),
    "index_put adds": (lambda x, i, j, y: torch.index_put(x, (i, j), y, True), (X, torch.tensor([1, 1]), torch.tensor([3, 3]), Y[0, :2])),
    "several indices": (lambda x, i, j: x[i, j], (X, torch.tensor([[2], [0]]), torch.tensor([1, 3]))),
    "several indices behind": (lambda x, i, j: x[:, i, j], (floats(2, 3, 4), torch.tensor([2, 0]), torch.tensor([1, 3]))),
    "sort": (lambda x: both(torch.sort(x, dim=1, descending=True, stable=True)), (N,)),
    "one_hot": (lambda i: F.one_hot(i, 5), (PLACES,)),
    "grid_sample": (lambda x, g: F.grid_sample(x, g, align_corners=True), (floats(1, 2, 5, 6), floats(1, 3, 4, 2))),
    "affine_grid": (lambda t: F.affine_grid(t, [2, 1, 3, 4], align_corners=False), (floats(2, 2, 3),)),
    "pool with places": (lambda x: both(F.max_pool2d(x, 2, return_indices=True)), (floats(2, 3, 6, 8),)),
    "fold": (lambda x: F.fold(x, (4, 5), (2, 2)), (floats(1, 8, 12),)),
    "unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (floats(2, 3, 4, 6),)),
    "loss": (lambda x, t: F.nll_loss(x, t), (F.log_softmax(X, 1), PLACES[0, :3])),
    "NumPy's names of arguments": (lambda x: both(torch.topk(x, 2, axis=0)), (X,)),
    "NumPy's names, reduced": (lambda n: n.sum(axis=0, keepdims=True), (N.int(),)),
    "NumPy's names, of an op": (lambda x: x.mean(axis=-2, keepdims=True), (X,)),
    "NumPy's names, joined": (lambda n, m: torch.cat([n, m], axis=1), (N, M)),
    "arange to a named end": (lambda x: x + torch.arange(0, end=x.shape[1]), (X,)),
    "arange of names": (lambda x: x + torch.arange(start=1, end=9, step=2), (X,)),
    "exponents of integers": (lambda n: torch.logsumexp(n, 1), (N,)),
    "largest of short integers": (lambda n: n.amax(1), (N.short(),)),
    "largest of truths": (lambda x: (x > 0).amax(1), (X,)),
    "normalised along two axes": (lambda x: F.normalize(x, dim=(1, 2)), (floats(2, 3, 4),)),
    "normalised small numbers": (lambda x: F.normalize(x, p=1, dim=-1), (X.half() * 1e-4,)),
    "means of scattered": (lambda x, i, y: x.scatter_reduce(0, i, y, "mean"), (X, PLACES, Y)),
    "means of scattered alone": (lambda x, i, y: x.scatter_reduce(0, i, y, "mean", include_self=False), (X, PLACES, Y)),
    "pool that divides": (lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=2), (floats(2, 3, 6, 8),)),
    "spectrum": (lambda x: torch.view_as_real(torch.fft.rfft(x, dim=1)), (X,)),
    "spectrum and back": (lambda x: torch.view_as_real(torch.fft.ifft(torch.fft.fft(x, dim=0), dim=0)), (X,)),
    "both extrema": (lambda x: torch.aminmax(x, dim=1), (X,)),
    "both extrema of all, by name": (lambda n: (n.aminmax().max, n.aminmax().min), (N,)),
    "variance": (lambda x: x.var(1), (X,)),
    "variance with a correction": (lambda x: torch.var(x, dim=(0, 1), correction=0.5, keepdim=True), (X,)),
    "deviation of one": (lambda x: x.std(1, unbiased=False), (X[:, :1],)),
    "deviation of all": (lambda x: torch.std(x, False), (X,)),
    "deviation by place": (lambda x: torch.std(x, 1, True, True), (X,)),
    "variance of half": (lambda x: x.var(1), (X.half() * 100,)),
    "variance and mean": (lambda x: torch.var_mean(x, dim=1), (X,)),
    "deviation and mean": (lambda x: both(torch.std_mean(x, 0, keepdim=True)), (X,)),
    "sum without NaN": (lambda x: x.nansum(1, keepdim=True), (GAPS,)),
    "sum of integers without NaN": (lambda n: n.nansum(), (N.int(),)),
    "mean without NaN": (lambda x: torch.nanmean(x, 1), (GAPS,)),
    "the kth": (lambda x: torch.kthvalue(x, 2, dim=1, keepdim=True), (X,)),
    "median": (lambda x: torch.median(x, 1), (GAPS,)),
    "median of the batch": (lambda x: x.median(0, keepdim=True).values, (X,)),
    "median of all": (lambda x: (x.median(), (x * 0 + 1).median()), (GAPS,)),
    "median of integers": (lambda n: n.median(-1).values, (N,)),
    "running maxima": (lambda x: torch.cummax(x, 1), (GAPS,)),
    "running minima": (lambda n: n.cummin(-1), (ints(3, 7, low=0, high=3),)),
    "places in order": (lambda x: torch.argsort(x, dim=1, descending=True), (X,)),
    "in order along the batch": (torch.msort, (X,)),
    "split in sections": (lambda x: torch.tensor_split(x, 3, dim=1), (X,)),
    "split at places": (lambda x: torch.tensor_split(x, (1, -1), dim=1), (X,)),
    "split at places behind the end": (lambda x: x.tensor_split([3, 9], 1)[0], (X,)),
    "split sideways": (lambda x: torch.hsplit(x, 2), (X,)),
    "differences": (lambda x: torch.diff(x, 2, 1), (X,)),
}  # fmt: skip
"""Calls whose shapes are those of the example."""


@pytest.mark.parametrize("name", PLAIN)
def test_calls(name: str, tmp_path: Path) -> None:
    function, inputs = PLAIN[name]
    model = check(Called(function), tmp_path / "made.onnx", inputs)
    assert model.producer_name == "graphshrink"


@pytest.mark.parametrize("opset", [8, 11, 12, 13])
@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_softmax_in_another_type_of_any_axis(function: Any, opset: int, tmp_path: Path) -> None:
    """Before opset 13, ONNX's operator sums over all axes from the given one on."""
    x = floats(2, 3, 4)
    for axis in (0, -2, 2):
        module = Called(lambda x, axis=axis: function(x, axis, dtype=torch.float64)).eval()
        path = tmp_path / "made.onnx"
        shrink(module, (), example_inputs=(x,)).save(path, opset=opset)
        model = onnx.load(path)
        (got,) = outputs_of(model, {model.graph.input[0].name: x.numpy()})
        np.testing.assert_allclose(got, module(x).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda n: -n, (ints(3, 4, low=0, dtype=torch.uint8),)),
        (lambda n, m: n @ m.T, (N.to(torch.int8), M.to(torch.int8))),
    ],
)
def test_element_types_that_an_operator_lacks_are_refused(
    function: Any, inputs: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    result = shrink(Called(function).eval(), (), example_inputs=inputs)
    with pytest.raises(ModelError, match="does not exist"):
        result.save(tmp_path / "made.onnx")
    assert not (tmp_path / "made.onnx").exists()


def test_numbers_that_the_exporter_of_torch_writes_wrong_are_refused(tmp_path: Path) -> None:
    """torch's exporter leaves out the divisor."""
    pool = Called(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=2)).eval()
    result = shrink(pool, (), example_inputs=(floats(2, 3, 7, 9),))
    with pytest.raises(ModelError, match="differs from the module's"):
        result.save(tmp_path / "made.onnx")


BY_NUMBERS: dict[str, tuple[Callable[..., Any], tuple[tuple[torch.Tensor, ...], ...]]] = {
    "places": (torch.nonzero, ((X > 0,), (Y > 0,), (X > 9,))),
    "masked": (lambda x, m: x[m], ((X, X > 0), (X, Y > 0))),
    "masked rows": (lambda x, m: x[m] * 2, ((X, X[:, 0] > 0), (X, X[:, 0] < 9))),
    "selected": (torch.masked_select, ((X, X > 0), (X, Y > 0))),
    "unique": (lambda n: both(torch.unique(n, return_counts=True)), ((N,), (PLACES,))),
    "piece from a place": (lambda x, n: torch.narrow(x, 1, n, 2), ((X, torch.tensor(1)), (X, torch.tensor(-2)), (X, torch.tensor(-4)))),
    "picked where": (lambda x, m: torch.index_select(x, 0, torch.nonzero(m).reshape(-1)), ((X, X[:, 0] > 0), (X, X[:, 0] < 9))),
}  # fmt: skip
"""Calls whose shapes depend on numbers, with inputs that give different shapes."""


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_shapes_that_depend_on_numbers(name: str, tmp_path: Path) -> None:
    function, draws = BY_NUMBERS[name]
    module = Called(function)
    assert len({str(module(*inputs)) for inputs in draws}) == len(draws)
    check(module, tmp_path / "made.onnx", *draws)


def counted(graph: fx.Graph, x: fx.Node, n: fx.Node) -> None:
    number = graph.call_method("item", (n,))
    made = graph.call_function(torch.arange, (number,), {"dtype": torch.float32})
    graph.output(made)


def reshaped(graph: fx.Graph, x: fx.Node, n: fx.Node) -> None:
    sizes = graph.call_method("tolist", (n,))
    first = graph.call_function(operator.getitem, (sizes, 0))
    graph.output(graph.call_function(torch.reshape, (x, (first, -1))))


def expanded(graph: fx.Graph, x: fx.Node, n: fx.Node) -> None:
    number = graph.call_function(int, (graph.call_method("item", (n,)),))
    twice = graph.call_function(operator.mul, (number, 2))
    graph.output(graph.call_method("expand", (x, twice, -1, -1)))


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (counted, (torch.tensor(3), torch.tensor(5), torch.tensor(0))),
        (reshaped, (torch.tensor([2]), torch.tensor([6]))),
        (expanded, (torch.tensor(2), torch.tensor(1))),
    ],
)
def test_numbers_that_are_read_from_tensors(
    function: Any, numbers: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    check(traced(function, 2), tmp_path / "made.onnx", *((X, n) for n in numbers))


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("total", [None, 6, 9, 5, "size"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_sequences_of_different_lengths(
    make: Any, total: Any, batch_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    parts = nn.ModuleDict({"layer": make(4, 5, bidirectional=True, batch_first=batch_first)})
    graph = fx.Graph()
    x, lengths = graph.placeholder("x"), graph.placeholder("lengths")
    how: dict[str, Any] = {"batch_first": batch_first}
    packed = graph.call_function(
        rnn_utils.pack_padded_sequence, (x, lengths), {"enforce_sorted": False, **how}
    )
    called = graph.call_module("layer", (packed,))
    y = graph.call_function(operator.getitem, (called, 0))
    if total == "size":
        total = graph.call_method("size", (x, int(batch_first)))
    padded = graph.call_function(
        rnn_utils.pad_packed_sequence, (y,), {"total_length": total, **how}
    )
    graph.output(tuple(graph.call_function(operator.getitem, (padded, i)) for i in range(2)))
    module = fx.GraphModule(parts, graph).eval()
    sizes = (3, 6, 4) if batch_first else (6, 3, 4)
    draws = [(floats(*sizes), torch.tensor(n)) for n in ([5, 2, 4], [1, 4, 3])]
    with torch.no_grad():
        check(module, tmp_path / "made.onnx", *draws)


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda x: torch.where(x > 0)[0], (X,), "as a tuple"),
        (lambda x, y: torch.floor_divide(x, y), (X, Y), "in its own way"),
        (lambda x: torch.add(x, x, alpha=2), (X,), "multiplied by 2"),
        (lambda n: torch.bitwise_left_shift(n, 2), (N,), "shifts no signed numbers"),
        (lambda x: torch.normal(0.0, x.abs()), (X,), "normal"),
        (lambda x: torch.mode(x, 1), (X,), "mode"),
        (lambda x: torch.diff(x, prepend=x[:, :1]), (X,), "in front or behind"),
    ],
)
def test_refusals_name_the_call_and_the_reason(
    function: Any, inputs: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(graph: Any, opset: Any = None) -> Any:
        raise ModelError("torch's exporter is not asked")

    monkeypatch.setattr("graphshrink.targets.onnx.torch_exporter.exported", exported)
    with pytest.raises(ModelError, match=reason):
        written(Called(function), inputs, tmp_path / "made.onnx")


def test_results_that_nothing_reads_are_not_written(tmp_path: Path) -> None:
    model = check(Called(lambda x: x.to(torch.int32).max(1)[0]), tmp_path / "made.onnx", (X,))
    assert [n.op_type for n in model.graph.node] == ["Cast", "ReduceMax"]
    assert len(model.graph.initializer) == 1


def test_other_batches_of_calls_that_count(tmp_path: Path) -> None:
    """Numbers of elements, and the middle of them, follow the batch."""
    check(
        Called(lambda x: (x.std(), torch.var_mean(x, 0)[0], x.median(), x.median(0)[0])),
        tmp_path / "made.onnx",
        (X,),
        (floats(7, 4, seed=3),),
    )


def test_an_older_opset_has_other_forms(tmp_path: Path) -> None:
    module, path = Called(lambda n: n.sum(1)), tmp_path / "old.onnx"
    shrink(module, (), example_inputs=(N,)).save(path, opset=13)
    assert np.array_equal(outputs_of(path, N.numpy())[0], N.sum(1).numpy())


def test_variances_in_an_opset_with_other_forms(tmp_path: Path) -> None:
    module, path = Called(lambda x: x.var(1)), tmp_path / "old.onnx"
    shrink(module, (), example_inputs=(X,)).save(path, opset=11)
    np.testing.assert_allclose(outputs_of(path, X.numpy())[0], X.var(1).numpy(), 1e-5, 1e-6)


def test_a_view_as_another_type_is_no_reshape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(graph: Any, opset: Any = None) -> Any:
        raise ModelError("torch's exporter is not asked")

    monkeypatch.setattr("graphshrink.targets.onnx.torch_exporter.exported", exported)
    with pytest.raises(ModelError, match="BitCast"):
        written(Called(lambda x: x.view(torch.int32)), (X,), tmp_path / "made.onnx")
