"""The table of targets: choose one, check its options, run it.

A target is a module, ours or one that another package publishes under the entry point group ``graphshrink.targets``, with

- ``Options``: a frozen dataclass; its fields are the target's options (see :mod:`graphshrink.ir.options`), and its constructor
  raises ``UsageError`` for options that contradict each other,
- ``save(graph, path, options, readers)``: writes the files, whole or not at all, and returns a
  :class:`.targets.emitted.Emitted`; ``readers`` (:class:`.targets.emitted.Readers`) can read models again,
- optionally ``Options.beside``: suffixes of further files that the options add,
- optionally ``Options.needs_ranges``: true if the command line should store batches of calibration data in the option ``ranges``,
- optionally ``ready(options)``: raises ``MissingExtra`` before any work if a package is missing,
- in a published module ``SUFFIX``, the suffix of its files, and optionally ``BESIDE``, the suffixes of files written beside the model.

Options are given by name, or in the target's text: ``"tflite{weights=float16}"``. The options of our targets are declared in
:mod:`graphshrink.targets.options`, from which the command line generates its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .ir import Graph, UsageError
from .ir.errors import listed
from .ir.files import check_overwrites
from .ir.options import (
    OptionError,
    check_options,
    option_pairs,
    options_of,
    parse_options,
    split_named,
    suggestion,
)
from .readers import HostReaders
from .targets.emitted import Emitted


@dataclass(frozen=True)
class Target:
    """A kind of file that graphs can be written to.

    Attributes:
        name: The name that ``--target`` and ``save(target=...)`` take.
        suffix: The suffix of its files.
        module: The module that writes it, relative to this package.
        beside: Suffixes of files written beside the model; each replaces the model's suffix.
        defaults: Whether its files can have inputs with a default.
    """

    name: str
    suffix: str
    module: str
    beside: tuple[str, ...] = ()
    defaults: bool = False


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("onnx", ".onnx", ".targets.onnx", defaults=True),
        Target("tensorrt", ".onnx", ".targets.tensorrt", (".trt.json",)),
        Target("tflite", ".tflite", ".targets.tflite"),
        Target("torch", ".pt2", ".targets.torch.program"),
    )
}
"""Our targets by name. Without a name, the first target with the suffix of the file is chosen."""

ENTRY_POINTS = "graphshrink.targets"
"""The entry point group under which other packages publish targets."""


@dataclass(frozen=True)
class Emission:
    """A chosen target, its options, and the file to write.

    Attributes:
        target: The target.
        path: The file to write.
        options: An instance of the target's ``Options``.
    """

    target: Target
    path: Path
    options: Any

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that will be written: the model first, then the files beside it."""
        beside = (*self.target.beside, *getattr(self.options, "beside", ()))
        return (self.path, *(self.path.with_suffix(suffix) for suffix in beside))

    def run(self, graph: Graph) -> Emitted:
        """Write the graph.

        Raises:
            ModelError: If the target cannot express the graph.
            UsageError: If a file cannot be written, or the graph reads its weights from it.
        """
        check_overwrites(self.files, data_files(graph))
        module = _module(self.target)
        if self.target.defaults:
            done: Emitted = module.save(graph, self.path, self.options, HostReaders())
            return done
        graph, held = _without_defaults(graph)
        done = module.save(graph, self.path, self.options, HostReaders())
        if held:
            text = f"inputs that have a default are constants in this file: {listed(held)}"
            done = replace(done, notes=(*done.notes, text))
        return done


def data_files(graph: Graph) -> list[tuple[str, Path]]:
    """The files that a graph reads its weights from, each with a description for errors."""
    model, folder = getattr(graph.host, "model", None), getattr(graph.host, "base_dir", None)
    if model is None or folder is None:
        return []
    from .hosts.onnx.tensors import external_files

    return [("the model's external data", path) for path in external_files(model, folder)]


