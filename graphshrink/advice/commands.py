"""The commands that advice names: for a file those of the command line, for a model in memory the calls in Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ir import Graph, Value

SAMPLES = "SAMPLES"
"""The place of the calibration data in a command."""


@dataclass(frozen=True)
class Commands:
    """Writes commands for one model.

    Attributes:
        path: The path of the model's file; ``None`` for a model in memory.
        torch: Whether it is a torch model.
        fixed: The input shapes that are fixed, by input name.
    """

    path: str | None
    torch: bool = False
    fixed: Mapping[str, Sequence[int | None]] | None = None

    def shrink(
        self, out: str, passes: str = "", *, samples: bool = False, tensorrt: bool = False
    ) -> str:
        """Run a pipeline (the default one if ``passes`` is empty) and write ``out``.

        Args:
            out: The file to write.
            passes: The pipeline text.
            samples: Whether calibration data are needed.
            tensorrt: Whether the file is for TensorRT, in float16.
        """
        if self.path is None:
            return self._call(out, passes, samples, tensorrt)
        words = ["graphshrink", shlex.quote(self.path), out]
        words += ["--passes", shlex.quote(passes)] if passes else []
        return self._line(words, samples, "--target tensorrt --fp16" if tensorrt else "")

    def plan(self, speedup: float) -> str:
        """Plan for a speedup and write the planned network."""
        if self.path is not None:
            words = [
                "graphshrink",
                shlex.quote(self.path),
                "small.onnx",
                "--speedup",
                f"{speedup:g}",
            ]
            return self._line(words, True, "")
        given = "model"
        first = ""
        if self.torch:
            given = '"model.onnx"'
            first = f"{self._call('model.onnx')}; "
        fixed = f", fixed_shapes={dict(self.fixed)!r}" if self.fixed else ""
        return (
            f"{first}graphshrink.plan({given}, samples, speedup={speedup:g}{fixed}).apply().model"
        )

    def tool(self, name: str, options: str = "") -> str:
        """A command that only looks at the model; ``""`` for a model in memory."""
        if self.path is None:
            return ""
        return self._line(["graphshrink", name, shlex.quote(self.path)], False, options)

    def with_sizes(self, graph: Graph) -> str:
        """The advice again, with the open sizes of inputs fixed; capital letters are the sizes to fill in."""
        if self.torch:
            return "graphshrink.advise(model, example_inputs=inputs)"
        if self.path is None:
            return "graphshrink.advise(model, fixed_shapes={...})"
        words = ["graphshrink advise", shlex.quote(self.path)]
        for value in open_inputs(graph):
            shape = value.type.shape
            sizes = "NxCxHxW" if shape is None else "x".join(map(_size, shape, range(len(shape))))
            words.append(f"--fix-shape {shlex.quote(f'{value.name}:{sizes}')}")
        return " ".join(words)

    def _line(self, words: list[str], samples: bool, options: str) -> str:
        words = [*words, *([options] if options else [])]
        if samples:
            words += ["--calibration", SAMPLES]
        for name, shape in (self.fixed or {}).items():
            sizes = "x".join("?" if d is None else str(d) for d in shape)
            words += ["--fix-shape", shlex.quote(f"{name}:{sizes}")]
        return " ".join(words)

    def _call(
        self, out: str, passes: str = "", samples: bool = False, tensorrt: bool = False
    ) -> str:
        given = ["model", *([f'"{passes}"'] if passes else [])]
        given += ["example_inputs=inputs"] if self.torch else []
        given += ["calibration=samples"] if samples else []
        given += [f"fixed_shapes={dict(self.fixed)!r}"] if self.fixed else []
        target = ', target="tensorrt", fp16=True' if tensorrt else ""
        return f'graphshrink.shrink({", ".join(given)}).save("{out}"{target})'


def open_inputs(graph: Graph) -> list[Value]:
    """The inputs with sizes that are open, apart from the batch."""
    return [
        v
        for v in graph.inputs
        if v.type.shape is None or not all(isinstance(d, int) for d in v.type.shape[1:])
    ]


def _size(size: object, place: int) -> str:
    """A size of a shape in a command: a known one, or a letter; an open batch is left open."""
    if isinstance(size, int):
        return str(size)
    return "?" if place == 0 else "NCHWDEFG"[min(place, 7)]
