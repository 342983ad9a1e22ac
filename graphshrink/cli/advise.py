"""The command ``advise``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .parameters import DeviceName, FixedShapes, Json, Threads
from .planned import DEVICE, THREADS
from .progress import count_done
from .terminal import console, fixed_shapes_of


def advise(
    source: Annotated[str, typer.Argument(metavar="MODEL.onnx", help="The ONNX file to examine.")],
    fixed: FixedShapes = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time the model before and after the exact passes, and its ops, on the device.",
        ),
    ] = False,
    device: DeviceName = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what could be gained for a model, and by which command; in seconds, without data."""
    from ..advice import advise as examine

    with count_done("ops") as progress:
        found = examine(
            source,
            fixed_shapes=fixed_shapes_of(fixed),
            device=device or DEVICE,
            threads=THREADS if threads is None else threads,
            measure=measure,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        found.render(console())
