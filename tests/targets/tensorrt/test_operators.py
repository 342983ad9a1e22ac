"""The data of TensorRT versions, and how it is made from a table."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from graphshrink.ir import UsageError
from graphshrink.targets.tensorrt.lint import ALTERNATIVES
from graphshrink.targets.tensorrt.operators import newest, operators_of, versions
from graphshrink.targets.tensorrt.operators_update import RULES as NAMES
from graphshrink.targets.tensorrt.operators_update import TYPES, main, parse_table
from graphshrink.targets.tensorrt.restrictions import RULES

TABLE = """
TensorRT 12.3 supports operators in the inclusive range of opset 9 to opset 30.

| Operator | Supported  | Supported Types | Restrictions |
|----------|------------|-----------------|--------------|
| Abs      | Y          | FP32, FP16,INT32 |
| Det      | N          |
| MaxPool  | Y          | FP32, INF64 | 2D or 3D pooling only. `Indices` output tensor unsupported. `dilations` must be empty or all ones |
| Resize   | Y          | FP32 | Supported resize modes: `nearest`, `linear`.<br />Antialiasing is not supported.|
| Xor      | Y          | BOOL
"""


def test_what_is_read_from_a_table() -> None:
    assert parse_table(TABLE) == {
        "opsets": [9, 30],
        "operators": {
            "Abs": {"types": ["FP32", "FP16", "INT32"]},
            "Det": None,
            "MaxPool": {
                "types": ["FP32", "INT64"],
                "rules": ["pool-2d-3d", "no-indices", "no-dilations"],
            },
            "Resize": {"types": ["FP32"], "rules": ["resize"]},
            "Xor": {"types": ["BOOL"]},
        },
    }


def test_the_script_writes_a_version(tmp_path: Path) -> None:
    table = tmp_path / "operators.md"
    table.write_text(TABLE)
    main([str(table), "--version", "12.3", "--source", "here", "--folder", str(tmp_path)])
    written = json.loads((tmp_path / "operators-12.3.json").read_text())
    assert (written["schema"], written["version"], written["source"]) == (1, "12.3", "here")
    assert {k: written[k] for k in ("opsets", "operators")} == parse_table(TABLE)


def test_words_that_no_rule_stands_for_are_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "operators.md"
    table.write_text(TABLE.replace("Antialiasing is not supported", "Only on Tuesdays"))
    arguments = [str(table), "--version", "12.3", "--source", "here", "--folder", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "Resize: there is no rule for 'Only on Tuesdays'" in capsys.readouterr().err
    for text, said in (
        (TABLE.replace("INT32", "INT33"), "Abs: cannot read the types"),
        ("nothing", "has no range of opsets"),
        ("opset 9 to opset 30", "has no rows"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_table(text)
    with pytest.raises(SystemExit):
        main([*arguments[:2], "12", *arguments[3:]])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.md"), *arguments[1:]])


def test_the_data_of_every_version_is_whole() -> None:
    assert versions() == ["10.0", "10.1", "10.15", "10.16", "11.1"]
    for version in versions():
        found = operators_of(version)
        assert found.table == version
        assert found.source.startswith("https://github.com/onnx/onnx-tensorrt/")
        assert len(found.taken) > 140
        assert not set(found.taken) & found.lacking
        for name, row in found.taken.items():
            assert row.types <= set(TYPES), name
            assert set(row.rules) <= set(RULES), name
        known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
        own = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # Older than ONNX's versions.
        assert set(found.taken) - known <= own
    assert {rule for _, rule in NAMES if rule} == set(RULES)


def test_known_facts() -> None:
    """From NVIDIA's release notes and migration guides."""
    old, new = operators_of("10.1"), operators_of("11.1")
    assert old.opsets == (9, 20)
    assert new.opsets == (9, 24)
    assert "STFT" in old.lacking
    assert "STFT" in new.taken
    assert "INT4" in new.taken["DequantizeLinear"].types
    assert not old.strongly_typed_only
    assert new.strongly_typed_only
    assert "BF16" not in new.taken["GridSample"].types


def test_a_version_between_two_tables_is_judged_by_the_older() -> None:
    assert operators_of("10.9").table == "10.1"
    assert operators_of("11.4").table == "11.1"
    assert newest() == "11.1"
    with pytest.raises(UsageError, match=r"8\.6 is too old: the oldest supported version is 10\.0"):
        operators_of("8.6")
    for text in ("11", "eleven", "11.1.0"):
        with pytest.raises(UsageError, match="is not a TensorRT version"):
            operators_of(text)


def test_what_is_lacking_has_a_nearest_form_or_none_at_all() -> None:
    """Every operator that some version lacks is known to the advice, but for those that nothing comes near."""
    none = {"Det", "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer",
            "StringSplit", "TfIdfVectorizer"}  # fmt: skip
    for version in versions():
        assert operators_of(version).lacking - set(ALTERNATIVES) == none
