"""What a target gives back when it has written its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Emitted:
    """What was written.

    Attributes:
        files: The files, the model first.
        notes: What the user should know of them, one sentence each.
        data: What else there is to say, as plain data for JSON.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
