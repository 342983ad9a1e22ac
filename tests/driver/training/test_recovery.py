"""Recovery in one process: what it learns from, how, and what goes wrong; resuming after a real kill."""

from __future__ import annotations

import copy
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from graphshrink import (
    MissingExtra,
    ModelError,
    TrainingError,
    UsageError,
    recover,
    shrink_graph,
)
from graphshrink.training.recovery.checkpoints import INDEX, Checkpoints
from graphshrink.training.recovery.distillation import distillation, feature_loss
from support import recovery_run

X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = (X.mean((2, 3)) @ torch.randn(3, 4, generator=torch.Generator().manual_seed(2))).argmax(1)


def net(out: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, out)]
    return nn.Sequential(*layers)


def loader(*tensors: torch.Tensor, batch: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(tensors or (X, Y))), batch, shuffle=True)


def train(model: Any, data: Any = None, **options: Any) -> Any:
    return recover(model, loader() if data is None else data, **{"progress": False, **options})


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(history: Any) -> Any:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


# What it learns from.


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns_labels(optimizer: Any) -> None:
    model = net()
    done = train(model, epochs=9, optimizer=optimizer, lr=0.01, evaluate=accuracy)
    assert done.model is model
    assert not any(m.training for m in model.modules())
    assert [r["epoch"] for r in done.history] == [*range(1, 10)]
    assert done.history[-1]["loss"] < 0.5 * done.history[0]["loss"]
    assert done.history[-1]["accuracy"] > 0.9
    assert model[1].num_batches_tracked == 9 * 6


def accuracy(model: nn.Module) -> float:
    assert not model.training
    return float((model(X).argmax(1) == Y).float().mean())


def test_the_same_as_a_loop_by_hand() -> None:
    """SGD without extras against torch's own pieces."""
    model, twin = net(), net()
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]
    train(
        model, batches, epochs=2, optimizer="sgd", lr=0.05, warmup=0, momentum=0.9, weight_decay=0,
        clip=0.5,
    )  # fmt: skip
    twin.train()
    by_hand = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(by_hand, 12)
    for x, y in batches * 2:
        by_hand.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        by_hand.step()
        cosine.step()
    for name, want in twin.state_dict().items():
        assert torch.allclose(model.state_dict()[name], want, atol=1e-6), name


def test_pure_distillation_needs_no_labels() -> None:
    teacher = train(net(), epochs=10, lr=0.01).model
    before = state(teacher)
    teacher.train()
    student = train(net(), loader(X), teacher=teacher, epochs=12, lr=0.01).model
    assert teacher.training
    assert same(before, state(teacher))
    teacher.eval()
    agreement = (student(X).argmax(1) == teacher(X).argmax(1)).float().mean()
    assert agreement > 0.9


def test_the_loss_of_distillation() -> None:
    s, t = torch.randn(5, 7, 3, dtype=torch.float64), torch.randn(5, 7, 3, dtype=torch.float64)
    p, q = (t.float() / 4).softmax(1), (s.float() / 4).softmax(1)
    want = 16 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distillation(s, t, 4.0), want, rtol=1e-4)
    assert distillation(t, t, 4.0).abs() < 1e-6
    assert feature_loss(3 * t, t) == pytest.approx(4.0)


def test_parts_of_the_loss_add_up() -> None:
    given = {"teacher": net(), "features": {"1": "1", "2": "2"}, "distill_weight": 0.3}
    penalty = {"penalty": lambda m: m[0].weight.square().sum()}
    done = train(net(), feature_weight=2.0, **given, **penalty)
    r = done.history[0]
    want = 0.7 * r["task"] + 0.3 * r["distillation"] + 2 * r["features"] + r["penalty"]
    assert r["loss"] == pytest.approx(want, rel=1e-5)


def test_features_of_nodes_in_graphs() -> None:
    """An addition has no module of its own."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head((x + self.conv(x)).flatten(1))

    torch.manual_seed(0)
    teacher, student = (torch.fx.symbolic_trace(Skip()) for _ in range(2))
    done = train(student, loader(X), teacher=teacher, features=["add"], epochs=8, lr=0.01)
    assert done.history[-1]["features"] < 0.3 * done.history[0]["features"]
    # The weights are the graph's own: the addition inside is what was learned.
    assert done.model is student
    seen = [X + m.get_submodule("conv")(X) for m in (student, teacher)]
    assert feature_loss(*seen) < done.history[-1]["features"]


def test_a_teacher_that_shares_weights_is_copied() -> None:
    """As a shrunk network does with the one it was made of."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    student = shrink_graph(teacher, "prune-dead", example_inputs=(X[:1],))
    assert student.get_submodule("1").weight is teacher[1].weight
    done = train(student, teacher=teacher, lr=0.05, epochs=2)
    # If the teacher moved along, there would never be a difference.
    assert done.history[-1]["distillation"] > 0.01


