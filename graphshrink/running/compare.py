"""Compare two models: outputs, size, and latency as a paired ratio; ONNX in onnxruntime, .tflite in LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from ..cli.terminal import Name, show
from ..ir import Graph, UsageError
from ..ir.errors import check_readable
from ..passes import relative_error
from ..passes.infra.difference import Difference, largest_difference
from ..passes.infra.tolerance import allowed_error
from ..report import Size, number, size_table
from .inputs import Arrays, named_inputs, nudges, running_inputs
from .latency import PairedLatency, paired_latency
from .matching import matched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .compare_onnx import OnnxSide
    from .compare_tflite import LiteSide


@dataclass(frozen=True)
class Comparison:
    """The comparison of two models.

    Attributes:
        error: The largest output error of B, relative to A's largest output.
        tolerance: The largest error allowed.
        sizes: The sizes of A and B; ``None`` for a .tflite file, whose operations are not those of the IR.
        file_bytes: The bytes of the two models, including the files of their external data.
        latency: The latency of B compared with A.
        difference: Where the outputs differ most; ``None`` if they are equal.
        notes: Inputs and outputs that were matched in spite of different names, and how a model was run.
    """

    error: float
    tolerance: float
    sizes: tuple[Size | None, Size | None]
    file_bytes: tuple[int, int]
    latency: PairedLatency
    difference: Difference | None = None
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the outputs differ by no more than the tolerance."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data for JSON."""
        return {
            "error": number(self.error),
            "tolerance": self.tolerance,
            "equal": self.equal,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "notes": list(self.notes),
            "a": {**_fields(self.sizes[0]), "file_bytes": self.file_bytes[0]},
            "b": {**_fields(self.sizes[1]), "file_bytes": self.file_bytes[1]},
            "milliseconds": list(self.latency.milliseconds),
            "speedup": {
                "median": self.latency.speedup,
                "low": self.latency.interval[0],
                "high": self.latency.interval[1],
            },
        }

    def render(self, console: Console, first: str, second: str) -> None:
        """Print a table."""
        table = _table(self.sizes, (first, second))
        table.add_row("file bytes", *(f"{b:,}" for b in self.file_bytes))
        table.add_row("latency (median ms)", *(f"{m:.3f}" for m in self.latency.milliseconds))
        show(console, table)
        console.print(f"speed of B beside A: {self.latency}")
        console.print(
            f"largest output error, relative: {self.error:.2e} (allowed {self.tolerance:.0e})"
        )
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _fields(size: Size | None) -> dict[str, Any]:
    return {} if size is None else vars(size)


def _table(sizes: tuple[Size | None, Size | None], titles: tuple[str, str]) -> Table:
    from rich.table import Table

    a, b = sizes
    if a is not None and b is not None:
        return size_table(a, b, titles=titles)
    table = Table("")
    for title in titles:
        table.add_column(Name(title))
    return table


def compare_models(
    first: Path,
    second: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Path | None = None,
    tolerance: float | None = None,
    runs: int = 30,
    threads: int = 0,
    seed: int = 0,
) -> Comparison:
    """Run both models on the same inputs.

    Args:
        first: The reference.
        second: The other model.
        shapes: Input shapes by name, for random inputs.
        data: An ``.npz`` file with inputs by name, instead of random ones.
        tolerance: The largest error allowed. If not given, it follows from the coarsest element type, and is larger
            if a rounding unit in the inputs changes the reference's own outputs by more.
        runs: The number of timed pairs of runs.
        threads: The number of threads of the runtime; 0 uses all cores.
        seed: The seed of random inputs.

    Raises:
        ModelError: If a file cannot be read or run.
        UsageError: If the inputs do not fit, or the models have different ones.
    """
    a: OnnxSide | LiteSide
    b: OnnxSide | LiteSide
    if first.suffix == ".tflite" != second.suffix:
        b = _side(second, threads)
        a = _side(first, threads, like=b)
    else:
        a = _side(first, threads)
        b = _side(second, threads, like=a)
    arrays = None if data is None else _read_arrays(data)
    for side, other in ((a, b), (b, a)):
        # An input keeps its default unless both models have it and the data set it, or it is the only kind of input.
        settable = set(other.types) & set(arrays or ())
        left_out = side.optional - settable if side.optional < set(side.types) else frozenset()
        side.types = {name: t for name, t in side.types.items() if name not in left_out}
    pair = _Pair(a, b)
    if arrays is None:
        feeds = running_inputs(pair.graph, shapes, seed, pair.run)
    else:
        feeds = named_inputs(pair.graph, arrays)
    want, got = pair.run(feeds)
    error = relative_error(want, got)
    if tolerance is None:
        unit = max(a.unit, b.unit)
        tolerance = allowed_error(
            max(a.tolerance, b.tolerance),
            error,
            want,
            lambda: (a.run(x) for x in nudges(feeds, seed, unit)),
        )
        a.run(feeds)
    found = largest_difference(want, got, a.outputs, tolerance)
    latency = paired_latency(a.again, b.again, pairs=runs)
    return Comparison(
        error,
        tolerance,
        (a.size, b.size),
        (a.file_bytes, b.file_bytes),
        latency,
        found,
        (*pair.notes, *a.notes, *b.notes),
    )


class _Pair:
    """Two models whose inputs and outputs are matched.

    Attributes:
        graph: A graph with the inputs of both, under the names of the first.
        notes: What was matched in spite of different names.

    Raises:
        UsageError: If their inputs or outputs do not match.
    """

    def __init__(self, a: OnnxSide | LiteSide, b: OnnxSide | LiteSide) -> None:
        self.a, self.b = a, b
        files = (str(a.path), str(b.path))
        theirs = list(b.types.items())
        places, inputs = matched("inputs", list(a.types.items()), theirs, files)
        self._outputs, outputs = matched(
            "outputs",
            list(zip(a.outputs, a.output_types, strict=True)),
            list(zip(b.outputs, b.output_types, strict=True)),
            files,
        )
        self.notes = [note for note in (inputs, outputs) if note]
        self._inputs = [theirs[place][0] for place in places]
        self.graph = Graph("the inputs of both")
        for (name, type_), partner in zip(a.types.items(), self._inputs, strict=True):
            other = b.types[partner]
            if not type_.accepts(other):
                raise UsageError(f"input {name!r} is {type_} in {a.path}, {other} in {b.path}")
            # A size that is free in one of them may be fixed in the other.
            self.graph.add_input(name, type_.refined(other))

    def run(self, feeds: Arrays) -> tuple[list[Any], list[Any]]:
        """The outputs of both, those of the second in the order of the first."""
        given = dict(zip(self._inputs, feeds.values(), strict=True))
        want, got = self.a.run(feeds), self.b.run(given)
        return want, [got[place] for place in self._outputs]


def _side(path: Path, threads: int, like: OnnxSide | LiteSide | None = None) -> OnnxSide | LiteSide:
    if path.suffix == ".tflite":
        from .compare_tflite import LiteSide

        return LiteSide(path, threads, like)
    from .compare_onnx import OnnxSide

    return OnnxSide(path, threads)


def _read_arrays(data: Path) -> Arrays:
    check_readable(data)
    try:
        with np.load(data, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise UsageError(f"{data}: {error.strerror or 'not an .npz file'}") from error
    except (ValueError, AttributeError, BadZipFile) as error:
        raise UsageError(f"{data} is not an .npz file of arrays") from error
