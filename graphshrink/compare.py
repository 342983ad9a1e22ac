"""Two ONNX models side by side: numbers, size, and latency in onnxruntime as a paired ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from .api import load
from .evaluate import Arrays, named_inputs, nudges, run_session, running_inputs, session
from .ir import Graph, UsageError
from .latency import PairedLatency, paired_latency
from .passes import relative_error
from .passes.observers import MOST_NOISE, noise_limit, tolerance_of
from .report import Size, number, size_table
from .terminal import show

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Comparison:
    """How two models compare.

    Attributes:
        error: The largest output error of B, relative to A's largest output.
        tolerance: The error allowed.
        sizes: The sizes of A and B.
        file_bytes: Bytes of the two models, the files of their external data included.
        latency: How fast B is beside A.
    """

    error: float
    tolerance: float
    sizes: tuple[Size, Size]
    file_bytes: tuple[int, int]
    latency: PairedLatency

    @property
    def equal(self) -> bool:
        """True when the outputs differ by no more than the tolerance."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "error": number(self.error),
            "tolerance": self.tolerance,
            "equal": self.equal,
            "a": {**vars(self.sizes[0]), "file_bytes": self.file_bytes[0]},
            "b": {**vars(self.sizes[1]), "file_bytes": self.file_bytes[1]},
            "milliseconds": list(self.latency.milliseconds),
            "speedup": {
                "median": self.latency.speedup,
                "low": self.latency.interval[0],
                "high": self.latency.interval[1],
            },
        }

    def render(self, console: Console, first: str, second: str) -> None:
        """Print a table."""
        table = size_table(*self.sizes, titles=(first, second))
        table.add_row("file bytes", *(f"{b:,}" for b in self.file_bytes))
        table.add_row("latency (median ms)", *(f"{m:.3f}" for m in self.latency.milliseconds))
        show(console, table)
        console.print(f"speed of B beside A: {self.latency}")
        console.print(
            f"largest output error, relative: {self.error:.2e} (allowed {self.tolerance:.0e})"
        )


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
        tolerance: The error allowed. When not given, by the coarsest element type of the reference, or more where
            rounding the inputs otherwise moves its own outputs further.
        runs: Timed pairs of runs.
        threads: Threads of onnxruntime; 0 takes all.
        seed: The seed of random inputs.

    Raises:
        ModelError: If a file cannot be read or run.
        UsageError: If the inputs do not fit, or the models have different ones.
    """
    a, _ = load(first)
    b, _ = load(second)
    types_a, types_b = ({v.name: v.type for v in g.inputs} for g in (a, b))
    if list(types_a) != list(types_b) or a.output_names != b.output_names:
        raise UsageError(f"{first} and {second} have different inputs or outputs")
    for name, type_ in types_a.items():
        if not type_.accepts(types_b[name]):
            raise UsageError(f"input {name!r} is {type_} in {first}, {types_b[name]} in {second}")
    one, two = session(first, threads), session(second, threads)
    if data is None:
        feeds = running_inputs(a, shapes, seed, lambda x: run_session(one, x, str(first)))
    else:
        feeds = _read_inputs(a, data)
    want, got = run_session(one, feeds, str(first)), run_session(two, feeds, str(second))
    error = relative_error(want, got)
    if tolerance is None:
        tolerance = tolerance_of(a)
        if tolerance < error < MOST_NOISE:
            moved = (run_session(one, x, str(first)) for x in nudges(feeds, seed))
            tolerance = noise_limit(tolerance, want, moved)
    latency = paired_latency(lambda: one.run(None, feeds), lambda: two.run(None, feeds), pairs=runs)
    return Comparison(
        error,
        tolerance,
        (Size.of(a), Size.of(b)),
        (_file_bytes(a, first), _file_bytes(b, second)),
        latency,
    )


def _read_inputs(graph: Graph, data: Path) -> Arrays:
    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise UsageError(f"{data}: {error.strerror or 'not an .npz file'}") from error
    except (ValueError, AttributeError, BadZipFile) as error:
        raise UsageError(f"{data} is not an .npz file of arrays") from error
    return named_inputs(graph, arrays)


def _file_bytes(graph: Graph, path: Path) -> int:
    model = graph.host.model
    places: set[str] = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / place for place in sorted(places))]
    return sum(file.stat().st_size for file in files)
