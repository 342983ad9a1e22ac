"""Masks: in the graph, through passes, in torch modules while they train, copied, pickled, exported and read again."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize

from graphshrink import Graph, Rewriter, reorder_alike, shrink, shrink_graph
from graphshrink.api import load
from graphshrink.ir import (
    ArrayTensor,
    MaskedTensor,
    MissingExtra,
    ModelError,
    Pattern,
    Reduction,
    UsageError,
)
from graphshrink.ir.analysis import channel_groups
from graphshrink.ir.analysis.weights import nm_weights
from graphshrink.ir.masks.nm_pattern import unstructured_mask
from graphshrink.nn import Mask, check_masks, fold_masks, mask_of, mask_weight, masks, rewind
from graphshrink.passes import PermuteChannels
from graphshrink.passes.channels.apply import apply_permutations
from graphshrink.targets.torch.emitter import to_fx
from support.onnx_run import outputs_of

PATTERN = Pattern()


def sparsify(graph: Graph, rw: Rewriter) -> None:
    """2:4 by magnitude, with masks that last: what the pass of that name does, in short."""
    for weight in nm_weights(graph):
        value, reduction = weight.value, weight.reduction
        if weight.reason(PATTERN) is not None or value is None or reduction is None:
            continue
        assert value.data is not None
        mask = reduction.mask(np.abs(value.data.float64()), PATTERN)
        made = rw.constant(MaskedTensor(value.data, mask, PATTERN, reduction, lasting=True), "w")
        for node, index in value.uses:
            rw.set_input(node, index, made)


def is_sparse(weight: torch.Tensor, axis: int = 1) -> bool:
    """Counted by torch, not by us."""
    groups = weight.detach().movedim(axis, -1).reshape(-1, 4)
    return bool(((groups != 0).sum(1) <= 2).all())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2), nn.ReLU(), nn.Flatten(1), nn.Linear(200, 32), nn.ReLU(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
AXES = {"3.weight": 1, "5.weight": 0, "8.weight": 1, "10.weight": 1}


def masked(model: nn.Module | None = None) -> nn.Module:
    made: nn.Module = shrink_graph(model or net(), sparsify, example_inputs=(X,))
    return made


def all_sparse(module: nn.Module, names: Any = AXES) -> bool:
    return all(is_sparse(_weight(module, name), axis) for name, axis in names.items())


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    prefix, _, leaf = name.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(prefix), leaf)
    return found


# Tensors.


def tensor(**given: Any) -> MaskedTensor:
    weight = np.arange(1.0, 9.0).reshape(1, 8)
    mask = np.array([[1, 0, 1, 0, 0, 0, 1, 1]], bool)
    return MaskedTensor(ArrayTensor(weight), mask, **given)


def test_a_masked_tensor_is_zero_outside_its_mask() -> None:
    found = tensor()
    assert found.numpy().tolist() == [[1, 0, 3, 0, 0, 0, 7, 8]]
    assert found.float64().tolist() == [[1, 0, 3, 0, 0, 0, 7, 8]]
    assert found.problem() is None
    odd = MaskedTensor(ArrayTensor(np.full((1, 8), np.inf, np.float16)), found.mask)
    assert np.isinf(odd.numpy()).sum() == 4
    assert not np.isnan(odd.float64()).any()
    large = MaskedTensor(ArrayTensor(np.ones((300, 1000), np.float32)), np.arange(300000).reshape(300, 1000) % 2 == 0)  # fmt: skip
    assert large.numpy().sum() == 150000


def test_masks_that_do_not_fit() -> None:
    weight = ArrayTensor(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"bool with shape \(2, 4\), not bool with \(4, 2\)"):
        MaskedTensor(weight, np.ones((4, 2), bool))
    with pytest.raises(ValueError, match="not float64"):
        MaskedTensor(weight, np.ones((2, 4)))
    with pytest.raises(ValueError, match="give both a pattern and a reduction, or neither"):
        MaskedTensor(weight, np.ones((2, 4), bool), PATTERN)
    with pytest.raises(ValueError, match=r"the reduction has shape \(4, 4\)"):
        MaskedTensor(weight, np.ones((2, 4), bool), PATTERN, Reduction((4, 4), 1))


# Passes.


def test_a_scale_keeps_the_mask() -> None:
    """Batch norms in front and behind, folded after pruning."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Linear(4, 8), nn.BatchNorm2d(8),
    )  # fmt: skip
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.uniform_(m.running_var, 0.5, 2)
    model.eval()
    x = torch.randn(2, 4, 6, 6)
    before = shrink_graph(model, sparsify, example_inputs=(x,))
    after = shrink_graph(model, [sparsify, "merge-linear", "prune-dead"], example_inputs=(x,))
    torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for n, m in after.named_modules() if n == "1")
    found = dict(masks(after))
    assert {"0.weight", "4.weight"} <= set(found)
    for name in found:
        assert is_sparse(_weight(after, name))
        assert not torch.equal(_weight(after, name), _weight(before, name)) or name == "6.weight"


