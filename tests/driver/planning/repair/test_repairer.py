"""Repairs of small networks whose best repair is known, judged by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink import ir
from graphshrink.api import load
from graphshrink.ir import ArrayTensor, Graph, Rewriter
from graphshrink.planning.quality import Scorer
from graphshrink.planning.repair import Repair, Repairer
from graphshrink.planning.repair import repairer as module
from graphshrink.planning.samples import Samples
from graphshrink.targets.onnx.emitter import save_onnx

CHANNELS = 4


def _network(rng: np.random.Generator, groups: int = 1, scale: float = 1.0) -> onnx.ModelProto:
    """Three convolutions; the second may be depthwise; then a mean and a dense layer."""
    shapes = {"a": (CHANNELS, 2, 1, 1), "b": (CHANNELS, CHANNELS // groups, 3, 3), "c": (6, CHANNELS, 1, 1), "d": (5, 6)}  # fmt: skip
    arrays = {k: rng.standard_normal(s).astype(np.float32) * scale for k, s in shapes.items()}
    arrays |= {f"{k}0": rng.standard_normal(s[0]).astype(np.float32) for k, s in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "a", "a0"], ["ya"]),
        helper.make_node("Relu", ["ya"], ["ra"]),
        helper.make_node("Conv", ["ra", "b", "b0"], ["yb"], pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Relu", ["yb"], ["rb"]),
        helper.make_node("Conv", ["rb", "c", "c0"], ["yc"]),
        helper.make_node("GlobalAveragePool", ["yc"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "d", "d0"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _samples(rng: np.random.Generator, batches: int = 10, size: int = 8) -> Samples:
    made = [(rng.standard_normal((size, 2, 6, 6)).astype(np.float32),) for _ in range(batches)]
    return Samples(tuple(made[2:]), tuple(made[:2]), "", batches * size)


def _layer(graph: Graph, name: str) -> ir.Node:
    node = {v.name: v for v in graph.values()}[name].producer
    assert node is not None
    return node


def _damaged(graph: Graph, name: str, factor: np.ndarray, constant: float) -> Graph:
    """A copy in which each result of a layer has another factor and a constant more."""
    made = graph.clone()
    node = _layer(made, name)
    weight, bias = (node.required(i).data for i in (1, 2))
    assert weight is not None
    assert bias is not None
    scaled = weight.numpy() * factor.reshape(-1, *(1,) * (weight.numpy().ndim - 1))
    arrays = [scaled, bias.numpy() * factor + constant]
    rw = Rewriter(made)
    constants = [rw.constant(ArrayTensor(a.astype(np.float32))) for a in arrays]
    rw.replace(node, node.op, [node.inputs[0], *constants])
    return made


def _outputs(graph: Graph, samples: Samples, folder: Path) -> np.ndarray:
    save_onnx(graph, folder / "made.onnx")
    session = onnxruntime.InferenceSession(folder / "made.onnx")
    return np.concatenate([session.run(None, {"x": b[0]})[0] for b in samples.scoring])


@pytest.mark.parametrize("groups", [1, CHANNELS])
@pytest.mark.parametrize("limit", [1 << 27, 0])
@pytest.mark.parametrize("name", ["ya", "yb", "yc"])
def test_a_layer_with_wrong_scales_is_repaired(
    name: str, groups: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUMS_BYTES", limit)
    rng = np.random.default_rng(0)
    graph, _ = load(_network(rng, groups), None, None)
    samples = _samples(rng)
    width = 6 if name == "yc" else CHANNELS
    damaged = _damaged(graph, name, rng.uniform(0.5, 1.5, width), 0.3)
    repairs = Repairer(graph, damaged, [], samples, "error").search()
    assert repairs.layers[0].layer == name
    assert repairs.before > 0.01
    assert repairs.after < 1e-3 * repairs.before
    wanted = _outputs(graph, samples, tmp_path)
    before = _outputs(damaged, samples, tmp_path)
    repairs.apply(damaged, Rewriter(damaged))
    after = _outputs(damaged, samples, tmp_path)
    assert ((after - wanted) ** 2).mean() < 1e-3 * ((before - wanted) ** 2).mean()
    assert Scorer(graph, samples.scoring, "error").loss(damaged) < 1e-3 * repairs.before


def test_known_repairs_are_computed_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    graph, _ = load(_network(rng), None, None)
    samples = _samples(rng)
    damaged = _damaged(graph, "ya", np.array([0.5, 1.2, 1, 0.8]), 1.0)
    found = Repairer(graph, damaged, [], samples, "error").search()
    again = Repairer(graph, damaged, [], samples).repeat(found.layers)
    assert found.layers
    assert again.weights.keys() == found.weights.keys()
    for name, arrays in found.weights.items():
        for one, two in zip(arrays, again.weights[name], strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_never_gets_worse(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    graph, _ = load(_network(rng), None, None)
    damaged, _ = load(_network(rng), None, None)
    samples = _samples(rng)
    repairer = Repairer(graph, damaged, [], samples, "error")
    judged = Scorer(graph, repairer.judged, "error")
    before = judged.loss(damaged)
    repairs = repairer.search()
    repairs.apply(damaged, Rewriter(damaged))
    after = judged.loss(damaged)
    assert after <= before
    assert repairs.before == pytest.approx(before, rel=1e-4)
    assert repairs.after == pytest.approx(after, rel=1e-3)


def test_an_unchanged_network_needs_no_repair() -> None:
    rng = np.random.default_rng(0)
    graph, _ = load(_network(rng), None, None)
    repairs = Repairer(graph, graph.clone(), [], _samples(rng), "error").search()
    assert repairs.layers == []
    assert not repairs.sought


@pytest.mark.parametrize("batches", [3, 4, 9])
def test_few_samples_and_dead_channels(batches: int) -> None:
    rng = np.random.default_rng(0)
    graph, _ = load(_network(rng), None, None)
    damaged = _damaged(graph, "ya", np.array([0, 0, 1, 0.5]), -2.0)
    repairs = Repairer(graph, damaged, [], _samples(rng, batches, 1), "error").search()
    assert repairs.after <= repairs.before
    for arrays in repairs.weights.values():
        assert all(np.isfinite(a).all() for a in arrays)


def test_layers_without_a_counterpart_stay() -> None:
    rng = np.random.default_rng(0)
    graph, _ = load(_network(rng), None, None)
    damaged = _damaged(graph, "ya", np.full(CHANNELS, 0.5), 0.0)
    node = _layer(damaged, "ya")
    node.output.name = "other"
    repairer = Repairer(graph, damaged, [], _samples(rng))
    assert "other" not in {n.output.name for n, _ in repairer.pairs}
    assert Repair("yb", "bias").layer in {n.output.name for n, _ in repairer.pairs}
