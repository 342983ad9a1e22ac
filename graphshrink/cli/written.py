"""What a command wrote: the files with their sizes, and whether the result is approximate."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import listed

if TYPE_CHECKING:
    from ..ir import Graph
    from ..report import Report


def bytes_read(source: str, graph: Graph) -> int:
    """The bytes of the file that a graph was read from, with its external data; call it before anything is written."""
    from ..emission import data_files

    return _size({Path(source), *(path for _, path in data_files(graph))})


def written(report: Report, before: int) -> str:
    """The model that was written, its bytes before and after, and the files beside it: ``out.onnx: 9 -> 7 bytes``."""
    assert report.emitted is not None
    model, *beside = report.emitted.files
    after = _size([model])
    if after < report.after.bytes:
        after += _size(_data_of(model))
    also = f" (and {listed([str(path) for path in beside])})" if beside else ""
    return f"{model}{also}: {before:,} -> {after:,} bytes"


def approximation(report: Report) -> str:
    """The end of a line on a result that is approximate; empty if it is exact."""
    passes = list(dict.fromkeys(report.approximate))
    return f"; approximate: {listed(passes, 3)} changed the outputs" if passes else ""


def _data_of(model: Path) -> list[Path]:
    """The data file that was written with a model of more than 2 GB."""
    from ..targets.onnx.save import is_data_file

    found = [path for path in model.parent.iterdir() if is_data_file(path, model)]
    return sorted(found, key=os.path.getmtime)[-1:]


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
