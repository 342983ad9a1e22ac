"""Optimization profiles: the smallest, the usual and the largest size of each free dimension of the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...hosts.onnx.types import type_of
from ...ir import Shape, UsageError
from ...ir.errors import read_number
from .draft import Draft

Sizes = tuple[int, ...]

FORM = "NAME:min:opt:max, such as x:1x3x224x224:8x3x224x224:32x3x224x224"


@dataclass(frozen=True)
class Profile:
    """The sizes that an input may have.

    Attributes:
        name: The name of the input.
        min: The smallest sizes.
        opt: The sizes that TensorRT optimises for.
        max: The largest sizes.
    """

    name: str
    min: Sizes
    opt: Sizes
    max: Sizes

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Return the profile of a text; a single shape is used for min, opt and max.

        Raises:
            UsageError: If it is malformed.
        """
        parts = text.split(":")
        # Names may contain colons, shapes do not.
        count = 3 if len(parts) >= 4 else 1
        try:
            name = ":".join(parts[:-count])
            shapes = [tuple(_size(d) for d in part.split("x")) for part in parts[-count:]]
        except ValueError:
            name, shapes = "", []
        if not name or any(d < 0 for shape in shapes for d in shape):
            raise UsageError(f"profile {text!r} is not {FORM} (or one shape for all three)")
        low, usual, high = shapes if count == 3 else shapes * 3
        return cls(name, low, usual, high)

    def __str__(self) -> str:
        return ":".join([self.name, *map(format_sizes, (self.min, self.opt, self.max))])


def _size(text: str) -> int:
    """Return one size; TensorRT stores sizes in 32 bits."""
    size = int(read_number(text, int))
    if size >= 1 << 31:
        raise ValueError(text)
    return size


def format_sizes(sizes: Iterable[object]) -> str:
    """Return sizes as text: ``1x3x224x224``."""
    return "x".join(map(str, sizes))


def input_shapes(draft: Draft) -> dict[str, Shape | None]:
    """Return the shapes that a model states for its inputs, without initializers that are listed as inputs."""
    constants = {p.name for p in draft.model.graph.initializer}
    return {
        v.name: type_of(v.type).shape for v in draft.model.graph.input if v.name not in constants
    }


def parse_profiles(draft: Draft, given: Iterable[str]) -> list[Profile]:
    """Return the profiles of inputs, checked against the shapes that the model states.

    Args:
        draft: The model.
        given: The texts of profiles.

    Raises:
        UsageError: If a profile is malformed, names no input, does not fit its input, contradicts another profile, or is missing.
    """
    shapes = input_shapes(draft)
    found: dict[str, Profile] = {}
    for text in given:
        profile = Profile.parse(text)
        if profile.name not in shapes:
            raise UsageError(
                f"profile {text!r}: the model has no input {profile.name!r}; "
                f"its inputs are {', '.join(shapes)}"
            )
        if profile.name in found:
            raise UsageError(f"two profiles are given for input {profile.name!r}")
        _check_fit(profile, shapes[profile.name])
        found[profile.name] = profile
    _check_symbols(found, shapes)
    free = [n for n, shape in shapes.items() if n not in found and not _static(shape)]
    if free:
        raise UsageError(
            f"TensorRT needs the range of sizes of each input, and {', '.join(free)} "
            f"{'has' if len(free) == 1 else 'have'} free sizes: give "
            + " ".join(f"--profile {_example(name, shapes[name])}" for name in free)
        )
    return [found[name] for name in shapes if name in found]


def _static(shape: Shape | None) -> bool:
    return shape is not None and all(isinstance(d, int) for d in shape)


def _check_fit(profile: Profile, shape: Shape | None) -> None:
    bounds = (profile.min, profile.opt, profile.max)
    if len({len(b) for b in bounds}) > 1:
        raise UsageError(f"profile {profile}: its three shapes differ in rank")
    if shape is not None and len(shape) != len(profile.min):
        raise UsageError(
            f"profile {profile}: input {profile.name!r} has {len(shape)} {'axis' if len(shape) == 1 else 'axes'}, not {len(profile.min)}"
        )
    for axis, sizes in enumerate(zip(*bounds, strict=True)):
        wanted = None if shape is None else shape[axis]
        if isinstance(wanted, int) and set(sizes) != {wanted}:
            raise UsageError(
                f"profile {profile}: axis {axis} of input {profile.name!r} is {wanted}, not "
                f"{next(s for s in sizes if s != wanted)}"
            )
        if not sizes[0] <= sizes[1] <= sizes[2]:
            raise UsageError(f"profile {profile}: axis {axis} is not min <= opt <= max")


def _check_symbols(found: Mapping[str, Profile], shapes: Mapping[str, Shape | None]) -> None:
    """Check that a symbol has the same sizes in all profiles."""
    known: dict[str, tuple[str, Sizes]] = {}
    for name, profile in found.items():
        for axis, dim in enumerate(shapes[name] or ()):
            sizes = (profile.min[axis], profile.opt[axis], profile.max[axis])
            if not isinstance(dim, str):
                continue
            other, before = known.setdefault(dim, (name, sizes))
            if before != sizes:
                raise UsageError(
                    f"profiles of {other!r} and {name!r} give {dim} different sizes: "
                    f"{format_sizes(before)} and {format_sizes(sizes)}"
                )


def _example(name: str, shape: Shape | None) -> str:
    if shape is None:
        return f"{name}:1x3x224x224:8x3x224x224:32x3x224x224"
    bounds = [format_sizes(d if isinstance(d, int) else size for d in shape) for size in (1, 8, 32)]
    return ":".join([name, *bounds])
