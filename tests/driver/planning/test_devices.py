"""Plans for other runtimes than onnxruntime, and networks or regions that a runtime cannot run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import graphshrink
from graphshrink.ir import Conv, Graph, ModelError
from graphshrink.planning.costs import Macs
from graphshrink.planning.latency import LatencyTable, device
from graphshrink.planning.latency.devices import Device
from graphshrink.planning.latency.standalone import standalone
from graphshrink.planning.latency.store import Row
from support.cli import fails, succeeds
from support.small_networks import residual_model

SAMPLES = np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A small network and samples; what a device loads takes a time for each multiplication, however busy the machine is."""
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(tmp_path / "t.sqlite"))

    def timed(self: LatencyTable, name: str, graph: Graph, *_: Any) -> Row:
        self.device.load(standalone(graph))
        return Row(name, self.device.name, "text", Macs().networks([graph])[0] / 1e5, 0.0, 15)

    def paired(runs_on: Device, graphs: Sequence[Graph], rounds: int, *_: Any) -> list[list[float]]:
        for graph in graphs:
            runs_on.load(graph)
        return [[macs / 1e5] * rounds for macs in Macs().networks(graphs)]

    monkeypatch.setattr(LatencyTable, "_timed", timed)
    monkeypatch.setattr("graphshrink.planning.latency.paired", paired)
    data = tmp_path / "d.npz"
    np.savez(data, x=SAMPLES)
    return residual_model(tmp_path / "m.onnx"), data


def _litert() -> None:
    pytest.importorskip(
        "ai_edge_litert", reason="LiteRT is not installed: pip install 'graphshrink[tflite]'"
    )


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_plan_for_litert(given: tuple[Path, Path], tmp_path: Path, suffix: str) -> None:
    _litert()
    from support.litert import run

    model, data = given
    out, report, small = (tmp_path / name for name in (f"o{suffix}", "r.json", "small.onnx"))
    options = ("--speedup", "1.3", "--device", "litert-cpu", "--calibration", data)
    line = succeeds(model, out, *options, "--report", report)
    identity = device("litert-cpu").identity
    assert identity.replace("1 threads", "1 thread") in line
    assert "another runtime" not in line
    planned = json.loads(report.read_text())["plan"]
    assert planned["cost"] == {"unit": "ms", "device": identity}
    assert planned["before"] / planned["after"] >= 1.3
    graphshrink.plan(model, data, speedup=1.3, device="litert-cpu").apply().save(small)
    expected = onnxruntime.InferenceSession(small).run(None, {"x": SAMPLES[:1]})
    if suffix == ".onnx":
        assert out.read_bytes() == small.read_bytes()
    else:
        assert out.read_bytes()[4:8] == b"TFL3"
        found = run(out, {"x": SAMPLES[:1].transpose(0, 2, 3, 1)}, "xnnpack")
        np.testing.assert_allclose(found["y"], expected[0], atol=1e-4)


def test_a_file_for_another_runtime_than_the_timed_one(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "o.tflite"
    line = succeeds(given[0], out, "--speedup", "1.3", "--calibration", given[1])
    assert "note: the plan was timed on ort-cpu" in line
    assert "--device litert-cpu times it there" in line
    assert "timed on" not in succeeds(given[0], out, "--macs", "0.7", "--calibration", given[1])


def test_a_network_that_the_device_cannot_run_is_refused_before_the_work(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _litert()
    proto = onnx.load(given[0])
    proto.graph.node.append(helper.make_node("Det", ["x"], ["z"], name="determinant"))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 1]))
    model, out = tmp_path / "det.onnx", tmp_path / "o.tflite"
    onnx.save(proto, model)
    monkeypatch.setattr("graphshrink.planning.planner.read_samples", None)
    options = ("--speedup", "1.3", "--device", "litert-cpu", "--calibration", given[1])
    line = fails(model, out, *options)
    assert "does not run on the device litert-cpu" in line
    assert "Det (determinant" in line
    assert not out.exists()


def test_regions_that_the_device_cannot_run_are_refused_with_the_reason(
    given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = type(device("ort-cpu"))
    real = ort.load

    def load(self: Any, graph: Graph) -> Any:
        """Dense layers of convolutions are missing, as far as the network itself has none."""
        kernels = [n.required(1).type.dim(-1) for n in graph.nodes if isinstance(n.op, Conv)]
        if 1 in kernels:
            raise ModelError("there is no kernel for convolutions of 1x1")
        return real(self, graph)

    whole = graphshrink.plan(*given, speedup=1.2, repair=False)
    assert any("linear 1x1" in s.candidate for s in whole.menu)
    monkeypatch.setattr(ort, "load", load)
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(given[0].with_name("other.sqlite")))
    plan = graphshrink.plan(*given, speedup=1.2, repair=False)
    refused = [why for site, why in plan.refused.items() if site.startswith("linear 1x1 of")]
    assert refused
    assert set(refused) == {"it cannot be measured: there is no kernel for convolutions of 1x1"}
    assert not any("1x1" in s.candidate for s in plan.menu)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--macs", "0.5", "--device", "ort-cpu"), "--device is for plans that are timed"),
        (("--size", "9kB", "--threads", "2"), "--threads is for plans that are timed"),
        (("--device", "litert-cpu"), "--device is for plans that are timed"),
        (("--score", "mse"), "--score is for a new plan"),
    ],
)
def test_options_without_a_use(
    given: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "o.onnx"
    assert expected in fails(given[0], out, *options, "--calibration", given[1])
    assert not out.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1.5", 0, -1.0])
@pytest.mark.parametrize("kind", ["speedup", "latency", "macs", "size", "max_loss"])
def test_targets_that_are_no_budget(given: tuple[Path, Path], kind: str, value: Any) -> None:
    with pytest.raises(graphshrink.UsageError, match=kind):
        graphshrink.plan(*given, **{kind: value})
