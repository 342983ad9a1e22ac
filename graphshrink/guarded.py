"""Checks that a command does not overwrite the files that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from .emission import Emission, data_files
from .ir import Graph, UsageError
from .ir.files import check_overwrites, same_file
from .passes import Pass, PassRecord, Pipeline

Input = tuple[str, Path]
"""A description of an input file for errors, and its path."""


def check_outputs(
    chosen: Emission, texts: Mapping[str, str | None], source: str, inputs: Iterable[Input]
) -> None:
    """Check that the outputs of ``shrink`` are neither inputs nor each other.

    Args:
        chosen: The target with the files that it will write.
        texts: The other files that are written, by the option that names each.
        source: The model file that is read; the model that is written may replace it.
        inputs: The other files that are read.

    Raises:
        UsageError: If a file would be overwritten.
    """
    from .targets.onnx.save import is_data_file

    given = {option: path for option, path in texts.items() if path is not None}
    others = [*(str(path) for path in chosen.files[1:]), *given.values()]
    check_overwrites([str(chosen.path), *others], inputs)
    check_overwrites(others, [("the model", Path(source))])
    for option, text in given.items():
        for path in chosen.files:
            if same_file(text, path) or is_data_file(Path(text), path):
                raise UsageError(f"{option} {text} would overwrite the model {path}")
    check_different(given)


def check_different(texts: Mapping[str, str]) -> None:
    """Check that no two options name the same output file.

    Raises:
        UsageError: If two do.
    """
    for (option, one), (other, two) in combinations(texts.items(), 2):
        if same_file(one, two):
            raise UsageError(f"{option} {one} and {other} {two} are the same file")


def files_read(calibration: object, pipeline: Pipeline) -> Iterator[Input]:
    """The files that are read besides the model: calibration data, and files named by options of passes."""
    steps = list(pipeline.passes)
    for step in steps:
        steps += getattr(step, "passes", ())  # Those of repeat{...}.
        for name, value in vars(step).items():
            if value and isinstance(value, str) and os.path.isfile(value):
                yield f"the {name} of {step.name}", Path(value)
    if isinstance(calibration, str | os.PathLike):
        yield "the calibration data", Path(calibration)
        for top, _, files in os.walk(os.fspath(calibration)):
            for file in files:
                yield "the calibration data", Path(top, file)


class KeepData:
    """An observer that raises before the first pass if an output would overwrite the model's external data."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self.outputs = outputs
        self.checked = False

    def before(self, step: Pass, graph: Graph) -> None:
        """Check once."""
        if not self.checked:
            self.checked = True
            check_overwrites(self.outputs, data_files(graph))

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Do nothing."""
