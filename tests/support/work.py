"""Measures the work of a call, in function calls and executed lines instead of seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import graphshrink

_ROOT = str(Path(graphshrink.__file__).resolve().parents[1])


def work(run: Callable[[], object]) -> int:
    """The number of lines of graphshrink, and of calls to anything, that a call executes.

    The count is the same on every machine, so that growth with the input can be tested.
    """
    count = 0

    def in_frame(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return in_frame

    def on_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal count
        count += 1
        file = frame.f_code.co_filename
        return in_frame if file.startswith(_ROOT) and "site-packages" not in file else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(before)
    return count
