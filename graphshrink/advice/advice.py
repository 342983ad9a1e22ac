"""The result of :func:`graphshrink.advise`: findings, the conclusion from them, and their forms for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir.errors import enumeration
from ..report import Size
from ..tables import html_of, text_of
from .commands import SAMPLES

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
"""The version of the JSON form."""

GAINS = ("yes", "small", "possible", "no", "unknown")
"""What a finding may say: a gain without any loss; next to none; one at a loss that samples or training decide; none; not known."""

_APPROXIMATE = ("depth", "width", "2:4", "blocks", "int8")
_LABELS = {"exact": "exact merges", "tflite": "TFLite"}
_IN_SENTENCE = {"2:4": "2:4 (on NVIDIA GPUs)"}


@dataclass(frozen=True)
class Finding:
    """What one capability could gain.

    Attributes:
        capability: ``exact``, ``depth``, ``width``, ``2:4``, ``blocks``, ``int8``, ``tflite`` or ``latency``.
        gain: One of :data:`GAINS`.
        text: The figures and the reason, for people.
        command: The command to run next; empty if there is none.
        figures: The numbers of the text, by name.
    """

    capability: str
    gain: str
    text: str
    command: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of the capability for people."""
        return _LABELS.get(self.capability, self.capability)


@dataclass(frozen=True, repr=False)
class Advice:
    """What could be gained for one model.

    Attributes:
        model: The path of the model, or the name of its class.
        size: The size of the model as it was given.
        findings: What each capability could gain.
        notes: What limits the findings, one line each.
    """

    model: str
    size: Size
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, capability: str) -> Finding:
        """The finding on one capability.

        Raises:
            KeyError: If there is none.
        """
        for finding in self.findings:
            if finding.capability == capability:
                return finding
        raise KeyError(capability)

    @property
    def conclusion(self) -> str:
        """What to do, in one or two sentences."""
        exact = next((f.gain for f in self.findings if f.capability == "exact"), "no")
        approximate = [f for f in self.findings if f.capability in _APPROXIMATE]
        possible = [_IN_SENTENCE.get(f.label, f.label) for f in approximate if f.gain == "possible"]
        free = [_IN_SENTENCE.get(f.label, f.label) for f in approximate if f.gain == "yes"]
        unknown = any(f.gain == "unknown" for f in approximate)
        lossy = f"{enumeration(possible)} can make it faster, at a loss that your samples measure"
        if exact == "yes" or free:
            first = f"Without any loss: {enumeration([*(['exact merges'] if exact == 'yes' else []), *free])}."
            return f"{first} {lossy[0].upper()}{lossy[1:]}." if possible else first
        if possible:
            return f"Exact merges alone will hardly make this model faster. {lossy[0].upper()}{lossy[1:]}."
        if unknown:
            return "Exact merges alone will hardly make this model faster. For the rest, sizes of its inputs must be known."
        return (
            "Nothing will be gained here: there is no exact merge, and no part that can be left out, made thinner or made sparse "
            "to run faster."
        )

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """The commands to run next, each with the capabilities that it is for."""
        found: dict[str, tuple[str, ...]] = {}
        for f in self.findings:
            if f.command:
                found[f.command] = (*found.get(f.command, ()), f.label)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The advice as plain data for JSON; ``schema`` increases when the meaning changes."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "size": vars(self.size),
            "conclusion": self.conclusion,
            "findings": [asdict(f) for f in self.findings],
            "notes": list(self.notes),
        }

    def render(self, console: Console) -> None:
        """Print the table, the conclusion and the commands."""
        from rich.markup import escape
        from rich.table import Table

        from ..cli.terminal import show

        if console.is_terminal:
            table = Table("", "gain", "why", show_lines=True)
            for f in self.findings:
                table.add_row(f.label, f.gain, escape(f.text))
            show(console, table)
        else:
            # One line each, which can be searched.
            for f in self.findings:
                line = f"{f.label}: {f.gain}: {f.text}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(
            self.conclusion, markup=False, highlight=False, soft_wrap=not console.is_terminal
        )
        if self.commands:
            console.print("\nNext:", highlight=False)
        for command, labels in self.commands.items():
            console.print(f"  {', '.join(labels)}:", markup=False, highlight=False)
            # Not wrapped: a command is copied as one line.
            console.print(f"    {command}", markup=False, highlight=False, soft_wrap=True)
        if any(SAMPLES in command.split() for command in self.commands):
            text = f"\n{SAMPLES} is an .npz file by input name, or a folder of .npy files or images (docs/calibration.md)."
            console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

    def __repr__(self) -> str:
        gains = ", ".join(f"{f.label}: {f.gain}" for f in self.findings)
        return f"<Advice for {self.model}: {gains}>"

    def __str__(self) -> str:
        return text_of(self.render)

    def _repr_html_(self) -> str:
        return html_of(self.render)