def test_frozen_parameters_stay_and_masks_hold() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", (torch.arange(288) % 2).float())

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.mask

    model = net()
    parametrize.register_parametrization(model[4], "weight", Mask())
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, epochs=2)
    assert torch.equal(model[0].weight, before)
    assert (model[4].weight[:, ::2] == 0).all()
    assert (model[4].weight[:, 1::2] != 0).any()


def test_weight_decay_spares_vectors() -> None:
    model = net()
    zero = {"loss": lambda out, y: 0 * out.sum(), "weight_decay": 0.5, "lr": 0.1, "warmup": 0}
    weight, gain = model[0].weight.clone(), model[1].weight.clone()
    train(model, **zero)
    assert model[0].weight.norm() < 0.95 * weight.norm()
    assert torch.equal(model[1].weight, gain)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedules(schedule: Any) -> None:
    model, rates = net(), []
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[4].parameters()}], lr=0.1
    )
    train(
        model, epochs=5, optimizer=optimizer, schedule=schedule, warmup=0.3,
        callbacks=[lambda step: rates.append([g["lr"] for g in optimizer.param_groups])],
    )  # fmt: skip
    first = [rate for rate, _ in rates]
    assert all(a == pytest.approx(2 * b) for a, b in rates)
    assert first[:9] == pytest.approx([0.2 * i / 10 for i in range(1, 10)])
    if schedule == "constant":
        assert first[9:] == [0.2] * 21
    else:
        assert first[9] == pytest.approx(0.2)
        assert first == sorted(first[:10]) + sorted(first[10:], reverse=True)
        assert 0 < first[-1] < 0.01


def test_bf16_on_the_cpu() -> None:
    seen = []
    model = net()
    model[2].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    done = train(model, precision="bf16", epochs=6, lr=0.01)
    assert torch.bfloat16 in seen
    assert model[0].weight.dtype is torch.float32
    assert done.history[-1]["loss"] < done.history[0]["loss"]


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: pytest tests/driver/training/test_recovery.py -k cuda",
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda(precision: Any) -> None:
    done = train(net(), device="cuda", precision=precision, epochs=6, lr=0.01, teacher=net())
    assert done.history[-1]["loss"] < done.history[0]["loss"]


def test_other_batches_and_losses() -> None:
    batches = [{"image": X[i : i + 8], "target": X[i : i + 8].mean((1, 2, 3))} for i in (0, 8, 16)]
    done = train(
        net(1), batches, epochs=5, lr=0.01, unpack=lambda b: ((b["image"],), b["target"]),
        loss=lambda out, y: F.mse_loss(out[:, 0], y),
    )  # fmt: skip
    assert done.history[-1]["loss"] < done.history[0]["loss"]


