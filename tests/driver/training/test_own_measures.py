"""``measure`` of ``recover_file`` and ``score`` of plans as functions, against scikit-learn and the files in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import mean_absolute_error, mean_squared_error

import graphshrink
from graphshrink import UsageError, recover_file

RNG = np.random.default_rng(0)
SAMPLES = RNG.standard_normal((256, 8)).astype(np.float32)
HELD = np.arange(4, 256, 8)
"""The samples that are held out: every eighth."""

TARGETS = RNG.standard_normal((256, 2)).astype(np.float32)

Arrays = list[np.ndarray[Any, Any]]


def write(path: Path, weights: list[np.ndarray[Any, Any]]) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "b"], ["y"], "second"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 8), ("y", 2))
    ]
    made = [numpy_helper.from_array(w, name) for name, w in zip("ab", weights, strict=True)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], made)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A student and its teacher."""
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((8, 16), (16, 2))]
    noisy = [w + 0.2 * rng.standard_normal(w.shape).astype(np.float32) for w in weights]
    return write(tmp_path / "student.onnx", noisy), write(tmp_path / "teacher.onnx", weights)


def outputs(path: Any) -> np.ndarray[Any, Any]:
    """What a file computes of the samples that are held out."""
    model = path if isinstance(path, Path) else path.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": SAMPLES[HELD]})[0])


def recovered(files: tuple[Path, Path], **options: Any) -> graphshrink.RecoveredFile:
    given: dict[str, Any] = {"epochs": 6, "lr": 0.01, "progress": False, "feature_weight": 0.0}
    return recover_file(*files, SAMPLES, **(given | options))


def test_a_function_of_the_outputs_judges(files: tuple[Path, Path]) -> None:
    def worst(made: Arrays, wanted: Arrays) -> float:
        return float(np.abs(made[0] - wanted[0]).max())

    done = recovered(files, measure=worst)
    teacher = outputs(files[1])
    assert done.before.loss == pytest.approx(np.abs(outputs(files[0]) - teacher).max(), rel=1e-4)
    assert done.improved
    assert done.after.loss < done.before.loss
    assert done.after.loss == pytest.approx(np.abs(outputs(done.model) - teacher).max(), rel=1e-4)
    # The best epoch is the best by this function.
    assert min(r["held-out loss"] for r in done.history) == pytest.approx(done.after.loss, rel=1e-3)


def test_functions_of_other_packages_and_names_agree(files: tuple[Path, Path]) -> None:
    by_name = recovered(files, measure="mse")
    own = recovered(files, measure=lambda made, wanted: mean_squared_error(wanted[0], made[0]))
    assert own.before.loss == pytest.approx(by_name.before.loss, rel=1e-5)


def test_targets_of_a_regression(files: tuple[Path, Path]) -> None:
    def to_targets(made: Arrays, wanted: Arrays, labels: Any) -> float:
        assert wanted[0].shape == made[0].shape == labels.shape
        return float(mean_absolute_error(labels, made[0]))

    done = recovered(files, measure=to_targets, labels=TARGETS)
    wanted = mean_absolute_error(TARGETS[HELD], outputs(files[0]))
    assert done.before.loss == pytest.approx(wanted, rel=1e-5)
    assert done.before.accuracy is None
    # Functions of two arguments get the teacher's outputs alone.
    recovered(files, measure=lambda made, wanted: 1.0, labels=TARGETS, epochs=1)


def test_a_function_decides_what_is_kept(files: tuple[Path, Path]) -> None:
    first = outputs(files[0])
    done = recovered(files, measure=lambda made, _: 1 + float(np.abs(made[0] - first).mean()))
    assert not done.improved
    assert done.before.loss == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda made, wanted: -1.0, r"returned -1: less is better, and it must be at least 0"),
        (lambda made, wanted: "good", r"must return a number, not a str"),
        (lambda made, wanted: made[0], r"must return a number, not a ndarray"),
        ("r3", r"outputs are compared by auto, kl, error, mse, cosine, not 'r3'"),
    ],
)
def test_measures_that_are_none(files: tuple[Path, Path], measure: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recovered(files, measure=measure)
    with pytest.raises(UsageError, match=message):
        graphshrink.plan(files[1], SAMPLES, macs=0.8, score=measure)


def test_targets_need_a_function(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"labels are whole numbers from 0 on, one for each"):
        recovered(files, measure="mse", labels=TARGETS)
    with pytest.raises(UsageError, match=r"labels are numbers, one for each of the 256 samples"):
        recovered(files, measure=lambda a, b, c: 0.5, labels=TARGETS[:9])