def test_a_permutation_of_outputs_keeps_the_mask_and_one_of_inputs_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 8)
    graph, _ = load(model.eval(), (x,))
    sparsify(graph, Rewriter(graph))
    want = to_fx(graph)(x)
    groups = {g.size: g for g in channel_groups(graph)}
    # Whole groups of four, and the members of one among themselves, are no harm to the reader of 16.
    order = np.r_[4:8, 3, 2, 1, 0, 8:16]
    apply_permutations(graph, Rewriter(graph), [(groups[16], order)])
    made = to_fx(graph)
    torch.testing.assert_close(made(x), want)
    assert all(is_sparse(_weight(made, f"{i}.weight")) for i in (0, 2, 4))
    groups = {g.size: g for g in channel_groups(graph)}
    order = np.r_[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    apply_permutations(graph, Rewriter(graph), [(groups[16], order)])
    with pytest.raises(ModelError, match=r"its mask is no longer 2:4 along axis 1: reorder"):
        to_fx(graph)


def test_onnx_has_the_zeros_and_checks_them(tmp_path: Path) -> None:
    torch.onnx.export(net(), (X,), tmp_path / "in.onnx", dynamo=True, verbose=False)
    result = shrink(tmp_path / "in.onnx", ["merge-linear", sparsify, "prune-dead"])
    result.save(tmp_path / "out.onnx")
    again, _ = load(tmp_path / "out.onnx")
    found = [w for w in nm_weights(again) if w.reason(PATTERN) is None]
    assert len(found) == 4
    for w in found:
        assert w.value is not None
        assert w.value.data is not None
        assert w.reduction is not None
        assert w.reduction.holds(w.value.data.numpy(), PATTERN)
    broken, _ = load(tmp_path / "in.onnx")
    sparsify(broken, Rewriter(broken))
    for value in broken.constants:
        if isinstance(value.data, MaskedTensor):
            value.data = MaskedTensor(value.data.weight, value.data.mask | True, PATTERN, value.data.reduction)  # fmt: skip
    from graphshrink.targets.onnx.emitter import to_onnx

    with pytest.raises(ModelError, match="its mask is no longer 2:4"):
        to_onnx(broken)


# Modules.


def test_what_is_emitted() -> None:
    model = net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made = masked(model)
    assert dict(masks(made)).keys() == AXES.keys()
    assert all_sparse(made)
    for name, mask in masks(made):
        assert mask.pattern == PATTERN
        assert abs(mask.density - 0.5) < 1e-6
        assert torch.equal(_weight(made, name), torch.where(mask.mask, before[name], 0))
    assert "2:4, keeps 50.0%" in repr(made)
    # What was not touched is the very module, and the model is as it was.
    assert made.get_submodule("0") is model[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    names = {n.replace("parametrizations.", "").replace(".original", "") for n, _ in made.named_parameters()}  # fmt: skip
    assert names == set(before)


OPTIMIZERS: list[Any] = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, 0.01),
    lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
]


def train(module: nn.Module, optimizer: Any, steps: int = 3, amp: bool = False) -> None:
    module.train()
    y = torch.tensor([1, 2, 3, 4])
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = nn.functional.cross_entropy(module(X), y)
        loss.backward()
        optimizer.step()
    module.eval()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("amp", [False, True])