def test_the_callers_randomness_stays() -> None:
    model = net()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    want = (torch.rand(1), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    train(model)
    assert (torch.rand(1), np.random.rand(), random.random()) == want


def test_lines_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    train(net(), epochs=2, progress=True, evaluate=lambda m: {"top1": 0.25})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2: loss ")
    assert "top1 0.25" in lines[1]
    train(net(), progress=False)
    assert not capsys.readouterr().err


def test_compiled_modules(tmp_path: Path) -> None:
    """Their checkpoints are those of the module inside."""
    plain, inside = net(), net()
    compiled: Any = torch.compile(inside, backend="eager")
    batches = [(X[:8], Y[:8])] * 4
    train(plain, batches, epochs=1, checkpoint=tmp_path / "a")
    train(compiled, batches, epochs=1, checkpoint=tmp_path / "b")
    a, b = (Checkpoints(tmp_path / n).load()["module"] for n in "ab")
    assert same(a, b)


# What goes wrong.


@pytest.mark.parametrize(("options", "said"), [
    ({"epochs": 0}, "epochs must be above 0, not 0"),
    ({"epochs": 1.5}, "epochs must be a whole number"),
    ({"lr": -1.0}, "lr must be above 0"),
    ({"clip": 0.0}, "clip must be above 0"),
    ({"distill_weight": 1.5}, "distill_weight must be between 0 and 1, not 1.5"),
    ({"warmup": -0.1}, "warmup must be between 0 and 1"),
    ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ({"optimizer": "lion"}, "optimizer is one of adamw, sgd, not 'lion'"),
    ({"schedule": "step"}, "schedule is one of cosine, constant"),
    ({"precision": "fp8"}, "precision is one of fp32, bf16, fp16"),
    ({"precision": "fp16", "device": "cpu"}, "precision='fp16' needs a CUDA device; use 'bf16' on a CPU"),
    ({"features": ["0"]}, "give teacher="),
    ({"teacher": "resnet"}, "the teacher must be a torch module, not a str"),
    ({"teacher": net(5)}, r"outputs do not fit: they are \[8, 5\], the module's \[8, 4\]; give distill_loss"),
    ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(7, 4))}, "the teacher cannot run on the module's inputs"),
    ({"teacher": net(), "features": ["9"]}, "the teacher has no module or node '9'"),
    ({"teacher": net(), "features": {"9": "0"}}, "the module has no module or node '9'"),
    ({"teacher": net(), "features": {"0": "4"}}, r"feature '4' beside '0' do not fit: they are \[8, 4\]"),
])  # fmt: skip
def test_wrong_use(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as found:
        train(net(), **options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("data", "said"), [
    ([], "the loader yields nothing: it has no batches"),
    (iter([]), "the loader has no length, .* give steps_per_epoch"),
    (loader(X), "the batches have no labels: give a teacher"),
    ([{"x": X}], "a batch is a dict: give unpack"),
    ([(X, Y, Y)], "a batch is a tuple of 3: give unpack"),
])  # fmt: skip
def test_wrong_loaders(data: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        train(net(), data)


def test_a_loader_that_is_used_up() -> None:
    batches = iter([(X[:8], Y[:8])] * 2)
    with pytest.raises(UsageError, match="the loader yields nothing in epoch 2"):
        train(net(), batches, epochs=2, steps_per_epoch=2)


def test_nothing_to_train() -> None:
    for model in (net().requires_grad_(False), nn.Sequential(nn.Flatten())):
        with pytest.raises(UsageError, match="there are no parameters to train"):
            train(model)
    with pytest.raises(UsageError, match=r"the teacher is the module itself"):
        train(model := net(), teacher=model)


def test_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    """It names the place, and the checkpoint from before is kept and good."""
    bad = X.clone()
    bad[20] = torch.nan
    batches = [(x[i : i + 8], Y[i : i + 8]) for x in (X, bad) for i in range(0, 48, 8)]
    with pytest.raises(
        TrainingError, match=r"the loss is nan in epoch 1, step 9: .* no checkpoint"
    ):
        train(net(), batches)
    model, folder = net(), tmp_path / "kept"
    with pytest.raises(TrainingError, match=r"step 9: .* the last good checkpoint is in .*kept"):
        train(model, batches, checkpoint=folder, checkpoint_every=4)
    assert not model.training
    kept = Checkpoints(folder).load()
    assert kept["index"] == 8
    assert all(t.isfinite().all() for t in kept["module"].values())


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    def spoil(step: Any) -> None:
        if step.number == 6:
            step.model[0].weight.data.fill_(torch.inf)

    with pytest.raises(TrainingError, match="a weight is not finite in epoch 2, step 1"):
        train(net(), epochs=2, callbacks=[spoil], checkpoint=tmp_path, checkpoint_every=2)
    assert Checkpoints(tmp_path).load()["index"] == 4


# Going on.


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    return recovery_run.run(None)


def check_same(done: Any, want: Any) -> None:
    assert same(state(done.model), state(want.model))
    assert without_seconds(done.history) == without_seconds(want.history)
    gates = [m.open for m in want.model.modules() if hasattr(m, "open")]
    assert 0 < sum(float(g) for g in gates) < len(gates)


@pytest.mark.parametrize("where", ["8", "between"])
def test_a_killed_run_goes_on_bit_for_bit(where: str, uninterrupted: Any, tmp_path: Path) -> None:
    command = [sys.executable, recovery_run.__file__, str(tmp_path / "kept"), where]
    env = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PATH": ""}
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # 5 steps an epoch, kept after 2, 4 and 5; a file of tensors without its index is left by the second kill.
    kept = Checkpoints(tmp_path / "kept").load()
    assert (kept["epoch"], kept["index"]) == ((1, 2) if where == "8" else (1, 0))
    steps: list[int] = []
    done = recovery_run.run(tmp_path / "kept", lambda step: steps.append(step.number))
    assert steps[0] == (8 if where == "8" else 6)
    check_same(done, uninterrupted)
    # Only the last checkpoint is left, and finished is finished.
    assert {f.name for f in (tmp_path / "kept").iterdir()} == {INDEX, "step-00000015.safetensors"}
    steps.clear()
    check_same(recovery_run.run(tmp_path / "kept", steps.append), uninterrupted)
    assert not steps


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lbfgs"])
def test_states_of_optimizers_survive(optimizer: str, tmp_path: Path) -> None:
    def made(model: nn.Module) -> Any:
        if optimizer != "lbfgs":
            return optimizer
        return torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.5, centered=True)

    def stop(step: Any) -> None:
        if step.number == 7:
            raise KeyboardInterrupt

    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]
    want, model = net(), net()
    train(want, batches, epochs=2, optimizer=made(want))
    with pytest.raises(KeyboardInterrupt):
        train(
            model, batches, epochs=2, optimizer=made(model), checkpoint=tmp_path, callbacks=[stop]
        )
    model = net()
    train(model, batches, epochs=2, optimizer=made(model), checkpoint=tmp_path, callbacks=[id])
    assert same(state(model), state(want))


