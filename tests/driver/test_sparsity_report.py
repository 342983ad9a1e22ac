"""``inspect --sparsity`` and ``use_sparse_kernels``: what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink.api import load
from graphshrink.ir import Pattern
from graphshrink.nn import mask_weight, use_sparse_kernels
from graphshrink.sparsity import sparsity
from graphshrink.training import sparse_kernels
from support.cli import fails, succeeds

RNG = np.random.default_rng(0)


def share(weight: np.ndarray) -> float:
    """What 2:4 keeps along the last axis."""
    groups = np.sort(np.abs(weight).reshape(-1, 4), axis=1)
    return float(groups[:, 2:].sum() / groups.sum())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = {
        "first": RNG.standard_normal((6, 32)), "second": RNG.standard_normal((32, 16)),
        "third": RNG.standard_normal((16, 8)),
    }  # fmt: skip
    mask = Pattern().mask(np.abs(weights["third"].T)).T
    weights["third"] = weights["third"] * mask
    nodes = []
    x = "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [x, name], [f"{name}_y"], name))
        nodes.append(helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"], f"{name}_relu"))
        x = f"{name}_r"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2, 6])], [info(x, TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)  # fmt: skip
    return path


def test_the_table(model: Path) -> None:
    first, second, third = sparsity(load(model)[0])
    assert (first.layer, first.op, first.shape) == ("first", "Linear", (32, 6))
    assert first.valid is False
    assert first.reason == "it sums over 6 channels, which is no multiple of 4"
    assert (first.eligible, first.kept, first.permuted) == (False, None, None)
    weight = numpy_helper.to_array(onnx.load(model).graph.initializer[1]).T
    assert second.eligible
    assert second.valid is False
    assert second.kept == pytest.approx(share(weight))
    assert second.permuted is not None
    assert second.permuted > share(weight) + 0.01
    # Pruned already: all is kept, and its order stays.
    assert third.valid
    assert third.kept == third.permuted == pytest.approx(1.0)
    assert not any(r.likely for r in (first, second, third))


def test_likely_is_by_sizes() -> None:
    layer = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 100)).eval()
    graph, _ = load(layer, (torch.randn(1, 256),))
    assert [r.likely for r in sparsity(graph)] == [True, False]
    assert not any(r.likely for r in sparsity(graph, Pattern(1, 4)))


def test_command_line(model: Path) -> None:
    told = json.loads(succeeds("inspect", str(model), "--sparsity", "--json"))
    assert told["pattern"] == "2:4"
    assert [r["layer"] for r in told["layers"]] == ["first", "second", "third"]
    assert told["layers"][0]["reason"] == "it sums over 6 channels, which is no multiple of 4"
    assert told["layers"][1]["kept"] < told["layers"][1]["permuted"]
    table = succeeds("inspect", str(model), "--sparsity")
    assert "which is no multiple of 4" in table
    assert "16x32" in table
    told = json.loads(succeeds("inspect", str(model), "--sparsity", "--pattern", "1:2", "--json"))
    assert [r["eligible"] for r in told["layers"]] == [True, True, True]


def test_wrong_use(model: Path) -> None:
    assert "--pattern goes with --sparsity" in fails("inspect", str(model), "--pattern", "2:4")
    for text, why in (("4", "'4' is not a pattern like 2:4"), ("4:2", "4:2 is not a pattern")):
        assert why in fails("inspect", str(model), "--sparsity", "--pattern", text)


# Sparse kernels.


def linear(fan_in: int, out: int, dtype: torch.dtype = torch.float16, sparse: bool = True) -> nn.Linear:  # fmt: skip
    made = nn.Linear(fan_in, out)
    if sparse:
        with torch.no_grad():
            made.weight *= torch.from_numpy(Pattern().mask(made.weight.abs().numpy()))
    return made.to(dtype)


def test_reasons_for_no_sparse_kernel() -> None:
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 4, 1), "act": nn.ReLU(), "norm": nn.LayerNorm(8), "odd": linear(66, 64, sparse=False),
            "dense": linear(64, 64, sparse=False), "wide": linear(64, 64, torch.float64),
            "small": linear(24, 64), "host": linear(64, 64), "masked": mask_weight(nn.Linear(64, 64), torch.ones(64, 64)),
        }
    )  # fmt: skip
    found = use_sparse_kernels(module)
    assert found.converted == ()
    assert found.skipped == {
        "conv": "torch has sparse kernels for dense layers only",
        "odd": "it sums over 66 channels, which is no multiple of 4",
        "dense": "its weight is not 2:4",
        "wide": found.skipped["wide"],
        "small": "(64, 24) is no multiple of (16, 16)",
        "host": "it is on the device cpu: move it to a CUDA device",
        "masked": "its weight is parametrized: fold_masks first",
    }
    assert found.skipped["wide"].startswith("torch has kernels for ")
    assert found.skipped["wide"].endswith("; its type is float64")


def test_conversion_and_what_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own conversion replaced: there is no GPU here."""
    module = nn.Sequential(linear(64, 64), nn.ReLU(), linear(64, 32), nn.Conv2d(4, 4, 1))
    given: list[torch.Tensor] = []

    def convert(weight: torch.Tensor) -> torch.Tensor:
        given.append(weight)
        if len(given) == 1:
            raise RuntimeError("no such luck\nat all")
        return weight

    real = sparse_kernels.kernel_problem

    def problem(layer: nn.Module) -> str | None:
        said = real(layer)
        return None if said and "on the device cpu" in said else said

    monkeypatch.setattr(sparse_kernels, "kernel_problem", problem)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    found = use_sparse_kernels(module)
    assert found.converted == ("2",)
    assert found.skipped["0"] == "torch cannot compress it: no such luck"
    assert not module[2].weight.requires_grad
    assert module[0].weight.requires_grad


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device; there: pytest tests/driver/test_sparsity_report.py"
)  # fmt: skip
def test_sparse_kernels_on_a_gpu() -> None:
    module = nn.Sequential(linear(256, 512), nn.ReLU(), linear(512, 256)).cuda()
    x = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    want = module(x)
    assert use_sparse_kernels(module).converted == ("0", "2")
    torch.testing.assert_close(module(x), want, rtol=2e-2, atol=2e-2)


def test_the_gpu_benchmark_says_why_it_measures_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device; run python benchmarks/sparse_gpu.py")
    script = Path(__file__).parents[2] / "benchmarks" / "sparse_gpu.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "skipped: there is no CUDA device\n"
