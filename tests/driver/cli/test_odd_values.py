"""Odd values of options, odd text in files, outputs that cannot be written: one line each, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from graphshrink import GraphshrinkError, shrink, shrink_graph
from graphshrink.data.images import Preprocess
from graphshrink.passes import Pipeline
from graphshrink.passes.merge.merge_linear import MergeLinear
from support.cli import external_model, fails, small_model, succeeds, write

COMMAND = [sys.executable, "-m", "graphshrink"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "in.onnx")


NO_NUMBERS = ("nan", "9" * 5000, "１", "1_0", "٣", "inf", "-inf", "1e999", "", "0x10", "1e")
"""What Python may take for a number, and what none takes."""

EVERYWHERE = 2
"""So many of these go to every option; the others, which the same code reads, to every fourth."""


@pytest.mark.parametrize("place", range(len(NO_NUMBERS)))
def test_numbers_on_the_command_line_are_plain_and_finite(place: int, model: Path) -> None:
    word, out = NO_NUMBERS[place], model.parent / "out.onnx"
    empty = model.parent / "empty"
    empty.mkdir()
    options = (
        (model, out, "--seed", word),
        ("compare", model, model, "--runs", word),
        ("compare", model, model, "--threads", word),
        ("compare", model, model, "--tolerance", word),
        (model, out, "--calibration", empty, "--calibration-samples", word),
        (model, out, "--input", f"x:{word}x3x16x16"),
        (model, out, "--fix-shape", f"x:{word}x3x16x16"),
        (model, out, "--target", "tensorrt", "--profile", f"x:{word}x3x16x16"),
        (model, out, "--target", "tensorrt", "--trt-version", f"{word}.1"),
        (model, out, "--passes", f"merge-linear{{max-kernel={word}}}"),
        (model, out, "--passes", f"merge-linear{{max-mac-growth={word}}}"),
        (model, out, "--passes", f"remove-activations{{threshold={word}}}"),
        (model, out, "--calibration", empty, "--preprocess", f"resize={word}"),
        (model, out, "--calibration", empty, "--preprocess", f"mean=[{word}]"),
        (model, out, "--calibration", empty, "--preprocess", f"scale=1/{word}"),
        ("inspect", model, "--sparsity", "--pattern", f"1:{word}"),
    )
    for arguments in options if place < EVERYWHERE else options[place % 4 :: 4]:
        said = fails(*arguments)
        assert len(said) < 1100
    assert not out.exists()


def test_numbers_that_are_out_of_bounds(model: Path) -> None:
    out = model.parent / "out.onnx"
    for arguments, message in (
        ((model, out, "--seed", "-1"), "not from 0"),
        ((model, out, "--seed", 1 << 63), "not from 0"),
        (("compare", model, model, "--threads", "100000"), "not from 0 to 256"),
        (("compare", model, model, "--tolerance", "-0.1"), "below 0"),
        ((model, out, "--fix-shape", f"x:{1 << 63}x3x16x16"), "is not NAME:SIZES"),
        ((model, out.with_suffix(".tflite"), "--fix-shape", f"x:{1 << 40}x3x16x16"), "int32"),
        (
            (model, out, "--calibration", model.parent, "--preprocess", "resize=99999"),
            "at most 16384",
        ),
        (
            (model, out, "--calibration", model.parent, "--preprocess", "scale=1/0"),
            "does not take '1/0'",
        ),
        ((model, out, "--passes", "pivot{blocks=99999999999}"), "at most 4096"),
        ((model, out, "--passes", "expand-linear{expansion=1e308}"), "at most 1024"),
    ):
        assert message in fails(*arguments)


def test_numbers_in_python_are_finite(model: Path) -> None:
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="max-mac-growth"):
            shrink(model, [MergeLinear(max_mac_growth=number)])
        with pytest.raises(GraphshrinkError, match="must be finite"):
            Preprocess(mean=(number,))
        with pytest.raises(GraphshrinkError, match="must be finite"):
            Preprocess(scale=number)
    assert Pipeline("merge-linear{max-mac-growth=1.5e0}").passes == (
        MergeLinear(max_mac_growth=1.5),
    )


def test_paths_that_are_no_paths(model: Path) -> None:
    for arguments in (
        ("a\0b", "out.onnx"),
        (model, "a\0b.onnx"),
        (model, "a\0b.tflite"),
        (model, "out.onnx", "--report", "a\0b"),
        (model, "out.onnx", "--dump-dir", "a\0b"),
        (model, "out.onnx", "--passes", 'remove-activations{plan="a\0b"}'),
        ("inspect", "a\0b"),
        ("inspect", "a\0b.tflite"),
        ("inspect", model, "--trt-log", "a\0b"),
        ("compare", model, model, "--data", "a\0b"),
    ):
        assert "\0" not in fails(*arguments)
    with pytest.raises(GraphshrinkError, match="NUL"):
        shrink(model).save("a\0b.onnx")
    for location in ("a\0b", "\0"):
        path = external_model(model.parent / "external", location)
        assert "names no file" in fails(path, model.parent / "out.onnx")


def test_long_and_unprintable_names_stay_one_short_line(tmp_path: Path) -> None:
    name = "n\x1b[2J\n" + "n" * 100_000
    path = write(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", name], ["y"])],
        {"x": [1]},
        {"y": [1]},
        [],
    )
    said = fails("inspect", path)
    assert "\\x1b[2J" in said
    assert said.isprintable()
    assert len(said) < 1100
    assert "read by node 0 (Add of 'y')" in said


def damaged(path: Path, **names: str) -> Path:
    """A model in which names of four letters are replaced by text that is not UTF-8."""
    node = helper.make_node("Relu", ["x"], [names.get("value", "h")], name=names.get("node", "n"))
    last = helper.make_node("Neg", [names.get("value", "h")], ["y"])
    write(path, [node, last], {"x": [names.get("size", "s")]}, {"y": [1]}, [])
    path.write_bytes(path.read_bytes().replace(b"AAAA", b"\xff\xfe\xc0\x80"))
    return path


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    path = damaged(tmp_path / "node.onnx", node="AAAA")
    succeeds(path, out)
    assert out.read_bytes() == path.read_bytes()
    succeeds(path, tmp_path / "out.tflite")
    succeeds("compare", path, path, "--runs", "1")
    assert '"\\\\xff\\\\xfe' in succeeds("inspect", path, "--text")
    assert "relu" in succeeds("inspect", damaged(tmp_path / "size.onnx", size="AAAA"), "--text")
    said = fails(damaged(tmp_path / "value.onnx", value="AAAA"), out)
    assert "value.onnx is not valid ONNX" in said
    assert "not UTF-8" in said


def run(line: str, *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command in a shell."""
    command = " ".join([*COMMAND, *map(str, arguments)])
    done = subprocess.run(
        ["/bin/bash", "-c", line.format(command)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is there on Linux")
def test_outputs_that_take_nothing(model: Path) -> None:
    for arguments in (("inspect", model), ("--version",)):
        code, said = run("{} > /dev/full", *arguments)
        assert code == 2
        assert said == "graphshrink: the output cannot be written: No space left on device\n"
    assert run("{} 2> /dev/full", "inspect", "none.onnx") == (2, "")


def test_streams_that_are_closed(model: Path) -> None:
    out = model.parent / "out.onnx"
    assert run("{} >&-", model, out) == (0, "")
    assert onnx.load(out).graph.node
    assert run("{} >&- <&-", "inspect", model) == (0, "")
    assert run("{} | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}", "passes", "--json") == (0, "")


def test_an_infinite_constant_is_not_an_option(model: Path) -> None:
    """Numbers of a model may be infinite: only options may not."""
    made = onnx.load(model)
    made.graph.initializer[1].raw_data = np.full(8, np.inf, np.float32).tobytes()
    assert shrink_graph(made).graph.node