def test_training_keeps_the_pattern(make: Any, amp: bool) -> None:
    module = masked()
    before = {n: _weight(module, n).detach().clone() for n in AXES}
    train(module, make(module.parameters()), amp=amp)
    assert all_sparse(module)
    for name in AXES:
        assert not torch.equal(_weight(module, name), before[name])
        assert torch.equal(_weight(module, name) == 0, before[name] == 0)


def test_no_gradient_arrives_outside_the_mask() -> None:
    module = masked()
    module(X).sum().backward()
    for name, mask in masks(module):
        grad = _weight(module, f"{name.rpartition('.')[0]}.parametrizations.weight.original").grad
        assert grad is not None
        assert not grad[~mask.mask].any()
        assert grad[mask.mask].any()


def test_assigned_weights_are_masked() -> None:
    module = masked()
    linear: Any = module.get_submodule("8")
    linear.weight = torch.ones(32, 200)
    assert is_sparse(linear.weight)
    assert int(linear.weight.detach().sum()) == 32 * 100


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole_and_apart(way: str, tmp_path: Path) -> None:
    module = masked()
    if way == "deepcopy":
        made = copy.deepcopy(module)
    elif way == "pickle":
        made = pickle.loads(pickle.dumps(module))
    else:
        torch.save(module, tmp_path / "m.pt")
        made = torch.load(tmp_path / "m.pt", weights_only=False)
    assert torch.equal(made(X), module(X))
    assert made.state_dict().keys() == module.state_dict().keys()
    train(made, OPTIMIZERS[0](made.parameters()))
    assert all_sparse(made)
    assert not torch.equal(made(X), module(X))
    fold_masks(made)
    assert next(masks(made), None) is None
    assert all_sparse(module)
    assert len(list(masks(module))) == 4
    again = copy.deepcopy(copy.deepcopy(module))
    assert torch.equal(again(X), module(X))


def test_tied_weights_share_parameter_and_mask_in_copies() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    x = torch.randn(2, 8)
    module = shrink_graph(Tied().eval(), sparsify, example_inputs=(x,))
    for made in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        a, b = made.get_submodule("a"), made.get_submodule("b")
        assert a.parametrizations.weight.original is b.parametrizations.weight.original
        assert mask_of(a).mask is mask_of(b).mask
    once = shrink_graph(module, "merge-linear", example_inputs=(x,))
    assert torch.equal(once(x), module(x))
    fold_masks(module)
    assert module.get_submodule("a").weight is module.get_submodule("b").weight
    assert is_sparse(module.get_submodule("a").weight)


def test_checkpoints() -> None:
    first, second = masked(), masked()
    train(first, OPTIMIZERS[1](first.parameters()))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(X), second(X))
    assert all_sparse(second)


def test_folding() -> None:
    module = masked()
    want = module(X)
    parameter = module.get_submodule("8").parametrizations.weight.original
    assert fold_masks(module) is module
    assert torch.equal(module(X), want)
    assert module.get_submodule("8").weight is parameter
    assert type(module.get_submodule("8")) is nn.Linear
    assert all_sparse(module)
    # What else a module is parametrized by stays.
    other = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    fold_masks(other)
    assert parametrize.is_parametrized(other)


def test_a_mask_that_was_changed_is_not_folded() -> None:
    module = masked()
    mask_of(module.get_submodule("8")).mask.fill_(True)
    with pytest.raises(ModelError, match=r"the mask of 8.weight is not 2:4: was it changed"):
        fold_masks(module)
    with pytest.raises(ModelError, match=r"the mask of 8.weight is not 2:4"):
        check_masks(module)


def test_masks_are_read_again() -> None:
    module = masked()
    train(module, OPTIMIZERS[1](module.parameters()))
    want = module(X)
    # Nothing changes, nothing is made anew.
    same = shrink_graph(module, "", example_inputs=(X,))
    assert same.get_submodule("8") is module.get_submodule("8")
    # A scale is folded into masked weights.
    merged = shrink_graph(
        nn.Sequential(module, nn.BatchNorm1d(10).eval()), "merge-linear,prune-dead", example_inputs=(X,)
    )  # fmt: skip
    assert len(list(masks(merged))) == 4
    # The last word.
    folded = shrink_graph(module, "fold-masks,prune-dead", example_inputs=(X,))
    assert torch.equal(folded(X), want)
    assert next(masks(folded), None) is None
    assert all_sparse(folded)
    assert len(list(masks(module))) == 4


