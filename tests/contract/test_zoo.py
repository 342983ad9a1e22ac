"""Well-known networks keep their outputs: as FX, as an exported program, and as ONNX."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo.exports import example, exported, small
from zoo.models import MODELS, SMALL, make

from graphshrink import shrink
from graphshrink.api import load
from graphshrink.ir import Conv, Graph, Opaque, Rewriter
from graphshrink.passes import Pipeline
from support.evaluate import evaluate
from support.onnx_run import outputs_of

NAMES = sorted(SMALL)
CONVOLUTIONAL = [n for n in NAMES if n != "vit"]
DIFFERENT = [n for n in NAMES if n != "resnet50"]
"""Without the network that has the kinds of layers of another, where a test takes long."""
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}


def error(want: torch.Tensor, got: torch.Tensor) -> float:
    """The largest error, relative to the largest output, which must not be near zero."""
    assert want.abs().max() > 0.05
    assert want.std() > 0.01
    return float((want - got).abs().max() / want.abs().max())


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fx(name: str, dtype: torch.dtype) -> None:
    model, image = small(name, dtype), example(name, dtype)
    result = shrink(model, example_inputs=(image,))
    with torch.no_grad():
        assert error(model(image), result.model(image)) < LIMITS[dtype]
    assert result.report.changed or name == "vit"


@cache
def program(name: str, dtype: torch.dtype) -> torch.export.ExportedProgram:
    return torch.export.export(small(name, dtype), (example(name, dtype),))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in NAMES),
        *((name, torch.float64) for name in ("densenet121", "mobilenet_v2", "repvgg", "vit")),
    ],
    ids=str,
)
def test_exported_program(name: str, dtype: torch.dtype) -> None:
    model, image = small(name, dtype), example(name, dtype)
    result = shrink(program(name, dtype))
    with torch.no_grad():
        assert error(model(image), result.model(image)) < LIMITS[dtype]


def run(path: Path, image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(outputs_of(path, image.numpy())[0])


@pytest.mark.parametrize("name", NAMES)
def test_onnx(name: str, onnx_files: Path, tmp_path: Path) -> None:
    source, target = exported(name, onnx_files), tmp_path / "out.onnx"
    image = example(name)
    result = shrink(source)
    result.save(target)
    first, second = run(source, image), run(target, image)
    assert error(first, second) < 1e-5
    with torch.no_grad():
        assert error(small(name)(image), second) < 1e-5
    assert target.stat().st_size <= source.stat().st_size


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_onnx_in_float64(name: str, onnx_files: Path) -> None:
    """Composed numbers before they are rounded, computed by torch."""
    before, _ = load(exported(name, onnx_files))
    Pipeline("fold-constants,prune-dead").run(before)
    after = before.clone()
    Pipeline("merge-linear,prune-dead").run(after)
    image = example(name, torch.float64).numpy()
    (want,), (got,) = evaluate(before, [image]), evaluate(after, [image])
    assert error(torch.from_numpy(want), torch.from_numpy(got)) < 1e-10


def normal(graph: Graph) -> str:
    """The text without names and without the differences between the frontends.

    torch.onnx gives every convolution a bias, of zeros if need be; torch.export adds a call that guards
    the inputs.
    """
    graph = graph.clone()
    rw = Rewriter(graph)
    for node in graph.nodes:
        bias = node.input(2)
        if isinstance(node.op, Conv) and bias is not None and bias.data is not None:
            if not np.any(bias.data.float64()):
                rw.replace(node, node.op, node.inputs[:2])
        elif isinstance(node.op, Opaque) and node.op.kind == "fx:_guards_fn":
            rw.erase(node)
    return graph.text(names=False, full=True)


@pytest.mark.parametrize("passes", ["fold-constants,prune-dead", None], ids=["before", "after"])
@pytest.mark.parametrize("name", [n for n in DIFFERENT if n in CONVOLUTIONAL])
def test_every_way_in_gives_the_same_graph(name: str, passes: str | None, onnx_files: Path) -> None:
    model, image = small(name), example(name)
    fx = shrink(model, passes, example_inputs=(image,)).graph
    exported_graph = shrink(program(name, torch.float32), passes).graph
    onnx = shrink(exported(name, onnx_files), passes).graph
    assert not any(isinstance(n.op, Opaque) for n in fx.nodes)
    assert normal(fx) == normal(exported_graph)
    assert normal(fx) == normal(onnx)


@pytest.mark.parametrize("name", DIFFERENT)
def test_full_size(name: str) -> None:
    model, image = make(name), example(name)
    result = shrink(model, example_inputs=(image,))
    with torch.no_grad():
        assert error(model(image), result.model(image)) < 1e-5
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    before, after = result.report.before.ops, result.report.after.ops
    # Attention written by hand multiplies its products by a number.
    scales = norms + (len(model.layers) if name == "vit" else 0)
    assert (before.get("Conv", 0), before.get("Scale", 0)) == (convolutions, scales)
    match name:
        case "repvgg":
            # One convolution a block; nothing is left of the branches.
            blocks = 22
            assert (after["Conv"], after.get("Scale"), after.get("Add")) == (blocks, None, None)
            assert (convolutions, norms) == (2 * blocks, 2 * blocks + 17)
        case "densenet121":
            # The norm at the start of a layer, of a transition and of the head reads what others read
            # too, and a ReLU stands behind it; every other one is folded.
            assert after["Conv"] == convolutions
            assert after["Scale"] == 58 + 3 + 1
        case "vit":
            assert (norms, after["Scale"]) == (0, scales)
        case _:
            assert (after["Conv"], after.get("Scale")) == (convolutions, None)
            assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())


def test_the_zoo_is_what_its_names_say() -> None:
    """Parameters, with 100 classes, as the papers' networks have."""
    counts = {n: sum(p.numel() for p in make_bare(n).parameters()) for n in MODELS}
    classes = {"mobilenet_v2": 1280, "resnet18": 512, "resnet50": 2048, "repvgg": 1280,
               "efficientnet_b0": 1280, "densenet121": 1024}  # fmt: skip
    published = {"mobilenet_v2": 3_504_872, "resnet18": 11_689_512, "resnet50": 25_557_032,
                 "efficientnet_b0": 5_288_548, "densenet121": 7_978_856, "repvgg": 9_110_000}  # fmt: skip
    for name, features in classes.items():
        with_thousand = counts[name] + 900 * (features + 1)
        assert with_thousand == pytest.approx(published[name], rel=2e-3), name


def make_bare(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name]()