def _without_defaults(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """The graph and (); if it has inputs with a default, a copy in which these are constants, and their names."""
    model = getattr(graph.host, "model", None)
    if model is None:
        return graph, ()  # Not from ONNX.
    from .frontends.onnx.defaults import defaults
    from .frontends.onnx.importer import with_constant_defaults
    from .targets.onnx.emitter import to_onnx

    held = defaults(model)
    return (with_constant_defaults(graph, to_onnx(graph)) if held else graph), held


def emission(
    path: str | os.PathLike[str],
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Emission:
    """Choose a target and check its options, before any work is done.

    Args:
        path: The file to write.
        target: The target's name, with options in braces if any: ``"tflite{weights=float16}"``; if not given, the suffix
            decides.
        options: The target's options by name.

    Raises:
        UsageError: If the target or the suffix is unknown, or an option is wrong.
        MissingExtra: If the target needs a package that is not installed.
    """
    if "\0" in os.fspath(path):
        raise UsageError(f"cannot write {os.fspath(path)!r}: a path cannot contain a NUL character")
    name, inner = (target, None) if target is None else _split(target)
    chosen = _chosen(Path(path), name)
    module = _module(chosen)
    owner = f"target {chosen.name}"
    try:
        values = parse_options(module.Options, option_pairs(inner or "", str(target)), owner)
        known = [o.field for o in options_of(module.Options)]
        for option, value in (options or {}).items():
            field = option.replace("-", "_")
            if field not in known:
                names = [n.replace("_", "-") for n in known]
                spelled = option.replace("_", "-")
                raise OptionError(f"{owner} has no option {spelled!r}{suggestion(spelled, names)}")
            if field in values:
                raise OptionError(f"{owner}: option {option!r} is given twice")
            values[field] = value
        made = module.Options(**values)
        check_options(made, owner)
    except OptionError as error:
        raise UsageError(str(error)) from None
    if hasattr(module, "ready"):
        module.ready(made)
    return Emission(chosen, Path(path), made)


def known_target(text: str) -> Target:
    """The target that a text names; its options in braces are ignored.

    Raises:
        UsageError: If there is no such target.
    """
    name, _ = _split(text)
    if name in TARGETS:
        return TARGETS[name]
    if name in _published():
        return _published()[name]
    raise UsageError(f"there is no target {name!r}; there are {_listed()}")


def _split(text: str) -> tuple[str, str | None]:
    try:
        return split_named(text)
    except OptionError:
        raise UsageError(
            f"{text!r} is not a target; write name or name{{option=value,...}}"
        ) from None


@cache
def _published() -> dict[str, Target]:
    """The targets of other packages, by name."""
    from importlib.metadata import entry_points

    found: dict[str, Target] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in TARGETS or point.name in found:
            raise UsageError(
                f"the target name {point.name!r}, published by {point.value}, exists already; uninstall one of the packages"
            )
        try:
            module = point.load()
            found[point.name] = Target(
                point.name, module.SUFFIX, point.value, tuple(getattr(module, "BESIDE", ()))
            )
        except Exception as error:
            raise UsageError(
                f"target {point.name!r} ({point.value}) cannot be loaded: {error}"
            ) from error
    return found


def _chosen(path: Path, name: str | None) -> Target:
    if name is None:
        # Packages are only searched if none of our targets has the suffix.
        for known in (TARGETS, _published):
            for target in (known if isinstance(known, dict) else known()).values():
                if path.suffix == target.suffix:
                    return target
        raise UsageError(f"cannot write {path}: only {_listed()} files can be written")
    target = known_target(name)
    if path.suffix != target.suffix:
        raise UsageError(
            f"cannot write {path}: target {name} writes {target.suffix} files; there are {_listed()}"
        )
    return target


def _listed() -> str:
    """All suffixes with their targets, for errors: ``.onnx (onnx, tensorrt)``."""
    names: dict[str, list[str]] = {}
    for target in (*TARGETS.values(), *_published().values()):
        names.setdefault(target.suffix, []).append(target.name)
    return ", ".join(f"{suffix} ({', '.join(found)})" for suffix, found in names.items())


def _module(target: Target) -> ModuleType:
    return import_module(target.module, __package__)
