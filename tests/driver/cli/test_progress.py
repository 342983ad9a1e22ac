"""Bars on a terminal and in notebooks: the time left of each kind of work."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from graphshrink.cli.notebook import bar_html, in_notebook
from graphshrink.cli.progress import Bar, Training, _bar, shown


def test_the_time_left_is_that_of_the_present_work() -> None:
    progress, now = _bar(), [0.0]
    progress.get_time = lambda: now[0]  # type: ignore[method-assign]
    bar = Bar(progress, progress.add_task("reading", total=1), 1)

    def printed() -> str:
        out = io.StringIO()
        Console(file=out, width=200).print(progress.make_tasks_table(progress.tasks))
        return out.getvalue()

    for done in range(6):
        bar.progress_within(done, 10, "fits")
        now[0] += 2
    assert "fits" in printed()
    assert "00:10 left" in printed()
    # Ten times as slow, and twice as much.
    for done in range(6):
        bar.progress_within(done, 15, "scores")
        now[0] += 20
    assert "fits" not in printed()
    assert "03:20 left" in printed()
    # Nothing is promised where the total is not known.
    bar.progress_within(3, 0, "batches")
    assert "left" not in printed()


class FakeHandle:
    """A display of a notebook that keeps what it was made to show."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, content: str) -> None:
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> FakeHandle:
    handle = FakeHandle()
    display = SimpleNamespace(HTML=str, display=lambda content, display_id: handle)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return handle


def test_a_notebook_has_a_bar_that_goes_away(notebook: FakeHandle) -> None:
    with shown(True) as report:
        report(1, 4, "fits")
        report(2, 4, "fits")  # Too soon behind the first.
        report(1, 9, "scores <b>")
    first, second, last = notebook.shown
    assert 'value="1" max="4"' in first
    assert "scores &lt;b&gt;" in second
    assert last == ""


def test_a_bar_goes_away_behind_an_error(notebook: FakeHandle) -> None:
    def fails() -> None:
        with shown(True) as report:
            report(1, 4, "fits")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert notebook.shown[-1] == ""


def test_training_in_a_notebook(notebook: FakeHandle, capsys: pytest.CaptureFixture[str]) -> None:
    with Training(8, quiet=False) as training:
        training.step(2, "epoch 1")
        training.line("epoch 1: loss 0.5")
    assert 'value="2" max="8"' in notebook.shown[0]
    assert notebook.shown[-1] == ""
    assert capsys.readouterr().err == "epoch 1: loss 0.5\n"
    notebook.shown.clear()
    with Training(8, quiet=True) as training:
        training.step(2, "epoch 1")
    assert notebook.shown == []


def test_the_time_left_in_a_notebook() -> None:
    assert "1:00 left" in bar_html(5, 15, "scores", 30)
    assert "left" not in bar_html(5, 0, "batches", 30)
    assert "left" not in bar_html(15, 15, "scores", 30)
    assert "max" not in bar_html(5, 0, "batches", 30)


def test_functions_are_called_and_nothing_is_shown_elsewhere() -> None:
    seen: list[tuple[int, int, str]] = []
    with shown(lambda *given: seen.append(given)) as report:
        report(1, 2, "fits")
    assert seen == [(1, 2, "fits")]
    assert not in_notebook()
    with shown(True) as report:  # Standard error is no terminal here.
        report(1, 2, "fits")
