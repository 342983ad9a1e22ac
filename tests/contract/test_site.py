"""The documentation builds as a site without a warning: every link and anchor leads somewhere, every public name has its docstring."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import graphshrink

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="the site needs an extra: pip install -c constraints.txt -e '.[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_guide_is_a_page(site: Path) -> None:
    for guide in (ROOT / "docs").glob("*.md"):
        assert (site / f"{guide.stem}.html").is_file(), guide
    for name in ("index", "use", "exactness", "own_passes", "questions", "changelog"):
        assert (site / f"{name}.html").is_file(), name


def test_the_reference_has_the_public_names(site: Path) -> None:
    text = (site / "api/graphshrink.html").read_text()
    for name in graphshrink.__all__:
        assert f'id="graphshrink.{name}"' in text, name
    assert ":func:" not in text
    assert ":class:" not in text


def test_every_plot_is_drawn(site: Path) -> None:
    wanted = re.findall(r"<!-- plot: ([\w-]+) -->", (ROOT / "docs/results.md").read_text())
    text = (site / "results.html").read_text()
    assert text.count('<svg role="img"') == len(wanted) > 5
    assert "<!-- plot:" not in text


def test_the_site_asks_no_other_server(site: Path) -> None:
    for page in ("index.html", "results.html", "api/graphshrink.html"):
        found = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", (site / page).read_text()
        )
        assert found == []
