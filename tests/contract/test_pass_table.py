"""The table of passes in the documentation is what the registry has."""

from __future__ import annotations

import json
from pathlib import Path

from graphshrink import DEFAULT_PIPELINE, Pipeline
from graphshrink.pass_table import markdown, pass_table
from support.cli import succeeds

DOCUMENT = Path(__file__).parents[2] / "docs/passes.md"


def test_the_document_is_up_to_date() -> None:
    want = markdown(pass_table())
    assert DOCUMENT.read_text() == want, "run: python -m graphshrink.pass_table > docs/passes.md"


def test_its_rows_are_those_of_the_command() -> None:
    listed = {row["name"]: row for row in json.loads(succeeds("passes", "--json"))}
    for row in pass_table():
        assert row.to_dict() == listed[row.name]
        assert row.summary


def test_the_default_passes_are_marked() -> None:
    text = DOCUMENT.read_text()
    marked = {
        line.split("|")[1].strip().lstrip("[").partition("]")[0]
        for line in text.splitlines()
        if line.startswith("|") and line.split("|")[3].strip() == "yes"
    }
    assert marked == set(
        str(Pipeline(DEFAULT_PIPELINE)).replace("repeat{", "").replace("}", "").split(",")
    )
