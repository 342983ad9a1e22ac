"""Ctrl-C, wherever it strikes.

Python raises ``KeyboardInterrupt`` in whatever runs at that moment. An extension module that is just being imported
may turn it into another error or crash, and a destructor drops it. Inside this context an interrupted
import ends the process at once, and a dropped interrupt comes again.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which no Ctrl-C gets lost.

    Args:
        leave: Ends the process; called for an interrupt in the middle of an import.

    Attributes:
        pressed: True once there was one.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.pressed = False
        self._leave = leave
        self._old: Any = None
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        # Somebody else's handler stays, and only the main thread may set one.
        mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if mine and threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._press)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            sys.unraisablehook = self._hook

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self._leave()
            frame = frame.f_back
        raise KeyboardInterrupt

    def _dropped(self, dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # Again, once the destructor that swallowed it is over.
            timer = threading.Timer(0.01, _interrupt_main)
            timer.daemon = True
            timer.start()
        else:
            self._hook(dropped)


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):  # Wakes the thread where it waits; not on every system.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
