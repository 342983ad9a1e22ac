"""Proxies that replace tensors while a module is traced, and record writes into memory.

``y += x`` on a ``Proxy`` of torch.fx is ``y = y + x``: whatever shares memory with ``y`` would keep its old numbers.
"""

from __future__ import annotations

import builtins
import math
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from ...ir import ModelError

EXAMPLE = "example type"
"""The meta entry of a placeholder with the type of its example input."""


def _written(name: str) -> Callable[[Any, Any], Any]:
    """An augmented assignment: it rebinds a number, and writes into a tensor.

    The method is what tracing the result again shows too, as unpickling does; and a number that is taken for a tensor does not
    have it, so that nothing wrong is computed from it.
    """
    plain = getattr(operator, name.removeprefix("i"), None) or getattr(operator, f"{name[1:]}_")

    def write(self: Any, other: Any) -> Any:
        if _is_number(self.node):
            return plain(self, other)
        return self.tracer.create_proxy("call_method", f"__{name}__", (self, other), {})

    return write


class _Tensorlike:
    """Adds to torch.fx's proxies: writes into memory are recorded, and ``isinstance(proxy, Tensor)`` is true (:func:`taken_for_tensors`)."""

    # isinstance checks for parameters and buffers read these attributes.
    _is_param = _is_buffer = False

    @property
    def _stands_for_tensor(self) -> bool:
        raise NotImplementedError

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_method", "__setitem__", (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_TENSORS:
            raise ModelError(
                f"forward sets .{name} of a tensor, which no graph shows: write into the tensor, with copy_, or use another one"
            )
        super().__setattr__(name, value)

    def __getattr__(self: Any, name: str) -> Any:
        if name == "data" and isinstance(self, torch.Tensor):
            # detach shares memory as .data does; torch's exporters fail on writes to .data.
            return self.detach()
        return _Attribute(self, name)


for _name in (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift",
):  # fmt: skip
    setattr(_Tensorlike, f"__{_name}__", _written(_name))


class _Text(str):
    """The text of a traced value, which holds for no call: it may be shown, but nothing may be computed from it."""

    __slots__ = ()

    def _read(self, *args: Any) -> Any:
        raise TextError("it computes with the text of a value, which a trace does not know")

    __len__ = __int__ = __float__ = __iter__ = __getitem__ = __hash__ = __eq__ = __ne__ = (
        __contains__
    ) = _read  # type: ignore[assignment]


class TextError(Exception):
    """A module computes with the text of a traced value."""


class TensorProxy(_Tensorlike, fx.Proxy):
    """A traced value: a tensor, unless it is known to be something else."""

    @property
    def _stands_for_tensor(self) -> bool:
        example = self.node.meta.get(EXAMPLE, torch.Tensor)
        return issubclass(example, torch.Tensor) and not _is_number(self.node)

    def __str__(self) -> str:
        return _Text(repr(self))


class _Attribute(_Tensorlike, fx.proxy.Attribute):
    """An attribute of a value: ``x.shape``, ``x.T``, or a method that is called."""

    @property
    def _stands_for_tensor(self) -> bool:
        return self.attr in ("T", "mT", "H", "mH", "real", "imag")


_plain = builtins.isinstance
_lock = threading.Lock()
_traces = 0


def _checked(value: Any, kinds: Any, /) -> bool:
    """``isinstance``, for which proxies of tensors are tensors."""
    if _plain(value, kinds):
        return True
    if not _plain(value, _Tensorlike) or not value._stands_for_tensor:
        return False
    try:
        return issubclass(torch.Tensor, kinds)
    except TypeError:  # Protocols with data attributes are asked of objects alone.
        return False


@contextmanager
def taken_for_tensors() -> Iterator[None]:
    """While it lasts, ``isinstance`` says of proxies that they are tensors.

    Their ``__class__`` does not: torch's C++ code would read the memory of what has the class of a tensor as a tensor.
    """
    global _traces
    with _lock:
        _traces += 1
        builtins.isinstance = _checked
    try:
        yield
    finally:
        with _lock:
            _traces -= 1
            if not _traces:
                builtins.isinstance = _plain


_OF_TENSORS = {
    name for name in dir(torch.Tensor) if not name.startswith("_") and name not in ("requires_grad", "grad")
}  # fmt: skip


def _is_number(node: fx.Node) -> bool:
    """Whether a value is certainly a number, or several."""
    if node.op == "placeholder":
        return issubclass(node.meta.get(EXAMPLE, torch.Tensor), (int, float))
    if node.op == "call_method":
        return node.target in _ASKING
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _ASKING
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_number(node.args[0])
    name, module = (getattr(node.target, a, None) or "" for a in ("__name__", "__module__"))
    if node.target in (len, int, float, bool) or name.startswith("sym_"):
        return True
    computed = module == "_operator" or node.target in vars(math).values()
    return computed and all(map(_is_number, node.all_input_nodes))


_ASKING = {
    "shape", "ndim", "itemsize", "nbytes", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "item",
    "tolist", "is_contiguous", "get_device", "__len__",
}  # fmt: skip


__all__ = ["EXAMPLE", "TensorProxy", "taken_for_tensors"]
