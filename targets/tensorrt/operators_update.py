"""Writes the JSON file of one TensorRT version from the operators table of NVIDIA's ONNX parser.

    python -m graphshrink.targets.tensorrt.operators_update operators.md --version 11.1 --source URL

The table is ``docs/operators.md`` of onnx/onnx-tensorrt, at the commit that a release of NVIDIA/TensorRT pins as
``parsers/onnx``. Each sentence of the table becomes the name of a rule in :mod:`.restrictions`; a sentence
without a rule is an error, so that no restriction is lost unnoticed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...ir import UsageError

SCHEMA = 1
FOLDER = Path(__file__).parent

TYPES = ("FP32", "FP16", "BF16", "FP8", "FP4", "INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL")
"""The element types of the table."""

_MISSPELT = {"INF64": "INT64"}

# A pattern of a sentence in the table, and the rule that checks it; "" for sentences that restrict nothing.
RULES: tuple[tuple[str, str], ...] = (
    (r"2D or 3D [Pp]ooling only", "pool-2d-3d"),
    (r"`dilations` must be empty or all ones", "no-dilations"),
    (r"`Indices` output tensor unsupported", "no-indices"),
    (r"Only the first output `Y` is supported", "first-output"),
    (r"`axis` dimension of input must be a build-time constant", "static-axis"),
    (r"`axis` must be (an initializer|a build-time constant)", "constant-axis"),
    (
        r"`axes` must be (an initializer|a constant tensor|resolvable to a constant)",
        "constant-axes",
    ),
    (r"`depth` must be a build-time constant", "constant-depth"),
    (r"`(x|y)_zero_point` must be (0|zero)", "zero-point"),
    (r"`is_trai?ning` must be an initializer and evaluate to False", "inference"),
    (r"`input` must have static dimensions", "static-input"),
    (r"Input must be 4D input", "input-4d"),
    (r"activation functions must be the same for both", "same-activations"),
    (r"`input_forget` attribute must be 0", "no-input-forget"),
    (r"`layout` attribute must be 0", "no-layout"),
    (r"branches must have the same rank", "branches"),
    (r"branches must have broadcastable shapes", "branches"),
    (r"Scan output length cannot be dynamic", "loop"),
    (r"The shape of Loop carried dependencies must be the same", "loop"),
    (r"Supported resize transformation modes", "resize"),
    (r"Supported resize modes: `nearest`, `linear`", "resize"),
    (r"Supported nearest modes", "resize"),
    (r"Supported aspect ratio policy: `stretch`", "resize"),
    (r"`axes` must be an iota vector of length rank", "resize"),
    (r"Antialiasing is not supported", "resize"),
    (r"`sorted` must be 1", "top-k"),
    (r"`K` input must be less than 3840", "top-k"),
    (r"`reduction` (other than `none` )?is not supported", "no-reduction"),
    (r"`sparse_value`, `value_string`, and `value_strings` attributes are unsupported", "dense"),
    (r"`input` must have 1D or 2D spatial dimensions", "deform"),
    (r"`pads` for the beginning and end along each spatial axis must be the same", "deform"),
    (r"`attn_mask ` must be 4D", "attention"),
    (r"`past_value` and `nonpad_kv_seqlen` inputs are unsupported", "attention"),
    (r"`present_value` and `qk_matmul_output` outputs are unsupported", "attention"),
    (r"`qk_matmul_output_mode` and `softcap` attributes are unsupported", "attention"),
    (r"`q_num_heads` and `kv_num_heads` attributes are supported via", "attention"),
    (r"`position_ids` must be INT64", "int64-positions"),
    (r"`frame_step` and `window` must be an initializer", "stft"),
    (r"Input must be real-valued", "stft"),
    (r"`past_cache` and `update` must be 4D", "tensor-scatter"),
    (r"`axis` must be -2", "tensor-scatter"),
    (r"`seed` value is ignored", ""),
    (r"^Not supported\b", ""),
    (r"IDynamicQuantize can be composed", ""),
)


def parse_table(text: str) -> dict[str, Any]:
    """Return the opset range and the rows of an operators table.

    Raises:
        UsageError: If it is not such a table, or has a sentence without a rule.
    """
    found = re.search(r"opset (\d+) to opset (\d+)", text)
    if found is None:
        raise UsageError("this is not an operators table: it has no range of opsets")
    operators: dict[str, Any] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 2 or cells[1][:1] not in ("Y", "N") or not cells[0].isidentifier():
            continue
        remarks = " ".join(cells[3:]).strip()
        rules = _rules(cells[0], remarks)
        if cells[1].startswith("N"):
            operators[cells[0]] = None
            continue
        row: dict[str, Any] = {"types": _types(cells[0], cells[2] if len(cells) > 2 else "")}
        if rules:
            row["rules"] = rules
        operators[cells[0]] = row
    if not operators:
        raise UsageError("this is not an operators table: it has no rows")
    return {
        "opsets": [int(found[1]), int(found[2])],
        "operators": dict(sorted(operators.items())),
    }


def _types(name: str, cell: str) -> list[str]:
    types = [_MISSPELT.get(word, word) for word in re.split(r"[,\s]+", cell) if word]
    if not types or not set(types) <= set(TYPES):
        raise UsageError(f"{name}: cannot read the types {cell!r}")
    return types


def _rules(name: str, remarks: str) -> list[str]:
    """Return the rules of an operator's remarks; each sentence must have one."""
    rules: dict[str, None] = {}
    for sentence in re.split(r"\.(?:\s+|$|(?=<))|<br />", remarks):
        found = [rule for pattern, rule in RULES if re.search(pattern, sentence)]
        if sentence.strip() and not found:
            raise UsageError(f"{name}: there is no rule for {sentence.strip()!r}: add one to RULES")
        rules.update((rule, None) for rule in found if rule)
    return list(rules)


def to_json(table: dict[str, Any], version: str, source: str) -> str:
    """Return the JSON of a version, with one line for each operator, so that versions can be compared by diff."""
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table["operators"].items()]
    head = {"schema": SCHEMA, "version": version, "source": source, "opsets": table["opsets"]}
    fields = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    body = ",\n".join(lines)
    return f'{{\n{fields} "operators": {{\n{body}\n }}\n}}\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """Read an operators table and write the JSON of its version."""
    parser = argparse.ArgumentParser(prog="operators_update", description=__doc__)
    parser.add_argument("table", type=Path, help="operators.md of onnx-tensorrt")
    parser.add_argument("--version", required=True, help="the TensorRT release, such as 11.1")
    parser.add_argument("--source", required=True, help="where the table is from: its address")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"\d+\.\d+", given.version):
        parser.error(f"a version is two numbers, such as 11.1, not {given.version}")
    try:
        table = parse_table(given.table.read_text(encoding="utf-8"))
    except (UsageError, OSError) as error:
        parser.error(str(error))
    target = given.folder / f"operators-{given.version}.json"
    target.write_text(to_json(table, given.version, given.source), encoding="utf-8")


if __name__ == "__main__":
    main()
