"""The pass contract, the context that passes ask things of, and the registry."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from ...ir import Exactness, Graph, GraphshrinkError, Node, Rewriter
from ..statistics.requests import Calibration

ENTRY_POINTS = "graphshrink.passes"
"""The entry point group that other packages publish passes under."""


class PassError(GraphshrinkError, ValueError):
    """A pass, an option or a pipeline text is wrong; the message names it and the remedy."""


@dataclass
class Context:
    """What a pass may ask for.

    Attributes:
        seed: The seed that ``rng`` starts from.
        target: What the graph will be emitted for: ``"fx"``, or the name of a target, such as ``"onnx"``.
        progress: Called with (done, total, what) by long passes.
        calibration: Calibration data and the statistics computed from it; ``None`` without such data.
        unwritable: Why the host cannot write a node, or ``None``. A node that was not changed is never asked about; without
            this function nothing is.
    """

    seed: int = 0
    target: str = "onnx"
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    calibration: Calibration | None = None
    unwritable: Callable[[Node], str | None] | None = None
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)


class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses; their fields are the options.

    Attributes:
        name: The name in pipeline texts: lower case, words joined by hyphens.
        exactness: The promise for every input of the whole pass.
        asks_first: The pass makes no node without asking ``Rewriter.unwritable`` (or makes none at all), so that no copy
            of the graph is kept in case of one that cannot be written.
    """

    name: ClassVar[str] = ""
    asks_first: ClassVar[bool] = False
    exactness: ClassVar[Exactness] = Exactness.EXACT

    @abstractmethod
    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Rewrite ``graph`` through ``rw``."""

    def __str__(self) -> str:
        options: list[str] = []
        for f in option_fields(type(self)):
            value = getattr(self, f.name)
            if value != f.default:
                options.append(f"{f.name.replace('_', '-')}={option_text(value)}")
        return f"{self.name}{{{','.join(options)}}}" if options else self.name


class FunctionPass(Pass):
    """A plain function ``(graph, rewriter)`` as a pass.

    Nobody has said how exact it is, so it counts as approximate.
    """

    exactness = Exactness.APPROXIMATE

    def __init__(self, function: Callable[[Graph, Rewriter], None]) -> None:
        self.function = function
        word = getattr(function, "__name__", "function").strip("<>_")
        self.title = word.replace("_", "-")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function's name, spelled as a pass name."""
        return self.title

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        self.function(graph, rw)


def option_fields(cls: type[Pass]) -> tuple[Field[Any], ...]:
    """The dataclass fields that are a pass's options."""
    return fields(cls) if is_dataclass(cls) else ()


def option_text(value: Any) -> str:
    """An option's value as pipeline texts spell it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{','.join(option_text(v) for v in value)}]"
    text = str(value)
    # A word that would be read as something else than a word is quoted too.
    plain = re.fullmatch(r"[^\s,{}\[\]\"\\=]+", text) and not (
        isinstance(value, str) and re.fullmatch(r"None|true|false|[-+]?(\d.*|\.\d.*|inf|nan)", text)
    )
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_REGISTRY: dict[str, type[Pass]] = {}
_published: dict[str, Any] | None = None


def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass known by its name (use as a decorator).

    Raises:
        PassError: If the name is malformed or already taken by another class.
    """
    name = cls.name
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PassError(f"{cls.__qualname__}: {name!r} is no pass name (words-joined-by-hyphens)")
    taken = _REGISTRY.get(name)
    if taken is not None and taken is not cls:
        raise PassError(
            f"the pass name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; "
            f"rename {cls.__module__}.{cls.__qualname__}"
        )
    _REGISTRY[name] = cls
    return cls


def _entry_points() -> dict[str, Any]:
    """Entry points by pass name, read once."""
    global _published
    if _published is None:
        from importlib.metadata import entry_points

        _published = {}
        for point in entry_points(group=ENTRY_POINTS):
            other = _published.get(point.name)
            cls = _REGISTRY.get(point.name)
            owner = f"{cls.__module__}:{cls.__qualname__}" if cls else other and other.value
            # A package may both decorate its class and publish it; that is one pass.
            if owner is not None and owner != point.value:
                raise PassError(
                    f"the pass name {point.name!r} is published by {point.value} "
                    f"but taken by {owner}; uninstall one of them"
                )
            _published[point.name] = point
    return _published


def known_passes() -> dict[str, type[Pass]]:
    """All passes by name: ours, registered ones, and those of installed packages."""
    for name in _entry_points():
        pass_class(name)
    return dict(sorted(_REGISTRY.items()))


def pass_class(name: str) -> type[Pass]:
    """The pass of this name.

    Raises:
        PassError: If there is none (the nearest name is suggested), or its package does not load.
    """
    found = _REGISTRY.get(name)
    if found is not None:
        return found
    point = _entry_points().get(name)
    if point is not None:
        try:
            loaded = point.load()
        except Exception as error:
            raise PassError(f"pass {name!r} ({point.value}) does not load: {error}") from error
        if not isinstance(loaded, type) and callable(loaded):
            loaded = _class_of_function(name, loaded)
        if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
            raise PassError(f"pass {name!r} ({point.value}) is not a Pass or a function")
        if loaded.name != name:
            raise PassError(f"entry point {name!r} ({point.value}) names itself {loaded.name!r}")
        return register(loaded)
    raise PassError(f"unknown pass {name!r}{nearest(name, [*_REGISTRY, *_entry_points()])}")


def _class_of_function(name: str, function: Callable[[Graph, Rewriter], None]) -> type[Pass]:
    def run(self: Pass, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        function(graph, rw)

    body = {
        "name": name, "exactness": Exactness.APPROXIMATE, "run": run,
        "__doc__": function.__doc__, "__module__": function.__module__,
    }  # fmt: skip
    return type(getattr(function, "__name__", "Function"), (Pass,), body)


def words(given: str | Sequence[str]) -> tuple[str, ...]:
    """The words of an option that takes one or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def named_nodes(graph: Graph, patterns: str | Sequence[str], what: str) -> set[Node]:
    """The nodes of these names.

    Args:
        graph: The graph.
        patterns: Names, or patterns with ``*`` and ``?``.
        what: Whose option it is, for the error.

    Raises:
        PassError: If a pattern stands for nothing.
    """
    found: set[Node] = set()
    for pattern in words(patterns):
        hits = [n for n in graph.nodes if n.name == pattern or fnmatchcase(n.name, pattern)]
        if not hits:
            near = nearest(pattern, sorted({n.name for n in graph.nodes}))
            raise PassError(f"{what}: no node is named {pattern!r}{near}")
        found.update(hits)
    return found


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean ...?"`` or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}" if known else "; there are none"
