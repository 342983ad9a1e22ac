"""The operators, element types and opsets that a TensorRT version supports.

The data is in ``operators-*.json``, one file for each version, made by :mod:`.operators_update`. For a version without a file, the
next older one is used: newer versions of TensorRT support what older ones do.
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
    """Return TensorRT's name of an element type; ``None`` if it does not have the type (such as float64)."""
    return _NAMES.get(dtype)


@dataclass(frozen=True)
class Operator:
    """The support of a version for an operator.

    Attributes:
        types: The element types that its data may have, by TensorRT's names.
        rules: The restrictions, as names of rules in :mod:`.restrictions`.
    """

    types: frozenset[str]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Operators:
    """The operators, types and opsets of a version.

    Attributes:
        version: The version that was asked for.
        table: The version whose table is used.
        source: The address of the table.
        opsets: The oldest and the newest opset.
        taken: The supported operators of ONNX's own domain.
        lacking: The operators that the table lists as not supported.
    """

    version: str
    table: str
    source: str
    opsets: tuple[int, int]
    taken: dict[str, Operator]
    lacking: frozenset[str]

    @property
    def strongly_typed_only(self) -> bool:
        """Whether all networks of this version compute in the types of the graph."""
        return _version_key(self.version) >= (11, 0)


def versions() -> list[str]:
    """Return the versions that have a table, oldest first."""
    found = (path.stem.partition("-")[2] for path in FOLDER.glob("operators-*.json"))
    return sorted(found, key=_version_key)


def newest() -> str:
    """Return the newest version that has a table."""
    return versions()[-1]


@cache
def operators_of(version: str) -> Operators:
    """Return what a version supports.

    Args:
        version: Two numbers, such as ``"10.13"``.

    Raises:
        UsageError: If it is not a version, or older than all tables.
    """
    known = versions()
    if not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise UsageError(f"{version!r} is not a TensorRT version; give one such as {known[-1]}")
    older = [v for v in known if _version_key(v) <= _version_key(version)]
    if not older:
        raise UsageError(
            f"TensorRT {version} is too old: the oldest supported version is {known[0]}"
        )
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


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
