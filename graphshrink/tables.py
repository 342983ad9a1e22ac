"""Tables that are printed to a console, as text of 80 columns and as HTML for notebooks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""The columns of a text."""


def text_of(render: Callable[[Console], None]) -> str:
    """What ``render`` prints on a terminal, as plain text without an end of line at the end."""
    from rich.console import Console

    file = io.StringIO()
    render(
        Console(file=file, width=WIDTH, color_system=None, force_terminal=True, force_jupyter=False)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))


def html_of(render: Callable[[Console], None]) -> str:
    """What ``render`` prints, as one HTML element."""
    from html import escape

    return f'<pre style="line-height: 1.25">{escape(text_of(render))}</pre>'
