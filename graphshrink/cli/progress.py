"""Progress on standard error: a bar on a terminal or in a notebook; elsewhere one line for each pass (with ``-v``) or epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ..ir import Graph
from ..passes import Pass, PassRecord
from .notebook import NotebookBar, in_notebook

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_Report = Callable[[int, int, str], None]


class Lines:
    """An observer that writes one line after every pass, or nothing if it has no stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.start = 0.0

    def before(self, step: Pass, graph: Graph) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Write the line."""
        if self.stream is not None:
            self.stream.write(
                f"{step}: {len(record.rewrites)} changes, {len(record.refusals)} left alone, "
                f"{time.perf_counter() - self.start:.2f} s\n"
            )

    def progress_within(self, done: int, total: int, what: str) -> None:
        """Write nothing: one line for every batch would be too much."""


class Bar:
    """An observer that moves a bar on a terminal."""

    def __init__(self, progress: Progress, task: TaskID, count: int) -> None:
        self.progress, self.task, self.left = progress, task, count
        self.inner: TaskID | None = None
        self.what = ""

    def before(self, step: Pass, graph: Graph) -> None:
        """Show the name of the pass that starts."""
        self.progress.update(self.task, description=f"{step} ({len(graph):,} nodes)")

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Move on by one pass."""
        self.left -= 1
        what = f"{step} (done)" if self.left else "writing"
        self.progress.update(self.task, advance=1, description=what)
        if self.inner is not None:
            self.progress.remove_task(self.inner)
            self.inner = None

    def progress_within(self, done: int, total: int, what: str) -> None:
        """Move a second bar for the work inside the pass; without a known total it only pulses."""
        if self.inner is None or what != self.what:
            # The time left is worked out from the speed of this work alone.
            if self.inner is not None:
                self.progress.remove_task(self.inner)
            self.inner, self.what = self.progress.add_task(what, left=True), what
        self.progress.update(self.inner, completed=done, total=total or None)


@contextmanager
def watch_passes(count: int, *, verbose: bool = False) -> Iterator[Lines | Bar]:
    """An observer that shows progress on standard error while the block runs.

    Args:
        count: The number of passes.
        verbose: Write plain lines if standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield Lines(sys.stderr if verbose else None)
        return
    with _bar() as progress:
        yield Bar(progress, progress.add_task("reading", total=count), count)


class Training:
    """Progress of training: one line for each epoch, and on a terminal or in a notebook a bar in between."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.quiet = quiet
        self.progress: Progress | None = None
        self.notebook: NotebookBar | None = None
        self.steps = steps

    def __enter__(self) -> Training:
        if not self.quiet and in_notebook():
            self.notebook = NotebookBar()
        elif not self.quiet and sys.stderr.isatty():
            self.progress = _bar()
            self.progress.start()
            self.task = self.progress.add_task("training", total=self.steps, left=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()
        if self.notebook is not None:
            self.notebook.stop()

    def step(self, done: int, text: str) -> None:
        """Show that ``done`` steps are done."""
        if self.progress is not None:
            self.progress.update(self.task, completed=done, description=text)
        if self.notebook is not None:
            self.notebook.update(done, self.steps, text)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        if self.progress is not None:
            self.progress.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


@contextmanager
def count_done(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many of how many things are done: a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with _bar() as progress:
        task = progress.add_task(what, left=True)

        def move(done: int, total: int) -> None:
            text = f"{what} ({done:,} of {total:,})"
            progress.update(task, completed=done, total=total, description=text)

        yield move


@contextmanager
def shown(progress: bool | _Report | None) -> Iterator[_Report]:
    """A function that shows (done, total, what), for the ``progress`` of a call in Python.

    Args:
        progress: ``True`` shows a bar on a terminal or in a notebook, and nothing elsewhere; ``False`` or ``None`` shows nothing; a
            function is used as it is.
    """
    if progress is not None and not isinstance(progress, bool):
        yield progress
    elif progress and in_notebook():
        bar = NotebookBar()
        try:
            yield bar.update
        finally:
            bar.stop()
    elif progress and sys.stderr.isatty():
        with _bar() as live:
            task = live.add_task("", left=True)
            current = ""

            def move(done: int, total: int, what: str) -> None:
                nonlocal task, current
                if what != current:
                    live.remove_task(task)
                    task, current = live.add_task(what, left=True), what
                live.update(task, completed=done, total=total or None)

            yield move
    else:
        yield lambda done, total, what: None


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Left(TimeRemainingColumn):
        """The time left, where tasks ask for it and the speed is known."""

        def render(self, task: Task) -> Text:
            if not task.fields.get("left") or task.time_remaining is None:
                return Text("")
            return Text.assemble(super().render(task), " left")

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        Left(compact=True),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
