"""Pivoted networks against torch and onnxruntime: trained under masks, exact afterwards, in both hosts."""

from __future__ import annotations

import copy
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from zoo.exports import example, exported, small
from zoo.models import SMALL
from zoo.more_models import MORE, BertLayer

from graphshrink import Graph, PassError, UsageError, insert_blocks, recover, shrink
from graphshrink.api import load
from graphshrink.ir import Rewriter
from graphshrink.nn import masks
from graphshrink.passes import Pipeline
from graphshrink.targets.torch.emitter import to_fx
from support.cli import fails, succeeds
from support.onnx_run import outputs_of


def masked_parts(net: nn.Module) -> dict[str, torch.Tensor]:
    """The masks of a network by the names of their weights."""
    return {name: mask.mask.clone() for name, mask in masks(net)}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)), torch.randn(
        6, 12
    )


def residual() -> tuple[nn.Module, torch.Tensor]:
    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)))

    return nn.Sequential(nn.Linear(12, 16), block(), block(), nn.Linear(16, 5)), torch.randn(6, 12)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    def conv(fan_in: int, fan_out: int, size: int, **rest: Any) -> list[nn.Module]:
        norm = nn.BatchNorm2d(fan_out)
        return [nn.Conv2d(fan_in, fan_out, size, padding=size // 2, **rest), norm, nn.ReLU()]

    body = [*conv(16, 32, 3, bias=False), *conv(32, 32, 3, groups=32), *conv(32, 16, 1)]
    net = nn.Sequential(
        *conv(3, 16, 3), Residual(nn.Sequential(*body)), *conv(16, 16, 3, stride=2), nn.MaxPool2d(2),
        nn.Flatten(1), nn.Linear(16 * 4, 32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip
    return net, torch.randn(2, 3, 8, 8)


def features() -> tuple[nn.Module, torch.Tensor]:
    body = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *body, nn.Conv2d(16, 5, 1)), torch.randn(2, 3, 8, 8)  # fmt: skip


def encoder() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(6, 16), BertLayer(16, 4), BertLayer(16, 4), nn.Linear(16, 5)), torch.randn(2, 7, 6)  # fmt: skip


NETWORKS = {
    "mlp": (mlp, ["2", "5"]), "residual": (residual, ["*inner.0", "*inner.2"]),
    "convolutions": (convolutions, ["*inner.0", "*inner.6", "4", "9"]),
    "features": (features, ["2", "4"]), "encoder": (encoder, ["*up", "*down", "*q", "*v"]),
}  # fmt: skip


def trained(name: str, blocks: int, draw: str = "random") -> tuple[nn.Module, torch.Tensor]:
    """A network of float64 that took a few steps under its masks; each caller's own."""
    return copy.deepcopy(trained_once(name, blocks, draw))


@cache
def trained_once(name: str, blocks: int, draw: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    net, x = make()
    net, x = net.double().eval(), x.double()
    masked = insert_blocks(net, blocks, layers=layers, draw=draw, example_inputs=(x,))  # type: ignore[arg-type]
    before = masked_parts(masked)
    assert len(before) >= 2
    masked.train()
    optimiser = torch.optim.SGD(masked.parameters(), 1e-2)
    for _ in range(3):
        loss = (masked(x) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    masked.eval()
    for n, mask in masked_parts(masked).items():
        assert torch.equal(mask, before[n])
    return masked, x


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_was_trained_under_masks_is_exact_in_blocks(name: str, blocks: int) -> None:
    masked, x = trained(name, blocks)
    result = shrink(
        masked, f"pivot{{blocks={blocks},method=zeros,force=true}}", example_inputs=(x,), check=True
    )
    record = result.report.passes[0]
    done = [r.what for r in record.rewrites if r.what.startswith("pivot")]
    assert len(done) >= len(masked_parts(masked))
    assert not any("gather" in text for text in done)
    with torch.no_grad():
        want, got = masked(x), result.model(x)
    assert want.abs().max() > 0.01
    assert float((want - got).abs().max()) < 1e-10 * float(want.abs().max())
    # The weights are gone, not only zero.
    assert result.report.after.parameters < result.report.before.parameters
    # What comes out trains.
    result.model.train()(x).sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def recovered(name: str, seed: int = 0, stop: int = 0, **options: Any) -> nn.Module:
    """A network of float64, recovered under masks with its dense self as teacher, the zeros seen at every step."""
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    net, x = make()
    net, x = net.double().eval(), x.double()
    masked = insert_blocks(net, 4, layers=layers, example_inputs=(x,), seed=seed)
    labels = torch.arange(len(x)) % net(x).shape[-1]

    def look(step: Any) -> None:
        for path, mask in masks(masked):
            assert not masked.get_submodule(path.rpartition(".")[0]).weight[~mask.mask].any()
        if step.number == stop:
            raise KeyboardInterrupt

    recover(
        masked, [(x, labels), (x.flip(0), labels.flip(0))], epochs=3, lr=1e-2, teacher=net, weight_decay=0.1,
        callbacks=[look], progress=False, **options,
    )  # fmt: skip
    return masked


@pytest.mark.parametrize("name", ["mlp", "residual", "convolutions"])
def test_what_was_recovered_under_masks_is_exact_in_blocks(name: str, tmp_path: Path) -> None:
    """Also after a stop: the checkpoint has the masks, so that even others drawn for the same network do not matter."""
    whole = recovered(name)
    drawn = masked_parts(whole)
    with pytest.raises(KeyboardInterrupt):
        recovered(name, stop=5, checkpoint=tmp_path, checkpoint_every=1)
    again = recovered(name, seed=1, checkpoint=tmp_path, checkpoint_every=1)
    for part, mask in masked_parts(again).items():
        assert torch.equal(mask, drawn[part])
        weights = [m.get_submodule(part.rpartition(".")[0]).weight for m in (whole, again)]
        assert torch.equal(*weights)
        # Inside the blocks everything was trained.
        assert torch.equal(weights[0] != 0, mask)

    x = NETWORKS[name][0]()[1].double()
    result = shrink(again, "pivot{blocks=4,method=zeros,force=true}", example_inputs=(x,))
    done = [r.what for r in result.report.passes[0].rewrites if r.what.startswith("pivot")]
    assert len(done) == len(drawn)
    # Adjacent layers are mixed.
    assert any("shuffle" in text for text in done)
    with torch.no_grad():
        want, got = again(x), result.model(x)
    assert want.abs().max() > 0.1
    assert float((want - got).abs().max()) < 1e-10 * float(want.abs().max())


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_batch_norms_stay_batch_norms_that_train(name: str) -> None:
    masked, x = trained(name, 4)
    text = "pivot{blocks=4,method=zeros,force=true}"
    pivoted = shrink(masked, text, example_inputs=(x,)).model

    def norms(net: nn.Module) -> list[nn.Module]:
        return [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]

    assert len(norms(pivoted)) == len(norms(masked)) >= 1
    for training in (True, False):
        # Statistics of the batch; then the running ones, which followed it.
        masked.train(training)
        pivoted.train(training)
        with torch.no_grad():
            want, got = masked(x), pivoted(x)
        assert float((want - got).abs().max()) < 1e-10 * float(want.abs().max())
    for one, other in zip(norms(masked), norms(pivoted), strict=True):
        assert type(one) is type(other)
        assert int(one.num_batches_tracked) == int(other.num_batches_tracked) > 1  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_torch_runs_on_other_sizes_than_those_of_the_example(name: str, blocks: int) -> None:
    masked, x = trained(name, blocks)
    text = f"pivot{{blocks={blocks},method=zeros,force=true}}"
    result = shrink(masked, text, example_inputs=(x[:1],))
    assert any("shuffle" in r.what for r in result.report.passes[0].rewrites)
    sizes = [(5, *x.shape[1:])]
    sizes += {"features": [(3, 3, 9, 12)], "encoder": [(2, 11, 6)]}.get(name, [])
    with torch.no_grad():
        for size in sizes:
            y = torch.randn(size, dtype=torch.float64)
            want = masked(y)
            assert float((result.model(y) - want).abs().max()) < 1e-10 * float(want.abs().max())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_onnx(name: str, rows: int) -> None:
    masked, x = trained(name, 4)
    x = x[:rows].float()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(masked.float(), (x,), file, dynamo=False, input_names=["x"])
    model = onnx.load_from_string(file.getvalue())
    result = shrink(model, "fold-constants,pivot{method=zeros,force=true},prune-dead")
    record = result.report.passes[1]
    done = [r.what for r in record.rewrites if r.what.startswith("pivot")]
    assert len(done) >= len(masked_parts(masked))
    if rows == 1 and name != "encoder":
        assert all("(grouped)" in text for text in done)
    onnx.checker.check_model(result.model, full_check=True)
    want, got = (outputs_of(m, x.numpy(), plain=True)[0] for m in (model, result.model))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", [*SMALL, *MORE])
def test_well_known_networks_mask_every_layer_and_lose_none(name: str) -> None:
    """All dense layers and convolutions that divide into two blocks, all at once, around every kind of coupling."""
    model, x = small(name, torch.float64), example(name, torch.float64)
    graph = load(model, (x,))[0]
    masked = Pipeline("mask-blocks{blocks=2}").run(graph)[0]
    with torch.no_grad():
        want = to_fx(graph)(x).numpy()
    record = Pipeline("pivot{blocks=2,method=zeros,force=true}").run(graph)[0]
    done = [r.what for r in record.rewrites if r.what.startswith("pivot")]
    assert len(done) == len(masked.rewrites) >= 1
    assert not any("gather" in text for text in done)
    with torch.no_grad():
        got = to_fx(graph)(x).numpy()
    assert np.abs(want).max() > 1e-3
    assert np.abs(want - got).max() < 1e-10 * np.abs(want).max()


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "densenet121", "convnext", "bert", "llama"]
)
def test_exported_networks(name: str, onnx_files: Path, tmp_path: Path) -> None:
    tidy = "fold-constants{max-growth=10000000},prune-dead"
    first = shrink(exported(name, onnx_files), f"{tidy},mask-blocks{{blocks=2}}")
    first.save(tmp_path / "masked.onnx")
    # The masks are zeros in the file now.
    second = shrink(tmp_path / "masked.onnx", f"{tidy},pivot{{blocks=2,method=zeros,force=true}}")
    second.save(tmp_path / "out.onnx")
    done = [r.what for r in second.report.passes[2].rewrites if r.what.startswith("pivot")]
    assert len(done) >= len(first.report.passes[2].rewrites) >= 5
    x = example(name).numpy()
    want, got = (outputs_of(tmp_path / f"{n}.onnx", x, plain=True)[0] for n in ("masked", "out"))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    assert second.report.after.parameters < 0.9 * second.report.before.parameters


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_litert(name: str, rows: int, kernels: str, tmp_path: Path) -> None:
    pytest.importorskip(
        "ai_edge_litert", reason="LiteRT is not installed: pip install -e '.[tflite]'"
    )
    from support.litert import run_saved

    masked, x = trained(name, 4)
    x = x[:rows].float()
    text = "pivot{method=zeros,force=true}"
    result = shrink(masked.float(), text, example_inputs=(x,), target="tflite")
    record = result.report.passes[0]
    assert len([r for r in record.rewrites if r.what.startswith("pivot")]) == len(
        masked_parts(masked)
    )
    with torch.no_grad():
        want = masked(x).numpy()
    (got,) = run_saved(result.save(tmp_path / "m.tflite"), x.numpy(), kernels)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_one_shot_on_the_command_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net, x = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (x,), "in.onnx", dynamo=False, input_names=["x"])
    np.savez("data.npz", x=torch.randn(64, 12).numpy())
    text = "pivot{blocks=2,layers=[/2/Gemm,/5/Gemm],force=true}"
    output = succeeds("in.onnx", "out.onnx", "--passes", text, "--calibration", "data.npz", "-v")
    assert "output error" in output
    before, after = (onnx.load(p) for p in ("in.onnx", "out.onnx"))
    assert after.ByteSize() < before.ByteSize()
    want, got = (outputs_of(m, x.numpy())[0] for m in (before, after))
    assert 1e-6 < np.abs(want - got).max() < np.abs(want).max()
    assert "'blocks' must be at least 2" in fails(
        "in.onnx", "out.onnx", "--passes", "pivot{blocks=1}"
    )
    output = succeeds("in.onnx", "out.onnx", "--passes", "pivot{blocks=2,force=true}", "-v")
    assert "give calibration data" in " ".join(output.split())


def test_masks_from_trained_weights_keep_more() -> None:
    found = {}
    for draw in ("random", "weights"):
        torch.manual_seed(0)
        net, x = mlp()
        masked = insert_blocks(net.eval(), 4, layers="5", draw=draw, example_inputs=(x,))  # type: ignore[arg-type]
        (mask,) = masked_parts(masked).values()
        assert int(mask.sum()) == 64 * 32 // 4
        found[draw] = float((net[5].weight.detach() * mask).square().sum())  # type: ignore[index]
        # The host module is as it was.
        assert type(net[5]) is nn.Linear  # type: ignore[index]
    assert found["weights"] > found["random"]


def test_seeds_draw_masks() -> None:
    net, x = mlp()
    drawn = [
        next(
            iter(
                masked_parts(
                    insert_blocks(net.eval(), layers="5", example_inputs=(x,), seed=s)
                ).values()
            )
        )
        for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_wrong_use() -> None:
    net, x = mlp()
    with pytest.raises(UsageError, match="give a torch model, not a int"):
        insert_blocks(3)
    with pytest.raises(UsageError, match="'blocks' must be at least 2"):
        insert_blocks(net, 1)
    with pytest.raises(UsageError, match="option 'draw' is one of random, weights"):
        insert_blocks(net, draw="best")  # type: ignore[arg-type]
    with pytest.raises(PassError, match=r"no layer can be masked .*do not divide into 7 blocks"):
        insert_blocks(net.eval(), 7, example_inputs=(x,))
    with pytest.raises(PassError, match=r"no layer can be masked .there are none"):
        insert_blocks(nn.Sequential(nn.ReLU()).eval(), example_inputs=(x,))
    with pytest.raises(PassError, match="no node is named 'head'"):
        insert_blocks(net.eval(), layers="head", example_inputs=(x,))


def test_a_users_own_zeros_are_enough() -> None:
    """No mask of ours: weights that were multiplied by zeros in somebody else's training."""
    torch.manual_seed(0)
    net, x = mlp()
    net, x = net.double().eval(), x.double()
    rows, columns = torch.randperm(64) % 4, torch.randperm(32) % 4
    with torch.no_grad():
        net[2].weight *= rows[:, None] == columns[None, :]  # type: ignore[index,operator]

    def count(graph: Graph, rw: Rewriter) -> None:
        sizes.append(sum(len(n.inputs) > 1 for n in graph.nodes))

    sizes: list[int] = []
    result = shrink(net, [count, "pivot{force=true,method=zeros}", count], example_inputs=(x,))
    assert sizes[1] > sizes[0]
    with torch.no_grad():
        assert float((result.model(x) - net(x)).abs().max()) < 1e-12
