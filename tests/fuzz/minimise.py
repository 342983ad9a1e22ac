"""The smallest case that still fails in the same way: candidates are tried one after the other, large cuts first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

C = TypeVar("C")


def minimise(
    case: C,
    smaller: Callable[[C], Iterator[C]],
    fails: Callable[[C], bool],
    seconds: float = 30.0,
) -> C:
    """Replace the case by a smaller failing one until there is none.

    Args:
        case: The failing case.
        smaller: Yields simpler cases, those with the largest cuts first.
        fails: Whether a case fails as the first one does; an exception means no.
        seconds: When to be content with what there is.
    """
    deadline = time.monotonic() + seconds
    progress = True
    while progress:
        progress = False
        for candidate in smaller(case):
            if time.monotonic() > deadline:
                return case
            try:
                failed = fails(candidate)
            except Exception:
                continue
            if failed:
                case, progress = candidate, True
                break
    return case
