"""Options of the command line are those of the targets' dataclasses."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from graphshrink.cli import target_options
from graphshrink.cli.shrink import shrink
from graphshrink.cli.target_options import given_options, with_target_options
from graphshrink.emission import TARGETS
from graphshrink.ir.options import Bounds, Metavar, PythonOnly, options_of
from graphshrink.targets.options import OPTIONS
from support.cli import fails, small_model, succeeds


@dataclass(frozen=True)
class Toy:
    """A target.

    Attributes:
        level: How ``hard`` it tries.
        share: A part.
        mode: The way.
        words: A word.
        fast: Be fast.
        hidden: Nothing for text.
    """

    level: Annotated[int, Bounds(at_least=1)] = 1
    share: Annotated[float, Metavar("0.5")] = 0.5
    mode: Literal["a", "b"] = "a"
    words: Annotated[tuple[str, ...], Metavar("WORD")] = ()
    fast: bool = False
    hidden: Annotated[Any, PythonOnly()] = None


def test_every_target_has_its_options_in_the_table() -> None:
    assert OPTIONS.keys() == TARGETS.keys()
    for name, target in TARGETS.items():
        assert import_module(target.module, "graphshrink").Options is OPTIONS[name]


def test_the_command_has_each_option_that_text_can_give() -> None:
    parameters = inspect.signature(shrink).parameters
    fields = [o.field for cls in OPTIONS.values() for o in options_of(cls) if not o.python_only]
    assert fields[-2:] == ["keep_nchw_io", "weights"]
    assert set(fields) <= set(parameters)
    assert "via" not in parameters
    assert "ranges" not in parameters
    for field in fields:
        assert field in {f.replace("-", "_") for f in _help_words()}, field


def _help_words() -> list[str]:
    return succeeds("shrink", "--help").replace("--", "").split()


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **targets: type) -> Any:
    monkeypatch.setattr(target_options, "OPTIONS", targets or {"toy": Toy})
    given: dict[str, Any] = {}

    @with_target_options
    def command(out: str, **options: Any) -> None:
        given.update(given_options(options))

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, ["x", *arguments], env={"COLUMNS": "200"}), given


def test_values_have_the_types_of_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch)[1] == {}
    arguments = [
        "--level",
        "3",
        "--share",
        "0.25",
        "--mode",
        "b",
        "--words",
        "p",
        "--words",
        "q",
        "--fast",
    ]
    _, given = _run(monkeypatch, *arguments)
    assert given == {
        "level": 3, "share": 0.25, "mode": "b", "words": ["p", "q"], "fast": True
    }  # fmt: skip
    assert type(given["level"]) is int
    # A choice is checked by the target, whose error names the choices.
    assert _run(monkeypatch, "--mode", "c")[1] == {"mode": "c"}
    for wrong in (("--level", "x"), ("--share", "nan"), ("--hidden", "1")):
        assert _run(monkeypatch, *wrong)[0].exit_code == 2


def test_help_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _run(monkeypatch, "--help")[0].output
    for text in ("toy: how hard it tries", "a|b", "WORD", "0.5", "INT", "a word. May be given"):
        assert text in shown
    assert "--hidden" not in shown


def test_two_targets_may_share_an_option_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Other:
        """Another one.

        Attributes:
            fast: Hurry.
        """

        fast: bool = False

    result, given = _run(monkeypatch, "--fast", toy=Toy, other=Other)
    assert given == {"fast": True}
    result, _ = _run(monkeypatch, "--help", toy=Toy, other=Other)
    assert "toy: be fast; other: hurry." in result.output.replace("\n", " ")

    @dataclass(frozen=True)
    class Different:
        fast: int = 0

    with pytest.raises(TypeError, match="option fast is of different types in toy, other"):
        _run(monkeypatch, toy=Toy, other=Different)

    @dataclass(frozen=True)
    class Slow:
        fast: bool = True

    with pytest.raises(TypeError, match="false by default"):
        _run(monkeypatch, toy=Slow)


def test_flags_and_text_are_one_set_of_options(tmp_path: Path) -> None:
    source, out = small_model(tmp_path / "in.onnx"), tmp_path / "out.tflite"
    pytest.importorskip("ai_edge_litert", reason="pip install 'graphshrink[tflite]'")
    succeeds(source, out, "--keep-nchw-io")
    flags = out.read_bytes()
    succeeds(source, out, "--target", "tflite{keep-nchw-io}")
    assert out.read_bytes() == flags
    twice = ("--weights", "float16", "--target", "tflite{weights=float16}")
    assert "option 'weights' is given twice" in fails(source, out, *twice)
    assert "option 'weights' is one of float32, float16" in fails(source, out, "--weights", "int4")
    assert "target onnx has no option 'weights'" in fails(
        source, tmp_path / "o.onnx", "--weights", "float16"
    )
