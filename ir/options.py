"""Options of passes and targets: the fields of a frozen dataclass.

An option is declared once, as a field: the annotation gives its type, its choices (``Literal``) and its bounds
(``Annotated[int, Bounds(at_least=2)]``), the field gives its default, and the ``Attributes`` section of the class's
docstring gives its help. Pipeline text, Python calls, the command line and ``graphshrink passes`` all use this
declaration. In text, options are written ``name{first-option=1,items=[a,b]}``.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any
from weakref import WeakKeyDictionary

from .errors import read_number


class OptionError(ValueError):
    """An option is unknown, or its value has the wrong type, is none of the choices or is out of bounds."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a number, as an annotation: ``Annotated[int, Bounds(at_least=2)]``.

    Attributes:
        at_least: The smallest allowed value.
        above: An exclusive lower limit.
        at_most: The largest allowed value.
        below: An exclusive upper limit.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str:
        """The limits that a value violates, as ``"must be at least 2"``; empty if it violates none."""
        holds = (
            self.at_least is None or value >= self.at_least,
            self.above is None or value > self.above,
            self.at_most is None or value <= self.at_most,
            self.below is None or value < self.below,
        )
        return "" if all(holds) else f"must be {self}"

    def __str__(self) -> str:
        limits = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclass(frozen=True)
class Metavar:
    """How help texts show a value, as an annotation: ``Annotated[str, Metavar("NAME:1x3x224x224")]``.

    Attributes:
        text: The form of the value.
    """

    text: str


class PythonOnly:
    """An annotation: the option exists in Python only, not in text and not on the command line."""


@dataclass(frozen=True)
class Option:
    """One option of a pass or a target.

    Attributes:
        field: The name of the field.
        hint: The annotation of the field.
        default: The default; ``dataclasses.MISSING`` if there is none.
        help: The help text, one line.
    """

    field: str
    hint: Any
    default: Any
    help: str

    @property
    def name(self) -> str:
        """The name in text: ``max-kernel`` for ``max_kernel``."""
        return self.field.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values, for an option with choices; else empty."""
        plain, _ = _unwrap(self.hint)
        return typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()

    @property
    def python_only(self) -> bool:
        """Whether the option exists in Python only."""
        return any(isinstance(m, PythonOnly) or m is PythonOnly for m in _unwrap(self.hint)[1])

    @property
    def metavar(self) -> str:
        """How help texts show a value: ``"refuse|cast"``, ``"NAME"``, ``"INT"``."""
        plain, extra = _unwrap(self.hint)
        for given in extra:
            if isinstance(given, Metavar):
                return given.text
        if self.choices:
            return "|".join(option_text(c) for c in self.choices)
        names = {int: "INT", float: "NUMBER", str: "TEXT"}
        return names.get(plain, "VALUE")

    @property
    def takes(self) -> str:
        """The allowed values as text: ``"int, at least 2"``, ``"one of refuse, pad"``."""
        return _hint_text(self.hint)


_KNOWN: WeakKeyDictionary[type, tuple[Option, ...]] = WeakKeyDictionary()


def options_of(cls: type) -> tuple[Option, ...]:
    """The options of a dataclass, in order of definition; empty for other classes."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _read_options(cls)
    return _KNOWN[cls]


def _read_options(cls: Any) -> tuple[Option, ...]:
    if not is_dataclass(cls):
        return ()
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # The class is defined in a function, and its annotations name local classes.
        hints = {f.name: f.type for f in fields(cls)}
    help_texts = _attribute_docs(inspect.getdoc(cls) or "")
    return tuple(
        Option(f.name, hints[f.name], f.default, help_texts.get(f.name, ""))
        for f in fields(cls)
        if f.init
    )


def _attribute_docs(doc: str) -> dict[str, str]:
    """The description of each attribute in a Google-style docstring, each joined to one line."""
    _, _, section = doc.partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r"    (\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("     "):
            found[name] += f" {line.strip()}"
        else:
            break
    return found