@pytest.mark.parametrize(("change", "said"), [
    ({"lr": 0.5}, "another run: lr was 0.001, now it is 0.5"),
    ({"epochs": 3}, "another run: epochs was 1, now it is 3"),
    ({"callbacks": [id]}, "of other callbacks"),
])  # fmt: skip
def test_checkpoints_of_other_runs(change: Any, said: str, tmp_path: Path) -> None:
    train(net(), checkpoint=tmp_path)
    with pytest.raises(UsageError, match=said):
        train(net(), checkpoint=tmp_path, **change)
    with pytest.raises(
        UsageError, match=r"another module: 4\.weight was \[4, 288\], now it is \[5"
    ):
        train(net(5), checkpoint=tmp_path)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    train(net(), checkpoint=tmp_path)
    index, tensors = tmp_path / INDEX, next(tmp_path.glob("*.safetensors"))
    good, bytes_ = json.loads(index.read_text()), tensors.read_bytes()
    for text, said in (
        ("{", "is not JSON"), ("[]", "is not a checkpoint of a recovery"),
        (json.dumps({**good, "version": 9}), "has version 9"),
        (json.dumps({**good, "tensors": "../secret.safetensors"}), "does not name a tensor file"),
        (json.dumps({**good, "tensors": "step-1.safetensors"}), "is damaged .* delete the folder"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(ModelError, match=said):
            train(net(), checkpoint=tmp_path)
    index.write_text(json.dumps({**good, "state": {"dict": [["settings", {"dict": []}]]}}))
    with pytest.raises((ModelError, UsageError), match=r"of another run|is damaged"):
        train(net(), checkpoint=tmp_path)
    parts = [item for item in good["state"]["dict"] if item[0] != "optimizer"]
    index.write_text(json.dumps({**good, "state": {"dict": parts}}))
    with pytest.raises(ModelError, match=r"is damaged, .* \('optimizer'\); delete the folder"):
        train(net(), checkpoint=tmp_path)
    index.write_text(json.dumps(good))
    for damaged in (bytes_[:100], b"\xff" * 200, bytes_[:-8]):
        tensors.write_bytes(damaged)
        with pytest.raises(ModelError, match="is damaged"):
            train(net(), checkpoint=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot keep checkpoints in"):
        train(net(), checkpoint=tmp_path / "file")


def test_states_that_cannot_be_kept(tmp_path: Path) -> None:
    class Callback:
        def __call__(self, step: Any) -> None: ...

        def state_dict(self) -> Any:
            return {"made": {1, 2}}

        def load_state_dict(self, found: Any) -> None: ...

    with pytest.raises(
        UsageError, match=r"cannot store callbacks\.0\.made in a checkpoint: .* a set"
    ):
        train(net(), checkpoint=tmp_path, callbacks=[Callback()])


def test_checkpoints_need_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtra, match="checkpoints needs safetensors"):
        train(net(), checkpoint=tmp_path)
    train(copy.deepcopy(net()))


def test_without_torch() -> None:
    """One line that names the extra; the package itself can be imported."""
    code = """
import sys
sys.modules["torch"] = None
import graphshrink
for use in (
    lambda: graphshrink.recover(None, []),
    lambda: __import__("graphshrink.datasets"),
    lambda: __import__("graphshrink.processes"),
):
    try:
        use()
    except graphshrink.MissingExtra as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all('[torch]"' in line for line in lines)
