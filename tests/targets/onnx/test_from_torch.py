"""Torch models written as ONNX from their ops: names, batches, opsets, and torch's exporter for what the IR does not know."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo.models import image_size, make
from zoo.more_models import make_more, more_inputs

from graphshrink import ModelError, UsageError, shrink
from graphshrink.hosts.onnx.operators import opset_of
from support.onnx_run import outputs_of

from ..tflite.test_signature import CASES


def agrees(path: Path, module: nn.Module, *inputs: Any, error: float = 1e-5) -> None:
    """Fail unless a file gives the outputs of a module, in onnxruntime or, for float64, in onnx's reference."""
    arrays = [x.numpy() for x in tree_leaves(inputs)]
    model = onnx.load(path)
    feeds = dict(zip([v.name for v in model.graph.input], arrays, strict=True))
    # onnxruntime has no convolutions in float64.
    wide = any(a.dtype == np.float64 for a in arrays) and "Conv" in {
        n.op_type for n in model.graph.node
    }
    got = ReferenceEvaluator(model).run(None, feeds) if wide else outputs_of(path, feeds)
    with torch.no_grad():
        wanted = tree_leaves(module(*inputs))
    for have, want in zip(got, wanted, strict=True):
        assert have.shape == tuple(want.shape)
        largest = float(want.abs().max())
        np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=error * largest)


def dims(path: Path) -> list[list[Any]]:
    """The sizes of inputs and outputs: numbers and symbols."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [v.shape for v in (*session.get_inputs(), *session.get_outputs())]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(torch.relu(self.norm(x)))


class Net(nn.Module):
    """Blocks in which batch norms stay: an activation follows them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.softmax(x.mean((2, 3)), 1))


