"""The trade-off of a plan as SVG, drawn by matplotlib.

Colours are variables of the page's style sheet, so that the plot is right on a dark page too: matplotlib draws in colours that nothing
else has, and these are replaced afterwards.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from markupsafe import Markup, escape

_COLOURS = {
    "#010101": "var(--ink)",
    "#010102": "var(--muted)",
    "#010103": "var(--line)",
    "#010104": "var(--accent)",
    "#010105": "var(--chosen)",
}
_INK, _MUTED, _LINE, _ACCENT, _CHOSEN = _COLOURS

SIZES = {"wide": (7.4, 3.6), "narrow": (3.9, 3.5)}
"""Inches of the two versions of a plot; the style sheet shows the one that fits the window."""

_HIGH = 6.0
"""Points whose loss is more than this many times that of the chosen one are not drawn: they would flatten the others."""


def trade_off(
    points: Sequence[Mapping[str, Any]],
    before: float,
    labels: tuple[str, str],
    texts: Sequence[str],
) -> tuple[Markup, int]:
    """Draw the trade-off of a plan.

    Args:
        points: The points of the plan's frontier, by their losses.
        before: The cost of the given network.
        labels: The names of the axes: cost and loss.
        texts: For each point what is shown when the pointer is on it.

    Returns:
        The SVG of all sizes, and the number of points that are left out because their loss is too large.
    """
    chosen = next((p["loss"] for p in points if p["chosen"]), 0.0)
    middle = sorted(p["loss"] for p in points)[len(points) // 2]
    highest = _HIGH * (chosen or middle)
    shown = [i for i, p in enumerate(points) if p["loss"] <= highest or p["chosen"]]
    drawn = [
        _drawn(name, size, [points[i] for i in shown], before, labels, [texts[i] for i in shown])
        for name, size in SIZES.items()
    ]
    return Markup("").join(drawn), len(points) - len(shown)


def _drawn(
    name: str,
    size: tuple[float, float],
    points: Sequence[Mapping[str, Any]],
    before: float,
    labels: tuple[str, str],
    texts: Sequence[str],
) -> Markup:
    matplotlib: Any = import_module("matplotlib")
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11.0}
    with matplotlib.rc_context(settings):
        figure: Any = import_module("matplotlib.figure").Figure(size, layout="constrained")
        axes = figure.subplots()
        line = [p for p in points if not p["chosen"]]
        xs, ys = [p["cost"] for p in line], [p["loss"] for p in line]
        axes.plot(xs, ys, color=_ACCENT, linewidth=1.5, alpha=0.6)
        for i, point in enumerate(points):
            style = {"color": _CHOSEN, "markersize": 11, "marker": "D", "zorder": 5}
            if not point["chosen"]:
                style = {"color": _ACCENT, "markersize": 5, "marker": "o"}
            axes.plot(point["cost"], point["loss"], gid=f"{name}-{i}", linestyle="none", **style)
        axes.axvline(before, color=_MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.annotate(
            "given network", (before, 1), xycoords=("data", "axes fraction"), xytext=(-5, -5),
            textcoords="offset points", color=_MUTED, ha="right", va="top", rotation=90,
        )  # fmt: skip
        _style(axes, labels)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _embedded(text.getvalue(), name, texts)


def _style(axes: Any, labels: tuple[str, str]) -> None:
    axes.set_xlabel(labels[0], color=_INK)
    axes.set_ylabel(labels[1], color=_INK)
    axes.set_ylim(bottom=0)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=6)
    if "(ms)" not in labels[0]:  # Millions of operations or bytes, not thousandths of milliseconds.
        axes.xaxis.set_major_formatter(import_module("matplotlib.ticker").EngFormatter(sep=""))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)


def _embedded(text: str, name: str, texts: Sequence[str]) -> Markup:
    """The SVG element alone, in the page's colours and fonts, with a title for each point."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    # The page has the description in words; a reader for the blind gets that.
    text = text.replace("<svg", f'<svg class="plot {name}" aria-hidden="true" focusable="false"', 1)
    text = re.sub(r'(?<=<svg)(.*?) width="[^"]*pt"', r"\1", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(?<=<svg)(.*?) height="[^"]*pt"', r"\1", text, count=1, flags=re.DOTALL)
    # Two plots are in one page: names and references get a prefix, but for the points, which have it already.
    text = re.sub(rf'( id="|href="#|url\(#)(?!{name}-)', rf"\1{name}-", text)
    for i, title in enumerate(texts):
        group = f'<g id="{name}-{i}">'
        text = text.replace(group, f"{group}<title>{escape(title)}</title>", 1)
    return Markup(text)
