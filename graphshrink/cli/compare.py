"""The command ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .parameters import CustomOps, InputShapes, Json, Seed, tolerance, whole_number
from .terminal import console, shapes_of


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference, ONNX or .tflite.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other file.")],
    shapes: InputShapes = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="Inputs by name; random inputs if not given."),
    ] = None,
    allowed: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            parser=tolerance,
            metavar="X",
            help="The largest error allowed, relative to the largest output; 1e-4 for float32 if not given.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(parser=whole_number(1, 10**6), metavar="N", help="Timed pairs of runs.")
    ] = 30,
    threads: Annotated[
        int,
        typer.Option(
            parser=whole_number(0, 256), metavar="N", help="Threads of the runtime; 0 uses all."
        ),
    ] = 0,
    seed: Seed = 0,
    libraries: CustomOps = None,
    as_json: Json = False,
) -> None:
    """Compare two models: outputs, size, and latency as a paired ratio."""
    from ..running.compare import compare_models
    from ..running.sessions import custom_ops

    with custom_ops(libraries or ()):
        found = compare_models(
            Path(first),
            Path(second),
            shapes=shapes_of(shapes),
            data=Path(data) if data else None,
            tolerance=allowed,
            runs=runs,
            threads=threads,
            seed=seed,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        found.render(console(), first, second)
        if not found.equal and allowed is None:
            typer.echo(
                "note: outputs differ after a plan or another approximate pass: test the accuracy of such a model on labelled data"
            )
    if not found.equal:
        typer.echo(
            f"graphshrink: the outputs differ by {found.error:.2e}, "
            f"allowed are {found.tolerance:.0e}{'' if found.difference is None else f': {found.difference}'}",
            err=True,
        )
        raise typer.Exit(1)
