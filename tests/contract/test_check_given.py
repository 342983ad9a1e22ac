"""``check`` compares the graph that was read with the given model, and a module that does not run is not returned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

import graphshrink.api
from graphshrink import ModelError, ir, shrink, shrink_graph
from graphshrink.frontends.torch import importer as frontend
from graphshrink.frontends.torch import trace as fx_trace
from graphshrink.targets.support import Spelling
from graphshrink.targets.torch import emitter as target
from graphshrink.targets.torch.speller import spells

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return {"y": self.norm(self.conv(x)).relu()}


@pytest.mark.parametrize("passes", ["", None])
def test_a_torch_model_that_is_read_wrongly(monkeypatch: pytest.MonkeyPatch, passes: Any) -> None:
    made = fx_trace.traced

    def wrong(module: nn.Module, inputs: Any) -> fx_trace.Traced:
        found = made(module, inputs)
        node = next(n for n in found.module.graph.nodes if n.target == "relu")
        node.target = "sigmoid"
        found.module.recompile()
        return found

    monkeypatch.setattr(fx_trace, "traced", wrong)
    with pytest.raises(ModelError, match=r"was read wrongly: before any pass .* .allowed 0.0001"):
        shrink(Net(), passes, example_inputs=(X,), check=True)
    shrink(Net(), passes, example_inputs=(X,))


def test_an_exported_model_that_is_read_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Net(), (X,))
    copy = target._Emitter._copy

    def wrong(self: Any, node: Any, origin: Any) -> bool:
        done = copy(self, node, origin)
        for made in self.host_nodes.values():
            if made.target is torch.ops.aten.relu.default:
                made.target = torch.ops.aten.sigmoid.default
        return done

    assert not shrink(program, check=True).report.failed
    monkeypatch.setattr(target._Emitter, "_copy", wrong)
    with pytest.raises(ModelError, match="was read wrongly"):
        shrink(program, check=True)


def test_a_rule_that_is_wrong_is_seen_when_its_node_is_rewritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = frontend.MODULES[nn.Conv2d]

    def wrong(call: Any) -> Any:
        op, operands = known.rule(call)  # type: ignore[misc]
        return op, [*operands[:2]]

    monkeypatch.setitem(frontend.MODULES, nn.Conv2d, replace(known, rule=wrong))
    assert shrink(Net(), example_inputs=(X,), check=True).report.failed


def test_the_model_is_run_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    model.register_buffer("calls", torch.zeros(()))
    state = torch.get_rng_state()
    result = shrink(model, example_inputs=(X,), check=True)
    assert not result.report.failed
    assert not result.report.notes
    assert torch.equal(state, torch.get_rng_state())


def test_random_models_are_compared_on_the_same_numbers() -> None:
    class Noisy(Net):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.norm(self.conv(x))
            return y + torch.randn_like(y)

    assert not shrink(Noisy(), example_inputs=(X,), check=True).report.failed


def proto(weight: float = 2.0) -> onnx.ModelProto:
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]
    held = [numpy_helper.from_array(torch.full((3,), weight).numpy(), "w")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("as_file", [True, False])
def test_an_onnx_model_that_is_read_wrongly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_file: bool
) -> None:
    onnx.save(proto(), tmp_path / "m.onnx")
    given = tmp_path / "m.onnx" if as_file else proto()
    assert not shrink(given, check=True).report.notes
    read = graphshrink.api._from_onnx
    monkeypatch.setattr(
        graphshrink.api,
        "_from_onnx",
        lambda model, *rest, **options: read(proto(3.0), *rest, **options),
    )
    with pytest.raises(ModelError, match="was read wrongly"):
        shrink(given, check=True)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        spells.table, (ir.Conv, None), Spelling(lambda s, op: s.call("view", s.value(), 7))
    )


@pytest.mark.parametrize("exported", [True, False])
def test_a_module_that_does_not_run_is_no_result(
    monkeypatch: pytest.MonkeyPatch, exported: bool
) -> None:
    broken(monkeypatch)
    model: Any = torch.export.export(Net(), (X,)) if exported else Net()
    inputs = None if exported else (X,)
    with pytest.raises(
        ModelError, match="does not run on example_inputs, though the given one does"
    ):
        shrink_graph(model, example_inputs=inputs)
    if not exported:
        assert isinstance(shrink_graph(model), fx.GraphModule)  # There are no inputs to run it on.


def test_looking_whether_a_module_runs_computes_and_changes_nothing() -> None:
    seen: list[Any] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    model[2].register_forward_hook(lambda m, args, out: seen.append(out))
    state = torch.get_rng_state()
    versions = [p._version for p in model.parameters()]
    shrink_graph(model, example_inputs=(torch.empty(1, 3, 8, 8),))
    assert not seen
    assert torch.equal(state, torch.get_rng_state())
    assert versions == [p._version for p in model.parameters()]