@pytest.mark.parametrize("exported", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize(("module", "given", "inputs", "outputs"), CASES)
def test_names_are_those_of_forward(
    module: nn.Module, given: Any, inputs: Any, outputs: Any, exported: bool, tmp_path: Path
) -> None:
    model: Any = torch.export.export(module.eval(), given) if exported else module.eval()
    done = shrink(model, example_inputs=given).save(tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert not any("torch's exporter" in note for note in done.notes)
    assert [v.name for v in graph.input] == inputs
    assert [v.name for v in graph.output] == outputs
    result = outputs_of(
        tmp_path / "m.onnx", dict(zip(inputs, map(np.asarray, tree_leaves(given)), strict=True))
    )
    made = module(*given)
    want = [made.logits, made.extra] if hasattr(made, "logits") else tree_leaves(made)
    for a, b in zip(result, want, strict=True):
        assert np.array_equal(a, b.numpy())


@pytest.mark.parametrize("passes", [None, ""])
def test_weights_and_nodes_have_the_names_of_the_module(passes: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    shrink(net, passes, example_inputs=(torch.randn(2, 3, 8, 8),)).save(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    own = set(net.state_dict())
    stored = [t.name for t in model.graph.initializer if len(t.dims) and t.name != "axes"]
    # A merged batch norm gives the convolution a bias.
    assert set(stored) <= own | {"stem.0.bias"}
    kinds = {n.name: n.op_type for n in model.graph.node}
    assert kinds["blocks.1.norm"] == "BatchNormalization"
    assert kinds["blocks.0.relu"] == "Relu"
    assert kinds["blocks.1.add"] == "Add"
    assert kinds["head"] == "Gemm"
    norm = next(n for n in model.graph.node if n.name == "blocks.0.norm")
    assert list(norm.input[1:]) == [f"blocks.0.norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")]  # fmt: skip
    agrees(tmp_path / "m.onnx", net, torch.randn(3, 3, 8, 8))


ZOO = ["vit", "shufflenet_v1", "bert"]


@pytest.mark.parametrize("name", ZOO)
def test_batches_of_any_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if name == "vit":
        net, x = make(name, small=True), torch.randn(2, 3, image_size(name), image_size(name))
    else:
        net, x = make_more(name), more_inputs(name, torch.float32)
    done = shrink(net, example_inputs=(x,)).save(tmp_path / "m.onnx")
    assert done.notes == ()
    assert all(shape[0] == "batch" for shape in dims(tmp_path / "m.onnx"))
    for other in (x, x[:1], torch.cat([x, x[:1], x])):
        agrees(tmp_path / "m.onnx", net, other)


@pytest.mark.parametrize("constant", [False, True], ids=["random", "constant-channels"])
def test_float64(constant: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().double().eval()
    if constant:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.zero_()  # type: ignore[union-attr, operator]
    shrink(net, example_inputs=(torch.randn(1, 3, 6, 6).double(),)).save(tmp_path / "m.onnx")
    agrees(tmp_path / "m.onnx", net, torch.randn(2, 3, 6, 6).double(), error=1e-10)


class Branching(nn.Module):
    """An export fixes the branch that the size of the batch chooses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


class Checking(nn.Module):
    """What is computed is right for one size of the batch, as the module says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[0] == 1, "one sample")  # type: ignore[no-untyped-call]
        return x.sum(0, keepdim=True)


@pytest.mark.parametrize("net", [Branching(), Checking()], ids=["branch", "assert"])
def test_a_batch_that_the_module_refuses_stays_fixed(net: nn.Module, tmp_path: Path) -> None:
    done = shrink(net.eval(), example_inputs=(torch.randn(1, 4),)).save(tmp_path / "m.onnx")
    assert dims(tmp_path / "m.onnx") == [[1, 4], [1, 4]]
    assert any("batches of 1 only" in note for note in done.notes)


class Doubled(nn.Module):
    """The batch lies along the second axis in between, and a call states its size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(0, 1).unflatten(-1, (2, 3))
        return y.reshape(y.shape[0], -1, 3).transpose(0, 1).relu()


@pytest.mark.parametrize("exported", [False, True])
def test_a_batch_behind_other_axes(exported: bool, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 6)
    model: Any = Doubled()
    if exported:
        model = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))  # fmt: skip
    shrink(model, example_inputs=(x,)).save(tmp_path / "m.onnx")
    assert dims(tmp_path / "m.onnx")[0] == ["batch", 5, 6]
    agrees(tmp_path / "m.onnx", Doubled(), torch.randn(4, 5, 6))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(2, 6))


def test_a_batch_that_the_module_fixes(tmp_path: Path) -> None:
    module, x = Pairs().eval(), torch.randn(4, 3)
    done = shrink(module, example_inputs=(x,)).save(tmp_path / "m.onnx")
    assert done.notes == ("the file takes batches of 4 only, as the module does",)
    assert dims(tmp_path / "m.onnx") == [[4, 3], [2, 3]]
    agrees(tmp_path / "m.onnx", module, x)


class Sized(nn.Module):
    """Computes with the height of its images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, : x.shape[2] // 2] / x.shape[3] ** 0.5 + x.shape[2]


def test_sizes_in_arithmetic_are_those_of_the_example(tmp_path: Path) -> None:
    module = Sized()
    done = shrink(module, example_inputs=(torch.randn(2, 3, 6, 5),)).save(tmp_path / "m.onnx")
    (note,) = done.notes
    assert note.startswith("read again for the sizes of example_inputs: the IR does not express")
    assert dims(tmp_path / "m.onnx")[0] == ["batch", 3, 6, 5]
    agrees(tmp_path / "m.onnx", module, torch.randn(3, 3, 6, 5))


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_the_opset_is_chosen(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = make_more("gpt2"), more_inputs("gpt2", torch.float32)
    shrink(net, example_inputs=(x,)).save(tmp_path / "m.onnx", opset=opset)
    model = onnx.load(tmp_path / "m.onnx")
    assert opset_of(model) == opset
    onnx.checker.check_model(model, full_check=True)
    agrees(tmp_path / "m.onnx", net, x)


def test_opsets_that_do_not_do(tmp_path: Path) -> None:
    result = shrink(nn.GELU(), example_inputs=(torch.randn(2, 3),))
    with pytest.raises(ModelError, match=r"opset 8 cannot express it: save with opset=9 or newer"):
        result.save(tmp_path / "m.onnx", opset=8)
    with pytest.raises(UsageError, match=r"opset=99 cannot be written: choose one from 7 to 23"):
        result.save(tmp_path / "m.onnx", opset=99)
    result.save(tmp_path / "m.onnx", opset=17)
    again = shrink(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="this one is ONNX already and keeps its opset 17"):
        again.save(tmp_path / "n.onnx", opset=18)
    with pytest.raises(UsageError, match="opset and via are options for torch models"):
        again.save(tmp_path / "n.onnx", via="torch")
    again.save(tmp_path / "n.onnx", opset=17)


class Windows(nn.Module):
    """Cuts images into parts, whose number follows all sizes, as vision transformers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = (x.size(i) for i in range(4))
        y = x.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2)
        y = y.reshape(b, c, (h // 2) * (w // 2), 4).transpose(1, 3)
        return y.reshape(b * 4, -1, c).softmax(2)


def test_reshapes_to_computed_sizes(tmp_path: Path) -> None:
    done = shrink(Windows(), example_inputs=(torch.randn(2, 3, 6, 8),)).save(tmp_path / "m.onnx")
    assert done.notes == ()
    assert dims(tmp_path / "m.onnx")[0] == ["batch", 3, 6, 8]
    assert len(onnx.load(tmp_path / "m.onnx").graph.node) == 6
    for batch in (1, 2, 5):
        agrees(tmp_path / "m.onnx", Windows(), torch.randn(batch, 3, 6, 8))


def test_inputs_of_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input 'input' is not known: give example_inputs"):
        shrink(nn.ReLU()).save(tmp_path / "m.onnx")


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.atan2(x, x + 1)


def test_torchs_exporter_writes_calls_that_the_ir_lacks(tmp_path: Path) -> None:
    module, x = Unknown().eval(), torch.rand(2, 3, 4, 5)
    done = shrink(module, example_inputs=(x,)).save(tmp_path / "m.onnx")
    (note,) = done.notes
    assert note.startswith(
        "written by torch's exporter, for one batch size and under its own names: "
    )
    assert "atan2 (atan2" in note
    agrees(tmp_path / "m.onnx", module, x)


def test_torchs_exporter_by_choice(tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    done = shrink(net, example_inputs=(x,)).save(tmp_path / "m.onnx", via="torch", opset=18)
    assert done.notes == ()
    assert opset_of(onnx.load(tmp_path / "m.onnx")) == 18
    agrees(tmp_path / "m.onnx", net, x)


class Asserted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[1] == 3, "three features")
        return x.relu()


def test_assertions_are_left_out(tmp_path: Path) -> None:
    done = shrink(Asserted(), example_inputs=(torch.randn(2, 3),)).save(tmp_path / "m.onnx")
    assert done.notes == ()
    assert [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node] == ["Relu"]


def test_large_models_have_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["graphshrink.targets.onnx.save"], "_LIMIT", 1000)
    net, x = Net(16).eval(), torch.randn(1, 3, 8, 8)
    shrink(net, example_inputs=(x,)).save(tmp_path / "m.onnx")
    assert list(tmp_path.glob("*.data"))
    agrees(tmp_path / "m.onnx", net, x)


def test_masked_weights_are_stored_with_their_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    result = shrink(net, "sparsify{n=2,m=4}", example_inputs=(torch.randn(2, 8),))
    result.save(tmp_path / "m.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}  # fmt: skip
    assert np.count_nonzero(stored["0.weight"]) == stored["0.weight"].size // 2
    agrees(tmp_path / "m.onnx", result.model, torch.randn(3, 8))


class Squeezed(nn.Module):
    """Torch leaves an axis alone that is longer than one; a Squeeze of ONNX does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu().squeeze(1)


def test_a_model_that_no_runtime_loads_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    result = shrink(Squeezed().eval(), example_inputs=(torch.randn(2, 3, 40),))
    with pytest.raises(ModelError, match=r"torch\.onnx writes a model that no runtime loads"):
        result.save(path, via="torch")
    assert not path.exists()


def test_writes_to_data_are_written(tmp_path: Path) -> None:
    class Data(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2.0
            y.data.add_(1.0)
            return y.relu()

    x = torch.randn(2, 3)
    shrink(Data().eval(), example_inputs=(x,)).save(tmp_path / "m.onnx")
    agrees(tmp_path / "m.onnx", Data(), x)


class Biased(nn.Module):
    """Adds biases that are picked from a table by constant places, as windowed attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(2, 5)), nn.Linear(3, 3)
        self.register_buffer("places", torch.randint(0, 5, (3, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        biases = self.table[:, self.places]  # type: ignore[index]
        return (self.layer(x) + biases[0]).softmax(-1) + biases[-1]


def test_pieces_of_constant_tables_are_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Biased().eval(), torch.randn(2, 3, 3)
    shrink(module, example_inputs=(x,)).save(tmp_path / "m.onnx")
    assert "Gather" not in {n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node}
    agrees(tmp_path / "m.onnx", module, torch.randn(5, 3, 3))


class Viewed(nn.Module):
    """A view whose sizes are numbers: another image would be cut otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.conv(x).view(x.shape[0], -1, 4, 4).split([4, 4], 1)
        return a.flatten(2) @ b.flatten(2).transpose(1, 2)


def test_views_to_the_size_of_the_file_are_left_out(tmp_path: Path) -> None:
    net, x, path = Viewed().eval(), torch.randn(2, 3, 4, 4), tmp_path / "net.onnx"
    result = shrink(net, [], example_inputs=(x,))
    result.save(path)
    assert [n.op_type for n in onnx.load(path).graph.node].count("Reshape") == 2
    agrees(path, net, x)
    agrees(path, net, x[:1])
    # The module itself still takes larger images, of which the view makes more channels, as the given one does.
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 3, 8, 8))
    assert any(n.op.name == "Reshape" and n.name == "view" for n in result.graph.nodes)


def test_a_view_that_is_an_output_stays(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).view(x.shape[0], 3, 4)

    x, path = torch.randn(2, 3, 4), tmp_path / "net.onnx"
    shrink(Net(), [], example_inputs=(x,)).save(path)
    agrees(path, Net(), x)
    agrees(path, Net(), x[:1])


@pytest.mark.parametrize(
    ("dims", "noted"), [((), True), ((0,), True), (((0, 2),), True), ((2,), False)]
)
def test_a_squeeze_that_depends_on_the_batch_is_noted(
    dims: tuple[Any, ...], noted: bool, tmp_path: Path
) -> None:
    """The file keeps the axis of a batch of 1, as torch.export does for a batch that is open."""

    class Dropped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).squeeze(*dims)

    module = Dropped().eval()
    x = torch.randn(3, 4, 1)
    result = shrink(module, (), example_inputs=(x,)).save(tmp_path / "made.onnx")
    assert [note for note in result.notes if "batch of 1 keeps its axis" in note] == [
        "in the file, a batch of 1 keeps its axis in squeeze, where the module drops it: name the axes, as in squeeze(1)"
    ] * noted
    made = onnx.load(tmp_path / "made.onnx")
    for given in (x, torch.randn(5, 4, 1)):
        (found,) = outputs_of(made, {"x": given.numpy()})
        np.testing.assert_array_equal(found, module(given).numpy())
    (found,) = outputs_of(made, {"x": x[:1].numpy()})
    assert found.shape[0] == 1
