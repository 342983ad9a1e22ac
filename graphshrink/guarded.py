"""The files that a command reads, and the check that it writes none of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .emission import Emission, data_files
from .ir import Graph, UsageError
from .ir.files import check_overwrites, same_file
from .passes import Pass, PassRecord, Pipeline

Input = tuple[str, Path]
"""What an input is, in words, and its path."""


def check_outputs(
    chosen: Emission, report: str | None, source: str, inputs: Iterable[Input]
) -> None:
    """Check that the outputs of ``shrink`` are neither inputs nor each other.

    Args:
        chosen: What will be written.
        report: Where the report goes.
        source: The model that is read; the model that is written may replace it.
        inputs: What else is read.

    Raises:
        UsageError: If something would be overwritten.
    """
    from .targets.onnx.save import is_data_file

    beside = [str(path) for path in chosen.files[1:]]
    others: list[str] = beside if report is None else [*beside, report]
    check_overwrites([str(chosen.path), *others], inputs)
    check_overwrites(others, [("the model", Path(source))])
    for path in chosen.files if report is not None else ():
        if same_file(report or "", path) or is_data_file(Path(report or ""), path):
            raise UsageError(f"--report {report} would overwrite the model {path}")


def files_read(calibration: object, pipeline: Pipeline) -> Iterator[Input]:
    """The files that are read besides the model: calibration data, and files that options of passes name."""
    for step in pipeline.passes:
        for name, value in vars(step).items():
            if value and isinstance(value, str) and os.path.isfile(value):
                yield f"the {name} of {step.name}", Path(value)
    if isinstance(calibration, str | os.PathLike):
        yield "the calibration data", Path(calibration)
        for top, _, files in os.walk(os.fspath(calibration)):
            for file in files:
                yield "the calibration data", Path(top, file)


class KeepData:
    """An observer that stops a run, before its first pass, that would overwrite its model's external data."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self.outputs = outputs
        self.checked = False

    def before(self, step: Pass, graph: Graph) -> None:
        """Check, once."""
        if not self.checked:
            self.checked = True
            check_overwrites(self.outputs, data_files(graph))

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Nothing."""
