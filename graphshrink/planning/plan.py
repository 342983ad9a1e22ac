"""The plan: which sites become what, with everything that is needed to do it again.

A plan is a JSON file. It holds names and numbers, no weights: applying it reads the calibration samples again and repeats the fits of
the chosen sites, after a check that model and samples are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.calibration import CalibrationData
from ..ir import Graph, Rewriter, UsageError
from ..ir.errors import check_readable
from ..ir.files import write_text
from ..not_understood import NotUnderstood
from ..passes import Pipeline
from ..tables import html_of, text_of
from .candidates import MENU, Candidate, at_strength
from .samples import Samples, read_samples
from .sites import find_sites
from .survey import apply, apply_to, fit

if TYPE_CHECKING:
    from rich.console import Console

    from .repair import Repairs

FORMAT = 1
"""The version of the file format."""

PREPARATION = "fold-constants,merge-linear,prune-dead"
"""The exact passes in front of a plan; its sites are regions of their result."""

_MOST = 1 << 26


@dataclass(frozen=True)
class PlannedSite:
    """One chosen replacement.

    Attributes:
        site: The name of the site.
        candidate: The label of the candidate.
        saving: What it saves alone, in the unit of the cost.
        loss: What it loses alone, on the scoring samples.
        cost: What the region costs as it is; ``None`` in plans of older versions.
    """

    site: str
    candidate: str
    saving: float
    loss: float
    cost: float | None = None


@dataclass(repr=False)
class Plan:
    """A plan for one model; ``print(plan)`` shows what its regions become.

    Attributes:
        sites: The chosen replacements, in the order of the network.
        target: The target: ``speedup``, ``latency``, ``macs``, ``size`` or ``max_loss``, with its value.
        cost: What the costs are: the unit, and the device if they are measured.
        before: The cost of the given model.
        predicted: The cost of the planned network by the sum over its sites.
        after: The cost of the planned network as a whole.
        predicted_loss: The sum of the losses of single replacements.
        loss: The loss of the whole planned network on the scoring samples.
        factor: What a saving of a single region is worth in the whole network, fitted on other networks than the planned one; the correction
            of ``predicted``.
        model: The SHA-256 of the model.
        samples: The SHA-256 of the calibration samples, their number, and where they were read from, if that was a path.
        fixed_shapes: Input shapes that were fixed in the model, by input name.
        version: The version of graphshrink that made it.
        menu: All candidates that were scored.
        refused: Sites and candidates that were left out, with reasons.
        regions: The network in order, divided into parts; see :func:`graphshrink.planning.strip.strip`.
        additivity: How well costs of regions add up: the number of whole ``networks`` that were timed, the root mean square ``error`` of their
            predicted costs, and how far the planned network is ``off`` its prediction, both relative.
        measures: How each output is compared: ``log``, ``softmax`` and ``logits`` by KL divergence, ``error`` by the relative squared
            error; or ``own``, the user's function.
        frontier: The sets of replacements that no other scored set beats, by their losses; see :mod:`graphshrink.planning.frontier`.
        repairs: The layers that were corrected afterwards, and how; see :mod:`graphshrink.planning.repair`.
        repaired: The losses ``before`` and ``after`` these corrections, on samples that they were not computed from; empty if none
            were sought.
    """

    sites: list[PlannedSite]
    target: dict[str, float]
    cost: dict[str, Any]
    before: float
    predicted: float
    after: float
    predicted_loss: float
    loss: float
    factor: float
    model: str
    samples: dict[str, Any]
    fixed_shapes: dict[str, list[int | None]]
    version: str
    menu: list[PlannedSite] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)
    additivity: dict[str, float | int | None] = field(default_factory=dict)
    measures: list[str] = field(default_factory=list)
    frontier: list[dict[str, Any]] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)
    repaired: dict[str, float] = field(default_factory=dict)
    _not_understood: tuple[NotUnderstood, ...] = field(default=(), repr=False, compare=False)
    _notes: list[str] = field(default_factory=list, repr=False, compare=False)
    _source: Any = field(default=None, repr=False, compare=False)
    _data: Any = field(default=None, repr=False, compare=False)
    _candidates: list[Candidate] | None = field(default=None, repr=False, compare=False)
    _corrections: Repairs | None = field(default=None, repr=False, compare=False)

    @property
    def speedup(self) -> float:
        """The cost of the given model divided by that of the planned network."""
        return self.before / self.after if self.after else 1.0

    @property
    def not_understood(self) -> tuple[NotUnderstood, ...]:
        """The opaque nodes of the model that was planned for; empty for a plan that was read from a file."""
        return self._not_understood

    @property
    def notes(self) -> list[str]:
        """Remarks on how the plan was made, which its file does not have."""
        return self._notes

    def render(self, console: Console) -> None:
        """Print what each region becomes, what it saves and loses alone, and the costs of the whole network."""
        from rich.markup import escape
        from rich.table import Table

        from ..cli.terminal import Name, show
        from .costs import cost_text

        unit = self.cost.get("unit", "")
        table = Table("region", "becomes", "saves", "loses")
        for site in self.sites:
            share = site.saving / self.before if self.before else 0.0
            row = (Name(site.site), escape(site.candidate), f"{share:.1%}", f"{site.loss:.3g}")
            table.add_row(*row)
        show(console, table)
        before, after = cost_text(self.before, unit), cost_text(self.after, unit)
        line = f"{before} -> {after} ({self.speedup:.2f}x), loss {self.loss:.3g}"
        console.print(line, markup=False, highlight=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False)

    def __repr__(self) -> str:
        target = ", ".join(f"{kind} {value:g}" for kind, value in self.target.items())
        count = len({s.site for s in self.menu})
        replaced = f"{len(self.sites)} of {count} regions replaced"
        return f"<Plan {target}: {replaced}, {self.speedup:.2f}x>"

    def __str__(self) -> str:
        return text_of(self.render)

    def _repr_html_(self) -> str:
        return html_of(self.render)

    def to_json(self) -> str:
        """The text of the file: equal plans give equal bytes."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        return f"{text}\n"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        fields = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        fields["sites"] = [asdict(s) for s in self.sites]
        fields["menu"] = [asdict(s) for s in self.menu]
        return {"format": FORMAT, **fields}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, whole or not at all.

        Raises:
            UsageError: If the file cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            UsageError: If the file is not a plan that this version understands.
        """
        check_readable(path, _MOST)
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not a plan: {error}") from error
        if not isinstance(found, dict) or "format" not in found:
            raise UsageError(f"{path} is not a plan")
        if found.pop("format") != FORMAT:
            raise UsageError(
                f"the plan {path} was made by another version of graphshrink: plan anew"
            )
        try:
            for key in ("sites", "menu"):
                found[key] = [PlannedSite(**s) for s in found[key]]
            plan = cls(**found)
            sound = _is_sound(plan)
        except (TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            raise UsageError(f"{path} is not a plan: fields are missing or malformed")
        return plan

    def bind(self, model: Any, calibration: Any = None) -> None:
        """Set the model and the calibration data that the plan is applied to.

        Args:
            model: The model that the plan was made for, or the path of its file.
            calibration: The calibration data; if not given, they are read from the path that the plan names.

        Raises:
            UsageError: If it is another model, or there are no data.
        """
        if model_digest(model) != self.model:
            raise UsageError("the plan was made for another model: plan anew")
        if calibration is None:
            calibration = self._kept_data()
        self._source, self._data = model, calibration

    def _kept_data(self) -> CalibrationData:
        path = self.samples.get("path")
        if not isinstance(path, str):
            raise UsageError(
                "the plan does not say where its samples are: give the calibration data"
            )
        options = {k: self.samples.get(k) for k in ("samples", "batch_size", "preprocess")}
        return CalibrationData(path, **options)

    def apply(self, *, check: bool = False) -> Any:
        """The planned network, as :func:`graphshrink.shrink` returns it: with a report, ``model`` and ``save(path)``.

        Raises:
            UsageError: If model or samples are not those of the plan.
            ModelError: If the model cannot be read.
        """
        from ..api import shrink

        if self._source is None:
            raise UsageError("the plan has no model yet: call bind(model, calibration) first")
        return shrink(
            self._source, self.pipeline(), check=check, fixed_shapes=self.fixed_shapes or None
        )

    def pipeline(self) -> Pipeline:
        """The passes that make the planned network: exact preparation, replacements, clean-up."""
        return Pipeline([Pipeline(PREPARATION), self.replace_regions, Pipeline("prune-dead")])

    def replace_regions(self, graph: Graph, rw: Rewriter) -> None:
        """Replace the planned regions; a pass.

        Raises:
            UsageError: If the samples, or the regions, are not those of the plan.
        """
        if self._candidates is None:
            samples = read_samples(graph, self._data)
            self._candidates = self._refit(graph, samples)
            self._corrections = self._repeat(graph, samples, self._candidates)
        apply_to(graph, rw, self._candidates)
        if self._corrections is not None:
            self._corrections.apply(graph, rw)

    def _repeat(
        self, graph: Graph, samples: Samples, candidates: list[Candidate]
    ) -> Repairs | None:
        """The corrections of the plan, computed again."""
        if not self.repairs:
            return None
        from .repair import Repair, Repairer

        original = graph.clone()
        repairer = Repairer(original, apply(original, candidates), candidates, samples)
        return repairer.repeat([Repair(**r) for r in self.repairs])

    def _refit(self, graph: Graph, samples: Samples) -> list[Candidate]:
        if samples.digest != self.samples.get("sha256"):
            raise UsageError(
                "the calibration data are not those of the plan: give the same, or plan anew"
            )
        wanted = {(s.site, s.candidate) for s in self.sites}
        names = {site for site, _ in wanted}
        # Fits read the graph that they were made for, also when this one has changed.
        own = graph.clone()
        sites = [s for s in find_sites(own).found if s.name in names]
        # Statistics for other kinds of the same sites would be collected for nothing.
        found: list[Candidate] = []
        for kind in MENU.values():
            own_sites = {s for s, label in wanted if label.split(" ")[0] == kind.name}
            some = [s for s in sites if s.name in own_sites]
            found += fit(own, some, samples, {}, lambda *_: None, [kind]) if some else []
        by_key = {(c.site.name, c.label): c for c in found}
        chosen = [
            c for site, label in sorted(wanted) if (c := _named(by_key, site, label)) is not None
        ]
        missing = wanted - {(c.site.name, c.label) for c in chosen}
        if missing:
            site, label = min(missing)
            if site not in {s.name for s in sites}:
                raise UsageError(f"the model has no site {site!r} any more: plan anew")
            raise UsageError(f"site {site!r} has no candidate {label!r}: plan anew")
        return chosen


def _named(found: dict[tuple[str, str], Candidate], site: str, label: str) -> Candidate | None:
    """The candidate with a label, which may name a strength."""
    own, strength = at_strength(label)
    candidate = found.get((site, own))
    return candidate if candidate is None or strength == 1 else candidate.weaker(strength)


_PART = {
    "site": str, "kind": str, "candidate": str | None, "nodes": int, "ops": dict, "macs": int | None,
    "first": str, "last": str,
}  # fmt: skip
_REPAIR = {"layer": str, "kind": str, "amount": int | float}
_POINT = {"cost": int | float, "loss": int | float, "chosen": bool, "sites": list}


def _is_sound(plan: Plan) -> bool:
    """Whether the fields of a plan from a file have the types that are relied on."""
    texts = [plan.model, *plan.refused, *plan.refused.values(), *plan.measures]
    texts += [text for s in (*plan.sites, *plan.menu) for text in (s.site, s.candidate)]
    numbers = [plan.before, plan.predicted, plan.after, plan.predicted_loss, plan.loss, plan.factor]
    numbers += [n or 0 for n in plan.additivity.values()]
    numbers += [n for s in (*plan.sites, *plan.menu) for n in (s.saving, s.loss, s.cost or 0)]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(n, int | float) and isfinite(n) for n in numbers)
        and all(
            isinstance(d, dict) for d in (plan.samples, plan.cost, plan.target, plan.additivity)
        )
        and len({s.site for s in plan.sites}) == len(plan.sites)
        and isinstance(plan.fixed_shapes, dict)
        and all(isinstance(shape, list) for shape in plan.fixed_shapes.values())
        and all(_has(part, _PART) for part in plan.regions)
        and all(_has(point, _POINT) for point in plan.frontier)
        and all(_has(repair, _REPAIR) and len(repair) == len(_REPAIR) for repair in plan.repairs)
        and isinstance(plan.repaired, dict)
        and all(isinstance(n, int | float) and isfinite(n) for n in plan.repaired.values())
    )


def _has(entry: dict[str, Any], types: Mapping[str, Any]) -> bool:
    return all(isinstance(entry[key], kind) for key, kind in types.items())


def model_digest(model: Any) -> str:
    """The SHA-256 of a model file and of its external data, or of a model in memory.

    Raises:
        UsageError: If the file cannot be read.
        ModelError: If external data are missing or not allowed.
    """
    digest = hashlib.sha256()
    if isinstance(model, str | os.PathLike):
        check_readable(model)
        _add_file(digest, Path(model))
        _add_external(digest, Path(model))
    else:
        digest.update(model.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path, start: int = 0, size: int = -1) -> None:
    """Add a part of a file to a hash; the rest of it if no size is given."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(1 << 20 if size < 0 else min(size, 1 << 20)):
                digest.update(block)
                size -= len(block) if size >= 0 else 0
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _add_external(digest: hashlib._Hash, path: Path) -> None:
    """Add the numbers that a model keeps in other files."""
    import onnx

    from ..hosts.onnx.tensors import external_location, is_external, tensors_in

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:
        return  # It is no model: protobuf has an error of its own. Whoever reads it says so.
    known: dict[str, tuple[Path, int]] = {}
    for tensor in tensors_in(model):
        if is_external(tensor):
            _add_file(digest, *external_location(tensor, path.parent, known))


def where(data: Any) -> Mapping[str, Any]:
    """Where calibration data were read from, for the plan; empty for data in memory."""
    given = data if isinstance(data, CalibrationData) else CalibrationData(data)
    if not isinstance(given.data, str | os.PathLike):
        return {}
    recipe = given.preprocess
    return {
        "path": os.fspath(given.data),
        "samples": given.samples,
        "batch_size": given.batch_size,
        "preprocess": None if recipe is None else str(recipe),
    }


def rounded(numbers: Sequence[float]) -> list[float]:
    """Numbers with nine digits, as the file has them."""
    return [float(f"{n:.9g}") for n in numbers]
