"""What stands for tensors while a module is traced, so that writes into memory are seen.

``y += x`` on a ``Proxy`` of torch.fx is ``y = y + x``: whatever shares memory with ``y`` would keep its old numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...ir import ModelError

EXAMPLE = "example type"
"""The meta entry of a placeholder that says of which type its example is."""


def _written(name: str) -> Callable[[Any, Any], Any]:
    """An augmented assignment; to a number it binds a new one, and into a tensor it writes."""
    plain = getattr(operator, name.removeprefix("i"), None) or getattr(operator, f"{name[1:]}_")

    def write(self: Any, other: Any) -> Any:
        kind = _kind(self.node)
        if kind is _NUMBER:
            return plain(self, other)
        if kind is _TENSOR:
            return self.tracer.create_proxy(
                "call_function", getattr(operator, name), (self, other), {}
            )
        # A number does not have the method, so that nothing wrong is computed from it.
        return self.tracer.create_proxy("call_method", f"__{name}__", (self, other), {})

    return write


class _Tensorlike:
    """What the proxies of torch.fx lack: writes into memory, and that they are tensors to ``isinstance``."""

    # isinstance asks a tensor for these to tell parameters and buffers.
    _is_param = _is_buffer = False

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_TENSORS:
            raise ModelError(
                f"forward sets .{name} of a tensor, which no graph shows: write into the tensor, with copy_, or use another one"
            )
        super().__setattr__(name, value)

    def __getattr__(self: Any, name: str) -> Any:
        return _Attribute(self, name)


for _name in (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift",
):  # fmt: skip
    setattr(_Tensorlike, f"__{_name}__", _written(_name))


class TensorProxy(_Tensorlike, fx.Proxy):
    """A value of a module that is traced: a tensor, unless it is known to be something else."""

    @property
    def __class__(self) -> type:
        node = self.node
        container = node.op == "placeholder" and EXAMPLE in node.meta
        kind = _kind(node)
        return (
            torch.Tensor if kind is _TENSOR or (kind is _EITHER and not container) else type(self)
        )


class _Attribute(_Tensorlike, fx.proxy.Attribute):
    """An attribute of a value: ``x.shape``, ``x.T``, or a method that is called."""

    @property
    def __class__(self) -> type:
        return (
            torch.Tensor
            if self.attr in ("T", "mT", "H", "mH", "data", "real", "imag")
            else type(self)
        )


_OF_TENSORS = {
    name for name in dir(torch.Tensor) if not name.startswith("_") and name not in ("requires_grad", "grad")
}  # fmt: skip
_NUMBER, _TENSOR, _EITHER = "number", "tensor", "either"


def _kind(node: fx.Node) -> str:
    """Whether a value is a number, or several, a tensor, or perhaps either."""
    match node.op:
        case "placeholder":
            example = node.meta.get(EXAMPLE)
            if example is None or not issubclass(example, (torch.Tensor, int, float)):
                return _EITHER
            return _TENSOR if issubclass(example, torch.Tensor) else _NUMBER
        case "get_attr" | "call_module":
            return _TENSOR
        case "call_method":
            return _NUMBER if node.target in _ASKING else _TENSOR
    name, module = (getattr(node.target, a, None) or "" for a in ("__name__", "__module__"))
    if node.target is getattr:
        return _NUMBER if node.args[1] in _ASKING else _TENSOR
    if node.target in (len, int, float, bool) or name.startswith("sym_"):
        return _NUMBER
    if (
        module in ("_operator", "operator", "math", "builtins")
        or node.target in vars(math).values()
    ):
        kinds = {_kind(source) for source in node.all_input_nodes}
        if name == "getitem" and isinstance(node.args[0], fx.Node):
            kinds = {_kind(node.args[0])}
        return next(k for k in (_TENSOR, _EITHER, _NUMBER) if k in kinds or k is _NUMBER)
    return _TENSOR if module.startswith("torch") or module == "" else _EITHER


_ASKING = {
    "shape", "ndim", "itemsize", "nbytes", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "item",
    "tolist", "is_contiguous", "get_device", "__len__",
}  # fmt: skip


__all__ = ["EXAMPLE", "TensorProxy"]
