"""Functions that the rules of both hosts share: they make ops in canonical form, and check the conditions for them.

The rules of a host (``frontends/onnx/rules``, ``frontends/torch/rules``) read arguments and call these functions. Each
returns the op with its operands, or ``None`` if the IR cannot express the call.
"""

from .base import Lowered, Operand, Path, Step, Steps

__all__ = ["Lowered", "Operand", "Path", "Step", "Steps"]
