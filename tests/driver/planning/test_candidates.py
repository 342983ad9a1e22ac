"""Candidates, applied to networks and run in onnxruntime: what their fits promise is what runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from zoo.exports import exported

import graphshrink
from graphshrink import ir
from graphshrink.data.calibration import calibrated
from graphshrink.planning import column_sums
from graphshrink.planning.candidates import MENU, Candidate, Names, at_strength
from graphshrink.planning.candidates.narrow import Narrowed
from graphshrink.planning.sites import find_sites
from graphshrink.running.inner_values import onnx_values

NETWORKS = ("mobilenet_v2", "resnet50", "squeezenet", "vit", "bert")
KINDS = {name: {"skip", "narrow", "low-rank"} for name in NETWORKS}
KINDS["squeezenet"] = {"narrow", "low-rank"}
for _name in ("vit", "bert"):
    KINDS[_name] = KINDS[_name] | {"narrow heads"}


def _graph(name: str, folder: Path) -> ir.Graph:
    return graphshrink.shrink(exported(name, folder)).graph


def _batches(graph: ir.Graph, count: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    shape, dtype = graph.inputs[0].type.static_shape, graph.inputs[0].type.dtype
    assert shape is not None
    if dtype == ir.DType.I64:
        return [[rng.integers(0, 40, shape)] for _ in range(4 * count)]
    # Large inputs: with small ones, random networks compute next to nothing but their biases.
    return [[10 * rng.standard_normal(shape).astype(np.float32)] for _ in range(count)]


def _fitted(graph: ir.Graph, batches: list[list[np.ndarray]]) -> list[Candidate]:
    data = calibrated(graph, "onnx", [tuple(b) for b in batches])
    asked = []
    for site in find_sites(graph).found:
        for kind in MENU.values():
            requests = kind.requests(site)
            if not isinstance(requests, str):
                asked.append((kind, site, requests))
    results = data.collect(graph, [r for *_, requests in asked for r in requests])
    return [c for kind, site, rs in asked for c in kind.fit(site, [results[r] for r in rs])]


def _applied(graph: ir.Graph, *candidates: Candidate) -> ir.Graph:
    made = graph.clone()
    for candidate in candidates:
        candidate.apply(made, ir.Rewriter(made))
    made.verify()
    return made


def _run(graph: ir.Graph, name: str, batches: list[list[np.ndarray]]) -> np.ndarray:
    value = Names.of(graph).values[name]
    return np.concatenate([found[0] for found in onnx_values(graph, [value], batches)])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_of_a_fit_is_that_of_the_region_that_runs(
    name: str, onnx_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_sums, "POSITIONS", 10**6)
    graph = _graph(name, onnx_files)
    batches = _batches(graph, 6)
    fitted = _fitted(graph, batches)
    kinds = {" ".join(w for w in c.label.split() if not w[0].isdigit()) for c in fitted}
    assert kinds >= KINDS[name]
    strengths: set[str] = set()
    tried = fitted[:: max(1, len(fitted) // 12)]
    tried += [c for c in fitted if "heads" in c.label][:2]
    for candidate in tried:
        site = candidate.site
        ends = [n.output for n in site.readers] or [site.exit]
        changed = _applied(graph, candidate)
        if len({n.required(0) for n in site.readers}) > 1:
            continue  # What the later layers of a residual stream read has changed with it.
        errors = []
        for end in ends:
            wanted, found = (
                _run(g, end.name, batches).astype(np.float64) for g in (graph, changed)
            )
            target = wanted
            if site.body is not None:
                target = wanted - _run(graph, site.entry.name, batches)
            channels = 1 if _is_conv(site.nodes) else target.ndim - 1
            axis = tuple(i for i in range(target.ndim) if i != channels)
            spread = ((target - target.mean(axis, keepdims=True)) ** 2).sum()
            errors.append(((wanted - found) ** 2).sum() / spread)
        if candidate.label != "skip":
            error = np.mean(errors)
            assert error == pytest.approx(candidate.error, rel=0.02, abs=1e-4), candidate.label
        weaker = candidate.weaker(0.5)
        if weaker is not None:
            assert at_strength(weaker.label) == (candidate.label, 0.5)
            skip = wanted - target if site.body is not None else 0
            half = _run(_applied(graph, weaker), end.name, batches)
            np.testing.assert_allclose(half - skip, (found - skip) / 2, rtol=1e-3, atol=1e-4)
            strengths.add(candidate.label.split()[0])
    assert "narrow" in strengths or name == "squeezenet"


def _is_conv(nodes: tuple[ir.Node, ...]) -> bool:
    return any(isinstance(n.op, ir.Conv) for n in nodes)


def test_hidden_channels_of_consecutive_layers_go_together(onnx_files: Path) -> None:
    graph = _graph("resnet50", onnx_files)
    batches = _batches(graph, 3)
    fitted = [c for c in _fitted(graph, batches) if c.label.startswith("narrow")]
    smallest = {c.site: c for c in fitted}
    chosen: list[Candidate] = []
    for candidate in smallest.values():
        if not any(candidate.site.excludes(c.site) for c in chosen):
            chosen.append(candidate)
    assert len(chosen) > 4
    changed = _applied(graph, *chosen)
    assert _run(changed, graph.outputs[0].name, batches).shape == (3, 100)


def test_channels_that_nobody_needs_go_without_a_trace() -> None:
    """Half of the hidden channels are always 0: narrowing to the other half changes nothing."""
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((16, 8, 1, 1)).astype(np.float32)
    w1[::2] = 0
    graph = ir.Graph()
    x = graph.add_input("x", ir.TensorType(ir.DType.F32, (1, 8, 6, 6)))
    first, second = (
        graph.add_constant(ir.ArrayTensor(a), n)
        for a, n in ((w1, "w1"), (rng.standard_normal((8, 16, 3, 3)).astype(np.float32), "w2"))
    )
    a = graph.append(ir.Conv((1, 1), (0, 0, 0, 0), (1, 1)), [x, first], name="a").output
    b = graph.append(ir.Activation("relu"), [a], name="b").output
    c = graph.append(ir.Conv((1, 1), (1, 1, 1, 1), (1, 1)), [b, second], name="c").output
    graph.add_output(c)
    batches = _batches(graph, 8)
    (candidate,) = [k for k in _fitted(graph, batches) if k.label == "narrow 8"]
    changed = _applied(graph, candidate)
    wanted, found = _run(graph, "c", batches), _run(changed, "c", batches)
    assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()
    assert (
        sum(t.size for v in changed.constants if v.use_count and (t := v.data))
        < w1.size + 8 * 16 * 9
    )


def test_streams_lose_channels_that_no_block_writes() -> None:
    """Half of the channels of a residual stream are always 0; a block and the layer behind it read them."""
    rng = np.random.default_rng(0)
    graph = ir.Graph()
    point = ir.Conv((1, 1), (0, 0, 0, 0), (1, 1))

    def layer(x: ir.Value, name: str, outputs: int, inputs: int) -> ir.Value:
        array = rng.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
        if name in ("open", "down"):
            array[::2] = 0
        weight = graph.add_constant(ir.ArrayTensor(array), f"{name}_w")
        return graph.append(point, [x, weight], name=name).output

    def relu(x: ir.Value) -> ir.Value:
        return graph.append(ir.Activation("relu"), [x]).output

    x = layer(graph.add_input("x", ir.TensorType(ir.DType.F32, (1, 8, 6, 6))), "open", 16, 8)
    body = layer(relu(layer(x, "up", 24, 16)), "down", 16, 24)
    graph.add_output(layer(graph.append(ir.Add(), [x, body]).output, "close", 8, 16))
    batches = [[b / 10 for b in batch] for batch in _batches(graph, 8)]
    fitted = _fitted(graph, batches)
    (candidate,) = (c for c in fitted if c.label == "narrow 8" and len(c.site.readers) == 2)
    assert isinstance(candidate, Narrowed)
    assert candidate.kept == tuple(range(1, 16, 2))
    changed = _applied(graph, candidate)
    wanted, found = (_run(g, graph.outputs[0].name, batches) for g in (graph, changed))
    assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()
    shapes = [n.required(1).type.shape for n in changed.nodes if isinstance(n.op, ir.Conv)]
    assert [s[:2] for s in shapes if s] == [(8, 8), (24, 8), (8, 24), (8, 8)]


def _attention(cut: str) -> ir.Graph:
    """Attention with three heads of eight and one projection for queries, keys and values, which slices cut; the second head adds nothing."""
    rng = np.random.default_rng(0)
    graph = ir.Graph()

    def constant(name: str, *shape: int) -> ir.Value:
        array = rng.standard_normal(shape).astype(np.float32)
        if name == "wo":
            array[:, 8:16] = 0
        return graph.add_constant(ir.ArrayTensor(array), name)

    def made(op: ir.Op, *inputs: ir.Value) -> ir.Value:
        return graph.append(op, inputs).output

    x = graph.add_input("x", ir.TensorType(ir.DType.F32, (2, 5, 24)))
    joint = made(ir.Linear(), x, constant("w", 72, 24), constant("b", 72))
    parts = []
    if cut == "grid":
        joint = made(ir.Reshape((None, 5, 3, 3, 8)), joint)
    for i in range(3):
        if cut == "grid":
            part = made(ir.Slice((i,), (i + 1,), (2,), (1,)), joint)
        else:
            # The last one ends behind the end, as exporters write it.
            part = made(ir.Slice((24 * i,), (24 * i + 24 if i < 2 else 2**40,), (2,), (1,)), joint)
        part = made(ir.Reshape((None, 5, 3, 8)), part)
        parts.append(made(ir.Transpose((0, 2, 1, 3)), part))
    q, k, v = parts
    seen = made(ir.Softmax(3), made(ir.MatMul(), q, made(ir.Transpose((0, 1, 3, 2)), k)))
    seen = made(ir.Transpose((0, 2, 1, 3)), made(ir.MatMul(), seen, v))
    seen = made(ir.Reshape((2, -1, 24)), seen)
    out = graph.append(ir.Linear(), [seen, constant("wo", 24, 24)], name="out").output
    graph.add_output(made(ir.Add(), x, out))
    return graph


@pytest.mark.parametrize("cut", ["slices", "grid"])
def test_heads_that_are_zero_go_without_a_trace(cut: str) -> None:
    graph = _attention(cut)
    batches = [[b / 10 for b in batch] for batch in _batches(graph, 8)]
    (candidate,) = (c for c in _fitted(graph, batches) if c.label == "narrow 2 heads")
    assert isinstance(candidate, Narrowed)
    assert candidate.kept == (0, 2)
    changed = _applied(graph, candidate)
    wanted, found = (_run(g, graph.outputs[0].name, batches) for g in (graph, changed))
    assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()
    weights = [n.required(1).type.shape for n in changed.nodes if isinstance(n.op, ir.Linear)]
    assert weights == [(48, 24), (24, 16)]
