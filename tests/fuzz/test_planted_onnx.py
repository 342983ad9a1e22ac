"""The fuzzer finds what is wrong on purpose, and makes it small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from graphshrink import ir
from graphshrink.ir import GraphshrinkError
from graphshrink.passes.merge.algebra import affine
from graphshrink.targets.onnx.speller import spells
from graphshrink.targets.support import Spelling

from . import findings, onnx_jobs
from .isolate import in_child
from .onnx_forms import onnx_case
from .onnx_graphs import OnnxCase
from .trial import Found, smallest, trial
from .verdict import CRASH, HANG, MISMATCH, REFUSAL, Chaotic, Outcome, Wrong, compare, judged


def found(job: str, seeds: range, kind: str) -> tuple[int, Found]:
    """The first case that fails in a job."""
    for seed in seeds:
        for outcome, case in trial("onnx", seed, [job]):
            if outcome.found:
                assert outcome.kind == kind
                return seed, Found(outcome, case)
    raise AssertionError("the planted fault was not found")


def test_operands_in_the_wrong_order_are_found_and_made_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def swapped(s: Any, op: ir.Sub) -> None:
        s.emit("Sub", s.inputs[::-1], s.outputs[0])

    monkeypatch.setitem(spells.table, (ir.Sub, None), Spelling(swapped))
    seed, first = found("respell", range(60), MISMATCH)
    assert first.outcome.what == "wrong numbers"
    small = smallest("onnx", first, 60.0)
    assert small.outcome.like(first.outcome)
    # Either one that is a difference, or one that is read as several ops with a difference among them.
    (node,) = small.case.model.graph.node
    assert node.op_type in ("Sub", "BatchNormalization")
    place = findings.write(tmp_path, seed, "onnx", small.outcome, small.case)
    assert f"--seed {seed} --job respell" in (place / "report.txt").read_text()
    said, again = findings.read(place)
    assert onnx_jobs.run_job(again, said["job"]).like(small.outcome)


def test_a_wrong_merge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = affine._composed
    monkeypatch.setattr(
        affine,
        "_composed",
        lambda first, second, grid: (
            right(second, second, grid)
            if first.weight.shape == second.weight.shape
            else right(first, second, grid)
        ),
    )
    _, first = found("merge-all", range(60), MISMATCH)
    small = smallest("onnx", first, 60.0)
    assert len(small.case.model.graph.node) <= 3


def test_an_error_that_is_no_refusal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(s: Any, op: ir.Transpose) -> None:
        raise KeyError("perm")

    monkeypatch.setitem(spells.table, (ir.Transpose, None), Spelling(broken))
    _, first = found("respell", range(60), CRASH)
    assert "KeyError" in first.outcome.what
    (left,) = smallest("onnx", first, 60.0).case.model.graph.node
    assert left.op_type in ("Transpose", "Gemm")  # A Gemm of a transposed matrix has one inside.


def test_a_refusal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise GraphshrinkError("v12 of 'name' is 3 wide")

    outcome = judged("job", refused)
    assert (outcome.kind, outcome.what, outcome.found) == (REFUSAL, "… of '…' is # wide", False)


def test_what_ends_the_process_or_never_ends_is_found() -> None:
    def dies() -> Outcome:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def hangs() -> Outcome:
        time.sleep(60)
        raise AssertionError

    assert in_child(dies, "job", 20.0) == Outcome(
        "job", CRASH, "died of signal 9", "the process died of signal 9"
    )
    assert in_child(hangs, "job", 0.3).kind == HANG
    assert in_child(lambda: Outcome("job", "equal"), "job", 20.0).kind == "equal"


def test_a_seed_always_gives_the_same_model() -> None:
    for seed in range(5):
        first, second = onnx_case(seed), onnx_case(seed)
        assert first.model.SerializeToString() == second.model.SerializeToString()
        assert all(np.array_equal(first.feeds[0][n], second.feeds[0][n]) for n in first.feeds[0])


def nudged(size: float) -> Callable[[int], list[Any]]:
    return lambda seed: [np.float32([1.0, 1.0 + size * (seed % 2)])]


def test_rounding_explains_a_difference_or_it_does_not() -> None:
    want = [np.float32([1.0, 1.0])]
    compare(want, [np.float32([1.0, 1.00001])], 2e-5, nudged(0))
    compare(want, [np.float32([1.0, 1.001])], 2e-5, nudged(5e-4))
    with pytest.raises(Wrong):
        compare(want, [np.float32([1.0, 1.001])], 2e-5, nudged(1e-6))
    with pytest.raises(Chaotic):
        compare(want, [np.float32([1.0, 9.0])], 2e-5, nudged(0.5))
    with pytest.raises(Wrong, match="type of an output"):
        compare(want, [np.float64([1.0, 1.0])], 2e-5, nudged(0))


def small_case(nodes: list[Any], weights: dict[str, Any], shape: list[int], kind: int) -> OnnxCase:
    """A case of a few nodes from x to y."""
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return OnnxCase(model, [{"x": x}])


def test_ties_of_zero_rows_are_no_fault() -> None:
    """A factored weight gives rows of zeros up to rounding, and another index of equal numbers then."""
    weight = np.random.default_rng(2).standard_normal((4, 6, 1, 1)).astype(np.float32)
    weight[1:] = 0
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("ArgMin", ["c"], ["y"], axis=1),
    ]
    case = small_case(nodes, {"w": weight}, [2, 6, 5, 5], onnx.TensorProto.INT64)
    assert not onnx_jobs.run_job(case, "expand").found


@pytest.mark.parametrize("kind", ["Greater", "Hardmax"])
def test_decisions_that_are_wrong_are_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are compared are moved by rounding; a comparison with zero and another axis still show."""
    weights = {"zero": np.zeros(1, np.float32)} if kind == "Greater" else {}
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["r"]),
        onnx.helper.make_node(kind, ["r", *weights], ["y"]),
    ]
    case = small_case(nodes, weights, [3, 5], 9 if weights else 1)
    right = onnx_jobs.shrink

    def misread(*args: Any, **options: Any) -> Any:
        model = right(*args, **options).model
        node = model.graph.node[-1]
        if kind == "Greater":
            node.op_type = "GreaterOrEqual"
        else:
            node.attribute.append(onnx.helper.make_attribute("axis", 0))
        return SimpleNamespace(model=model)

    assert not onnx_jobs.run_job(case, "default").found
    monkeypatch.setattr(onnx_jobs, "shrink", misread)
    assert onnx_jobs.run_job(case, "default").kind == MISMATCH


def test_a_changed_input_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_jobs.shrink

    def careless(model: Any, *args: Any, **options: Any) -> Any:
        made = right(model, *args, **options)
        if isinstance(model, Path):
            model.write_bytes(b"")
        return made

    monkeypatch.setattr(onnx_jobs, "shrink", careless)
    x = onnx.helper.make_tensor_value_info("x", 1, [2])
    y = onnx.helper.make_tensor_value_info("y", 1, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    outcome = onnx_jobs.run_job(OnnxCase(model, [{"x": np.ones(2, np.float32)}]), "default")
    assert (outcome.kind, outcome.what) == (MISMATCH, "the input file changed")


def test_the_long_run_counts_and_ends(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fuzz",
        "--minutes",
        "0.05",
        "--seed",
        "1",
        "--target",
        "onnx",
        "--workers",
        "1",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout
    assert "onnx default" in done.stdout
