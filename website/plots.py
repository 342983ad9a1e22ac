"""Plots of the tables in benchmarks/results, as SVG pictures that read well on light and on dark pages.

Every number comes from the tables: there is none in this file. ``python website/plots.py FOLDER`` writes one file for each plot; the
documentation builds them in (:mod:`hooks`), with text in the colour of the page.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("svg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results"
INK = "#0a0b0c"
"""Text and axes; replaced by ``currentColor``, so no other colour may be equal to it."""
COLOURS = ("#4a8fd9", "#e08a3c", "#55a868", "#c75b7a", "#8d7ac7")
"""Bars and points: of middle lightness, so that they show on light and on dark pages."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "graphshrink",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.3,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

Row = dict[str, str]


def tables(name: str) -> list[list[Row]]:
    """The tables of a file in benchmarks/results, each as a list of rows by column."""
    found: list[list[Row]] = []
    heads: list[str] | None = None
    for line in (RESULTS / name).read_text().splitlines():
        if not line.startswith("|"):
            heads = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if heads is None:
            heads = cells
            found.append([])
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(dict(zip(heads, cells, strict=True)))
    return found


def number(text: str) -> float:
    """The first number of a cell such as ``1.22x`` or ``79.7%``.

    Raises:
        ValueError: If it has none.
    """
    found = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", text)
    if found is None:
        raise ValueError(f"no number in {text!r}")
    return float(found[0])


def interval(text: str) -> tuple[float, float]:
    """The two numbers of ``1.08 to 1.17``."""
    low, high = re.findall(r"([\d.]+) to ([\d.]+)", text)[0]
    return float(low), float(high)


def planner(figure: Figure) -> str:
    """Accuracy against the measured speedup of plans."""
    rows = tables("planner.md")[0]
    text = (RESULTS / "planner.md").read_text()
    given = re.search(r"has ([\d.]+)% top-1", text)
    assert given is not None
    axes = figure.subplots()
    axes.axhline(float(given[1]), color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        "the given network",
        (1, float(given[1])),
        (1, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=9,
        ha="right",
        va="bottom",
    )
    for i, name in enumerate(dict.fromkeys(row["row"] for row in rows)):
        mine = [row for row in rows if row["row"] == name]
        x, y = [number(r["measured"]) for r in mine], [number(r["top-1"]) for r in mine]
        wide = 2.5 if name == "planner" else 1.2
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(x, y, marker="o", label=name, color=colour, linewidth=wide, zorder=3 - i / 10)
    axes.set(xlabel="measured speedup", ylabel="top-1 accuracy, %", xlim=(1, None), ylim=(-3, 90))
    axes.legend(loc="lower left", ncols=2, fontsize=9)
    return "Top-1 accuracy against measured speedup of EfficientNet-Lite0, one line for each method"


def real_models(figure: Figure) -> str:
    """Speed of published files after the exact passes."""
    (rows,) = tables("real_models.md")
    rows = sorted(rows, key=lambda row: number(row["speed, 95 % interval"]))
    axes = figure.subplots()
    for i, row in enumerate(rows):
        cell = row["speed, 95 % interval"]
        low, high = interval(cell)
        clear = low > 1
        colour = COLOURS[0] if clear else "#8c8c8c"
        axes.plot([low, high], [i, i], color=colour, linewidth=2)
        axes.plot([number(cell)], [i], "o", color=colour, markersize=5)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=8)
    axes.set(xlabel="speed after the exact passes / before, 95 % interval")
    figure.set_size_inches(7.5, 5)
    return "Speed ratios of seventeen published ONNX files with their intervals"


def corpus(figure: Figure) -> str:
    """Nodes beside other tools."""
    text = (RESULTS / "corpus.md").read_text()
    found = re.findall(
        r"^## (.+)$|^- beside (\w+): fewer nodes on (\d+), as many on (\d+), more on (\d+)",
        text,
        re.MULTILINE,
    )
    bars: list[tuple[str, list[int]]] = []
    heading = ""
    for title, tool, *counts in found:
        if title:
            heading = title
        else:
            bars.append((f"{heading}, {tool}", [int(n) for n in counts]))
    axes = figure.subplots()
    left = [0.0] * len(bars)
    words = ("fewer nodes than the other tool", "as many", "more")
    for part, (word, colour) in enumerate(
        zip(words, (COLOURS[0], "#8c8c8c", COLOURS[1]), strict=True)
    ):
        shares = [100 * counts[part] / sum(counts) for _, counts in bars]
        axes.barh(range(len(bars)), shares, left=left, color=colour, label=word, height=0.7)
        for i, (_, counts) in enumerate(bars):
            if shares[i] > 4:
                middle = left[i] + shares[i] / 2
                axes.text(
                    middle,
                    i,
                    str(counts[part]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white",
                )
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="% of the files that both tools write", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=3, fontsize=9)
    return "Shares of files on which graphshrink leaves fewer, as many or more nodes than onnxslim and onnxsim"


