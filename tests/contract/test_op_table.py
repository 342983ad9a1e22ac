"""The table of ops is correct: every op that it lists for a target is written, and computes the same in other runtimes.

The ONNX spelling is run by onnxruntime, the one of torch by torch, the .tflite file by LiteRT, TensorRT's file by onnxruntime: each has
its own kernels, and none of them is ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import fx, nn

from graphshrink import ir
from graphshrink.hosts.torch.origins import FxHost
from graphshrink.ir import Graph, ModelError, Op
from graphshrink.ir.ops.rows import Key, rows, title
from graphshrink.op_table import FORGOTTEN as UNREGISTERED
from graphshrink.op_table import files_of, markdown, op_rows, op_table
from graphshrink.readers import HostReaders
from graphshrink.targets import tensorrt
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.onnx.spell import operators
from graphshrink.targets.onnx.speller import spells as onnx_spells
from graphshrink.targets.support import Spelling, Spellings
from graphshrink.targets.tflite import Options as TfliteOptions
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.emitter import spells as tflite_spells
from graphshrink.targets.tflite.write import to_bytes
from graphshrink.targets.torch.emitter import problem, to_fx
from graphshrink.targets.torch.speller import spells as torch_spells
from support.cli import fails, succeeds
from support.litert import run
from support.onnx_run import outputs_of
from support.op_samples import FORGOTTEN, SAMPLES, Sample

TABLE = op_table()
DOCUMENT = Path(__file__).parents[2] / "docs/ops.md"
WHERE = {
    "read": "a rule with @reads in frontends/{host}/rules, or cannot_read with the reason",
    "written": "a function with @spells in targets/{host}/spell, or spells.cannot with the reason",
}


def with_torch_host(graph: Graph, x: Any) -> Graph:
    """The graph with a torch host, as if it had been read from torch."""
    host = fx.Graph()
    given = host.placeholder("x")
    made = [host.call_function(torch.tanh, (given,)) for _ in graph.outputs]
    host.output(tuple(made))
    module = fx.GraphModule(nn.Module(), host).eval()
    graph.inputs[0].host = "x"
    graph.output_names[:] = [node.name for node in made]
    graph.host = FxHost(module, (x,), {n.name: n for n in host.nodes}, frozenset())
    return graph


def by_onnx(key: Key, _: Path) -> list[Any]:
    sample = SAMPLES[key]
    return outputs_of(to_onnx(sample.graph()), {"x": sample.operands[0]}, plain=True)


def by_reference(key: Key, _: Path) -> list[Any]:
    """By onnx's own implementation, for ops that torch lacks."""
    sample = SAMPLES[key]
    return list(ReferenceEvaluator(to_onnx(sample.graph())).run(None, {"x": sample.operands[0]}))


def by_torch(key: Key, _: Path) -> list[Any]:
    sample = SAMPLES[key]
    x = torch.from_numpy(sample.operands[0])
    with torch.no_grad():
        return [y.numpy() for y in to_fx(with_torch_host(sample.graph(), x))(x)]


def by_tflite(key: Key, _: Path) -> list[Any]:
    sample = SAMPLES[key]
    flat, _notes, orders = flat_model(sample.graph(), TfliteOptions())
    return list(run(to_bytes(flat), {"x": sample.operands[0]}, "builtin", orders).values())


def by_tensorrt(key: Key, folder: Path) -> list[Any]:
    sample, path = SAMPLES[key], folder / "m.onnx"
    graph = sample.graph()
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        # Otherwise an Identity gives it the name, which TensorRT has for no int8.
        value.host = name
    tensorrt.save(graph, path, tensorrt.Options(), HostReaders())
    return outputs_of(path, {"x": sample.operands[0]}, plain=True)


RUNS = {"onnx": by_onnx, "torch": by_torch, "tflite": by_tflite, "tensorrt": by_tensorrt}


@pytest.mark.parametrize("target", RUNS)
def test_what_is_said_to_be_written_is_written(target: str, tmp_path: Path) -> None:
    wrong = []
    for row in TABLE:
        name = title(row.key)
        if not row.written[target].has:
            try:
                RUNS[target](row.key, tmp_path)
            except ModelError:
                continue
            wrong.append(f"{name} is written, though the table says that it is not")
            continue
        # The reference is another runtime.
        other = by_torch if row.written["torch"].has else by_reference
        want = (other if target in ("onnx", "tensorrt") else by_onnx)(row.key, tmp_path)
        got = RUNS[target](row.key, tmp_path)
        assert len(want) == len(got), name
        for a, b in zip(want, got, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                wrong.append(f"{name}: {b.dtype}{b.shape}, not {a.dtype}{a.shape}")
            elif not np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True):
                wrong.append(f"{name}: other numbers")
    assert wrong == []


