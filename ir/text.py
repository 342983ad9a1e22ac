"""The text form of graphs: ``print_graph`` and ``parse`` are inverse.

::

    graph block(%x: f32[1, 3, 8, 8]) {
      %w: f32[3, 3, 1, 1] = dense [1.0, 0.0, ...]
      %y: f32[1, 3, 8, 8] = Conv(%x, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
      %z: f32[1, 3, 8, 8] = Activation(%y) {kind="relu"} as "layer1.relu"
      return y=%z
    }

A constant is ``dense [...]``, ``splat 0.5``, ``random 7`` (standard normal from that seed; for tests) or, if it is large and
``full=True`` was not given, ``elided``. Op fields at their default are left out. ``as "..."`` gives the name of a node that
is not named like its first result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from .graph import Graph, GraphError, Node, Value
from .ops import Op
from .tensor import ArrayTensor, ElidedTensor, SplatTensor, Tensor
from .types import Dim, DType, TensorType, _escape

_SMALL = 16
"""Constants of up to this many elements are printed in full."""


class TextError(ValueError):
    """The text is not a valid graph; the message gives the line."""


def print_graph(graph: Graph, *, full: bool = False, names: bool = True) -> str:
    """The text of a graph.

    Args:
        graph: The graph.
        full: Print the numbers of all constants, not only of small ones.
        names: Print names. Otherwise values are numbered in order of appearance and unused constants are left out, so
            that graphs that differ only in names print alike.
    """
    numbers: dict[Value, str] = {}

    def label(value: Value) -> str:
        if not names:
            return "%" + numbers.setdefault(value, str(len(numbers)))
        return "%" + value.name if _PLAIN.fullmatch(value.name) else f'%"{_escape(value.name)}"'

    inputs = ", ".join(f"{label(v)}: {v.type}" for v in graph.inputs)
    title = _quoted(graph.name) if names else "_"
    lines = [f"graph {title}({inputs}) {{"]
    constants = {
        value: _constant_text(value.data, full)
        for value in graph.constants
        if value.data is not None and (names or value.use_count)
    }
    if names:
        lines += [f"  {label(v)}: {v.type} = {text}" for v, text in constants.items()]
    printed: set[Value] = set()
    for node in graph.nodes:
        if not names:
            for value in node.inputs:
                if value in constants and value not in printed:
                    printed.add(value)
                    lines.append(f"  {label(value)}: {value.type} = {constants[value]}")
        lines.append("  " + _node_text(node, label, names))
    if not names:
        for value in graph.outputs:
            if value in constants and value not in printed:
                printed.add(value)
                lines.append(f"  {label(value)}: {value.type} = {constants[value]}")
    returned = ", ".join(
        f"{_quoted(name)}={label(v)}" if names else label(v)
        for name, v in zip(graph.output_names, graph.outputs, strict=True)
    )
    return "\n".join([*lines, f"  return {returned}".rstrip(), "}"]) + "\n"


def _quoted(name: str) -> str:
    """A name, in quotes unless it is a plain word."""
    return name if _WORD.fullmatch(name) else f'"{_escape(name)}"'


def _node_text(node: Node, label: Any, names: bool) -> str:
    inputs = ", ".join("none" if v is None else label(v) for v in node.inputs)
    outs = ", ".join(f"{label(v)}: {v.type}" for v in node.outputs)
    shown = []
    for f in fields(node.op):
        value = getattr(node.op, f.name)
        if not f.compare or (f.default is not MISSING and f.default == value):
            continue
        shown.append(f"{f.name}={_literal(value)}")
    attributes = f" {{{', '.join(shown)}}}" if shown else ""
    plain = node.name == (node.outputs[0].name if node.outputs else node.op.name.lower())
    name = "" if plain or not names else f' as "{_escape(node.name)}"'
    left = f"{outs} = " if outs else ""
    return f"{left}{node.op.name}({inputs}){attributes}{name}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{_escape(value)}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(v) for v in value)}]"
    if isinstance(value, complex):
        return _literal((value.real, value.imag))
    # The repr of a NumPy number would include its type.
    return repr(float(value)) if isinstance(value, float) else repr(int(value))


def _constant_text(data: Tensor, full: bool) -> str:
    if isinstance(data, SplatTensor):
        return f"splat {_literal(data.value)}"
    if isinstance(data, ElidedTensor) or not (full or data.size <= _SMALL):
        return "elided"
    array = data.numpy().reshape(-1)
    if data.dtype is DType.STRING:
        return f"dense {_literal(tuple(_as_str(v) for v in array.tolist()))}"
    if not array.dtype.isbuiltin:
        array = array.astype(np.float64 if data.dtype.is_float else np.int64)
    return f"dense {_literal(tuple(array.tolist()))}"


def _as_str(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


# A value name must not end in a colon: a colon separates the name from the type.
_PLAIN = re.compile(r"[A-Za-z0-9_.$/:]*[A-Za-z0-9_.$/]")
_WORD = re.compile(r"(?!(?:inf|nan)\b)[A-Za-z_][A-Za-z0-9_.$/]*")
_TOKEN = re.compile(
    r"""(?P<space>[\s]+|//[^\n]*)
      |(?P<value>%[A-Za-z0-9_.$/:]*[A-Za-z0-9_.$/]|%"(?:[^"\\]|\\.)*")
      |(?P<string>"(?:[^"\\]|\\.)*")
      |(?P<number>[-+]?(?:inf|nan)\b|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      |(?P<word>[A-Za-z_][A-Za-z0-9_.$/]*)
      |(?P<punct>[(){}\[\]=,:*?])""",
    re.VERBOSE,
)


def parse(text: str, constants: Mapping[str, Any] | None = None) -> Graph:
    """Read a graph from its text form.

    Args:
        text: The text form.
        constants: Arrays by name, which replace the numbers that the text gives for these constants.

    Raises:
        TextError: If the text is not a valid graph.
    """
    return _Parser(text, dict(constants or {})).graph()


class _Parser:
    """A recursive-descent parser over a list of (kind, token, line)."""

    def __init__(self, text: str, constants: dict[str, Any]) -> None:
        self.tokens = list(self._lex(text))
        self.at = 0
        self.constants = constants
        self.values: dict[str, Value] = {}

    @staticmethod
    def _lex(text: str) -> Iterator[tuple[str, str, int]]:
        at, line = 0, 1
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise TextError(f"line {line}: cannot read {text[at : at + 20]!r}")
            if found.lastgroup != "space":
                assert found.lastgroup is not None
                yield found.lastgroup, found[0], line
            line += found[0].count("\n")
            at = found.end()
        yield "end", "", line

    def fail(self, expected: str) -> TextError:
        _, token, line = self.tokens[self.at]
        return TextError(f"line {line}: expected {expected}, found {token!r}")

    def peek(self) -> str:
        return self.tokens[self.at][1]

    def take(self, *expected: str) -> str:
        kind, token, _ = self.tokens[self.at]
        if kind not in expected and token not in expected:
            raise self.fail(" or ".join(expected))
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        if self.peek() == token and self.tokens[self.at][0] != "string":
            self.at += 1
            return True
        return False

    def graph(self) -> Graph:
        self.take("graph")
        graph = Graph(self.name())
        self.take("(")
        while not self.accept(")"):
            name = self.value_name()
            self.values[name] = graph.add_input(name, self.type())
            if self.peek() != ")":
                self.take(",")
        self.take("{")
        while self.peek() != "return":
            self.statement(graph)
        self.take("return")
        while not self.accept("}"):
            output = self.name() if not self.peek().startswith("%") else None
            if output is not None:
                self.take("=")
            graph.add_output(self.use(), output)
            if self.peek() != "}":
                self.take(",")
        self.take("end")
        return graph

    def name(self) -> str:
        token = self.take("word", "string", "number")
        return _unquote(token) if token.startswith('"') else token

    def value_name(self) -> str:
        token = self.take("value")[1:]
        name = _unquote(token) if token.startswith('"') else token
        if self.peek() == ":":
            self.take(":")
        return name

    def use(self) -> Value:
        line = self.tokens[self.at][2]
        token = self.take("value")[1:]
        name = _unquote(token) if token.startswith('"') else token
        if name not in self.values:
            raise TextError(f"line {line}: %{name} is not defined")
        return self.values[name]

    def type(self) -> TensorType:
        name = "?" if self.accept("?") else self.take("word")
        dtype = None
        if name != "?":
            try:
                dtype = DType(name)
            except ValueError:
                self.at -= 1
                raise self.fail("an element type") from None
        self.take("[")
        if self.accept("*"):
            self.take("]")
            return TensorType(dtype)
        shape: list[Dim] = []
        while not self.accept("]"):
            kind, token, _ = self.tokens[self.at]
            self.at += 1
            if kind == "number" and token.isdecimal():
                shape.append(int(token))
            elif kind == "string":
                shape.append(_unquote(token))
            elif kind == "word":
                shape.append(token)
            elif token == "?":
                shape.append(None)
            else:
                self.at -= 1
                raise self.fail("a dimension")
            if self.peek() != "]":
                self.take(",")
        return TensorType(dtype, tuple(shape))

    def statement(self, graph: Graph) -> None:
        names: list[str] = []
        types: list[TensorType] = []
        while self.tokens[self.at][0] == "value":
            names.append(self.value_name())
            types.append(self.type())
            if not self.accept(","):
                break
        for name in names:
            if name in self.values:
                raise TextError(f"line {self.tokens[self.at][2]}: %{name} is defined twice")
        if names:
            self.take("=")
        line = self.tokens[self.at][2]
        kind = self.take("word")
        if kind in ("dense", "splat", "random", "elided"):
            if len(names) != 1:
                raise self.fail("one name for a constant")
            try:
                data = self.constant(kind, names[0], types[0])
            except TextError:
                raise
            except (TypeError, ValueError, ArithmeticError) as error:
                raise TextError(f"line {line}: constant %{names[0]}: {error}") from error
            self.values[names[0]] = graph.add_constant(data, names[0])
        else:
            self.node(graph, kind, names, types)

    def constant(self, kind: str, name: str, type_: TensorType) -> Tensor:
        shape, dtype = type_.static_shape, type_.dtype
        if shape is None or dtype is None:
            raise self.fail(
                f"an element type and a shape without unknowns for the constant %{name}"
            )
        body: Any = None if kind == "elided" else self.literal()
        if name in self.constants:
            return ArrayTensor(np.asarray(self.constants[name], dtype.numpy).reshape(shape))
        if kind == "elided":
            return ElidedTensor(shape, dtype)
        if kind == "splat":
            np.array(body, dtype.numpy).reshape(())
            return SplatTensor(shape, dtype, body)
        if kind == "random":
            array = np.random.default_rng(int(body)).standard_normal(shape)
            return ArrayTensor(array.astype(dtype.numpy))
        if dtype in (DType.C64, DType.C128):
            # A complex number is written as a pair. It is not computed as re + 1j * im, because an infinite part
            # would make the other part NaN.
            pairs = np.array(body, np.float64).reshape(-1, 2).view(np.complex128)
            return ArrayTensor(pairs.astype(dtype.numpy).reshape(shape))
        return ArrayTensor(np.array(body, dtype.numpy).reshape(shape))

    def node(self, graph: Graph, op_name: str, names: list[str], types: list[TensorType]) -> None:
        line = self.tokens[self.at - 1][2]
        if op_name not in Op.names:
            raise TextError(f"line {line}: there is no op {op_name}")
        self.take("(")
        inputs: list[Value | None] = []
        while not self.accept(")"):
            inputs.append(None if self.accept("none") else self.use())
            if self.peek() != ")":
                self.take(",")
        attributes: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key = self.take("word")
                self.take("=")
                attributes[key] = self.literal()
                if self.peek() != "}":
                    self.take(",")
        label = names[0] if names else ""
        if self.accept("as"):
            label = _unquote(self.take("string"))
        try:
            op = Op.names[op_name](**attributes)
            made = graph.append(op, inputs, name=label, types=types, output_names=names)
        except (GraphError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TextError(f"line {line}: {error}") from error
        for name, value, stated in zip(names, made.outputs, types, strict=True):
            if not stated.accepts(value.type):
                raise TextError(f"line {line}: {op_name} gives {value.type}, not {stated}")
            self.values[name] = value

    def literal(self) -> Any:
        kind, token, _ = self.tokens[self.at]
        self.at += 1
        if kind == "string":
            return _unquote(token)
        if kind == "number":
            return _number(token)
        if token in ("true", "false"):
            return token == "true"
        if token in ("inf", "nan"):
            return float(token)
        if token == "none":
            return None
        if token == "[":
            items = []
            while not self.accept("]"):
                items.append(self.literal())
                if self.peek() != "]":
                    self.take(",")
            return tuple(items)
        self.at -= 1
        raise self.fail("a literal")


def _number(token: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            continue
    raise TextError(f"{token!r} is not a number")


def _unquote(text: str) -> str:
    body = text[1:-1]
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), body)
