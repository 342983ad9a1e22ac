"""Copies of modules that share their tensors: attributes that forward sets on the copy do not reach the given module."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

TensorMap = Callable[[torch.Tensor], torch.Tensor]


class ModuleCopy:
    """A copy of a module in which every module and container is new and every tensor is the given one.

    Hooks on gradients stay behind: copies are not differentiated.

    Args:
        model: The module; it is not changed.
        tensor: Returns the replacement of each tensor in the copy; by default the tensor itself.

    Attributes:
        module: The copy.
        tensors: The tensors of the given module by dotted name, those in its attributes and containers too.
    """

    def __init__(self, model: nn.Module, tensor: TensorMap | None = None) -> None:
        self.given = model
        self.tensors: dict[str, torch.Tensor] = {}
        self._twins: list[tuple[str, nn.Module, nn.Module]] = []
        self._given: dict[int, nn.Module] = {}
        self._memo: dict[int, Any] = {}
        for name, part in model.named_modules():
            twin = self._twin(part)
            self._memo[id(part)], self._given[id(twin)] = twin, part
            self._twins.append((name, part, twin))
            for key, held in part.__dict__.items():
                self._find(name if key in _REGISTERED else _under(name, key), held, set())
        for found in self.tensors.values():
            self._memo.setdefault(id(found), found if tensor is None else tensor(found))
        for _, part, twin in self._twins:
            if twin is not part:
                twin.__dict__.update({k: self._copied(v) for k, v in part.__dict__.items()})
                twin.__dict__.update(
                    {k: OrderedDict() for k in _ON_GRADIENTS if k in twin.__dict__}
                )
        self.module: nn.Module = self._memo[id(model)]

    @staticmethod
    def _twin(part: nn.Module) -> nn.Module:
        if isinstance(part, torch.jit.ScriptModule):
            return part  # A ScriptModule keeps its state outside of Python.
        twin: nn.Module = object.__new__(type(part))
        return twin

    def _find(self, path: str, found: Any, seen: set[int]) -> None:
        """Note the tensors in an attribute."""
        if isinstance(found, torch.Tensor):
            if id(found) not in self._memo:
                self.tensors.setdefault(path, found)
            return
        if isinstance(found, nn.Module) or id(found) in seen:
            return
        seen.add(id(found))
        for key, inner in _items(found):
            self._find(_under(path, key), inner, seen)

    def _copied(self, value: Any) -> Any:
        """A copy of an attribute; one that cannot be copied, such as a lock, is shared."""
        if isinstance(value, torch.fx.Graph):
            return value
        try:
            return copy.deepcopy(value, self._memo)
        except Exception:
            return value

    def original(self, found: Any) -> Any:
        """The given module that a module of the copy was copied from; anything else unchanged."""
        return self._given.get(id(found), found)

    def changed(self) -> dict[str, Any]:
        """The attributes that differ from the given module, with their new values (``None`` if deleted)."""
        found: dict[str, Any] = {}
        seen: set[int] = set()
        for name, part, twin in self._twins:
            if twin is not part:
                self._compare(name, part.__dict__, twin.__dict__, found, seen)
        return found

    def _compare(
        self, path: str, was: Any, now: Any, found: dict[str, Any], seen: set[int]
    ) -> None:
        if was is now or id(now) in seen:
            return
        if isinstance(was, (nn.Module, torch.Tensor)) and self._memo.get(id(was)) is now:
            return
        if type(was) is not type(now) or isinstance(now, (nn.Module, torch.Tensor)):
            found[path] = now
            return
        if isinstance(now, _PLAIN):
            if was != now:
                found[path] = now
            return
        if isinstance(now, np.ndarray):
            if not np.array_equal(was, now):
                found[path] = now
            return
        seen.add(id(now))
        before, after = dict(_items(was)), dict(_items(now))
        for key in [*before, *(k for k in after if k not in before)]:
            if key in _ON_GRADIENTS:
                continue
            inner = path if key in _REGISTERED else _under(path, key)
            if key in before and key in after:
                self._compare(inner, before[key], after[key], found, seen)
            else:
                found[inner] = after.get(key)


_REGISTERED = ("_parameters", "_buffers", "_modules")
_ON_GRADIENTS = ("_backward_hooks", "_backward_pre_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def _under(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _items(found: Any) -> Iterable[tuple[Any, Any]]:
    """What a container or an object of a class of Python's own holds, by key."""
    if isinstance(found, dict):
        return list(found.items())
    if isinstance(found, (list, tuple, deque)):
        return list(enumerate(found))
    if isinstance(found, (set, frozenset)):
        # By hash: there is no order, and nothing in a set has a name.
        return [(hash(x), x) for x in found]
    if isinstance(found, MethodType):
        return [("self", found.__self__)]
    if isinstance(found, (type, FunctionType, torch.fx.Graph, torch.fx.Node, torch.fx.Proxy)):
        return []
    return list(getattr(found, "__dict__", {}).items())


@contextmanager
def containers_kept(module: nn.Module) -> Iterator[Callable[[], dict[str, Any]]]:
    """Restore the dicts and lists outside of a module that its hooks and ``forward``, or those of its parts, change.

    A hook that records activations would otherwise leave proxies and fake tensors in the caller's own dict.

    Yields:
        What tells those that are not as they were.
    """
    held: dict[int, tuple[Any, Any]] = {}
    for part in module.modules():
        for function in _functions(part):
            for found in _surroundings(function):
                held.setdefault(id(found), (found, copy.copy(found)))

    def changed() -> dict[str, Any]:
        names = (
            (f"a {type(found).__name__} outside of it", found)
            for found, saved in held.values()
            if _differs(found, saved)
        )
        return dict(names)

    try:
        yield changed
    finally:
        for found, saved in held.values():
            if _differs(found, saved):
                found.clear()
                (found.extend if isinstance(found, (list, deque)) else found.update)(saved)


def _differs(found: Any, saved: Any) -> bool:
    if isinstance(found, set):
        return bool(found != saved)
    now, was = list(_items(found)), list(_items(saved))
    pairs = zip(now, was, strict=False)
    in_order = isinstance(found, (list, deque))
    return len(now) != len(was) or any(
        (not in_order and a is not c) or b is not d for (a, b), (c, d) in pairs
    )


def _functions(part: nn.Module) -> Iterator[Any]:
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        yield from part.__dict__.get(name, {}).values()
    if not type(part).__module__.startswith("torch."):
        yield part.forward


def _surroundings(function: Any) -> Iterator[Any]:
    """The dicts, lists and sets that a function finds in its closure, in its object and, by name, among its globals."""
    if isinstance(function, partial):
        yield from (x for x in (*function.args, *function.keywords.values()) if _container(x))
        function = function.func
    if not isinstance(function, FunctionType):
        keeper = getattr(
            function, "__self__", function
        )  # Of a method; else an object that is called.
        own = getattr(keeper, "__dict__", {})
        if not isinstance(keeper, nn.Module):
            yield from (x for x in (own, *own.values()) if _container(x))
        function = getattr(function, "__func__", None)
    if not isinstance(function, FunctionType):
        return
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # Not filled yet.
            if _container(cell.cell_contents):
                yield cell.cell_contents
    codes: list[CodeType] = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        known = (function.__globals__.get(name) for name in code.co_names)
        yield from (x for x in known if _container(x))


def _container(found: Any) -> bool:
    return isinstance(found, (dict, list, set, deque))
