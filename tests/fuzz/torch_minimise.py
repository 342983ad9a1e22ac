"""Smaller torch modules that are like a given one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from .torch_programs import Program


def smaller(program: Program) -> Iterator[Program]:
    """Simpler modules, the shortest first."""
    names = [n for n, _ in program.inputs]
    outs = [step.out for step in program.steps if step.out]
    for i, step in enumerate(program.steps[:-1]):
        if step.out:
            yield _pruned(
                replace(program, steps=program.steps[: i + 1], returns=step.out, options=())
            )
    for size in (8, 4, 2):
        for start in range(0, len(program.steps) - size + 1, size):
            kept = program.steps[:start] + program.steps[start + size :]
            yield _pruned(replace(program, steps=kept))
    for name in [*outs, *names]:
        if program.returns != name:
            yield _pruned(replace(program, returns=name))
    for i in reversed(range(len(program.steps))):
        step = program.steps[i]
        text = " ".join(step.lines).partition("=")[2] if step.out else ""
        read = [n for n in [*outs, *names] if n != step.out and re.search(rf"\b{n}\b", text)]
        for instead in [*read, *([names[0]] if step.out else [])] or [None]:
            yield _pruned(program.without(i, instead))
    if program.after:
        for i in range(len(program.after)):
            yield replace(program, after=program.after[:i] + program.after[i + 1 :])
    if program.options:
        yield replace(program, options=())
    if len(program.inputs) > 1:
        for i in range(len(program.inputs)):
            yield replace(program, inputs=program.inputs[:i] + program.inputs[i + 1 :])
    if program.free:
        yield replace(program, free=False)
    for i, (name, shape) in enumerate(program.inputs):
        for axis, size in enumerate(shape):
            if size > 1 and axis != 1:
                less = (*shape[:axis], 1 if axis == 0 else size - 1, *shape[axis + 1 :])
                inputs = (*program.inputs[:i], (name, less), *program.inputs[i + 1 :])
                yield replace(program, inputs=inputs)


def _pruned(program: Program) -> Program:
    """Without steps whose value nobody reads; writes in place stay."""
    kept, read = [], program.returns
    for step in reversed(program.steps):
        text = " ".join(step.lines)
        if (
            step.out
            and not re.search(rf"\b{step.out}\b", read)
            and "_(" not in text
            and "inplace" not in text
        ):
            continue
        kept.append(step)
        read += " " + (text.partition("=")[2] if step.out else text)
    return replace(program, steps=tuple(reversed(kept)))
