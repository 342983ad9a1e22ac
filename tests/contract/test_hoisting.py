"""Well-known networks without some of their activations: the trained network with hoisted padding equals the merged one."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from zoo import exports
from zoo.models import SMALL, image_size, make

from graphshrink import Pipeline, ShrinkResult, recover, shrink, shrink_graph
from graphshrink.api import load
from graphshrink.ir import Exactness, Graph
from graphshrink.passes import HoistPadding, RemoveActivations
from graphshrink.passes.depth.gate_sites import site_names
from support.evaluate import evaluate
from support.onnx_run import outputs_of

# Which activations go, in order of the graph (the rest of a block stays), whether merging is forced (two dense
# 3x3 kernels in a row never pay in MACs), and the convolutions: as they are, and merged.
CASES: dict[str, tuple[Any, bool, tuple[int, int]]] = {
    # The activations inside all inverted residual blocks but the first two; strides 1 and 2, skips or not.
    "mobilenet_v2": (lambda n: [*range(4, n - 1)], False, (34, 16)),
    # The activation inside each basic block, strides of 2 and 1x1 skips included.
    "resnet18": (lambda n: [*range(1, n, 2)], True, (14, 6)),
    # Those inside each pair of convolutions.
    "vgg11": (lambda n: [2, 4, 6], True, (8, 5)),
    # Every other block end: two blocks of three branches, one of stride 2, become one convolution.
    "repvgg": (lambda n: [0, 2], True, (10, 3)),
}


@cache
def network(name: str, dtype: torch.dtype) -> nn.Module:
    """The network, which tests only read."""
    return make(name, dtype, small=True)


def images(name: str, dtype: torch.dtype = torch.float32, count: int = 1) -> torch.Tensor:
    size = image_size(name)
    return torch.randn(
        count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1)
    )


def removal(graph: Graph, name: str) -> RemoveActivations:
    """The pass that removes the activations of the case."""
    names = list(site_names(graph).values())
    ending = "relu6" if name == "mobilenet_v2" else ""
    return RemoveActivations(tuple(names[i] for i in CASES[name][0](len(names))), ending=ending)


def options(name: str) -> str:
    return "{force=true}" if CASES[name][1] else ""


def hoist(model: Any, name: str, inputs: Any) -> ShrinkResult:
    graph, _ = load(model, inputs)
    steps = [
        "fold-constants,prune-dead",
        removal(graph, name),
        "prune-dead",
        f"hoist-padding{options(name)}",
    ]
    return shrink(model, steps, example_inputs=inputs, check=True)


def merge(model: Any, name: str, inputs: Any) -> ShrinkResult:
    steps = f"merge-linear{options(name)},prune-dead"
    return shrink(model, steps, example_inputs=inputs, check=True, on_failure="raise")


def error(want: torch.Tensor, got: torch.Tensor) -> float:
    assert want.shape == got.shape
    assert want.std() > 0.01
    return float((want - got).abs().max() / want.abs().max())


LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}


@cache
def in_torch(name: str, dtype: torch.dtype) -> ShrinkResult:
    """The network with hoisted padding, which tests only read too."""
    return hoist(network(name, dtype), name, (images(name, dtype),))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_fx(name: str, dtype: torch.dtype) -> None:
    image, result = images(name, dtype), in_torch(name, dtype)
    hoisted = result.model
    merged = merge(hoisted, name, (image,))
    with torch.no_grad():
        assert error(hoisted(image), merged.model(image)) < LIMITS[dtype]
    before, after = CASES[name][2]
    assert result.report.after.ops["Conv"] == before
    assert merged.report.after.ops["Conv"] == after
    assert not any(merged.report.after.ops.get(op) for op in ("Scale", "Pad", "Identity"))
    # The report has the change that hoisting makes, against the graph in front of it.
    record = result.report.passes[-1]
    assert record.exactness is Exactness.BORDER
    assert record.error is not None
    assert 1e-3 < record.error < 1
    assert merged.report.passes[0].error is not None
    assert merged.report.passes[0].error < LIMITS[dtype]


@pytest.mark.parametrize("name", CASES)
def test_after_recovery(name: str) -> None:
    """Weights and batch norms that moved since padding was hoisted, with the network as it was for a teacher."""
    image = images(name, count=12)
    hoisted = copy.deepcopy(in_torch(name, torch.float32).model)
    with torch.no_grad():
        first = hoisted(image)
    batches = [(image[i : i + 4], torch.arange(i, i + 4)) for i in (0, 4, 8)]
    done = recover(
        hoisted,
        batches,
        epochs=2,
        teacher=network(name, torch.float32),
        optimizer="sgd",
        lr=0.02,
        progress=False,
    )
    assert done.history[1]["loss"] < done.history[0]["loss"]
    merged = merge(hoisted, name, (image[:1],))
    assert merged.report.after.ops["Conv"] == CASES[name][2][1]
    with torch.no_grad():
        trained = hoisted(image)
        assert error(first, trained) > 1e-2
        assert error(trained, merged.model(image)) < 1e-5


def test_modules_that_did_not_change_are_kept() -> None:
    model = network("resnet18", torch.float32)
    hoisted = in_torch("resnet18", torch.float32).model
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert hoisted.get_submodule(name) is module
        elif isinstance(module, nn.Conv2d):
            twin = hoisted.get_submodule(name)
            assert twin is module or twin.padding != module.padding
            assert torch.equal(twin.weight, module.weight)


def test_a_pool_with_more_padding_than_torch_allows_a_pool() -> None:
    model = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1)).eval()
    x = torch.randn(1, 2, 9, 9)
    hoisted = shrink_graph(model, "hoist-padding{force=true}", example_inputs=(x,))
    merged = shrink_graph(hoisted, "merge-linear{force=true},prune-dead", example_inputs=(x,))
    with torch.no_grad():
        assert error(hoisted(x), merged(x)) < 1e-5
        assert error(model(x)[:, :, 2:-2, 2:-2], hoisted(x)[:, :, 2:-2, 2:-2]) < 1e-5
    (conv,) = (m for m in merged.modules() if isinstance(m, nn.Conv2d))
    assert (conv.kernel_size, conv.padding) == ((5, 5), (2, 2))


def exported(name: str, folder: Path) -> Path:
    """The network as torch.onnx writes it, with nothing folded."""
    if name in SMALL:
        return exports.exported(name, folder)
    path = folder / f"{name}.onnx"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network(name, torch.float32), (images(name),), path, dynamo=True, verbose=False,
                              external_data=False, optimize=False)  # fmt: skip
    return path


def run(path: Path, image: torch.Tensor) -> torch.Tensor:
    onnx.checker.check_model(path, full_check=True)
    return torch.from_numpy(outputs_of(path, image.numpy())[0])


@pytest.mark.parametrize("name", CASES)
def test_onnx(name: str, onnx_files: Path, tmp_path: Path) -> None:
    image = images(name)
    result = hoist(exported(name, onnx_files), name, None)
    result.save(tmp_path / "hoisted.onnx")
    merged = merge(tmp_path / "hoisted.onnx", name, None)
    merged.save(tmp_path / "merged.onnx")
    assert merged.report.after.ops["Conv"] == CASES[name][2][1]
    trained, shipped = run(tmp_path / "hoisted.onnx", image), run(tmp_path / "merged.onnx", image)
    assert error(trained, shipped) < 1e-5
    # The same as what torch makes of it.
    with torch.no_grad():
        assert error(in_torch(name, torch.float32).model(image), trained) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_onnx_in_float64(name: str, onnx_files: Path) -> None:
    graph, _ = load(exported(name, onnx_files))
    Pipeline(["fold-constants,prune-dead", removal(graph, name), "prune-dead"]).run(graph)
    Pipeline([HoistPadding(force=CASES[name][1])]).run(graph)
    image = images(name, torch.float64).numpy()
    (want,) = evaluate(graph, [image])
    Pipeline(f"merge-linear{options(name)},prune-dead").run(graph)
    (got,) = evaluate(graph, [image])
    assert np.abs(want - got).max() < 1e-10 * np.abs(want).max()
