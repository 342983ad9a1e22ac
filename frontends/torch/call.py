"""One torch call, as the rule of its function sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ...hosts.torch.calls import by_name
from ...ir import Opaque, TensorType, Value
from ...ir.analysis.sizes import Place, SizeRoots
from ..support import LeftAlone
from .runs import Runs, Sizes


@dataclass(frozen=True)
class Free:
    """A size that the next call may change: that of the batch axis, or a symbol.

    Attributes:
        value: Its value for the example inputs, or the symbol.
        asked: The host node that was asked, and its axis, where the size is exactly that of an axis.
        place: The earliest axis that has this size, once it is read.
        runs: The number in all runs, for the example inputs and for others; empty if that is not known.
    """

    value: int | float | str
    asked: tuple[str, int] | None = None
    place: Place | None = None
    runs: Sizes = ()


@dataclass(frozen=True)
class Followed(Free):
    """A whole number that follows another axis of the inputs than that of batches.

    Rules that only shape tensors may take its value (:meth:`Call.shaping`): their call is copied with its own sizes, for as long
    as no pass rewrites it. Arithmetic may not, since its numbers become part of weights.
    """


@dataclass
class Call:
    """One call, with values in place of tensors.

    Attributes:
        args: Arguments by place.
        kwargs: Arguments by name.
        roots: What is known of the sizes of values.
        example: Whether sizes of values are those of example inputs, whose first axis may be longer the next time.
        name: The plain name of the function.
        aten: Whether ATen is called itself, whose arguments may mean something else.
        module: The module that is called, if one is.
        tensors: Returns the module's own tensors by name.
        runs: The sizes of values for other inputs.
        baked: The numbers for the example inputs that the rule used; filled by :meth:`shaping`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    roots: SizeRoots = field(default_factory=SizeRoots, repr=False, compare=False)
    example: bool = False
    name: str = ""
    aten: bool = False
    module: nn.Module | None = None
    tensors: Callable[[str], Value | None] | None = field(default=None, repr=False, compare=False)
    runs: Runs = field(default_factory=Runs, repr=False, compare=False)
    baked: list[Followed] = field(default_factory=list, repr=False, compare=False)

    def shaping(self, found: Any) -> Any:
        """Sizes that shape a tensor, with their numbers for the example inputs."""
        if isinstance(found, (list, tuple)):
            return [self.shaping(f) for f in found]
        if not isinstance(found, Followed):
            return found
        self.baked.append(found)
        return found.value

    def same_size(self, x: Value, axis: int, size: Free) -> bool:
        """Whether an axis has this size, whatever the inputs are."""
        seen = self.runs.sizes(x.host, axis) if isinstance(x.host, str) else None
        if isinstance(size, Followed) or (seen is not None and len(seen) == len(size.runs)):
            return seen == size.runs
        return x.type.shape is not None and x.type.shape[axis] == size.value

    def again(self, *args: Any, **kwargs: Any) -> Call:
        """The same call with other arguments."""
        return replace(self, args=args, kwargs=kwargs)

    def inside(self, name: str, module: nn.Module) -> Call:
        """A call of a part of the module with the same arguments."""
        return replace(self, module=module, tensors=lambda own: self.tensor(f"{name}.{own}"))

    def tensor(self, name: str) -> Value | None:
        """A tensor of the module that is called.

        Raises:
            TypeError: If no module is called.
        """
        if self.tensors is None:
            raise TypeError(f"a function has no {name} of its own")
        return self.tensors(name)

    def certain(self, x: Value) -> TensorType:
        """The type of a value; a batch size that only the example inputs have is left open."""
        if not self.example or not x.type.shape:
            return x.type
        source, axis = self.roots.root(x, 0)
        opaque = source.producer is None or isinstance(source.producer.op, Opaque)
        free = source.data is None and opaque and axis == 0
        return x.type.with_shape((None, *x.type.shape[1:])) if free else x.type

    def bounded(self, x: Value) -> TensorType:
        """The type of a value; sizes that other inputs would change are left open."""
        certain, name = self.certain(x), x.host
        if not isinstance(name, str) or not certain.shape:
            return certain
        sizes = enumerate(certain.shape)
        return certain.with_shape(
            tuple(None if self.runs.follows(name, axis) else size for axis, size in sizes)
        )

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        if place < len(self.args):
            return self.args[place]
        return by_name(self.kwargs, name, default)

    def value(self, place: int, name: str = "input") -> Value:
        """An argument that must be a tensor.

        Raises:
            TypeError: If it is not; the call then stays opaque.
        """
        found = self.get(place, name)
        if not isinstance(found, Value):
            raise TypeError(f"argument {name} is no tensor")
        return found

    def ints(self, place: int, name: str, default: Any, n: int) -> tuple[int, ...]:
        """``n`` integers, one repeated where only one is given.

        Raises:
            TypeError: If they are not known integers.
        """
        return ints(self.get(place, name, default), n)


def ints(found: Any, n: int) -> tuple[int, ...]:
    """``n`` integers, one repeated where only one is given.

    Raises:
        TypeError: If they are not known integers.
    """
    if isinstance(found, int) and not isinstance(found, bool):
        return (found,) * n
    if not isinstance(found, (list, tuple)) or not all(type(d) is int for d in found):
        raise TypeError(f"{found!r} is not {n} integers")
    return tuple(found) * n if len(found) == 1 else tuple(found)


def flattened(call: Call, place: int, name: str) -> Any:
    """Arguments that may be given as one list or one by one: ``permute(x, 0, 1)`` or ``permute(x, (0, 1))``."""
    found = call.args[place:] if len(call.args) > place + 1 else (call.get(place, name),)
    return found[0] if len(found) == 1 and isinstance(found[0], (list, tuple)) else found


def ranked(call: Call) -> tuple[Value, int]:
    """The first argument and its number of axes.

    Raises:
        LeftAlone: If it is not known.
    """
    x = call.value(0)
    if x.type.rank is None:
        raise LeftAlone("the number of axes of its input is not known")
    return x, x.type.rank
