"""The help of commands: options in groups, whole names, and examples.

Options that :data:`GROUPS` does not name are listed under "Options", commands that :data:`COMMANDS` does not name under "More".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import typer.core

COMMANDS: dict[str, tuple[str, ...]] = {
    "Make a model smaller": ("shrink", "plan", "recover"),
    "Look at a model": ("advise", "inspect", "compare", "bench"),
    "What there is": ("passes", "ops"),
}
"""The commands by group."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Passes": ("passes", "check", "overridable", "opset", "dump", "libraries"),
    "Plan": (
        "speedup", "latency", "macs", "size", "max_loss", "plan", "device", "threads", "score", "workers", "ray", "frontier",
        "repair",
    ),
    "Shapes": ("shapes", "fixed", "fix_shape"),
    "Data": (
        "data", "calibration", "calibration_samples", "calibration_batch", "samples", "batch", "preprocess", "labels",
    ),
    "Training": (
        "reference", "recover", "teacher", "epochs", "lr", "augment", "augment_tokens", "checkpoint", "measure",
    ),
    "Output": ("out", "report", "as_json", "verbose"),
}  # fmt: skip
"""The parameters of commands by group; the options of each target are a group of their own."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "graphshrink advise model.onnx",
        "graphshrink model.onnx out.onnx",
        "graphshrink model.onnx small.onnx --speedup 1.5 --calibration samples/",
        "graphshrink model.onnx out.tflite",
        "graphshrink compare model.onnx out.onnx",
        "graphshrink help shrink",
    ),
    "shrink": (
        "graphshrink in.onnx out.onnx",
        "graphshrink in.onnx out.onnx --check -v",
        "graphshrink in.onnx small.onnx --speedup 1.5 --calibration samples.npz",
        "graphshrink in.onnx out.onnx --passes merge-linear,prune-dead",
        "graphshrink in.onnx out.onnx --passes sparsify --calibration x.npz --recover 3",
        "graphshrink in.onnx out.onnx --passes sparsify,reconstruct --calibration x.npz",
        "graphshrink in.onnx trt.onnx --target tensorrt --fp16",
    ),
    "advise": (
        "graphshrink advise model.onnx",
        "graphshrink advise model.onnx --fix-shape x:1x3x224x224 --measure",
    ),
    "plan": (
        "graphshrink plan in.onnx --speedup 1.5 --calibration samples/ -o plan.json",
        "graphshrink in.onnx small.onnx --plan plan.json",
    ),
    "recover": ("graphshrink recover small.onnx --teacher in.onnx --data samples/ -o out.onnx",),
    "inspect": (
        "graphshrink inspect model.onnx",
        "graphshrink inspect model.onnx --sparsity",
        "graphshrink inspect model.tflite --json",
    ),
    "compare": (
        "graphshrink compare in.onnx out.onnx",
        "graphshrink compare in.onnx out.tflite --data inputs.npz",
    ),
    "bench": (
        "graphshrink bench model.onnx --fix-shape x:1x3x224x224",
        "graphshrink bench --show",
    ),
    "passes": ("graphshrink passes", "graphshrink passes merge-linear"),
    "ops": ("graphshrink ops", "graphshrink ops Conv"),
}
"""Examples of each command; those of the whole program under ``""``."""


class Command(typer.core.TyperCommand):
    """A command whose help has groups of options and examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words behind the name of the command."""
        return ["[OPTIONS]", *(_argument(p) for p in _arguments(self, ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the groups of options."""
        rows = [(_argument(p), p.help or "") for p in _arguments(self, ctx)]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        options = [p for p in self.get_params(ctx) if p.param_type_name == "option"]
        for title, names in _option_groups(self.name or "", [str(p.name) for p in options]):
            found = [p.get_help_record(ctx) for p in options if p.name in names]
            with formatter.section(title):
                formatter.write_dl([record for record in found if record is not None])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(formatter, EXAMPLES.get(self.name or "", ()))


class Program(typer.core.TyperGroup):
    """The whole program: commands in groups, and examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options that all of them take."""
        self.format_commands(ctx, formatter)
        records = [p.get_help_record(ctx) for p in self.get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in groups."""
        known = dict(self.commands)
        width = max(map(len, known), default=0)
        for title, names in grouped(COMMANDS, list(known), "More"):
            with formatter.section(title):
                rows = [(name.ljust(width), _first_line(known[name].help)) for name in names]
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(formatter, EXAMPLES[""])


def grouped(
    groups: dict[str, tuple[str, ...]], names: Sequence[str], rest: str
) -> list[tuple[str, list[str]]]:
    """The groups that have some of the names, with these; ``rest`` is the group of the others."""
    found = [(title, [n for n in listed if n in names]) for title, listed in groups.items()]
    taken = {n for _, some in found for n in some}
    found.append((rest, [n for n in names if n not in taken]))
    return [(title, some) for title, some in found if some]


def _option_groups(command: str, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    groups = dict(GROUPS)
    if command == "shrink":
        from ..targets.options import OPTIONS
        from .target_options import fields

        owners = {field: " and ".join(by) for field, by in fields(OPTIONS).items()}
        groups["Target"] = ("target",)
        for field, owner in owners.items():
            title = f"Target {owner}"
            groups[title] = (*groups.get(title, ()), field)
    return grouped(groups, names, "Options")


def _arguments(command: Any, ctx: Any) -> list[Any]:
    return [p for p in command.get_params(ctx) if p.param_type_name == "argument"]


def _argument(parameter: Any) -> str:
    """An argument as the usage line names it; in brackets if it may be left out."""
    name = str(parameter.metavar or parameter.name.upper()).strip("[]")
    return name if parameter.required else f"[{name}]"


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


def _write_examples(formatter: Any, examples: Iterable[str]) -> None:
    lines = list(examples)
    if lines:
        with formatter.section("Examples"):
            for line in lines:  # Not wrapped: they are copied.
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")
