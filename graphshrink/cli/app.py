"""The option parser: typer with the commands that one call needs.

A command is a function in a module of its own, declared to typer by the annotations of its parameters. ``COMMANDS`` in
:mod:`.entry` lists them. Only the module of the command that runs is imported; help needs all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated

import typer

from .help import Command, Program


def build_app(commands: Mapping[str, str]) -> typer.Typer:
    """The parser of some commands.

    Args:
        commands: Names of commands, each with the module of this package that has a function of the same name.
    """
    app = typer.Typer(
        cls=Program,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name, module in commands.items():
        app.command(name, cls=Command)(getattr(import_module(module, __package__), name))
    return app


def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; may be given anywhere."),
    ] = False,
) -> None:
    """Make trained networks smaller and faster, and say what that changes.

    'graphshrink IN OUT' is short for 'graphshrink shrink IN OUT', and 'graphshrink help COMMAND' for 'graphshrink COMMAND --help'.

    A file that is named like a command is given as ./inspect.
    """
    # Only declared here, for the help: cli.main handles both, because it also sees errors that happen before this.
