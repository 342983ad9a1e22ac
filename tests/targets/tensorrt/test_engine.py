"""Building engines: with TensorRT on a GPU where there is one, and what is said where there is not.

With a GPU: pip install "graphshrink[tensorrt]" tensorrt, then pytest tests/targets/tensorrt/test_engine.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphshrink import MissingExtra, ModelError, UsageError, shrink
from graphshrink.targets.tensorrt import engine
from graphshrink.targets.tensorrt.profiles import Profile
from support.cli import fails, small_model
from support.sparse import sparse_model

try:
    import tensorrt
except ImportError:
    tensorrt = None
else:
    import torch

    if not torch.cuda.is_available():
        tensorrt = None

needs_gpu = pytest.mark.skipif(
    tensorrt is None,
    reason="needs tensorrt and an NVIDIA GPU: pip install tensorrt, "
    "then pytest tests/targets/tensorrt/test_engine.py",
)


@needs_gpu
@pytest.mark.parametrize("precision", [{}, {"fp16": True}, {"bf16": True}])
def test_an_engine_is_built_and_timed(tmp_path: Path, precision: Any) -> None:
    source = sparse_model(tmp_path / "in.onnx")
    result = shrink(source, "prune-dead", target="tensorrt")
    version = ".".join(tensorrt.__version__.split(".")[:2])
    done = result.save(tmp_path / "m.onnx", build=True, trt_version=version, **precision)
    built = done.data["tensorrt"]["engine"]
    assert (tmp_path / "m.engine").stat().st_size > 0
    assert 0 < built["milliseconds"] < 1e3
    assert {w["nodes"][0]: w["valid"] for w in built["weights"]}["first"]


@needs_gpu
def test_a_profile_is_built(tmp_path: Path) -> None:
    result = shrink(small_model(tmp_path / "in.onnx"), target="tensorrt")
    done = result.save(tmp_path / "m.onnx", build=True, profile="x:1x3x16x16:4x3x16x16:8x3x16x16")
    assert done.data["tensorrt"]["engine"]["milliseconds"] > 0


@pytest.mark.skipif(tensorrt is not None, reason="tensorrt is there")
def test_without_tensorrt_it_is_one_line_before_any_work(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.onnx")
    line = fails(source, tmp_path / "o.onnx", "--target", "tensorrt", "--build")
    assert "needs NVIDIA's tensorrt, which is not installed: pip install tensorrt" in line
    assert not (tmp_path / "o.onnx").exists()


class Runner:
    """Stands for polygraphy's: what it is fed, and a time."""

    fed: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_input_metadata(self, use_numpy_dtypes: bool) -> dict[str, Any]:
        assert not use_numpy_dtypes
        kind = SimpleNamespace(numpy=lambda: np.float32)
        return {"x": (kind, (None, 4)), "i": (SimpleNamespace(numpy=lambda: np.int64), (2,))}

    def infer(self, feeds: dict[str, Any], copy_outputs_to_host: bool) -> None:
        Runner.fed = feeds

    def last_inference_time(self) -> float:
        return 0.002


def fakes(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    """Stand-ins for tensorrt and polygraphy: only what is handed over is looked at, nothing is computed."""
    layers = (Path(__file__).parent / "trtexec" / "layers-11.json").read_text()
    inspector = SimpleNamespace(get_engine_information=lambda form: layers)
    made = SimpleNamespace(serialize=lambda: b"engine", create_engine_inspector=lambda: inspector)
    trt = SimpleNamespace(
        __version__="11.1.0",
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )

    class TrtProfile(dict[str, Any]):
        def add(self, name: str, **sizes: Any) -> None:
            self[name] = sizes

    def config(**given: Any) -> dict[str, Any]:
        asked.update(given)
        return given

    def network(path: str, strongly_typed: bool) -> str:
        asked.update(path=path, strongly_typed=strongly_typed)
        if path.endswith("bad.onnx"):
            raise RuntimeError("cannot\nparse")
        return path

    module = SimpleNamespace(
        CreateConfig=config,
        EngineFromNetwork=lambda network, config: lambda: made,
        NetworkFromOnnxPath=network,
        TrtRunner=Runner,
        Profile=TrtProfile,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", module)


def test_what_is_asked_of_polygraphy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    fakes(monkeypatch, asked)
    weights = [
        {"nodes": ["conv1"], "eligible": True},
        {"nodes": ["conv2"], "eligible": True},
        {"nodes": ["conv3"], "eligible": False},
    ]
    profile = Profile("x", (1, 4), (2, 4), (8, 4))
    found = engine.build(tmp_path / "m.onnx", [profile], weights)
    assert json.loads(json.dumps(found)) == found
    assert (found["version"], found["file"], found["milliseconds"]) == ("11.1.0", "m.engine", 2.0)
    assert [w["engine"] for w in found["weights"]] == ["sparse", "dense", "not eligible"]
    assert (tmp_path / "m.engine").read_bytes() == b"engine"
    assert asked["strongly_typed"]
    assert asked["sparse_weights"]
    assert asked["profiling_verbosity"] == "detailed"
    assert asked["profiles"] == [{"x": {"min": (1, 4), "opt": (2, 4), "max": (8, 4)}}]
    assert (Runner.fed["x"].shape, Runner.fed["x"].dtype) == ((2, 4), np.float32)
    assert (Runner.fed["i"].shape, Runner.fed["i"].dtype) == ((2,), np.int64)


def test_what_tensorrt_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes(monkeypatch, {})
    with pytest.raises(
        ModelError, match=r"TensorRT 11\.1\.0 does not build .*bad.onnx: cannot parse"
    ):
        engine.build(tmp_path / "bad.onnx", [], [])


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes(monkeypatch, {})
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingExtra, match=r"\[tensorrt\]"):
        engine.require()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match="on a machine with an NVIDIA GPU"):
        engine.require()
