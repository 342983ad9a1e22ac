"""Which operators, element types and opsets a TensorRT version takes.

The data is in ``operators-*.json``, one file a version, made by :mod:`.operators_update`. A version without a file of its
own is judged by the newest older one: what TensorRT takes, it goes on taking.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...ir import DType, UsageError

FOLDER = Path(__file__).parent

_NAMES = {
    DType.F32: "FP32", DType.F16: "FP16", DType.BF16: "BF16", DType.F8E4M3FN: "FP8",
    DType.F4E2M1: "FP4", DType.I4: "INT4", DType.I8: "INT8", DType.I32: "INT32",
    DType.I64: "INT64", DType.U8: "UINT8", DType.BOOL: "BOOL",
}  # fmt: skip


def type_name(dtype: DType) -> str | None:
    """What TensorRT calls an element type; ``None`` if it has none such (float64 among them)."""
    return _NAMES.get(dtype)


@dataclass(frozen=True)
class Operator:
    """What a version says of an operator.

    Attributes:
        types: The element types of its data, by TensorRT's names.
        rules: Restrictions, names of rules in :mod:`.restrictions`.
    """

    types: frozenset[str]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Operators:
    """What a version takes.

    Attributes:
        version: The version that was asked for.
        table: The version whose table it is.
        source: Where the table is from.
        opsets: The oldest and the newest opset.
        taken: The operators of ONNX's own domain that it has.
        lacking: Those that the table says it has not.
    """

    version: str
    table: str
    source: str
    opsets: tuple[int, int]
    taken: dict[str, Operator]
    lacking: frozenset[str]

    @property
    def strongly_typed_only(self) -> bool:
        """True where networks have the types that are written in the graph, and no others."""
        return _key(self.version) >= (11, 0)


def versions() -> list[str]:
    """The versions that there are tables of, oldest first."""
    found = (path.stem.partition("-")[2] for path in FOLDER.glob("operators-*.json"))
    return sorted(found, key=_key)


def newest() -> str:
    """The newest version that there is a table of."""
    return versions()[-1]


@cache
def operators_of(version: str) -> Operators:
    """What a version takes.

    Args:
        version: Two numbers, such as ``"10.13"``.

    Raises:
        UsageError: If it is no version, or older than every table.
    """
    known = versions()
    if not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise UsageError(f"{version!r} is no TensorRT version; give one such as {known[-1]}")
    older = [v for v in known if _key(v) <= _key(version)]
    if not older:
        raise UsageError(f"TensorRT {version} is too old: the oldest that is known is {known[0]}")
    data = json.loads((FOLDER / f"operators-{older[-1]}.json").read_text(encoding="utf-8"))
    rows = data["operators"]
    return Operators(
        version=version,
        table=data["version"],
        source=data["source"],
        opsets=(data["opsets"][0], data["opsets"][1]),
        taken={
            name: Operator(frozenset(row["types"]), tuple(row.get("rules", ())))
            for name, row in rows.items()
            if row is not None
        },
        lacking=frozenset(name for name, row in rows.items() if row is None),
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
