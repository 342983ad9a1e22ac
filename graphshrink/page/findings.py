"""The data of a report in words and groups: the verdict, key figures, regions, and refusals with what changes each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ir.errors import enumeration

Data = Mapping[str, Any]

REMEDIES: tuple[tuple[str, str], ...] = (
    (r"would cost .* the MACs", "merge-linear{max-mac-growth=3} or merge-linear{force=true}"),
    (r"too little saved for a bias map", "merge-linear{force=true}"),
    (r"beyond max-kernel=", "merge-linear{max-kernel=11}"),
    (r"the merged weights would add", "merge-linear{max-growth-mb=64}"),
    (r"along the border|border of the first", "merge-linear{allow-border=true} or hoist-padding"),
    (r"more than max-growth=", "fold-constants{max-growth=1048576}"),
    (r"divide=pad", "pivot{divide=pad}"),
    (r"gather=true", "pivot{gather=true}"),
    (r"it stays dense", "pivot{force=true}"),
    (r"largest error|max-error", "pivot{max-error=0.2}"),
    (r"sparse kernels are not likely", "sparsify{dense-fallback=false}"),
    (r"example inputs|--fix-shape|not known|unknown|are open", "--fix-shape NAME:SIZES"),
)
"""For reasons of refusals, by a regular expression: the options that change them; numbers are examples."""

_SHOWN = 6
"""The number of nodes that a group of refusals names."""


def remedy(reason: str) -> str:
    """The option that changes a refusal with this reason; empty if there is none."""
    return next((text for pattern, text in REMEDIES if re.search(pattern, reason)), "")


def verdict(data: Data) -> list[str]:
    """What was done, in three sentences."""
    plan = data.get("plan")
    return _plan_verdict(data, plan) if plan else _pass_verdict(data)


def _plan_verdict(data: Data, plan: Data) -> list[str]:
    before, after = (amount(plan[k], plan["cost"].get("unit")) for k in ("before", "after"))
    made = "made" if "after" in data else "planned"
    device = plan["cost"].get("device")
    where = f", measured as a whole on {device}" if device else ""
    sites, kinds = plan["sites"], Counter(choice_of(s["candidate"]) for s in plan["sites"])
    what = enumeration([f"{n} {_BECAME[kind]}" for kind, n in sorted(kinds.items())])
    replaced = (
        f"{len(sites)} of the {len({s['site'] for s in plan['menu']})} regions with a candidate were replaced: {what}."
        if sites
        else "No region was replaced: the exact passes alone reach the target."
    )
    return [
        f"The network that was {made} {'takes' if plan['cost'].get('unit') == 'ms' else 'has'} {after} instead of {before} ({_ratio(plan)}){where}.",
        replaced,
        f"On samples that no fit has seen its outputs differ from those of the given network by {plan['loss']:.3g} "
        f"({loss_unit(plan)}); nothing was trained.",
    ]


_BECAME = {
    "skip": "skipped",
    "linear": "made linear",
    "narrow": "made narrower",
    "low-rank": "made of lower rank",
}


def _ratio(plan: Data) -> str:
    times = plan["before"] / plan["after"] if plan["after"] else 1.0
    unit = plan["cost"].get("unit")
    word = {"ms": "faster", "bytes": "smaller"}.get(unit, "fewer")
    return f"{times:.2f} times {word}"


def loss_unit(plan: Data) -> str:
    """What the number of a plan's loss is."""
    kinds = set(plan.get("measures") or ())
    if kinds == {"own"}:
        return "your own score"
    if kinds and kinds <= {"log", "softmax", "logits"}:
        return "KL divergence in nats, averaged"
    if kinds == {"error"}:
        return "squared error relative to the variance of the outputs"
    return "mean over outputs of the KL divergence or the relative squared error"


def _pass_verdict(data: Data) -> list[str]:
    before, after = data["before"], data["after"]
    records = data["passes"]
    undone = [r["pass"] for r in records if r["rolled_back"]]
    changes = sum(len(r["rewrites"]) for r in records if not r["rolled_back"])
    kinds = [w["exactness"] for r in records if not r["rolled_back"] for w in r["rewrites"]]
    if not changes:
        first = "Nothing was changed."
    else:
        keys = [k for k in ("nodes", "parameters", "macs") if None not in (before[k], after[k])]
        sizes = [_change(before[k], after[k], "MACs" if k == "macs" else k) for k in keys]
        first = f"{_effect(kinds)}: {enumeration(sizes)}."
    if undone:
        first = f"{counted(len(undone), 'pass', 'passes')} failed the check and was undone ({enumeration(undone)}). {first}"
    active = sum(1 for r in records if r["rewrites"] and not r["rolled_back"])
    second = (
        f"{active} of {counted(len(records), 'pass', 'passes')} made {counted(changes, 'change')}."
    )
    return [first, second, _checked(records)]


def _change(before: int, after: int, noun: str) -> str:
    if before == after:
        return f"as many {noun} as before"
    return f"{after:,} instead of {before:,} {noun}"


def _effect(kinds: Sequence[str]) -> str:
    if "approximate" in kinds:
        return "The network is an approximation, whose outputs differ from those of the given one"
    if "border" in kinds:
        return "The network is smaller and equal but for a rim of its spatial border"
    return "The network computes the same function up to rounding"


