"""Tables as text and HTML, also inside a notebook."""

from __future__ import annotations

import pytest

from graphshrink.tables import html_of, text_of


def test_tables_in_notebooks_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    # There, rich shows what it prints at once, whatever file it is given.
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_of(lambda console: console.print("two words")) == "two words"
    assert "two words</pre>" in html_of(lambda console: console.print("two words"))
