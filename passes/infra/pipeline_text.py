"""The text form of pipelines: ``fold-constants,repeat{merge-linear{max-kernel=5},prune-dead}``; ``default`` is the default pipeline."""

from __future__ import annotations

from importlib import import_module

from ...ir.options import OptionError, option_pairs, parse_options, split_items, split_named
from .contract import Pass, PassError
from .default import DEFAULT, DEFAULT_PIPELINE
from .registry import pass_class
from .repeat import Group

GROUPS = {"repeat": ("..repeat", "Repeat"), "requantize": ("...quantize.requantize", "Requantize")}
"""The module and class of each group of passes, relative to this module; imported on first use."""


def parse_passes(text: str) -> list[Pass]:
    """The passes of a pipeline text.

    Raises:
        PassError: If the text is malformed, or names an unknown pass or option.
    """
    try:
        items = split_items(text, text)
    except OptionError as error:
        raise PassError(f"pipeline text {error}") from None
    return [made for item in items for made in _parse_item(item)]


def _parse_item(text: str) -> list[Pass]:
    return parse_passes(DEFAULT_PIPELINE) if text.strip() == DEFAULT else [_parse_pass(text)]


def _parse_pass(text: str) -> Pass:
    try:
        name, inner = split_named(text)
    except OptionError:
        raise PassError(f"{text!r} is not a pass; write name or name{{option=value,...}}") from None
    if name in GROUPS:
        group: type[Group] = getattr(import_module(GROUPS[name][0], __name__), GROUPS[name][1])
        return group(tuple(parse_passes(inner or "")))
    cls = pass_class(name)
    try:
        values = parse_options(cls, option_pairs(inner or "", text), f"pass {name!r}")
    except OptionError as error:
        raise PassError(str(error)) from None
    try:
        return cls(**values)
    except PassError:
        raise
    except (TypeError, ValueError) as error:
        raise PassError(f"pass {name!r}: {error}") from error
