"""The entry point of the command line: chooses the command and prints every failure as one line.

Exit codes: 0 success, 1 a check failed or two models differ, 2 wrong use or unreadable input, 130 interrupted, 143 and 129
ended by SIGTERM and SIGHUP.

Each command is a module of this package; :mod:`.app` declares it to the option parser. Nothing heavy is imported before
``main`` is inside its ``try``, so that an interrupted start-up prints one line too.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from .interrupts import Interrupts
from .logs import start_logging

INTERRUPTED = 130
_HELP = ("--help", "-h")
COMMANDS = {
    name: f".{name}"
    for name in (
        "shrink",
        "advise",
        "plan",
        "recover",
        "inspect",
        "compare",
        "bench",
        "passes",
        "ops",
    )
}
"""The commands in the order of the help, each with the module of this package that has a function of the same name."""


def main() -> None:
    """Run the command line and exit."""
    _open_streams()
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not debug:
        _quiet()
    interrupts = Interrupts(lambda: _interrupted(interrupts.number))
    with interrupts:
        code, message = _outcome(arguments, debug)
    if code == INTERRUPTED or (code and interrupts.number is not None):
        _interrupted(interrupts.number)
    if message:
        _print_error(message)
    _leave(code)


def _open_streams() -> None:
    """Open the null device for closed standard streams; else the next file that is opened would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number: this one.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _outcome(arguments: list[str], debug: bool) -> tuple[int | str | None, str]:
    """Run a command; returns the exit code, and the message of a failure."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:
        # The option parser turns a closed pipe into exit code 1, which here means a failed check.
        return (0 if isinstance(stop.__context__, BrokenPipeError) else stop.code), ""
    except BrokenPipeError:
        return 0, ""
    except BaseException as error:
        if debug:
            raise
        return _explained(error)
    return code, ""


def _interrupted(number: int | None) -> None:
    """Exit with the code that a shell reports for a process that a signal ended."""
    if number is None or 128 + number == INTERRUPTED:
        _print_error("interrupted")
        code = INTERRUPTED
    else:
        _print_error("ended by a signal")
        code = 128 + number
    # Not through Python's own exit, during which the signal may arrive once more.
    os._exit(code)


def _quiet() -> None:
    """Hide the warnings of libraries: a failure is reported once, by us."""
    import warnings

    warnings.simplefilter("ignore")


def _run(arguments: list[str]) -> int | str | None:
    start_logging(arguments)
    if arguments == ["--version"]:
        from .. import __version__

        sys.stdout.write(f"{__version__}\n")
        return 0
    if not arguments:
        _command(["--help"])
        return 2
    if arguments[0] == "help" and not os.path.exists("help"):
        arguments = _help_of(arguments[1:])
    # Two files without a command mean shrink.
    if arguments[0] not in COMMANDS and arguments[0] not in _HELP:
        _misspelt(arguments[0])
        arguments = ["shrink", *arguments]
    return _command(arguments)


def _command(arguments: list[str]) -> int | None:
    """Let typer run the command that the first argument names; help shows all of them."""
    from .app import build_app

    name = arguments[0]
    app = build_app({name: COMMANDS[name]} if name in COMMANDS else COMMANDS)
    code: int | None = app(args=arguments, prog_name="graphshrink", standalone_mode=False)
    return code


def _help_of(words: list[str]) -> list[str]:
    """The arguments that show the help of a command, or of all."""
    if not words or words[0] in _HELP:
        return ["--help"]
    if words[0] not in COMMANDS:
        from ..ir.errors import UsageError
        from ..ir.options import suggestion

        raise UsageError(f"there is no command {words[0]!r}{suggestion(words[0], list(COMMANDS))}")
    return [words[0], "--help"]


def _misspelt(word: str) -> None:
    """Refuse a first word that is not a file and nearly a command."""
    if not word.isalpha() or os.path.exists(word):
        return
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    if close:
        from ..ir.errors import UsageError

        raise UsageError(f"there is no command or file {word!r}; did you mean {close[0]!r}?")


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit code and the message for an exception."""
    name = type(error).__name__
    if isinstance(error, KeyboardInterrupt) or name == "Abort":
        return INTERRUPTED, ""
    if isinstance(error, MemoryError):
        return 2, "out of memory"
    if hasattr(
        error, "format_message"
    ):  # The option parser's own: click's, or typer's copy of click.
        return 2, _parser_message(error)
    from ..ir.errors import GraphshrinkError

    if isinstance(error, GraphshrinkError):
        return 2, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return 2, f"the output cannot be written: {error.strerror}"
    return 2, f"{name}: {error} (a bug in graphshrink; --debug shows where)"


def _parser_message(error: Any) -> str:
    """The message of an error of the option parser, with what to do."""
    option = getattr(error, "option_name", None)
    near = getattr(error, "possibilities", None)
    if option and near is not None:
        import difflib

        close = difflib.get_close_matches(option, near, n=1)
        hint = f"did you mean {close[0]}?" if close else "--help shows the options"
        return f"there is no option {option}; {hint}"
    text = str(error.format_message()).rstrip(".")
    return text if text.endswith(")") else f"{text} (--help shows the options)"


_LONGEST = 1000
"""The most characters of the line that a failure prints; names in files may have any length."""


def _print_error(message: str) -> None:
    line = " ".join(message.split())
    # Names in files may contain anything, such as codes that control a terminal.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    with suppress(OSError):  # The exit code still reports the failure.
        sys.stderr.write(f"graphshrink: {line}\n")
        sys.stderr.flush()


def _leave(code: int | str | None) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # The reader is gone, or the error was printed already; keep the interpreter from reporting it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)