def check_options(instance: Any, owner: str) -> None:
    """Check the values of all options of an instance; lists become tuples, so that it stays hashable.

    Values of fields with other annotations (classes, callables) are not checked.

    Args:
        instance: The instance of a dataclass.
        owner: The pass or target, for errors: ``"pass 'pivot'"``.

    Raises:
        OptionError: If a value has the wrong type, is none of the choices or is out of bounds.
    """
    for option in options_of(type(instance)):
        value = getattr(instance, option.field)
        try:
            checked = _checked(value, option.hint)
        except _OutOfBounds as error:
            text = f"option {option.name!r} {error}, not {option_text(value)}"
            raise OptionError(f"{owner}: {text}") from None
        except TypeError:
            raise OptionError(f"{owner}: {_refusal(option, value)}") from None
        if checked is not value:
            object.__setattr__(instance, option.field, checked)


def parse_options(cls: type, texts: Sequence[tuple[str, str]], owner: str) -> dict[str, Any]:
    """Parse options given as text.

    Args:
        cls: The dataclass that declares the options.
        texts: Pairs of option name (``max-kernel``) and text of the value.
        owner: The pass or target, for errors: ``"pass 'pivot'"``.

    Returns:
        The values by field name.

    Raises:
        OptionError: If a name is unknown or given twice, or a text does not fit the type.
    """
    known = {o.name: o for o in options_of(cls) if not o.python_only}
    values: dict[str, Any] = {}
    for key, text in texts:
        if key not in known:
            raise OptionError(f"{owner} has no option {key!r}{suggestion(key, list(known))}")
        option = known[key]
        if option.field in values:
            raise OptionError(f"{owner}: option {key!r} is given twice")
        try:
            values[option.field] = parse_value(text, option.hint)
        except ValueError:
            raise OptionError(f"{owner}: {_refusal(option, text)}") from None
    return values


