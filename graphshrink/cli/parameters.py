"""Parameters that several commands share, and parsers for numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ..ir.errors import read_number

LARGEST = 2**63 - 1


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for whole numbers from ``least`` to ``most``, in plain digits."""

    def parse(text: str) -> int:
        try:
            found = int(read_number(str(text), int))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number") from None
        if not least <= found <= most:
            raise typer.BadParameter(f"{text} is not from {least} to {most}")
        return found

    return parse


def tolerance(text: str) -> float:
    """A parser for tolerances: finite, and not below 0."""
    try:
        found = float(read_number(str(text), float))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a finite number") from None
    if found < 0:
        raise typer.BadParameter(f"{text} is below 0")
    return found


InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:1x3x224x224",
        help="The shape of an input when the model is run; may be given several times.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(parser=whole_number(0, LARGEST), metavar="N", help="The seed of random inputs."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
