"""``recover(..., quantize=...)`` of torch modules: what is trained is what the integers of the saved file compute, by onnxruntime and LiteRT."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from graphshrink import (
    GateSchedule,
    ModelError,
    Recovered,
    UsageError,
    insert_gates,
    recover,
    shrink,
)
from graphshrink.training.recovery.quantized import quantized_student
from support.litert import run_saved

torch.manual_seed(0)
X = torch.randn(320, 2, 6, 6)
BATCHES = [X[i : i + 32] for i in range(0, 256, 32)]
HELD = X[256:]


@pytest.fixture
def model() -> nn.Module:
    """A network whose layers merge: a batch norm, a convolution of 1 x 1 without an activation in front."""
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made.train()


def trained(model: nn.Module, **options: Any) -> Recovered:
    given: dict[str, Any] = {
        "epochs": 3, "lr": 2e-3, "teacher": model, "distill_loss": nn.functional.mse_loss,
        "quantize": True, "progress": False,
    }  # fmt: skip
    return recover(model, options.pop("batches", BATCHES), **(given | options))


def run(path: Path, x: torch.Tensor, *, fused: bool = True) -> np.ndarray[Any, Any]:
    """The output in onnxruntime, in integer kernels or with the operators that the file states."""
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def outputs(model: nn.Module, x: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(copy.deepcopy(model).eval()(x).numpy())


def integers(path: Path) -> list[np.ndarray[Any, Any]]:
    stored = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return [a for a in stored if a.dtype == np.int8 and a.ndim > 1]


def test_the_module_computes_what_integer_kernels_compute(model: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    done = trained(model)
    done.save(tmp_path / "out.onnx")
    assert len(integers(tmp_path / "out.onnx")) == 3  # Two convolutions were merged.
    got = outputs(done.model, HELD)
    for fused in (False, True):
        wanted = run(tmp_path / "out.onnx", HELD, fused=fused)
        # Few numbers differ, by a step of an activation: sums in another order, biases as integers.
        assert np.mean(np.abs(got - wanted) > 2e-3 * np.abs(wanted).max()) < 0.05
    # The given module is as it was.
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_training_brings_integers_closer_than_rounding_alone(
    model: nn.Module, tmp_path: Path
) -> None:
    # Ranges that clip much, so that there is something to learn.
    passes = "default,quantize{method=percentile,percentile=97}"
    given = copy.deepcopy(model).eval()
    shrink(given, passes, example_inputs=(X[:1],), calibration=X[:256].numpy()).save(tmp_path / "rounded.onnx")  # fmt: skip
    trained(model, quantize=passes, epochs=12, lr=3e-3).save(tmp_path / "trained.onnx")
    wanted = outputs(model, HELD)
    errors = [
        np.square(run(tmp_path / f"{name}.onnx", HELD) - wanted).mean()
        for name in ("rounded", "trained")
    ]
    assert errors[1] < 0.85 * errors[0]


def test_labels_train_it_too(model: nn.Module, tmp_path: Path) -> None:
    labels = (X[:, 0].mean((1, 2)) > 0).long()
    batches = [(X[i : i + 32], labels[i : i + 32]) for i in range(0, 256, 32)]
    done = trained(model, batches=batches, teacher=None, epochs=6, distill_loss=None)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    done.save(tmp_path / "out.onnx")
    found = run(tmp_path / "out.onnx", HELD).argmax(1)
    assert (found == outputs(done.model, HELD).argmax(1)).mean() > 0.95


def test_zeros_of_the_module_stay(model: nn.Module, tmp_path: Path) -> None:
    sparse = shrink(
        model.eval(), "default,sparsify{sparsity=0.5}", example_inputs=(X[:1],)
    ).model  # fmt: skip
    # Zeros of the passes of quantize itself count as well.
    for student, passes in ((sparse, True), (model, "default,sparsify{sparsity=0.5},quantize")):
        trained(student, teacher=model, quantize=passes).save(tmp_path / "out.onnx")
        assert all((a == 0).mean() >= 0.45 for a in integers(tmp_path / "out.onnx"))


def test_it_is_saved_for_litert(model: nn.Module, tmp_path: Path) -> None:
    done = trained(model)
    written = done.save(tmp_path / "out.tflite")
    done.save(tmp_path / "out.onnx")
    (made,) = run_saved(written, [HELD[:8].numpy()], "xnnpack")
    wanted = run(tmp_path / "out.onnx", HELD[:8])
    assert np.abs(made - wanted).max() < 0.03 * np.abs(wanted).max()


class Stop(Exception):
    """Ends a training."""


def stop_at(step: int) -> Callable[[Any], None]:
    def stop(found: Any) -> None:
        if found.number == step:
            raise Stop

    return stop


def test_a_run_goes_on_with_the_same_ranges(model: nn.Module, tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(X[:256]), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(3))  # fmt: skip

    whole = trained(model, batches=loader(), callbacks=[stop_at(99)])
    kept: dict[str, Any] = {"checkpoint": tmp_path / "run", "checkpoint_every": 3}
    with pytest.raises(Stop):
        trained(model, batches=loader(), callbacks=[stop_at(13)], **kept)
    again = trained(model, batches=loader(), callbacks=[stop_at(99)], **kept)
    for name, done in (("whole", whole), ("again", again)):
        done.save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "whole.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    with pytest.raises(UsageError, match="of another run: quantize was True, with ranges"):
        trained(model, batches=loader(), callbacks=[stop_at(99)], calibration=X[:8].numpy(), **kept)  # fmt: skip


def test_what_does_not_fit(model: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UsageError, match="trains a new module, whose parameters the given opt"):
        trained(model, optimizer=optimizer)
    with pytest.raises(UsageError, match="calibration is for the ranges of quantize"):
        trained(model, quantize=False, calibration=X.numpy())
    with pytest.raises(UsageError, match="'default' quantise nothing: quantize must be"):
        trained(model, quantize="default")
    with pytest.raises(UsageError, match="arguments are tensors: give unpack"):
        trained(model, batches=[({"x": X},)])
    with pytest.raises(UsageError, match="the loader yields nothing"):
        trained(model, batches=[])
    done = trained(model, quantize=False, epochs=1, teacher=copy.deepcopy(model))
    with pytest.raises(UsageError, match=r"trained with quantize .*shrink\(model"):
        done.save(tmp_path / "out.onnx")


class Wrapped(nn.Module):
    """A module that returns the output of another one in a container."""

    def __init__(self, inner: nn.Module, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.inner(x))


def test_results_keep_their_containers(model: nn.Module, tmp_path: Path) -> None:
    labels = torch.randn(256, 5)
    batches = [(X[i : i + 32], labels[i : i + 32]) for i in range(0, 256, 32)]

    def fit(wrap: Callable[[Any], Any], unwrap: Callable[[Any], Any]) -> Recovered:
        def loss(outputs: Any, wanted: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(unwrap(outputs), wanted)

        given = {"batches": batches, "teacher": None, "distill_loss": None, "epochs": 1}
        return trained(Wrapped(model, wrap), loss=loss, **given)

    plain = fit(lambda y: y, lambda y: y)
    # With the tensor alone, ``y[0]`` would be its first sample.
    for wrap, unwrap in (
        (lambda y: (y,), lambda y: y[0]),
        (lambda y: {"z": y, "a": [y + 1, None]}, lambda y: y["z"]),
    ):
        done = fit(wrap, unwrap)
        assert done.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-4)
    assert torch.allclose(done.model(HELD)["a"][0], done.model(HELD)["z"] + 1)
    done.save(tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="returns a tensor, or tensors in tuples, lists and"):
        fit(lambda y: OrderedDict(z=y), lambda y: y["z"])


def test_frozen_parameters_are_named(model: nn.Module) -> None:
    model[0].requires_grad_(False)
    done = trained(model, teacher=copy.deepcopy(model))
    assert any("2 frozen parameters: 0.weight, 0.bias" in note for note in done.notes)
    with pytest.raises(UsageError, match="none that are not frozen"):
        trained(model.requires_grad_(False))


def test_batches_that_can_be_read_once(model: nn.Module) -> None:
    whole = trained(model, epochs=1)
    once = trained(model, epochs=1, batches=iter(BATCHES), steps_per_epoch=len(BATCHES))
    assert once.history[0]["loss"] == whole.history[0]["loss"]


def test_processes_measure_the_same_ranges(model: nn.Module) -> None:
    found = []
    for rank in (0, 1):
        sampler: Any = DistributedSampler(X[:64], 2, rank, shuffle=True)  # type: ignore[arg-type]
        loader: Any = DataLoader(X[:64], batch_size=8, sampler=sampler)  # type: ignore[arg-type]
        found.append(quantized_student(model, True, loader, None, None, 0).digest)
        assert sampler.rank == rank
    assert found[0] == found[1]


def test_gates_are_fixed(model: nn.Module) -> None:
    gated = insert_gates(model.eval(), example_inputs=(X[:2],), sites="*")
    schedule = GateSchedule(gated, steps=2, kind="fade")
    with pytest.raises(UsageError, match="gates are fixed at their present values"):
        trained(gated, callbacks=[schedule])


def test_what_cannot_be_quantised_has_one_error(model: nn.Module) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="the module cannot be quantised"):
        trained(nn.Sequential(Branching(), model))
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(UsageError, match="only float32 is quantised"):
        trained(half, batches=[x.bfloat16() for x in BATCHES])
    with pytest.raises(UsageError, match="the passes '' quantise nothing"):
        trained(model, quantize="")
