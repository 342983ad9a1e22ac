"""The text form of pipelines: ``fold-constants,merge-linear{max-kernel=5}``."""

from __future__ import annotations

import math
import re
import typing
from types import UnionType
from typing import Any

from ...ir.errors import read_number
from .contract import (
    Pass,
    PassError,
    nearest,
    option_fields,
    option_text,
    pass_class,
)


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
