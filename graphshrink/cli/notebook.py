"""A progress bar in notebooks: an HTML element that is updated in place and goes away at the end.

It needs nothing but IPython, which runs the notebook: no widgets and no extension of the front end. So it works in Jupyter, in VS Code and in
Colab, and leaves nothing in a stored notebook.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

INTERVAL = 0.2
"""The least seconds between two updates."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A bar below the cell that runs."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._start = time.monotonic()
        self._last = 0.0
        self._text = ""
        self._handle: Any = display(HTML(""), display_id=True)

    def update(self, done: int, total: int, text: str) -> None:
        """Show that ``done`` of ``total`` steps are done; a total of 0 is unknown."""
        now = time.monotonic()
        # A new kind of work starts its own clock: the time left is worked out from its speed alone.
        kind = text.partition(" (")[0]
        if kind != self._text:
            self._start, self._text = now, kind
        elif now - self._last < INTERVAL:
            return
        self._last = now
        self._handle.update(self._html(bar_html(done, total, text, now - self._start)))

    def stop(self) -> None:
        """Remove the bar."""
        self._handle.update(self._html(""))


def bar_html(done: int, total: int, text: str, seconds: float) -> str:
    """The bar as HTML, with the time left if it is known."""
    share = f' value="{done}" max="{total}"' if total else ""
    left = ""
    if total and 0 < done < total and seconds >= 1:
        left = f", {_clock(seconds * (total - done) / done)} left"
    return f"<progress{share}></progress> {escape(text)}, {_clock(seconds)}{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