@pytest.mark.parametrize("kind", ir.REMAINDERS)
@pytest.mark.parametrize("target", RUNS)
def test_remainders_of_floats(
    target: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x, y = np.float32([[5.5, -5.5, 5.5, -5.5, 6, 0]]), np.float32([3, 3, -3, -3, -2, -2])
    key: Key = (ir.Mod, kind)
    monkeypatch.setitem(SAMPLES, key, Sample(ir.Mod(kind), (x, y)))
    (got,) = RUNS[target](key, tmp_path)
    np.testing.assert_array_equal(got, np.mod(x, y) if kind == "floor" else np.fmod(x, y))


def test_no_op_is_forgotten() -> None:
    assert FORGOTTEN == [], f"a line in tests/support/op_samples.py is missing for {FORGOTTEN}"
    for row in TABLE:
        name = row.key[0].__name__
        assert name in ir.__all__, f"{name} is missing in __all__ of ir/__init__.py"
        for side, cells in (("read", row.read), ("written", row.written)):
            for host, cell in cells.items():
                assert cell.has or cell.note, f"{row.name} has no reason for {host}"
                assert cell.note != UNREGISTERED, (
                    f"{row.name} ({files_of(row.key)['class'][0]}) is not registered for {host}: add "
                    f"{WHERE[side].format(host=host)}"
                )


def test_the_operators_of_an_onnx_spelling_are_those_that_it_declares() -> None:
    for key, sample in SAMPLES.items():
        node = next(sample.graph().nodes)
        assert set(operators(node)) <= set(onnx_spells.table[key].writes), title(key)


def test_the_document_is_up_to_date() -> None:
    want = markdown(TABLE)
    assert DOCUMENT.read_text() == want, "run: python -m graphshrink.op_table > docs/ops.md"


def test_an_op_that_a_target_cannot_write_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key: Key = (ir.Unary, "erf")
    for spells in (onnx_spells, torch_spells, tflite_spells):
        monkeypatch.setitem(spells.table, key, Spelling(None, reason="it lacks the function"))
    for target in RUNS:
        with pytest.raises(ModelError, match="it lacks the function"):
            RUNS[target](key, tmp_path)
    assert "it lacks the function" in (problem(next(SAMPLES[key].graph().nodes)) or "")
    (row,) = op_rows("erf")
    assert [cell.has for cell in row.written.values()] == [False] * 4
    assert row.written["tflite"].note == "it lacks the function"


def test_an_operator_that_tensorrt_lacks_is_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    known = onnx_spells.table[ir.Add, None]
    monkeypatch.setitem(onnx_spells.table, (ir.Add, None), Spelling(known.rule, writes=("Col2Im",)))
    (row,) = op_rows("Add")
    cell = row.written["tensorrt"]
    assert not cell.has
    assert "lacks Col2Im (nearest: ConvTranspose with a constant kernel)" in cell.note


def test_registering_wrongly_is_an_error() -> None:
    spells: Spellings[Any] = Spellings("nowhere")

    def rule() -> None: ...

    spells(ir.Add, note="small")(rule)
    assert spells.find(ir.Add()) == Spelling(rule, "small")
    assert spells.find(ir.Sub()).rule is None
    with pytest.raises(ValueError, match="Add is registered twice for nowhere"):
        spells.cannot(ir.Add, "no")
    with pytest.raises(ValueError, match="Unary is registered for the kinds"):
        spells(ir.Unary)(rule)
    with pytest.raises(ValueError, match="it has"):
        spells(ir.Unary, kinds=("cube",))(rule)
    with pytest.raises(ValueError, match="it has none"):
        spells(ir.Sub, kinds=("exp",))(rule)


def test_rows_are_those_of_the_package() -> None:
    class Foreign(Op):
        """An op of another package."""

    try:
        names = {key[0].__name__ for key in rows()}
        assert "Foreign" not in names
        assert {"Conv", "Unary"} <= names
        assert "Opaque" not in names
        assert len(set(rows())) == len(rows())
    finally:
        del Op.names["Foreign"]


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    shown = succeeds("ops")
    assert "Unary erf" in shown
    data = json.loads(succeeds("ops", "--json"))
    assert [(row["op"], row["kind"]) for row in data] == [(k.__name__, kind) for k, kind in rows()]
    one = succeeds("ops", "conv")
    assert "targets/torch/spell/convolutions.py" in one
    assert "ir/ops/linear.py" in one
    assert "there is no op 'Konv'" in fails("ops", "Konv")
    for name in [m for m in sys.modules if m.startswith("graphshrink.targets.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs the extra 'torch'" in succeeds("ops", "Conv")