def test_exports_are_folded(tmp_path: Path) -> None:
    module = masked()
    shrink(module, "", example_inputs=(X,)).save(tmp_path / "m.onnx")
    np.testing.assert_allclose(
        outputs_of(tmp_path / "m.onnx", X.numpy())[0], module(X).detach().numpy(), rtol=1e-4, atol=1e-5
    )  # fmt: skip
    graph, _ = load(tmp_path / "m.onnx")
    found = [w for w in nm_weights(graph) if w.reason(PATTERN) is None]
    assert len(found) == 4
    for w in found:
        assert w.reduction is not None
        assert w.reduction.holds(w.value.data.numpy(), PATTERN)  # type: ignore[union-attr]
    assert len(list(masks(module))) == 4
    program = torch.export.export(module, (X,))
    torch.testing.assert_close(program.module()(X), module(X))


def test_matrices_that_are_no_weight_of_a_module() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(2, 8, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.matmul(x, self.matrix)

    x = torch.randn(2, 3, 8)
    made = shrink_graph(Product().eval(), sparsify, example_inputs=(x,))
    ((name, _),) = masks(made)
    assert is_sparse(_weight(made, name), 1)
    again = shrink_graph(made, "", example_inputs=(x,))
    torch.testing.assert_close(again(x), made(x))
    assert len(list(masks(again))) == 1
    folded = shrink_graph(made, "fold-masks", example_inputs=(x,))
    torch.testing.assert_close(folded(x), made(x))
    assert next(masks(folded), None) is None


def test_unstructured_masks() -> None:
    module = net()
    for name in ("3", "8"):
        weight = module.get_submodule(name).weight.detach().abs().numpy()
        mask_weight(module.get_submodule(name), torch.from_numpy(unstructured_mask(weight, 0.1)))
    train(module, OPTIMIZERS[1](module.parameters()))
    assert "unstructured, keeps 10.0%" in repr(module)
    check_masks(module)
    again = shrink_graph(module, "merge-linear,prune-dead", example_inputs=(X,))
    torch.testing.assert_close(again(X), module(X), rtol=1e-4, atol=1e-5)
    zeros = {n: int((_weight(again, n) != 0).sum()) for n in ("3.weight", "8.weight")}
    assert zeros == {"3.weight": 115, "8.weight": 640}


def test_wrong_masks() -> None:
    with pytest.raises(UsageError, match=r"a mask of shape \(2, 4\) for weight of \(4, 2\)"):
        mask_weight(nn.Linear(2, 4), torch.ones(2, 4))
    with pytest.raises(UsageError, match="ReLU has no weight 'weight' to mask"):
        mask_weight(nn.ReLU(), torch.ones(2, 4))
    assert Mask(torch.ones(2, 4)).holds()


DDP = """
import sys
import torch, torch.distributed as dist
from torch import nn
from graphshrink.nn import mask_weight

def work(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # Different weights and masks: DDP must make them alike.
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    weight = model[0].weight.detach().abs()
    best = weight.reshape(-1, 4).topk(2, 1).indices
    mask_weight(model[0], torch.zeros(16, 4).scatter_(1, best, 1).reshape(8, 8).bool())
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        ddp(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    weight = model[0].weight.detach().contiguous()
    assert ((weight.reshape(-1, 4) != 0).sum(1) == 2).all()
    other = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(other, weight)
    assert torch.equal(*other)
    dist.destroy_process_group()

torch.multiprocessing.start_processes(work, (sys.argv[1],), 2, start_method="fork")
"""


def test_distributed_data_parallel(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DDP, str(tmp_path / "meet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# Rewinding.


@pytest.mark.parametrize("way", ["dict", "pt", "safetensors"])
def test_rewinding(way: str, tmp_path: Path) -> None:
    model = net()
    early = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in model.state_dict().items()}  # fmt: skip
    early["1.running_var"].abs_()
    module = masked(model)
    given: Any = early
    if way == "pt":
        given = tmp_path / "early.pt"
        torch.save(early, given)
    elif way == "safetensors":
        save = pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file
        given = tmp_path / "early.safetensors"
        save(early, given)
    kept = {name: mask.mask.clone() for name, mask in masks(module)}
    assert rewind(module, given) is module
    for name, mask in kept.items():
        assert torch.equal(_weight(module, name), torch.where(mask, early[name], 0))
    assert torch.equal(module.get_submodule("0").weight, early["0.weight"])
    assert torch.equal(module.get_submodule("1").running_var, early["1.running_var"])


def test_checkpoints_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, early = masked(), net().state_dict()
    lacking = {n: t for n, t in early.items() if n != "8.weight"}
    with pytest.raises(UsageError, match=r"the checkpoint lacks 8.weight: it must be of the same"):
        rewind(module, lacking)
    with pytest.raises(UsageError, match=r"has, and the module has not, more.weight and 1 more"):
        rewind(module, {**early, "more.weight": torch.ones(1), "more.bias": torch.ones(1)})
    with pytest.raises(UsageError, match=r"8.bias is \(3,\) in the checkpoint and \(32,\)"):
        rewind(module, {**early, "8.bias": torch.ones(3)})
    with pytest.raises(UsageError, match=r"cannot read the checkpoint .*none.pt"):
        rewind(module, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="holds no state_dict"):
        rewind(module, tmp_path / "list.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UsageError, match=r"cannot read the checkpoint .*module.pt"):
        rewind(module, tmp_path / "module.pt")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtra, match=r"\[safetensors\]"):
        rewind(module, tmp_path / "early.safetensors")


def test_reordered_networks_are_rewound_to_a_reordered_checkpoint() -> None:
    model, early = net(), net()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in early.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    first, second = reorder_alike(
        model, [early], order=PermuteChannels(steps=100), example_inputs=(X,)
    )
    torch.testing.assert_close(first(X), model(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second(X), early(X), rtol=1e-4, atol=1e-5)
    alone = shrink_graph(model, "permute-channels{steps=100}", example_inputs=(X,))
    for name, p in alone.named_parameters():
        assert torch.equal(p, first.get_parameter(name))
    assert not torch.equal(first.get_submodule("10").weight, model[10].weight)
    sparse = masked(first)
    with pytest.raises(UsageError, match="the channels of this module were reordered"):
        rewind(sparse, early.state_dict())
    with pytest.raises(UsageError, match="reorder both by reorder_alike"):
        rewind(copy.deepcopy(sparse), early.state_dict())
    rewind(sparse, second.state_dict(), reordered=True)
    for name, mask in masks(sparse):
        assert torch.equal(_weight(sparse, name), torch.where(mask.mask, _weight(second, name), 0))
    with pytest.raises(UsageError, match="network 1 of others has no channel group like"):
        reorder_alike(model, [nn.Sequential(nn.Linear(8, 4)).eval()], example_inputs=(X,))


# Recovery.


def test_retraining_on_digits_recovers() -> None:
    """Within half a point of the dense network at 2:4, pattern intact."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    images, labels = images[order], labels[order]
    x, y, xt, yt = images[:1300], labels[:1300], images[1300:], labels[1300:]

    def fit(model: nn.Module, epochs: int, lr: float) -> float:
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        steps = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            steps.step()
        model.eval()
        with torch.no_grad():
            return float((model(xt).argmax(1) == yt).double().mean())

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(1), nn.Linear(512, 10),
    )  # fmt: skip
    dense = fit(model, 8, 3e-3)
    pipeline = "permute-channels{steps=200},sparsify{lasting=true}"
    sparse = shrink_graph(model, pipeline, example_inputs=(x[:1],))
    names = {name: 1 for name, _ in masks(sparse)}
    assert set(names) == {"2.weight", "5.weight", "8.weight"}
    recovered = fit(sparse, 5, 1e-3)
    assert all_sparse(sparse, names)
    assert dense > 0.97
    assert recovered >= dense - 0.005
