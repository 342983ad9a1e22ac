"""Torch modules as source text of numbered steps."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A module as text."""

    steps: tuple[str, ...] = ()

    def source(self) -> str:
        return ""

    def to_json(self) -> str:
        return json.dumps({"steps": self.steps})

    @classmethod
    def from_json(cls, text: str) -> Program:
        return cls(**json.loads(text))
