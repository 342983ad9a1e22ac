"""Bars on a terminal: the time left of each kind of work."""

from __future__ import annotations

import io

from rich.console import Console

from graphshrink.cli.progress import Bar, _bar


def test_the_time_left_is_that_of_the_present_work() -> None:
    progress, now = _bar(), [0.0]
    progress.get_time = lambda: now[0]  # type: ignore[method-assign]
    bar = Bar(progress, progress.add_task("reading", total=1), 1)

    def shown() -> str:
        out = io.StringIO()
        Console(file=out, width=200).print(progress.make_tasks_table(progress.tasks))
        return out.getvalue()

    for done in range(6):
        bar.progress_within(done, 10, "fits")
        now[0] += 2
    assert "fits" in shown()
    assert "00:10 left" in shown()
    # Ten times as slow, and twice as much.
    for done in range(6):
        bar.progress_within(done, 15, "scores")
        now[0] += 20
    assert "fits" not in shown()
    assert "03:20 left" in shown()
    # Nothing is promised where the total is not known.
    bar.progress_within(3, 0, "batches")
    assert "left" not in shown()
