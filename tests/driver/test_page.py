"""Reports as pages: well-formed, self-contained, and safe whatever the names in a model are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphshrink.page.findings import amount
from support.cli import fails, small_model, succeeds, write
from support.small_networks import residual_model

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'graphshrink[report]'")
pytest.importorskip(
    "matplotlib", reason="matplotlib is not installed: pip install 'graphshrink[report]'"
)

HOSTILE = '<script>alert(\'x\')</script>" onload="y" & {{ 7 * 7 }} \u202e\x00 $\\frac$'
VOID = {"meta", "br", "link", "img", "input", "hr"}


class _Page(HTMLParser):
    """Everything that the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def _checked(text: str) -> _Page:
    """The page, which is well-formed, accessible, and loads nothing."""
    page = _Page(text)
    assert not page.problems
    assert not page.open
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in {"src", "href", "xlink:href", "data", "srcset", "action"}:
                assert (value or "").startswith("#"), value
                assert (value or "")[1:] in ids
            elif not name.startswith("xmlns"):
                assert not re.search(r"https?:|//|javascript:", value or ""), value
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(a.get("scope") for a in page.all("th"))
    labels = [a["aria-labelledby"] for a in page.all("section")]
    assert set(labels) <= set(ids)
    for plot in page.all("svg"):
        assert plot["aria-hidden"] == "true"
    if page.all("svg"):
        assert any(a.get("role") == "img" and a.get("aria-label") for _, a in page.tags)
    return page


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page and the JSON of a run with a plan."""
    folder = tmp_path_factory.mktemp("planned")
    model, data, plan = residual_model(folder / "m.onnx"), folder / "d.npz", folder / "p.json"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32))
    page, report, early = folder / "r.html", folder / "r.json", folder / "early.html"
    succeeds("plan", model, "-o", plan, "--macs", "0.6", "--calibration", data, "--report", early)
    succeeds(model, folder / "o.onnx", "--plan", plan, "--report", page)
    succeeds(model, folder / "o.onnx", "--plan", plan, "--report", report)
    return page, json.loads(report.read_text())


def test_a_page_of_the_default_pipeline(tmp_path: Path) -> None:
    model, out = small_model(tmp_path / "m.onnx"), tmp_path / "o.onnx"
    succeeds(model, out, "--check", "--report", tmp_path / "r.html")
    page = _checked((tmp_path / "r.html").read_text())
    for text in (
        "computes the same function up to rounding", "Outputs were compared before and after every pass",
        "merge-linear", "exact", "How to get this again", "--check", "SHA-256",
        "Multiply-accumulates by kind of op", "No op was timed alone",
    ):  # fmt: skip
        assert text in page.text, text
    done = subprocess.run(["sha256sum", out], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] in page.text


def test_a_page_of_a_plan(planned: tuple[Path, dict[str, Any]]) -> None:
    path, data = planned
    page = _checked(path.read_text())
    plan = data["plan"]
    assert "The network that was made has" in page.text
    assert "Regions that were replaced" in page.text
    for site in plan["sites"]:
        assert site["site"] in page.text
    # The parts of the strip are the whole network, and the plot has one marker for each point that is drawn.
    assert sum(p["macs"] for p in data["network"]["parts"]) == plan["before"]
    strip = [a for a in page.all("li") if "flex-grow" in (a.get("style") or "")]
    assert len(strip) == len(data["network"]["parts"])
    widths = [float((a["style"] or "").split(":")[1]) for a in strip]
    assert sum(widths) == pytest.approx(1, abs=1e-3)
    titles = [a for a in page.all("g") if re.fullmatch(r"wide-\d+", a.get("id") or "")]
    assert 2 <= len(titles) <= len(plan["frontier"])
    early = _checked(path.with_name("early.html").read_text())
    assert "The network that was planned has" in early.text
    assert "--macs 0.6" in early.text


def test_the_page_and_the_json_have_the_same_data(planned: tuple[Path, dict[str, Any]]) -> None:
    from graphshrink.page import page

    path, data = planned
    again = page(data)
    # The name of the report in the command is the only difference.
    assert again.replace("r.json", "r.html") == path.read_text()
    for key in ("schema", "pipeline", "before", "after", "passes", "notes", "emitted"):
        assert key in data
    assert data["run"]["versions"]["numpy"] == np.__version__
    assert data["run"]["seed"] == 0


def test_hostile_names(tmp_path: Path, planned: tuple[Path, dict[str, Any]]) -> None:
    from graphshrink.page import page

    name = HOSTILE.replace("\x00", "")  # onnx's checker and files have no NUL.
    out, report = tmp_path / "o.onnx", tmp_path / "r.html"
    succeeds(residual_model(tmp_path / "m.onnx", name), out, "--report", report)
    made = _checked(report.read_text())
    assert "<script>alert('x')</script>" in made.text
    assert "{{ 7 * 7 }}" in made.text
    assert "\u202e" not in made.text

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
        if isinstance(value, list):
            return [poisoned(v) for v in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    data = poisoned(planned[1])
    data["plan"]["cost"]["unit"] = HOSTILE
    data["not_understood"] = [
        {
            "kind": HOSTILE, "count": 2, "nodes": [HOSTILE], "reason": HOSTILE, "remedy": HOSTILE,
            "barrier": True,
        }
    ]  # fmt: skip
    for counts in (data["before"], data["after"]):
        counts.pop(HOSTILE)
    for part in data["network"]["parts"]:
        part["ops"] = {HOSTILE: 1}
    text = page(data)
    made = _checked(text)
    assert "What was not understood" in made.text
    assert "\x00" not in text
    assert "\u202e" not in text


def test_degenerate_runs(tmp_path: Path) -> None:
    model = small_model(tmp_path / "m.onnx")
    out, report = tmp_path / "o.onnx", tmp_path / "r.HTML"
    succeeds(model, out, "--passes", "", "--report", report)
    page = _checked(report.read_text())
    assert "Nothing was changed." in page.text
    empty = write(
        tmp_path / "e.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": ["h", "w"]},
        {"y": ["h", "w"]},
        [],
    )
    succeeds(empty, out, "--report", report)
    _checked(report.read_text())


def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = small_model(tmp_path / "m.onnx"), tmp_path / "o.onnx"
    line = fails(
        "plan", model, "-o", tmp_path / "p.json", "--macs", "0.5", "--report", tmp_path / "p.txt"
    )
    assert "--report" in line
    assert ".html" in line
    same = tmp_path / "o.html"
    assert "no folder" in fails(model, out, "--report", tmp_path / "no" / "r.html").replace(
        "does not exist", "no folder"
    )
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            line = fails(model, out, "--report", same)
            assert "[report]" in line
            assert package in line
        assert not out.exists()
    assert not same.exists()


def test_the_files_are_in_the_wheel() -> None:
    root = Path(__file__).parents[2]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {p.name for p in (root / "graphshrink/page").iterdir() if p.suffix not in (".py", "")}
    assert set(declared["package-data"]["graphshrink.page"]) == there
    assert "graphshrink.page" in declared["packages"]


def test_remedies_are_options_that_exist() -> None:
    from graphshrink.page.findings import REMEDIES
    from graphshrink.passes import Pipeline

    for _, text in REMEDIES:
        for step in re.findall(r"[a-z-]+\{[^}]*\}", text):
            Pipeline(step)


def test_a_browser_draws_it(planned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    )
    done = subprocess.run(
        [
            browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800",
            planned[0].as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)}, check=True,
    )  # fmt: skip
    drawn = _Page(done.stdout)
    assert "The network that was made has" in drawn.text
    assert len(drawn.all("svg")) == 2
    # Nothing was refused by the page's own policy, and nothing failed.
    assert "Content Security Policy" not in done.stderr
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999, "MACs", "999 MACs"), (999_600, "MACs", "1 M MACs"), (581_696, "", "582 k"), (999_999_999, "bytes", "1 GB"),
        (2.5e12, "MACs", "2.5 T MACs"), (999.6, "ms", "1,000 ms"), (0.0381, "ms", "0.0381 ms"), (0, "bytes", "0 B"), (None, "ms", "unknown"),
    ],
)  # fmt: skip
def test_amounts_have_three_digits(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit).replace("\N{NO-BREAK SPACE}", " ") == text
