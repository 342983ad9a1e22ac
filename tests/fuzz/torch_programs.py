"""Torch modules as source text: steps that can be left out one by one, and grown one by one.

A finding is a Python file that needs nothing but torch.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .draw import Draw

LARGEST = 1e3
"""A value with a larger number is dropped."""

MOST_NUMBERS = 6000
"""A value with more numbers is dropped."""

PRELUDE = '''import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn


class Keeps(nn.Module):
    """Remembers what it saw last."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        self.last = x
        return x * 1.5


class Wrapped(nn.Module):
    """A module around another, with a choice that its caller makes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, scale=None, add=0.5):
        y = self.inner(x)
        if scale is not None:
            y = y * scale
        return y + add


def tripled(module, arguments, result):
    return result * 3.0


def shifted(module, arguments):
    return (arguments[0] + 0.25, *arguments[1:])


def randomise(model):
    """No running statistic and no scale stays what it is at first."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0.0, 0.5)
            module.running_var.uniform_(0.3, 1.5)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


'''


@dataclass(frozen=True)
class Step:
    """A statement or two of ``forward``.

    Attributes:
        out: The name of the value that it defines, or none.
        lines: The statements.
        init: Statements of ``__init__`` that it needs.
    """

    out: str
    lines: tuple[str, ...]
    init: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A module.

    Attributes:
        seed: The seed of weights and inputs.
        inputs: Names and shapes of the inputs that are given.
        steps: The statements.
        returns: The expression that is returned.
        options: Further arguments of ``forward``, with defaults, which calls leave out.
        after: Statements that change ``model`` after its construction.
        free: Whether the module may run with other batch sizes.
    """

    seed: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    steps: tuple[Step, ...]
    returns: str
    options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    free: bool = False

    def source(self) -> str:
        """The module as a Python file."""
        arguments = ", ".join(["self", *(n for n, _ in self.inputs), *self.options])
        init = [line for step in self.steps for line in step.init]
        body = [line for step in self.steps for line in step.lines]
        made = ", ".join(
            f"torch.randn({', '.join(map(str, s)) or '()'}, dtype=dtype)" for _, s in self.inputs
        )
        text = [
            "class Model(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in init),
            "",
            f"    def forward({arguments}):",
            *(f"        {line}" for line in body),
            f"        return {self.returns}",
            "",
            "",
            "def make(dtype):",
            f"    torch.manual_seed({self.seed})",
            "    model = Model()",
            "    with torch.no_grad():",
            "        randomise(model)",
            "    model = model.to(dtype)",
            *(f"    {line}" for line in self.after),
            "    return model.eval()",
            "",
            "",
            "def inputs(dtype, batch=None):",
            f"    torch.manual_seed({self.seed + 1})",
            f"    made = ({made},)",
            "    return made if batch is None else tuple(torch.cat([x] * batch) * 0.9 for x in made)",
        ]
        return PRELUDE + "\n".join(text) + "\n"

    def to_json(self) -> str:
        """As text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Program:
        """From text."""
        said = json.loads(text)
        steps = tuple(Step(s["out"], tuple(s["lines"]), tuple(s["init"])) for s in said["steps"])
        inputs = tuple((n, tuple(shape)) for n, shape in said["inputs"])
        return cls(
            said["seed"],
            inputs,
            steps,
            said["returns"],
            tuple(said["options"]),
            tuple(said["after"]),
            said["free"],
        )

    def loaded(self) -> dict[str, Any]:
        """The names that the source defines: ``Model``, ``make``, ``inputs``."""
        # A module in sys.modules, so that its classes can be pickled.
        module = sys.modules["fuzzed"] = ModuleType("fuzzed")
        exec(compile(self.source(), "<fuzzed>", "exec"), vars(module))
        return vars(module)

    def without(self, place: int, instead: str | None) -> Program:
        """The program without a step; readers of its value read another one."""
        step = self.steps[place]
        steps = [*self.steps[:place], *self.steps[place + 1 :]]
        if not step.out or instead is None:
            return replace(self, steps=tuple(steps))
        word = re.compile(rf"\b{step.out}\b")
        steps = [
            replace(s, lines=tuple(word.sub(instead, line) for line in s.lines)) for s in steps
        ]
        return replace(self, steps=tuple(steps), returns=word.sub(instead, self.returns))


@dataclass
class Grower:
    """A module that grows: every statement is run as it is proposed, and only what runs is kept.

    Attributes:
        draw: The source of random choices.
        values: The values by name, for the drawn inputs.
        steps: The statements so far.
        modules: Attributes that are modules, with the shape of what they were called on.
    """

    draw: Draw
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    modules: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self._names: dict[str, Any] = {}
        exec(PRELUDE, self._names)
        self._names["self"] = self.model = nn.Module()

    def name(self, prefix: str) -> str:
        """A new name."""
        self._count += 1
        return f"{prefix}{self._count}"

    def add_input(self, shape: tuple[int, ...]) -> str:
        """A new input."""
        name = self.name("x")
        self.values[name] = torch.randn(shape)
        return name

    def step(self, text: str, init: Sequence[str] = (), out: bool = True) -> str | None:
        """Append ``y = text``, or the statements of ``text``, if it runs and gives a tame tensor; the name of the value."""
        name = self.name("y") if out else ""
        lines = (f"{name} = {text}",) if out else tuple(text.split("\n"))
        before = {k: v.clone() for k, v in self.values.items()}
        scope = {**self._names, **self.values}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec("\n".join(init), scope)
                self.model.eval()
                exec("\n".join(lines), scope)
            made = [scope[name]] if out else [scope[n] for n in self.values]
            if not all(_tame(value) for value in made):
                raise ValueError("not tame")
        except Exception:
            for key, value in before.items():
                if not torch.equal(self.values[key], value):
                    self.values[key] = value  # Aliasing is lost here; only magnitudes are checked.
            return None
        self.steps.append(Step(name, lines, tuple(init)))
        if out:
            self.values[name] = scope[name]
        else:
            self.values.update({n: scope[n] for n in self.values})
        return name

    def module(self, text: str, x: str, prefix: str = "m") -> str | None:
        """Append the call of a new module on a value."""
        name = self.name(prefix)
        made = self.step(f"self.{name}({x})", [f"self.{name} = {text}"])
        if made is not None:
            self.modules.append((name, self.shape(x)))
        return made

    def pick(self, *ranks: int, low: int = 0) -> str | None:
        """One of the values of some ranks, mostly one of the newest."""
        names = [
            n
            for n, v in self.values.items()
            if v.is_floating_point() and (v.ndim in ranks if ranks else v.ndim >= low)
        ]
        if not names:
            return None
        back = self.draw.weighted({1: 10, 2: 4, 3: 2, 5: 1, 9: 1})
        return names[-min(back, len(names))]

    def like(self, x: str) -> list[str]:
        """Values of the same shape."""
        return [
            n
            for n, v in self.values.items()
            if v.shape == self.values[x].shape and v.dtype == self.values[x].dtype
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[name].shape)


def _tame(value: Any) -> bool:
    if (
        not isinstance(value, torch.Tensor)
        or not 0 < value.numel() <= MOST_NUMBERS
        or value.ndim > 6
    ):
        return False
    return not value.is_floating_point() or bool((value.abs() < LARGEST).all())