def tflite(figure: Figure) -> str:
    """Conversion to TFLite beside litert-torch."""
    rows = [row for row in tables("tflite.md")[0] if row["threads"] == "1"]
    one, two = figure.subplots(1, 2)
    names = [row["model"] for row in rows]
    places = range(len(rows))
    for i, (column, word) in enumerate(
        (("conversion, s", "graphshrink"), ("litert-torch, s", "litert-torch"))
    ):
        at = [p + 0.4 * i - 0.2 for p in places]
        one.barh(
            at, [number(row[column]) for row in rows], height=0.38, color=COLOURS[i], label=word
        )
    one.set_yticks(places, names, fontsize=9)
    one.invert_yaxis()
    one.set(xlabel="conversion, s (logarithmic)", xscale="log")
    one.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
    for p, row in enumerate(rows):
        cell = row["ratio (95 % interval)"]
        two.plot(interval(cell), [p, p], color=COLOURS[0], linewidth=2)
        two.plot([number(cell)], [p], "o", color=COLOURS[0], markersize=5)
    two.axvline(1, color=INK, linewidth=1)
    two.set_yticks(places, [""] * len(rows))
    two.invert_yaxis()
    two.set(xlabel="latency, graphshrink / litert-torch", xlim=(0.9, 1.1))
    figure.set_size_inches(8, 3.4)
    return "Seconds of conversion, and latencies relative to litert-torch, of five networks on one thread"


def export_speed(figure: Figure) -> str:
    """Times to write ONNX files of torch modules."""
    (rows,) = tables("export_speed.md")
    axes = figure.subplots()
    columns = (
        ("save s", "writing alone"),
        ("whole s", "reading, passes, writing"),
        ("torch s", "torch.onnx.export"),
    )
    _grouped(
        axes,
        [row["model"] for row in rows],
        [(w, [number(r[c]) for r in rows]) for c, w in columns],
    )
    axes.set(xlabel="seconds (logarithmic)", xscale="log")
    return "Seconds to write an ONNX file of five torch models"


