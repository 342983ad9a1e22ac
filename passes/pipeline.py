"""Pipelines: passes in order, their text form, and running them under observers."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Protocol

from ..ir import Exactness, Graph, GraphshrinkError, Refusal, Rewrite, Rewriter
from ..ir.errors import read_number
from .base import (
    Context,
    FunctionPass,
    Pass,
    PassError,
    nearest,
    option_fields,
    option_text,
    pass_class,
)

PassLike = str | Pass | type[Pass] | Callable[[Graph, Rewriter], None]
"""What may stand in a pipeline: text, a pass, its class, or a function ``(graph, rewriter)``."""


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        text: The pass with its options, as a pipeline text spells it.
        rewrites: What it changed.
        refusals: What it considered and left alone, with the reason.
        exactness: The weakest promise among its rewrites.
        seconds: How long it took (set by the Timing observer).
        error: The largest output error against the graph before the pass, relative to the largest
            output (set by the Check observer).
        rolled_back: True when the Check observer undid it.
        problem: Why it was undone, else empty.
    """

    text: str
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    exactness: Exactness = Exactness.EXACT
    seconds: float | None = None
    error: float | None = None
    rolled_back: bool = False
    problem: str = ""


class Observer(Protocol):
    """Sees a graph before and after every pass."""

    def before(self, step: Pass, graph: Graph) -> None:
        """Called before ``step`` runs."""

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Called after ``step`` ran; may raise, or change the graph back."""


class Pipeline:
    """Passes in order.

    Args:
        steps: Passes, classes, functions, and texts such as ``"merge-linear{max-kernel=5},prune-dead"``.

    Raises:
        PassError: If a text names an unknown pass or option.
    """

    def __init__(self, steps: PassLike | Pipeline | Iterable[PassLike | Pipeline] = ()) -> None:
        self.passes: tuple[Pass, ...] = tuple(_flatten(steps))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from its text; ``str(pipeline)`` gives the text back.

        Raises:
            PassError: If the text is malformed or names an unknown pass or option.
        """
        return cls(text)

    def run(
        self, graph: Graph, ctx: Context | None = None, observers: Sequence[Observer] = ()
    ) -> list[PassRecord]:
        """Run the passes on ``graph``, in place.

        ``Verify`` and, where the host can be asked, ``Writable`` watch before any observers that are given.

        Returns:
            One record for each pass.

        Raises:
            PassError: If a pass leaves the graph broken or raises; the message names the pass.
        """
        from .observers import Check, Timing, Verify, Writable

        ctx = ctx or Context()
        # Called inwards before a pass and outwards after it: clocks are next to the pass, and nothing
        # else looks at a graph that is not verified.
        watching: list[Observer] = [Verify(), *observers]
        if ctx.unwritable is not None:
            # A check runs what was written, and so sees for itself what cannot be.
            checked = any(isinstance(observer, Check) for observer in observers)
            watching.insert(1, Writable(ctx.unwritable, leave_to_check=checked))
        watching.sort(key=lambda observer: not isinstance(observer, Timing))
        records = []
        for step in self.passes:
            for observer in reversed(watching):
                observer.before(step, graph)
            rw = Rewriter(graph, exactness=step.exactness)
            if ctx.unwritable is not None:
                rw.unwritable = ctx.unwritable
            try:
                step.run(graph, rw, ctx)
            except (PassError, MemoryError):
                raise
            except Exception as error:
                said = str(error) or type(error).__name__
                kind = "" if isinstance(error, GraphshrinkError) else f"{type(error).__name__}: "
                raise PassError(f"pass {step} failed: {kind}{said}") from error
            record = PassRecord(str(step), rw.rewrites, rw.refusals, rw.worst)
            for observer in watching:
                observer.after(step, graph, record)
            records.append(record)
        return records

    def __add__(self, other: Pipeline | PassLike) -> Pipeline:
        return Pipeline([*self.passes, *Pipeline(other).passes])

    def __len__(self) -> int:
        return len(self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __repr__(self) -> str:
        return f"Pipeline({str(self)!r})"


def _flatten(steps: Any) -> list[Pass]:
    if isinstance(steps, str):
        return [_parse_pass(item) for item in _split(steps, steps)]
    if isinstance(steps, Pipeline):
        return list(steps.passes)
    if isinstance(steps, Pass):
        _check_finite(steps)
        return [steps]
    if isinstance(steps, type):
        if not issubclass(steps, Pass):
            raise PassError(f"{steps.__name__} is not a Pass")
        return [steps()]
    if callable(steps):
        return [FunctionPass(steps)]
    if isinstance(steps, Iterable):
        return [step for item in steps for step in _flatten(item)]
    raise PassError(f"{steps!r} is not a pass, a pipeline, a text or a function")


def _check_finite(step: Pass) -> None:
    """Refuse options that are infinite or no number, which text cannot spell either."""
    for option in option_fields(type(step)):
        value = getattr(step, option.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                name = option.name.replace("_", "-")
                raise PassError(f"pass {step.name!r}: option {name!r} takes no {number}")


def _split(text: str, whole: str) -> list[str]:
    """Cut at commas that stand outside braces, brackets and quotes."""
    items, depth, quoted, escaped, start = [], 0, False, False, 0
    for i, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
        if depth < 0:
            break
    if depth or quoted:
        raise PassError(f"pipeline text {whole!r}: braces or quotes do not match")
    items.append(text[start:])
    stripped = [item.strip() for item in items]
    if stripped == [""]:
        return []
    if "" in stripped:
        raise PassError(f"pipeline text {whole!r} has an empty entry between commas")
    return stripped


def _parse_pass(text: str) -> Pass:
    found = re.fullmatch(r"([^\s{}=,]+)\s*(?:\{(.*)\})?", text, re.DOTALL)
    if found is None:
        raise PassError(f"{text!r} is not a pass; write name or name{{option=value,...}}")
    cls = pass_class(found[1])
    options = {f.name.replace("_", "-"): f for f in option_fields(cls)}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in _split(found[2] or "", text):
        key, equals, word = (part.strip() for part in item.partition("="))
        if key not in options:
            raise PassError(f"pass {cls.name!r} has no option {key!r}{nearest(key, list(options))}")
        name = options[key].name
        if name in values:
            raise PassError(f"pass {cls.name!r}: option {key!r} is given twice")
        if not equals:
            word = "true"
        try:
            values[name] = _convert(word, hints[name])
        except ValueError:
            shown = getattr(hints[name], "__name__", str(hints[name]))
            hint = "; numbers are finite and in plain digits" if _is_odd_number(word) else ""
            raise PassError(
                f"pass {cls.name!r}: option {key!r} takes {shown}, not {word!r}{hint}"
            ) from None
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise PassError(f"pass {cls.name!r}: {error}") from error


def _is_odd_number(word: str) -> bool:
    """Whether Python would take a word for a number that options do not take."""
    try:
        float(word)
    except ValueError:
        return False
    return not word.isascii() or not math.isfinite(float(word)) or "_" in word


def _convert(word: str, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        # Anything is a string: try what is narrower first.
        for option in sorted(typing.get_args(hint), key=lambda option: option is str):
            try:
                return _convert(word, option)
            except ValueError:
                continue
        raise ValueError(word)
    if origin is typing.Literal:
        for option in typing.get_args(hint):
            if word in (option, option_text(option)):
                return option
        raise ValueError(word)
    if origin is tuple:
        if not (word.startswith("[") and word.endswith("]")):
            raise ValueError(word)
        return tuple(_convert(w, typing.get_args(hint)[0]) for w in _split(word[1:-1], word))
    if hint is type(None):
        if word != "None":
            raise ValueError(word)
        return None
    if hint is bool:
        if word not in ("true", "false"):
            raise ValueError(word)
        return word == "true"
    if hint in (int, float):
        return read_number(word, hint)
    if word.startswith('"') and word.endswith('"') and len(word) > 1:
        return re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL)
    return word
