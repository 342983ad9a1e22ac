"""Modules that torch.fx cannot trace are exported: their results take any batch, are pickled, and have the names of the weights."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphshrink import ModelError, UsageError, shrink, shrink_graph
from graphshrink.frontends.torch.export import _record_guards


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 4, 1)
        nn.init.uniform_(self.stem[1].running_var, 0.5, 2.0)
        self.eval()

    def base(self, x: Any) -> Any:
        return self.head(self.stem(x).relu())


class Checked(Net):
    def forward(self, x: Any) -> Any:
        if x.shape[1] != 3:
            raise ValueError("3 channels")
        y = self.base(x)
        return y / y.shape[2]


class ByHeight(Net):
    def forward(self, x: Any) -> Any:
        return self.base(x) * 2 if x.shape[2] > 10 else self.base(x)


class OneSample(Net):
    def forward(self, x: Any) -> Any:
        return self.base(x) + 1 if x.shape[0] == 1 else self.base(x)


class Text(Net):
    def forward(self, x: Any) -> Any:
        y = self.base(x)
        return y * len(str(y.shape[2]))


class Cached(Net):
    def forward(self, x: Any) -> Any:
        y = self.base(x)
        return y * {"8": 3.0}.get(str(y.shape[2]), 1.0)


def same(model: nn.Module, result: nn.Module, *shape: int) -> None:
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_any_batch_and_size(batch: int) -> None:
    model = Checked()
    result = shrink(model, example_inputs=(torch.randn(batch, 3, 8, 8),), check=True).model
    for shape in ((1, 3, 8, 8), (4, 3, 8, 8), (2, 3, 12, 6)):
        same(model, result, *shape)


def test_results_are_pickled_and_trained() -> None:
    model = Checked()
    result = shrink(model, example_inputs=(torch.randn(1, 3, 8, 8),)).model
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    same(model, torch.load(file, weights_only=False), 3, 3, 8, 8)
    copy.deepcopy(result).train()(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_branch_on_a_size_is_checked() -> None:
    model = ByHeight()
    result = shrink(model, example_inputs=(torch.randn(1, 3, 8, 8),), check=True).model
    same(model, result, 2, 3, 9, 7)
    with pytest.raises(AssertionError, match="Guard failed"):
        result(torch.randn(1, 3, 12, 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_branch_of_one_sample_fixes_the_batch(batch: int) -> None:
    model = OneSample()
    made = shrink(model, example_inputs=(torch.randn(batch, 3, 8, 8),), check=True)
    same(model, made.model, batch, 3, 8, 8)
    assert any("of the sizes of example_inputs only" in note for note in made.report.notes)
    with pytest.raises(AssertionError, match="Guard failed"):
        made.model(torch.randn(3 - batch, 3, 8, 8))


@pytest.mark.parametrize("kind", [Text, Cached])
def test_text_of_a_size_is_not_computed_with(kind: type[Net]) -> None:
    model = kind()
    made = shrink(model, example_inputs=(torch.randn(1, 3, 8, 8),), check=True)
    same(model, made.model, 3, 3, 8, 8)
    assert any("but for batches" in note for note in made.report.notes)
    with pytest.raises(AssertionError, match="Guard failed"):
        made.model(torch.randn(1, 3, 12, 8))


class Named(Net):
    def forward(self, labels: Any = None, pixels: Any = None) -> Any:
        y = self.base(pixels)
        return y if labels is None else y * labels


class NamedChecked(Named):
    def forward(self, labels: Any = None, pixels: Any = None) -> Any:
        if pixels.shape[1] != 3:
            raise ValueError("3 channels")
        return super().forward(labels, pixels)


class OfDict(Net):
    def forward(self, batch: Any) -> Any:
        return self.base(batch["pixels"])


@pytest.mark.parametrize("kind", [Named, NamedChecked])
def test_example_inputs_by_name(kind: type[Net]) -> None:
    model, x = kind(), torch.randn(1, 3, 8, 8)
    made = shrink(model, example_inputs={"pixels": x}, check=True)
    assert not any("the check compares with the graph" in note for note in made.report.notes)
    with torch.no_grad():
        # A trace keeps defaults; an export takes what it was exported with.
        result = made.model(pixels=x) if kind is Named else made.model(None, x)
        torch.testing.assert_close(result, model(pixels=x), rtol=1e-4, atol=1e-5)


def test_inputs_by_keyword_alone() -> None:
    class Named(Net):
        def forward(self, *, pixels: Any) -> Any:
            return self.base(pixels)

    with pytest.raises(UsageError, match="takes pixels by keyword alone"):
        shrink(Named(), example_inputs={"pixels": torch.randn(1, 3, 8, 8)})


def test_a_dict_that_is_an_input() -> None:
    model, inputs = OfDict(), {"pixels": torch.randn(1, 3, 8, 8)}
    for given in (inputs, (inputs,)):
        result = shrink(model, example_inputs=given, check=True).model
        with torch.no_grad():
            torch.testing.assert_close(result(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_named_inputs_that_lack_one() -> None:
    model = type("Two", (Net,), {"forward": lambda self, x, y: self.base(x) + y})()
    with pytest.raises(UsageError, match="example_inputs lack 'x', which forward needs"):
        shrink(model, example_inputs={"y": torch.ones(())})


def test_torchscript_and_tensors_without_numbers() -> None:
    model, x = Checked(), torch.randn(1, 3, 8, 8)
    with pytest.raises(UsageError, match=r"TorchScript, which is not read: give the nn.Module"):
        shrink(torch.jit.trace(nn.Conv2d(3, 4, 1), x), example_inputs=(x,))
    with pytest.raises(UsageError, match=r"stem\.0\.weight is on the meta device"):
        shrink(model.to("meta"), example_inputs=(x,))


@pytest.mark.parametrize(("name", "what"), [("m.pt", "a file of torch"), ("m.pth", "a file of torch"), ("m.pt2", "torch.export.load")])  # fmt: skip
def test_files_of_torch(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    torch.save(Checked().state_dict(), path)
    with pytest.raises(ModelError, match=f"is no ONNX model but seems to be .*{what}"):
        shrink(path)


def test_merged_weights_keep_their_names() -> None:
    model, x = Checked(), torch.randn(1, 3, 8, 8)
    for given, inputs in ((model, (x,)), (torch.export.export(model, (x,)), None)):
        result = shrink(given, example_inputs=inputs).model
        names = [f"{part}.{kind}" for part in ("stem.0", "head") for kind in ("weight", "bias")]
        assert list(result.state_dict()) == names
        with torch.no_grad():
            torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


class LastPiece(Net):
    def forward(self, x: Any) -> Any:
        pieces = torch.split(self.stem(x), 4, 1)
        return torch.cat([pieces[-1], pieces[0].relu()], 1)


def test_pieces_counted_from_the_end() -> None:
    model, x = LastPiece(), torch.randn(1, 3, 8, 8)
    made = shrink(model, example_inputs=(x,), check=True)
    assert made.report.after.ops == {"Conv": 1, "Split": 1, "Activation": 1, "Concat": 1}
    same(model, made.model, 2, 3, 12, 12)


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 4, batch_first=True, **options), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][:, -1, :4])


@pytest.mark.parametrize("passes", ["", None])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_states_of_zeros_for_any_batch(options: dict[str, Any], passes: str | None) -> None:
    model = Recurrent(**options)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 6, 5),), dynamic_shapes=({0: batch},))
    result = shrink(program, passes).model
    assert result.state_dict().keys() == model.state_dict().keys()
    for rows in (1, 2, 5):
        same(model, result, rows, 6, 5)


class AtLeast(Net):
    """A check of sizes with ``max`` and ``min`` in it."""

    def forward(self, x: Any) -> Any:
        if max(4, x.shape[2] // 2) * min(9, x.shape[3]) == 20:
            raise ValueError("not of this size")
        return self.base(x)


def test_checks_with_extremes_are_pickled() -> None:
    model = AtLeast()
    result = shrink(model, example_inputs=(torch.randn(2, 3, 8, 8),), check=True).model
    back = pickle.loads(pickle.dumps(result))
    for made in (result, back):
        same(model, made, 3, 3, 8, 6)
        with pytest.raises(AssertionError, match="Guard failed"):
            made(torch.randn(2, 3, 8, 5))


@dataclasses.dataclass
class Result:
    """What a model returns that is no tuple."""

    y: torch.Tensor
    states: torch.Tensor | None = None


class Chooses(nn.Module):
    """Takes several arguments with defaults, and cannot be traced by torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(
        self,
        pixels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        scale: float = 2.0,
        labels: torch.Tensor | None = None,
        as_class: bool = True,
    ) -> Any:
        """Scale and mask what a convolution makes."""
        if pixels is None or pixels.shape[1] != 3:
            raise ValueError("3 channels")
        y = self.norm(self.conv(pixels)) * scale
        y = y if mask is None else y * mask
        y = y if labels is None else y + labels
        return Result(y) if as_class else (y,)


