"""Ctrl-C and requests to end (SIGTERM, SIGHUP), handled in the same way wherever they arrive.

Each raises ``KeyboardInterrupt`` in the code that runs at that moment, so that temporary files are removed. Two places lose
it: an extension module that is being imported may turn it into another error or crash, and a destructor drops it. Inside
this context an interrupt during an import ends the process at once, and a dropped interrupt is raised again. The
context is for the command line only: a program that uses the library keeps its own handlers.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_ONCE = 1.0
"""Seconds during which a second signal (a shell and a supervisor may each send one) is ignored, so that clean-up can end."""


class Interrupts:
    """A context in which no request to end is lost.

    Args:
        leave: Ends the process; called for an interrupt in the middle of an import.

    Attributes:
        number: The first signal; ``None`` if there was none yet.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.number: int | None = None
        self._leave = leave
        self._old: dict[int, Any] = {}
        self._last = -_ONCE
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self  # Only the main thread may set handlers.
        for number in _ENDING:
            # Handlers of other code are kept, and an ignored signal stays ignored.
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                self._old[number] = signal.signal(number, self._press)
        if self._old:
            self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        if self._old:
            sys.unraisablehook = self._hook

    def _press(self, number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), self._last
        if now - before < _ONCE:
            return
        self._last = now
        self.number = number if self.number is None else self.number
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self._leave()
            frame = frame.f_back
        raise KeyboardInterrupt

    def _dropped(self, dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # Raise it again after the destructor that dropped it.
            self._last = -_ONCE
            timer = threading.Timer(0.01, _interrupt_main, (self.number or signal.SIGINT,))
            timer.daemon = True
            timer.start()
        else:
            self._hook(dropped)


def _interrupt_main(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # Also wakes a thread that waits; not on every system.
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))