def parse_value(text: str, hint: Any) -> Any:
    """Parse a value of an annotated type.

    Raises:
        ValueError: If the text does not fit the annotation.
    """
    hint, _ = _unwrap(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        # Every text is a str: try the other types first.
        for part in sorted(typing.get_args(hint), key=lambda part: part is str):
            try:
                return parse_value(text, part)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if text in (choice, option_text(choice)):
                return choice
        raise ValueError(text)
    if origin is tuple:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError(text)
        return tuple(
            parse_value(t, typing.get_args(hint)[0]) for t in split_items(text[1:-1], text)
        )
    if hint is type(None):
        if text != "None":
            raise ValueError(text)
        return None
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    if hint in (int, float):
        return read_number(text, hint)
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text


def option_text(value: Any) -> str:
    """The text form of an option's value, which :func:`parse_value` reads back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{','.join(option_text(v) for v in value)}]"
    text = str(value)
    # Strings that would be read as None, a bool or a number are quoted too.
    plain = re.fullmatch(r"[^\s,{}\[\]\"\\=]+", text) and not (
        isinstance(value, str) and re.fullmatch(r"None|true|false|[-+]?(\d.*|\.\d.*|inf|nan)", text)
    )
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def options_text(instance: Any) -> str:
    """The text form ``{a=1,b=[x,y]}`` of an instance's options that differ from their defaults; empty if none does."""
    changed = [
        f"{o.name}={option_text(getattr(instance, o.field))}"
        for o in options_of(type(instance))
        if getattr(instance, o.field) != o.default
    ]
    return f"{{{','.join(changed)}}}" if changed else ""


def split_items(text: str, whole: str) -> list[str]:
    """Split a text at the commas outside braces, brackets and quotes.

    Args:
        text: The text to split.
        whole: The text that it is part of, for the error.

    Raises:
        OptionError: If braces or quotes do not match, or if an item is empty.
    """
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
        raise OptionError(f"{whole!r}: braces or quotes do not match")
    items.append(text[start:])
    stripped = [item.strip() for item in items]
    if stripped == [""]:
        return []
    if "" in stripped:
        raise OptionError(f"{whole!r} has an empty entry between commas")
    return stripped


def split_named(text: str) -> tuple[str, str | None]:
    """Split ``name{...}`` into the name and the text in braces, ``None`` if there are no braces.

    Raises:
        OptionError: If the text is neither ``name`` nor ``name{...}``.
    """
    found = re.fullmatch(r"([^\s{}=,]+)\s*(?:\{(.*)\})?", text, re.DOTALL)
    if found is None:
        raise OptionError(f"{text!r} is neither name nor name{{option=value,...}}")
    return found[1], found[2]


def option_pairs(text: str, whole: str) -> list[tuple[str, str]]:
    """Split ``a=1,b`` into pairs of name and text of the value; an option without a value is ``true``.

    Args:
        text: The text to split.
        whole: The text that it is part of, for the error.

    Raises:
        OptionError: If braces or quotes do not match, or if an item is empty.
    """
    pairs = []
    for item in split_items(text, whole):
        key, equals, value = (part.strip() for part in item.partition("="))
        pairs.append((key, value if equals else "true"))
    return pairs


def suggestion(word: str, known: Sequence[str]) -> str:
    """The end of an error about an unknown word: the most similar known word, or a list of all known words."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}" if known else "; there are none"


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type and the metadata of an ``Annotated`` type; any other type without metadata."""
    extra: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return (typing.get_args(hint)[0], extra) if extra else (hint, ())


class _OutOfBounds(ValueError):
    """A number has the right type but a value that is not allowed."""


def _checked(value: Any, hint: Any) -> Any:
    """The value, with lists as tuples, after checks against the annotation.

    Raises:
        TypeError: If it has another type or is none of the choices.
        _OutOfBounds: If it is a number that is not allowed.
    """
    plain, extra = _unwrap(hint)
    origin = typing.get_origin(plain)
    if origin in (typing.Union, UnionType):
        return _checked_union(value, typing.get_args(plain))
    if origin is typing.Literal:
        if not any(type(value) is type(c) and value == c for c in typing.get_args(plain)):
            raise TypeError
    elif origin is tuple and len(typing.get_args(plain)) == 2 and typing.get_args(plain)[1] is ...:
        if not isinstance(value, (tuple, list)):
            raise TypeError
        items = [_checked(v, typing.get_args(plain)[0]) for v in value]
        same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
        return value if same else tuple(items)
    elif plain is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError
        if not math.isfinite(value):
            raise _OutOfBounds("takes finite numbers")
    elif plain is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
    elif plain in (bool, str, type(None)) and not isinstance(value, plain):
        raise TypeError
    for bounds in extra:
        problem = bounds.problem(value) if isinstance(bounds, Bounds) else ""
        if problem:
            raise _OutOfBounds(problem)
    return value


def _checked_union(value: Any, parts: tuple[Any, ...]) -> Any:
    problem: Exception = TypeError()
    for part in parts:
        try:
            return _checked(value, part)
        except TypeError:
            continue
        except _OutOfBounds as error:
            problem = error
    raise problem


def _refusal(option: Option, value: Any) -> str:
    """The error message for a value that an option does not take."""
    hint = ""
    if option.choices and isinstance(value, str):
        close = difflib.get_close_matches(value, [str(c) for c in option.choices], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
    if isinstance(value, str) and _is_unusual_number(value):
        hint = "; numbers are finite and in plain digits"
    verb = "is" if option.choices else "takes"
    return f"option {option.name!r} {verb} {option.takes}, not {value!r}{hint}"


def _is_unusual_number(text: str) -> bool:
    """Whether Python reads a text as a number, but options do not."""
    try:
        number = float(text)
    except ValueError:
        return False
    return not text.isascii() or not math.isfinite(number) or "_" in text


def _hint_text(hint: Any) -> str:
    """The allowed values of an annotation as text."""
    plain, extra = _unwrap(hint)
    origin = typing.get_origin(plain)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(c) for c in typing.get_args(plain))
    if origin in (typing.Union, UnionType):
        return " or ".join(_hint_text(part) for part in typing.get_args(plain))
    if origin is tuple:
        return f"a list of {_hint_text(typing.get_args(plain)[0])}"
    type_name = "None" if plain is type(None) else getattr(plain, "__name__", str(plain))
    bounds = [str(b) for b in extra if isinstance(b, Bounds)]
    return ", ".join([type_name, *bounds])


__all__ = [
    "Bounds", "Metavar", "Option", "OptionError", "PythonOnly", "check_options", "option_pairs", "option_text", "options_of",
    "options_text", "parse_options", "parse_value", "split_items", "split_named", "suggestion",
]  # fmt: skip
