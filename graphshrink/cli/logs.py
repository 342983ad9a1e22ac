"""Logging of a command: with ``-vv`` or ``GRAPHSHRINK_LOG``, passes log their work to standard error."""

from __future__ import annotations

import os
from collections.abc import Sequence

VARIABLE = "GRAPHSHRINK_LOG"
"""The environment variable that names a level."""

LEVELS = ("error", "warning", "info", "debug")


def start_logging(arguments: Sequence[str]) -> None:
    """Log to standard error at the level of the variable, or at ``debug`` with ``-vv``; log nothing without either.

    Raises:
        UsageError: If the value of the variable is not a level.
    """
    import logging

    level = os.environ.get(VARIABLE, "").lower()
    if not level and ("-vv" in arguments or [*arguments].count("-v") > 1):
        level = "debug"
    package = logging.getLogger("graphshrink")
    if not level:
        # Failures are printed once, by the command itself: no log lines.
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