def test_results_are_called_like_the_model() -> None:
    model, x, label = Chooses().eval(), torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    made = shrink(
        model, example_inputs={"pixels": x, "labels": label}, check=True, on_failure="raise"
    ).model
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for shrunk in (made, copy.deepcopy(made), torch.load(file, weights_only=False)):
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((), {"pixels": x, "labels": label}), ((x,), {"labels": label}), ((x, None, 2.0, label), {}),
            ((x, None), {"labels": label, "as_class": True}), ((x[:1],), {"labels": label[:1], "scale": 2.0}),
        ]  # fmt: skip
        for args, kwargs in calls:
            got, want = shrunk(*args, **kwargs), model(*args, **kwargs)
            assert isinstance(got, Result)
            torch.testing.assert_close(got.y, want.y, rtol=1e-4, atol=1e-5)
        for kwargs, what in (({}, "labels was given"), ({"labels": label, "mask": x}, "mask was None"),
                             ({"labels": label, "as_class": False}, "as_class was True"),
                             ({"labels": label, "scale": 3.0}, "scale was 2.0")):  # fmt: skip
            with pytest.raises(AssertionError, match=what):
                shrunk(x, **kwargs)
    again = shrink_graph(made, example_inputs=(x, None, 2.0, label))
    torch.testing.assert_close(again(pixels=x, labels=label).y, made(x, labels=label).y)