def _checked(records: Sequence[Data]) -> str:
    left = sum(len(r["refusals"]) for r in records)
    rest = f"{counted(left, 'rewrite')} were considered and not made."
    errors = [r["error"] for r in records if r["error"] is not None]
    if not errors:
        return f"Outputs were not compared (--check does that); {rest}"
    worst = "infinite" if "infinite" in errors else f"{max(errors):.1e} of the largest output"
    return (
        f"Outputs were compared before and after every pass: the largest error is {worst}; {rest}"
    )


def choice_of(candidate: str | None) -> str:
    """The kind of what a region became: the first word of a candidate's label, ``kept`` if it has none."""
    words = (candidate or "kept").split()
    return words[0] if words else "kept"


def figures(data: Data) -> list[tuple[str, str, str]]:
    """Names and values before and after, for the top of the page."""
    rows: list[tuple[str, str, str]] = []
    plan = data.get("plan")
    if plan and plan["cost"].get("unit") in ("ms", "bytes"):
        unit = plan["cost"]["unit"]
        name = "latency" if unit == "ms" else "file"
        rows.append((name, amount(plan["before"], unit), amount(plan["after"], unit)))
    if "before" in data:
        for key in ("macs", "parameters", "bytes", "nodes"):
            values = (data["before"][key], data["after"][key])
            name = {"macs": "MACs", "bytes": "weights"}.get(key, key)
            unit = "bytes" if key == "bytes" else ""
            rows.append((name, amount(values[0], unit), amount(values[1], unit)))
    elif plan and plan["cost"].get("unit") == "MACs":
        rows.append(("MACs", amount(plan["before"], ""), amount(plan["after"], "")))
    return rows


def amount(value: float | None, unit: str | None) -> str:
    """A number with its unit, short enough for a heading."""
    if value is None:
        return "unknown"
    if unit == "ms":
        return (
            f"{value:.3g}\N{NO-BREAK SPACE}ms"
            if value < 999.5
            else f"{value:,.0f}\N{NO-BREAK SPACE}ms"
        )
    words = {"bytes": "B", "MACs": "MACs"}.get(unit or "", "")
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # Three digits: 999,600 is 1 M, not 1e+03 k.
            return f"{value / size:.3g}\N{NO-BREAK SPACE}{prefix}{' ' if words == 'MACs' else ''}{words}"
    return f"{value:g}\N{NO-BREAK SPACE}{words}" if words else f"{value:g}"


def regions(data: Data) -> list[dict[str, Any]]:
    """The chosen sites of a plan with the costs of their regions before and after, and what they lose alone."""
    plan = data["plan"]
    return [
        {
            "site": s["site"],
            "candidate": s["candidate"],
            "choice": choice_of(s["candidate"]),
            "before": s.get("cost"),
            "after": None if s.get("cost") is None else s["cost"] - s["saving"],
            "saving": s["saving"],
            "loss": s["loss"],
            "others": sum(m["site"] == s["site"] for m in plan["menu"]) - 1,
        }
        for s in plan["sites"]
    ]


def candidates(data: Data) -> dict[str, list[Data]]:
    """All candidates of a plan by site."""
    found: dict[str, list[Data]] = {}
    for entry in (data.get("plan") or {}).get("menu", ()):
        found.setdefault(entry["site"], []).append(entry)
    return found


def refusals(data: Data) -> list[dict[str, Any]]:
    """What was left alone, grouped by reason: the frequent ones first, each with the option that changes it."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    entries = [
        (record["pass"].partition("{")[0], f["node"], f["op"], f["reason"])
        for record in data.get("passes", ())
        for f in record["refusals"]
    ]
    plan = data.get("plan") or {}
    entries += [("plan", name, "", reason) for name, reason in plan.get("refused", {}).items()]
    names = {name for _, name, *_ in entries}
    for source, name, op, reason in entries:
        key = (source, _form(reason, names))
        group = found.setdefault(
            key,
            {"by": source, "reason": reason, "nodes": [], "remedy": remedy(reason), "alike": set()},
        )
        group["nodes"].append(f"{op} {name}".strip())
        group["alike"].add(reason)
    groups = sorted(found.values(), key=lambda g: -len(g["nodes"]))
    for group in groups:
        group["count"] = len(group["nodes"])
        group["shown"] = group.pop("nodes")[:_SHOWN]
        group["alike"] = len(group["alike"]) - 1
    return groups


def _form(reason: str, names: Iterable[str]) -> str:
    """A reason without the numbers and names that differ between nodes."""
    known = set(names)
    words = ["…" if w.strip(":,;.()'\"%") in known else w for w in reason.split(" ")]
    return re.sub(r"\d+(?:[.,]\d+)*", "#", re.sub(r"(?<=with )\S+(?=:)", "…", " ".join(words)))


def passes(data: Data) -> list[dict[str, Any]]:
    """The passes, with what they did and how often."""
    return [
        {
            "text": r["pass"],
            "exactness": r["exactness"] if r["rewrites"] else "",
            "counts": Counter(w["what"] for w in r["rewrites"]).most_common(),
            "refusals": len(r["refusals"]),
            "seconds": r["seconds"],
            "error": r["error"],
            "problem": r["problem"],
            "rolled_back": r["rolled_back"],
        }
        for r in data.get("passes", ())
    ]


def counted(count: int, one: str, several: str = "") -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
