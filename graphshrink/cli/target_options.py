"""Options of ``shrink`` that are generated from the dataclasses of our targets: see :mod:`graphshrink.targets.options`.

Every field that text can give is one option, ``--keep-nchw-io`` for ``keep_nchw_io``: a flag for a boolean, an option that may be
given several times for a tuple, else an option with a value. Values are checked by the target that is chosen, like those in
``--target "name{option=value}"``. Targets of other packages have only the latter form: their options are not known before
they are imported.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from ..ir.options import Option, options_of, parse_value
from ..targets.options import OPTIONS


def with_target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the targets' options to typer, in place of the ``**`` parameter of a command.

    The command gets them by field name. An option that was not given is ``None``, ``False`` or an empty list.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [_parameter(field, owners) for field, owners in fields(OPTIONS).items()]
    vars(command)["__signature__"] = signature.replace(parameters=[*own, *made])
    return command


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of those that a command got."""
    return {field: value for field, value in values.items() if value not in (None, False, [])}


def fields(targets: Mapping[str, type]) -> dict[str, dict[str, Option]]:
    """For each field that text can give, the targets that have it with their declarations."""
    found: dict[str, dict[str, Option]] = {}
    for target, options in targets.items():
        for option in options_of(options):
            if not option.python_only:
                found.setdefault(option.field, {})[target] = option
    return found


def _parameter(field: str, owners: Mapping[str, Option]) -> inspect.Parameter:
    """The parameter of a command for one field; ``owners`` are the targets that have it."""
    first, *others = owners.values()
    if any(other.hint != first.hint for other in others):
        raise TypeError(f"option {first.name} is of different types in {', '.join(owners)}")
    flag = f"--{first.name}"
    text = "; ".join(_help(target, option) for target, option in owners.items()) + "."
    kind: Any
    if first.hint is bool:
        if first.default:
            raise TypeError(f"option {first.name} is a flag, which must be false by default")
        kind = Annotated[bool, typer.Option(flag, help=text)]
    else:
        several, item = _item(first.hint)
        text += " May be given several times." if several else ""
        setting = typer.Option(flag, metavar=first.metavar, help=text, parser=_reader(item))
        kind = Annotated[list[str] | None if several else str | None, setting]
    default = False if first.hint is bool else None
    return inspect.Parameter(
        field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
    )


def _help(target: str, option: Option) -> str:
    text = option.help.replace("`", "").removesuffix(".")
    return f"{target}: {text[:1].lower()}{text[1:]}"


def _item(hint: Any) -> tuple[bool, Any]:
    """Whether an annotation is a tuple, and the type of one value."""
    plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    several = typing.get_origin(plain) is tuple
    return several, typing.get_args(plain)[0] if several else plain


def _reader(hint: Any) -> Callable[[str], Any] | None:
    """Reads one value from its text; ``None`` for text, which the target checks itself."""
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return None

    def read(text: str) -> Any:
        try:
            return parse_value(text, hint)
        except ValueError:
            raise typer.BadParameter(f"{text!r} does not fit") from None

    return read