def depth(figure: Figure) -> str:
    """Accuracy against speedup of networks with fewer layers or fewer channels."""
    records = json.loads((RESULTS / "depth_vs_width.json").read_text())["records"]
    place = next(iter(records[0]["latency"]))
    axes = figure.subplots()
    kinds = list(dict.fromkeys(r["kind"] for r in records if r["kind"] != "base"))
    for i, kind in enumerate(kinds):
        mine = [r for r in records if r["kind"] == kind]
        points = sorted((r["latency"][place]["speedup"], 100 * r["accuracy"]) for r in mine)
        x, y = zip(*points, strict=True)
        line, colour = ("-", "--")[i // len(COLOURS) % 2], COLOURS[i % len(COLOURS)]
        axes.plot(x, y, marker="o", linestyle=line, label=kind, color=colour, linewidth=1.5)
    base = next(r for r in records if r["kind"] == "base")
    axes.axhline(100 * base["accuracy"], color=INK, linewidth=1, linestyle="--")
    axes.set(xlabel=f"measured speedup ({place})", ylabel="accuracy, % (dashed: the given network)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=9)
    return "Accuracy against measured speedup of networks with fewer layers and with fewer channels"


def transfer(figure: Figure) -> str:
    """Accuracy against speedup of a tuned network that was planned or pruned, then trained; means over seeds."""
    records = json.loads((RESULTS / "transfer_lite0.json").read_text())["records"]
    place = next(iter(records[0]["latency"]))
    axes = figure.subplots()
    kinds = [k for k in ("plan", "depth", "taylor", "magnitude", "uniform") if any(r["kind"] == k for r in records)]  # fmt: skip
    for i, kind in enumerate(kinds):
        by_speed: dict[float, list[tuple[float, float]]] = {}
        for r in records:
            if r["kind"] == kind:
                point = (r["latency"][place]["speedup"], 100 * r["accuracy"])
                by_speed.setdefault(r["wanted"], []).append(point)
        points = sorted(tuple(map(fmean, zip(*some, strict=True))) for some in by_speed.values())
        x, y = zip(*points, strict=True)
        wide = 2.5 if kind == "plan" else 1.5
        axes.plot(x, y, marker="o", label=kind, color=COLOURS[i % len(COLOURS)], linewidth=wide)
    base = next(r for r in records if r["kind"] == "base")
    axes.axhline(100 * base["accuracy"], color=INK, linewidth=1, linestyle="--")
    axes.set(xlabel=f"measured speedup ({place})", ylabel="accuracy, % (dashed: the given network)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5, fontsize=9)
    return "Accuracy against measured speedup of planned and of pruned networks after the same training"


def permutation(figure: Figure) -> str:
    """Efficacy of searches for channel orders."""
    (rows,) = tables("permutation.md")
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    searches = list(dict.fromkeys(row["search"] for row in rows))
    cells = {(row["size"], row["search"]): number(row["efficacy"]) for row in rows}
    axes = figure.subplots()
    _grouped(axes, sizes, [(name, [cells[size, name] for size in sizes]) for name in searches])
    axes.set(xlabel="part of the gap between 2:4 and unstructured 50 % that the order closes, %")
    return "Efficacy of four searches for channel orders on three sizes of matrices"


def sparsify(figure: Figure) -> str:
    """What 2:4 sparsity in one shot costs."""
    digits, encoder = tables("sparsify_error.md")
    ordered = tables("sparsify_error_permuted.md")[0]
    one, two = figure.subplots(1, 2)
    methods = [row[""] for row in digits[1:]]
    accuracy = {row[""]: 100 * number(row["accuracy"]) for row in (*digits, *ordered)}
    _grouped(
        one,
        methods,
        [
            ("as it is", [accuracy[name] for name in methods]),
            ("channels reordered", [accuracy[f"permute-channels, {name}"] for name in methods]),
        ],
    )
    one.axvline(accuracy["dense"], color=INK, linewidth=1, linestyle="--")
    one.set(xlabel="digits: accuracy, % (dashed: dense)")
    similar = {row[""]: number(row["cosine, mean"]) for row in encoder}
    two.barh(range(len(methods)), [similar[name] for name in methods], height=0.5, color=COLOURS[0])
    two.axvline(similar["dense"], color=INK, linewidth=1, linestyle="--")
    two.set_yticks(range(len(methods)), [""] * len(methods))
    two.invert_yaxis()
    two.set(xlabel="MiniLM: mean cosine (dashed: dense)", xlim=(0, 1.05))
    figure.set_size_inches(8, 3.2)
    return "Accuracy of digits and similarity of MiniLM with 2:4 sparse weights, by method"


def torch_models(figure: Figure) -> str:
    """Errors beside the rounding of the models themselves."""
    (rows,) = tables("torch_models.md")
    floor = 1e-9
    pairs = [
        (number(r["own rounding"]), number(r["error"]))
        for r in rows
        if r["error"] and r["own rounding"]
    ]
    x, y = zip(*((max(a, floor), max(b, floor)) for a, b in pairs), strict=True)
    axes = figure.subplots()
    axes.plot(x, y, "o", color=COLOURS[0], alpha=0.5, markersize=5)
    ends = (min(floor, *x), 2 * max(*x, *y))
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rounding of the model itself (float32 beside float64)",
        ylabel="error of the result",
    )
    figure.set_size_inches(6, 4.2)
    return "Errors of shrunk torch models against the rounding of the models themselves"


def _grouped(axes: Axes, names: list[str], series: list[tuple[str, list[float]]]) -> None:
    """Horizontal bars in groups, with the value at the end of each."""
    step = 0.8 / len(series)
    for i, (label, values) in enumerate(series):
        at = [p - 0.4 + step * (i + 0.5) for p in range(len(names))]
        bars = axes.barh(at, values, height=0.9 * step, color=COLOURS[i], label=label)
        axes.bar_label(bars, [f"{v:.3g}" for v in values], padding=2, fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=len(series), fontsize=9)
    axes.margins(x=0.12)


PLOTS: dict[str, Callable[[Figure], str]] = {
    "planner": planner,
    "real-models": real_models,
    "corpus": corpus,
    "tflite": tflite,
    "export-speed": export_speed,
    "depth": depth,
    "transfer": transfer,
    "permutation": permutation,
    "sparsify": sparsify,
    "torch-models": torch_models,
}


def svg(name: str) -> str:
    """The plot as an ``svg`` element that takes the colour of the text around it."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(7, 3.8))
        label = PLOTS[name](figure)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None}
        )
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The ids of one picture are its own: several pictures stand on one page.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)(?:width="[^"]*" ?|height="[^"]*" ?)', r"<svg \1", text, count=1)
    size = re.search(r'width="([\d.]+)pt"', text)
    text = re.sub(r'(width|height)="[\d.]+pt" ?', "", text, count=2)
    width = f' style="max-width: {float(size[1]) * 4 / 3:.0f}px; width: 100%"' if size else ""
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"{width}', 1)


_ALONE = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd;background:#1b1d23}}</style>"


def main(folder: Path) -> None:
    """Write all plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        start, end, rest = svg(name).partition(">")
        (folder / f"{name}.svg").write_text(f"{start}{end}{_ALONE}{rest}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python website/plots.py FOLDER")
    main(Path(sys.argv[1]))
