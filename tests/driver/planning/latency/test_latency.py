"""Signatures, timing and the tables: compared with brute force, onnxruntime and SQLite; no figure of a clock is judged."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink import ModelError, UsageError, ir
from graphshrink.ir import ArrayTensor, DType, Graph, TensorType, Value
from graphshrink.planning.latency import LatencyTable, device, paired, signature
from graphshrink.planning.latency import store as store_module
from graphshrink.planning.latency.network import pieces
from graphshrink.planning.latency.standalone import reference, standalone, with_torch_host
from graphshrink.planning.latency.store import Row, Store
from support.graphs import networks

ORT = device("ort-cpu")


def conv(
    *, size: int = 8, out: int = 4, stride: int = 1, dtype: DType = DType.F32, seed: int = 0,
    name: str = "x", kind: str = "relu",
) -> Graph:  # fmt: skip
    graph = Graph(name)
    x = graph.add_input(name, TensorType(dtype, (1, 3, size, size)))
    weight = np.random.default_rng(seed).standard_normal((out, 3, 3, 3)).astype(dtype.numpy)
    held = graph.add_constant(ArrayTensor(weight), f"{name}.w")
    y = graph.append(ir.Conv((stride, stride), (1, 1, 1, 1), (1, 1)), [x, held]).output
    graph.add_output(graph.append(ir.Activation(kind), [y]).output)
    return graph


def shuffled(graph: Graph, rng: Any) -> Graph:
    """The same graph with other names, another topological order and other weights."""
    made = Graph("other")
    values: dict[Value, Value] = {}
    constants = list({v for n in graph.nodes for v in n.inputs if v is not None and v.data})
    rng.shuffle(constants)
    for value in graph.inputs:
        values[value] = made.add_input(f"in{rng.random()}", value.type)
    for value in constants:
        array = np.asarray(value.data.numpy()) + 1  # type: ignore[union-attr]
        values[value] = made.add_constant(ArrayTensor(array), f"c{rng.random()}")
    left = list(graph.nodes)
    while left:
        ready = [n for n in left if all(v is None or v in values for v in n.inputs)]
        node = rng.choice(ready)
        left.remove(node)
        copied = made.append(
            node.op, [None if v is None else values[v] for v in node.inputs], name="n"
        )
        values.update(zip(node.outputs, copied.outputs, strict=True))
    for value in graph.outputs:
        made.add_output(values[value])
    return made


@settings(max_examples=50, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_names_weights_and_order_do_not_count(graph: Graph, rng: Any) -> None:
    if graph.outputs:
        assert signature(shuffled(graph, rng), ORT) == signature(graph, ORT)


def test_shapes_attributes_types_and_threads_count() -> None:
    graphs = [
        conv(), conv(size=9), conv(out=5), conv(stride=2), conv(dtype=DType.F64), conv(kind="silu")
    ]  # fmt: skip
    names = [signature(g, d) for g in graphs for d in (ORT, device("ort-cpu", 2))]
    assert all(a != b for a, b in itertools.combinations(names, 2))


def test_ops_that_no_output_depends_on_are_not_timed() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 2)))
    unread = graph.append(ir.Activation("relu"), [x]).output
    graph.append(ir.Unary("exp"), [unread])
    graph.add_output(graph.append(ir.Unary("neg"), [x]).output)
    found, left = pieces(graph)
    assert [piece.kind for piece in found] == ["Unary"]
    assert not left


def test_an_open_batch_is_one_sample_where_that_is_asked_for() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, ("n", 2)))
    y = graph.append(ir.Unary("neg"), [x]).output
    # A size that is not the batch stays open.
    z = graph.add_input("z", TensorType(DType.F32, ("n", "m")))
    for value in (y, graph.append(ir.Unary("exp"), [z]).output):
        graph.add_output(value)
    assert not pieces(graph)[0]
    found, left = pieces(graph, one=True)
    (piece,) = [piece.graph for piece in found]
    shapes = [v.type.shape for v in (*piece.inputs, *piece.outputs)]
    assert shapes == [(1, 2), (1, 2)]
    assert len(left) == 1


def test_a_shared_result_is_not_two_equal_ones() -> None:
    def graph(shared: bool) -> Graph:
        made = Graph()
        x = made.add_input("x", TensorType(DType.F32, (2, 2)))
        a = made.append(ir.Activation("relu"), [x]).output
        b = a if shared else made.append(ir.Activation("relu"), [x]).output
        made.add_output(made.append(ir.Add(), [a, b]).output)
        return made

    assert signature(graph(True), ORT) != signature(graph(False), ORT)


def test_unknown_sizes_and_host_ops_are_refused() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.F32, ("n", 2)))
    graph.add_output(graph.append(ir.Activation("relu"), [x]).output)
    with pytest.raises(ModelError, match=r"input 'x' is f32\[n, 2\]"):
        signature(graph, ORT)
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.F32, (2, 2)))
    graph.add_output(graph.append(ir.Opaque("onnx:Odd"), [x], types=[x.type]).output)
    with pytest.raises(ModelError, match="onnx:Odd"):
        signature(graph, ORT)


@pytest.mark.parametrize("graph", [conv(), conv(stride=2, kind="silu"), reference()])
def test_a_copy_in_torch_computes_what_onnxruntime_does(graph: Graph) -> None:
    torch = pytest.importorskip("torch")
    from graphshrink.running.inputs import random_inputs
    from graphshrink.running.sessions import onnx_runner
    from graphshrink.targets.torch.emitter import to_fx

    copied = standalone(graph, own_weights=True)
    feeds = random_inputs(copied)
    wanted = onnx_runner(feeds)(copied)
    got = to_fx(with_torch_host(copied))(torch.from_numpy(feeds["x0"]))
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ort-cpu", "litert-cpu", "torch-cpu"])
def test_every_installed_runtime_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip(
        {"ort-cpu": "onnxruntime", "litert-cpu": "ai_edge_litert", "torch-cpu": "torch"}[name]
    )
    where = device(name)
    table = LatencyTable(where, tmp_path / "t.sqlite", seconds=0.1)
    graphs = [conv(), conv(stride=2), conv(seed=3)]
    seen: list[tuple[int, int]] = []
    assert table.lookup(graphs[0]) is None
    found = table.measure(graphs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert found[0] == found[2] == table.lookup(graphs[0])
    assert all(f.milliseconds > 0 and f.rounds > 0 and f.spread >= 0 for f in found)
    assert table.measure(graphs) == found


def test_whole_networks_are_timed_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(tmp_path / "t.sqlite"))
    found = paired(ORT, [conv(), reference()], 4)
    assert [len(times) for times in found] == [4, 4]
    assert all(t > 0 for times in found for t in times)


@pytest.mark.parametrize("name", ["ort-cpu", "litert-cpu", "torch-cpu"])
def test_graphs_from_torch_share_figures_with_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    if name == "litert-cpu":
        pytest.importorskip("ai_edge_litert")
    from graphshrink.api import load

    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(tmp_path / "t.sqlite"))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.ReLU())
    program = torch.export.export(module.eval(), (torch.zeros(1, 3, 8, 8),))
    graph, _ = load(program)
    where = device(name)
    assert signature(graph, where) == signature(conv(), where)
    (found,) = LatencyTable(where, seconds=0.05).measure([graph])
    assert LatencyTable(where).lookup(conv(seed=5)) == found
    weights = [p.detach().clone() for p in module.parameters()]
    assert [len(times) for times in paired(where, [graph, conv()], 2)] == [2, 2]
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))


def test_onnxruntime_is_timed_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from graphshrink.planning.latency import LatencyTable, device\n"
        "from graphshrink.planning.latency.standalone import reference\n"
        f"LatencyTable(device('ort-cpu'), Path({str(tmp_path / 't.sqlite')!r}), seconds=0.05).measure([reference()])\n"
        "assert 'torch' not in sys.modules and 'ai_edge_litert' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_devices_name_the_remedy() -> None:
    with pytest.raises(UsageError, match="devices are ort-cpu, litert-cpu, torch-cpu"):
        device("abacus")
    with pytest.raises(UsageError, match="threads=-1"):
        device("ort-cpu", -1)


@pytest.mark.parametrize("name", ["tensorrt", "litert-cpu", "torch-cpu"])
def test_a_missing_runtime_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "ai_edge_litert.interpreter", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ir.GraphshrinkError, match="pip install"):
        device(name)


# The file.


def row(name: str) -> Row:
    return Row(name, "ort-cpu", "text", 1.0, 0.1, 7)


def add_rows(path: Path, first: int, count: int) -> None:
    for i in range(first, first + count):
        Store(path).add(row(str(i)))


def test_processes_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "t.sqlite"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_rows, args=(path, 15 * i, 20)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {r.signature for r in Store(path).rows()} == {str(i) for i in range(50)}


KILLED = """
import sys
from pathlib import Path
from graphshrink.planning.latency.store import Row, Store
store = Store(Path(sys.argv[1]))
with store.exclusive("cpu"):
    for i in range(10**6):
        store.add(Row(str(i), "ort-cpu", "text", 1.0, 0.1, 7))
        print(i, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_process_loses_nothing_and_frees_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(5)]
        monkeypatch.setattr(store_module, "EXCLUSIVE_SECONDS", 0.0)
        with pytest.raises(UsageError, match="another process"), Store(path).exclusive("cpu"):
            pass
        os.kill(worker.pid, signal.SIGKILL)
        lines += worker.stdout.readlines()
    stored = {int(r.signature) for r in Store(path).rows()}
    printed = {int(line) for line in lines if line.endswith("\n")}
    assert len(printed) >= 5
    assert printed <= stored
    with Store(path).exclusive("cpu"):
        pass


