"""Rules that both hosts share: each op in its canonical form, with the guards that decide whether it applies.

The rules of a host (``frontends/onnx/rules``, ``frontends/torch/rules``) read arguments and call these functions. Each
returns the op with its operands, or ``None`` where the IR cannot express the call.
"""

from .base import Lowered, Operand, Path, Step, Steps

__all__ = ["Lowered", "Operand", "Path", "Step", "Steps"]
