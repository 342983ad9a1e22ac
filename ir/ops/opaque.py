"""The op of nodes that the IR does not understand."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..types import TensorType
from .base import InputTypes, Op


@dataclass(frozen=True)
class Opaque(Op):
    """An op of the host that the IR does not know: a barrier that keeps its origin.

    Attributes:
        kind: The host's name for it (``"onnx:TopK"``, ``"fx:torch.topk"``).
        pure: Whether it may be removed if its results are not used.
        reason: Why the IR does not express an op that it otherwise knows; for reports alone.
        signature: Equal for nodes of the same host operator with the same attributes; empty if nothing is known of them.
    """

    kind: str
    pure: bool = True
    reason: str = field(default="", compare=False, repr=False)
    signature: str = field(default="", compare=False, repr=False)
    arity = (0, None)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...] | None:
        return None

    def macs(self, inputs: InputTypes, outputs: object) -> int | None:
        return 0


__all__ = ["Opaque"]