def test_clear_removes_the_rows_of_one_device(tmp_path: Path) -> None:
    store = Store(tmp_path / "t.sqlite")
    store.add(row("a"))
    store.add(Row("b", "torch-cpu", "text", 1.0, 0.1, 7))
    assert store.clear("torch-cpu") == 1
    assert [r.signature for r in store.rows()] == ["a"]
    assert store.clear() == 1
    assert store.rows() == []


def unusable(path: Path, what: str) -> Path:
    match what:
        case "damaged":
            path.write_bytes(b"these are not the bytes of a database" * 100)
        case "newer":
            Store(path).add(row("a"))
            with sqlite3.connect(path) as database:
                database.execute("PRAGMA user_version = 99")
        case "another program":
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE t (x)")
        case "opened":
            path.mkdir()
        case "folder":
            path.parent.joinpath("file").write_text("")
            return path.parent / "file" / "t.sqlite"
    return path


@pytest.mark.parametrize("what", ["damaged", "newer", "another program", "opened", "folder"])
def test_unusable_files_are_one_line(what: str, tmp_path: Path) -> None:
    path = unusable(tmp_path / "t.sqlite", what)
    wanted = {"newer": "upgrade", "folder": "cannot make the folder"}.get(what, what)
    with pytest.raises(UsageError, match=wanted) as error:
        Store(path).rows()
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)
    assert "GRAPHSHRINK_LATENCY_DB" in str(error.value)


def test_a_locked_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.sqlite"
    Store(path).add(row("a"))
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UsageError, match="is locked by another process"):
        Store(path).add(row("b"))
    assert [r.signature for r in Store(path).rows()] == ["a"]  # Readers do not wait.
    other.close()
