"""Logging of a command: what passes do, on standard error, when ``-vv`` or ``GRAPHSHRINK_LOG`` ask for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

VARIABLE = "GRAPHSHRINK_LOG"
"""The environment variable that names a level."""

LEVELS = ("error", "warning", "info", "debug")


def start_logging(arguments: Sequence[str]) -> None:
    """Log to standard error, at the level that the variable names or, under ``-vv``, everything; else nothing.

    Raises:
        UsageError: If the variable names no level.
    """
    import logging

    level = os.environ.get(VARIABLE, "").lower()
    if not level and ("-vv" in arguments or [*arguments].count("-v") > 1):
        level = "debug"
    package = logging.getLogger("graphshrink")
    if not level:
        # What goes wrong is said once, by us: no log lines.
        package.addHandler(logging.NullHandler())
        return
    if level not in LEVELS:
        from ..ir.errors import UsageError

        raise UsageError(f"{VARIABLE} is one of {', '.join(LEVELS)}, not {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    package.addHandler(handler)
    package.setLevel(level.upper())
    package.propagate = False
