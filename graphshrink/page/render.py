"""A report as one HTML file: no scripts, nothing is loaded, every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from typing import Any

from ..ir import MissingExtra
from . import findings

_LONGEST = 160
"""The most characters of a name on the page; names in files may have any length."""


def check_ready() -> None:
    """Check that the packages for HTML reports are installed.

    Raises:
        MissingExtra: If one is not.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtra("an HTML report", "report", package) from error


def page(data: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        data: As :func:`graphshrink.page.document` makes it, or as a JSON report has it.

    Raises:
        MissingExtra: If jinja2 or matplotlib is not installed.
    """
    check_ready()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters |= {
        "amount": findings.amount, "choice": findings.choice_of, "counted": findings.counted, "short": short,
    }  # fmt: skip
    folder = files(__package__)
    template = environment.from_string(folder.joinpath("report.html").read_text("utf-8"))
    style = Markup(folder.joinpath("style.css").read_text("utf-8"))
    # Ours alone has no text of a model, so it needs no escaping.
    return template.render(style=style, **_context(data))


def _context(data: Mapping[str, Any]) -> dict[str, Any]:
    plan = data.get("plan")
    steps = findings.passes(data)
    network = data.get("network") or {"chosen_by": "passes", "parts": []}
    return {
        "data": data,
        "plan": plan,
        "verdict": findings.verdict(data),
        "figures": findings.figures(data),
        "unit": (plan or {}).get("cost", {}).get("unit") or "",
        "loss_unit": findings.loss_unit(plan) if plan else "",
        "trade_off": _trade_off(plan) if plan and len(plan.get("frontier") or ()) > 1 else None,
        "chosen_by": network["chosen_by"],
        "parts": _parts(network["parts"], findings.candidates(data), plan),
        "regions": findings.regions(data) if plan else [],
        "passes": steps,
        "idle": [*dict.fromkeys(p["text"] for p in steps if not (p["counts"] or p["problem"]))],
        "refusals": findings.refusals(data),
        "work": _work(data.get("work")),
        "notes": _notes(data),
        "run": data.get("run"),
    }


def _trade_off(plan: Mapping[str, Any]) -> dict[str, Any]:
    from .plot import trade_off

    unit = plan["cost"].get("unit")
    rows = [
        {
            **point,
            "shown": findings.amount(point["cost"], unit),
            "speedup": plan["before"] / point["cost"] if point["cost"] > 0 else None,
        }
        for point in plan["frontier"]
    ]
    names = {"ms": "latency (ms)", "MACs": "MACs", "bytes": "bytes of the file"}
    texts = [
        f"{r['shown']}, loss {r['loss']:.3g}, {findings.counted(len(r['sites']), 'replacement')}"
        f"{' (chosen)' if r['chosen'] else ''}"
        for r in rows
    ]
    plot, hidden = trade_off(
        plan["frontier"], plan["before"], (names.get(unit or "", "cost"), "loss"), texts
    )
    return {"plot": plot, "hidden": hidden, "rows": rows}


def _parts(
    parts: list[Mapping[str, Any]], candidates: Mapping[str, Any], plan: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The parts of the network with their shares of the width of the strip, and a choice that has a colour."""
    total = sum(p["macs"] or 0 for p in parts) or 1
    found = []
    for part in parts:
        choice = findings.choice_of(part["candidate"])
        if choice == "kept" and not part["site"] and plan:
            choice = "fixed"
        if choice == "left":
            choice = "left alone"
        share = (part["macs"] or 0) / total
        tried = candidates.get(part["site"], ())
        found.append({**part, "choice": choice, "share": share, "tried": tried})
    return found


def _work(work: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The bars of kinds of ops: milliseconds where they were measured, else MACs, else parameters, else nodes."""
    if not work:
        return None
    latency = work.get("latency")
    if latency and latency["ops"]:
        rows = [{"op": r["op"], "values": r["ms"]} for r in latency["ops"]]
        return {
            "unit": "ms", "device": latency["device"], "rows": _bars(rows),
            "missing": max(latency["missing"]),
        }  # fmt: skip
    rows = work["ops"]
    known = all(v is not None for r in rows for v in r["macs"])
    unit = "macs" if known and any(r["macs"][0] for r in rows) else "parameters"
    if not any(r[unit][0] for r in rows):
        unit = "nodes"
    shown = [{"op": r["op"], "values": r[unit], **r} for r in rows]
    return {"unit": unit, "device": None, "rows": _bars(shown), "missing": 0}


def _bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [r for r in rows if any(r["values"])]
    largest = max((v for r in rows for v in r["values"]), default=1) or 1
    return [{**r, "shares": [v / largest for v in r["values"]]} for r in rows]


def _notes(data: Mapping[str, Any]) -> list[str]:
    emitted = data.get("emitted") or {}
    return [*data.get("notes", ()), *emitted.get("notes", ())]


def short(text: str) -> str:
    """A name of a length that fits on the page."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _clean(value: Any) -> Any:
    """A text without characters that a page cannot have, or that change the direction of the text behind them."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(
        c if c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}" else ascii(c)[1:-1] for c in value
    )
