"""How ONNX operators that have no op in the IR are written in torch; one file a family.

A frontend leaves them ``Opaque``. They need no op for a model to become a module, because no pass changes them.
"""

from __future__ import annotations

from . import (  # noqa: F401 - their rules register themselves
    arithmetic,
    images,
    indexing,
    reductions,
    shapes,
)
from .operator import OPERATORS, Operator, Rule

__all__ = ["OPERATORS", "Operator", "Rule"]
