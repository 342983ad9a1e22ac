"""How a target is chosen, and what is said when it cannot be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from graphshrink import Graph, Rewriter, UsageError, shrink
from graphshrink import emission as module
from graphshrink.emission import TARGETS, Target, emission
from graphshrink.passes import Context, Pass
from graphshrink.targets.emitted import Emitted, Readers
from support.cli import fails, small_model, succeeds


@dataclass(frozen=True)
class Options:
    level: int = 1

    def __post_init__(self) -> None:
        if self.level < 0:
            raise UsageError("level may not be negative")


def save(graph: Graph, path: Path, options: Options, readers: Readers) -> Emitted:
    path.write_text(str(options.level))
    path.with_suffix(".json").write_text("{}")
    return Emitted((path, path.with_suffix(".json")), ("it is a toy",), {"level": options.level})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second target for .onnx files, which writes a side-car."""
    made = SimpleNamespace(Options=Options, save=save)
    found = module._module
    monkeypatch.setattr(module, "_module", lambda t: made if t.name == "toy" else found(t))
    monkeypatch.setitem(TARGETS, "toy", Target("toy", ".onnx", "", (".json",)))


def test_every_target_has_what_is_asked_of_it() -> None:
    for target in TARGETS.values():
        found = import_module(target.module, "graphshrink")
        assert is_dataclass(found.Options)
        assert callable(found.save)
        made = found.Options()
        with pytest.raises((FrozenInstanceError, TypeError)):
            made.anything = 1
        assert fields(made) == fields(found.Options)


def test_a_suffix_means_the_first_target_that_has_it(toy: None) -> None:
    assert emission("m.onnx").target.name == "onnx"
    assert emission("m.onnx", "toy").files == (Path("m.onnx"), Path("m.json"))


def test_wrong_targets_suffixes_and_options(toy: None) -> None:
    with pytest.raises(UsageError, match=r"no target 'nothing'; there are .onnx \(onnx, "):
        emission("m.onnx", "nothing")
    with pytest.raises(UsageError, match=r"m.bin: only .onnx \(onnx, .* files can be written"):
        emission("m.bin")
    with pytest.raises(UsageError, match=r"m.bin: target toy writes .onnx files"):
        emission("m.bin", "toy")
    with pytest.raises(UsageError, match="target toy has no option 'levle'; did you mean 'level'"):
        emission("m.onnx", "toy", {"levle": 1})
    with pytest.raises(UsageError, match="target onnx has no option 'level'; known are opset, via"):
        emission("m.onnx", None, {"level": 1})
    with pytest.raises(UsageError, match="level may not be negative"):
        emission("m.onnx", "toy", {"level": -1})


def test_options_stand_behind_the_target(toy: None) -> None:
    assert emission("m.onnx", "toy{level=3}").options == Options(3)
    assert emission("m.tflite", "tflite{weights=float16,keep-nchw-io}").options.keep_nchw_io
    assert emission("m.onnx", "tensorrt{keep-float32=[a,b],fp16}").options.keep_float32 == (
        "a",
        "b",
    )
    for text, message in (
        ("toy{levle=3}", "target toy has no option 'levle'; did you mean 'level'"),
        ("toy{level=high}", "target toy: option 'level' takes int, not 'high'"),
        ("toy{level=1", "is not a target; write name or name"),
        ("tensorrt{ranges=x}", "has no option 'ranges'"),
        ("tensorrt{float64=keep}", "option 'float64' is one of refuse, cast, not 'keep'"),
    ):
        with pytest.raises(UsageError, match=message):
            emission("m.onnx", text)
    with pytest.raises(UsageError, match="option 'level' is given twice"):
        emission("m.onnx", "toy{level=3}", {"level": 3})
    with pytest.raises(
        UsageError, match="'weights' is one of float32, float16, not 'float61'; did you mean"
    ):
        emission("m.tflite", None, {"weights": "float61"})


def published(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Let a module be installed that publishes a target."""
    found = ModuleType("far_target")
    vars(found).update(members)
    monkeypatch.setitem(sys.modules, "far_target", found)
    point = EntryPoint(name, "far_target", module.ENTRY_POINTS)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    module._published.cache_clear()


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    yield
    module._published.cache_clear()


def test_other_packages_publish_targets(
    monkeypatch: pytest.MonkeyPatch, nothing_stays: None, tmp_path: Path
) -> None:
    published(monkeypatch, "far", Options=Options, save=save, SUFFIX=".far", BESIDE=(".json",))
    chosen = emission(tmp_path / "m.far")
    assert chosen.target.name == "far"
    assert chosen.files == (tmp_path / "m.far", tmp_path / "m.json")
    result = shrink(small_model(tmp_path / "in.onnx"), target="far{level=2}")
    assert result.save(tmp_path / "m.far").data == {"level": 2}


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("onnx", {"SUFFIX": ".far"}, "'onnx', published by far_target, exists already"),
        ("far", {}, "target 'far' \\(far_target\\) cannot be loaded"),
    ],
)
def test_published_targets_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, nothing_stays: None, name: str, members: Any, message: str
) -> None:
    published(monkeypatch, name, **members)
    with pytest.raises(UsageError, match=message):
        emission("m.far")


def test_passes_know_the_target(toy: None, tmp_path: Path) -> None:
    seen: list[str] = []

    class Look(Pass):
        name = "look"

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            seen.append(ctx.target)

    source = small_model(tmp_path / "in.onnx")
    shrink(source, Look())
    result = shrink(source, Look(), target="toy")
    assert seen == ["onnx", "toy"]
    with pytest.raises(UsageError, match="no target 'nothing'"):
        shrink(source, target="nothing")
    # The target of the passes is the one that is saved for, unless the caller says otherwise.
    assert result.save(tmp_path / "a.onnx", level=3).data == {"level": 3}
    assert (tmp_path / "a.onnx").read_text() == "3"
    assert result.save(tmp_path / "b.onnx", "onnx") == Emitted((tmp_path / "b.onnx",))
    with pytest.raises(UsageError, match=r"only \.onnx"):
        result.save(tmp_path / "a.bin")


def test_the_command_line_takes_targets(toy: None, tmp_path: Path) -> None:
    source, out = small_model(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    printed: dict[str, Any] = json.loads(succeeds(source, out, "--target", "toy", "--json"))
    assert printed["emitted"] == {
        "files": [str(out), str(out.with_suffix(".json"))], "notes": ["it is a toy"], "level": 1
    }  # fmt: skip
    assert "note: it is a toy" in succeeds(source, out, "--target", "toy", "-v")
    assert "no target 'toi'" in fails(source, out, "--target", "toi")
    assert "only .onnx" in fails(source, tmp_path / "out.txt")
    clash = fails(source, out, "--target", "toy", "--report", tmp_path / "out.json")
    assert "would overwrite" in clash