@dataclasses.dataclass
class Mapped(OrderedDict):  # type: ignore[type-arg]
    """A dataclass that is a dict too, like the results of transformers."""

    y: Any = None
    states: Any = None

    def __post_init__(self) -> None:
        self.update({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def test_classes_of_results_that_are_dicts() -> None:
    class Traced(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return Mapped(y=super().forward(x))

    model, x = nn.Sequential(nn.Linear(3, 4), Traced(4, 4)).eval(), torch.randn(2, 3)
    got = shrink_graph(model, example_inputs=(x,))(x)
    assert type(got) is Mapped
    torch.testing.assert_close(got["y"], model(x).y)


def test_checks_with_several_conditions_are_pickled() -> None:
    conditions = [
        "L['x'].size()[1] == 3 or L['x'].size()[2] > 4",
        "not L['x'].size()[0] == 9",
        "2 <= L['x'].size()[3] <= 9",
    ]
    model, x = Checked(), torch.randn(2, 3, 8, 8)
    dims = dict.fromkeys(range(4), torch.export.Dim.AUTO)
    module = torch.export.export(model, (x,), dynamic_shapes=(dims,)).module()
    path = ((torch.utils._pytree.MappingKey("x"),),)
    module._guards_fn = torch.export._unlift._convert_guards_code_to_fn(conditions, path)
    _record_guards(module)  # type: ignore[arg-type]
    guards = pickle.loads(pickle.dumps(module._guards_fn))
    guards(x)
    for wrong in (x[..., :1], torch.zeros(9, 3, 8, 8), torch.zeros(1, 2, 3, 3)):
        with pytest.raises(AssertionError, match="Guard failed"):
            guards(wrong)


class GrowingFormulas(nn.Module):
    """Sizes whose formulas double with each layer, while the sizes stay small."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2 and x.shape[1] < 3:  # torch.fx cannot trace it.
            return x
        size, rest = x.shape[1], x
        for _ in range(self.layers):
            size = (size * size % 7 + size) // 2 + 1
            rest = torch.cat([rest, x.new_ones(x.shape[0], size)], 1)
        return x * rest.sum(1, keepdim=True)


@pytest.mark.parametrize(("layers", "open_"), [(1, True), (5, False)])
def test_sizes_of_long_formulas_are_fixed(layers: int, open_: bool) -> None:
    model = GrowingFormulas(layers).eval()
    made = shrink(model, example_inputs=(torch.randn(2, 5),), check=True)
    assert any("but for batches" in note for note in made.report.notes) is not open_
    wider, more = torch.randn(2, 9), torch.randn(3, 5)
    torch.testing.assert_close(made.model(more), model(more))
    if open_:
        torch.testing.assert_close(made.model(wider), model(wider))
