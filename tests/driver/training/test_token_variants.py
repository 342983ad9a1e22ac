"""Variants of texts: what is varied, what stays, and that networks without labels learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphshrink import TokenAugmentation, UsageError, recover_file
from graphshrink.api import load
from graphshrink.data.unlabelled import read_unlabelled
from graphshrink.training.recovery.feature_pairs import feature_pairs
from graphshrink.training.recovery.variants import TokenVariants
from support.cli import fails, succeeds

WORDS, WIDTH, PAD, FIRST, LAST = 200, 12, 0, 1, 2
Arrays = dict[str, np.ndarray[Any, Any]]


def weights() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"table": (WORDS, WIDTH), "up": (WIDTH, 32), "down": (32, WIDTH)}
    return {n: (rng.standard_normal(s) / s[0] ** 0.2).astype(np.float32) for n, s in shapes.items()}


def network(path: Path, found: Arrays) -> Path:
    """The mean over the tokens of a text, those without a one in the mask left out, of an MLP on their embeddings."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], "cast", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "up"], ["h"], "up"),
        helper.make_node("Tanh", ["h"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "down"], ["y"], "down"),
        helper.make_node("Cast", ["mask"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["wider"], "unsqueeze"),
        helper.make_node("Mul", ["y", "wider"], ["masked"], "masked"),
        helper.make_node("ReduceMean", ["masked"], ["out"], "mean", axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "texts",
        [helper.make_tensor_value_info(n, t, ["n", "tokens"]) for n, t in (("ids", TensorProto.INT32), ("mask", TensorProto.INT64))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", WIDTH])],
        [*(numpy_helper.from_array(a, n) for n, a in found.items()), numpy_helper.from_array(np.array([-1]), "last")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)  # fmt: skip
    return path


def damaged(found: Arrays) -> Arrays:
    """Weights with noise, some rows of which are zero; the table is as it was."""
    rng = np.random.default_rng(3)
    noise = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in found.items()}
    made = {n: a + (0.0 if n == "table" else 0.4) * a.std() * noise[n] for n, a in found.items()}
    made["up"][5] = 0
    made["down"][::8] = 0
    return made


def texts(count: int = 48, words: int = 40) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """Texts of a few of the words; some are filled up to the length of their batch."""
    rng, made = np.random.default_rng(1), []
    for length in (7, 10, 12):
        ids = rng.integers(3, words, (count // 3, length)).astype(np.int32)
        ids[:, 0] = FIRST
        mask = np.ones(ids.shape, np.int64)
        for row, end in enumerate(rng.integers(5, length + 1, len(ids))):
            ids[row, end - 1], ids[row, end:], mask[row, end:] = LAST, PAD, 0
        made.append((ids, mask))
    return made


def judged(file: Path, teacher: Path) -> float:
    """The relative error in onnxruntime on texts of all words."""
    rng = np.random.default_rng(5)
    feed = {"ids": rng.integers(3, WORDS, (64, 9)).astype(np.int32), "mask": np.ones((64, 9), np.int64)}  # fmt: skip
    found, wanted = (
        onnxruntime.InferenceSession(str(f), providers=["CPUExecutionProvider"]).run(None, feed)[0] for f in (file, teacher)
    )  # fmt: skip
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return network(tmp_path / "teacher.onnx", weights())


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return network(tmp_path / "student.onnx", damaged(weights()))


def variants(file: Path, **options: Any) -> TokenVariants:
    graph, _ = load(file)
    return TokenVariants(TokenAugmentation("ids", **options), read_unlabelled(graph, texts()), graph)  # fmt: skip


def test_variants_keep_the_form_of_texts(teacher: Path) -> None:
    torch.manual_seed(0)
    made = variants(teacher)
    assert made.kept == {PAD, FIRST, LAST}
    assert made.vocabulary == WORDS
    for group in made.samples.of_equal_shape(made.samples.training):
        given_ids, given_mask = made.samples.batch(np.resize(group, 20))
        (ids, mask), labels = made.batch(group, 20, None)
        assert labels is None
        assert ids.dtype == torch.int32
        assert np.array_equal(mask.numpy(), given_mask)
        special = given_ids < 3
        assert np.array_equal(ids.numpy()[special], given_ids[special])
        assert (ids.numpy()[~special] >= 3).all()
        assert (ids.numpy() < WORDS).all()
        assert (ids.numpy() != given_ids).any(1).all()


def test_variants_without_one_of_the_changes(teacher: Path) -> None:
    torch.manual_seed(0)
    nothing = variants(teacher, joined=0.0, replaced=0.0)
    group = nothing.samples.of_equal_shape(nothing.samples.training)[0]
    (ids, _), _ = nothing.batch(group, len(group), None)
    assert np.array_equal(ids.numpy(), nothing.samples.batch(group)[0])
    spans = variants(teacher, replaced=0.0)
    (ids, _), _ = spans.batch(group, 30, None)
    joined = {int(i) for text in spans.free for i in text}
    assert {int(i) for i in ids.numpy().ravel()} <= joined | spans.kept
    replaced = variants(teacher, joined=0.0, replaced=1.0)
    (ids, _), _ = replaced.batch(group, 30, None)
    given = replaced.samples.batch(np.resize(group, 30))[0]
    free = given >= 3
    assert 0.3 < (ids.numpy()[free] != given[free]).mean() < 0.7
    assert not variants(teacher, varied=0.0).applies()
    spans.tokens = 100
    length = ids.shape[1]
    assert spans.batch(group, 3, None)[0][0].shape == (-(-100 // length), length)


def test_a_network_learns_words_that_no_text_has(teacher: Path, student: Path, tmp_path: Path) -> None:  # fmt: skip
    errors = {}
    for name, augment in (("plain", False), ("varied", TokenAugmentation("ids", replaced=1.0))):
        done = recover_file(
            student, teacher, texts(), epochs=20, lr=0.02, augment=augment, progress=False
        )  # fmt: skip
        out = tmp_path / f"{name}.onnx"
        done.save(out)
        errors[name] = judged(out, teacher)
        kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
        assert not kept["up"][5].any()
        assert not kept["down"][::8].any()
        assert np.array_equal(kept["table"], weights()["table"])
        assert "the teacher has the same: table" in " ".join(done.notes)
        noted = [n for n in done.notes if "varied at random" in n]
        assert bool(noted) == bool(augment)
    assert "'ids' were varied" in noted[0]
    assert "ids 0, 1, 2 stayed" in noted[0]
    assert errors["varied"] < 0.95 * errors["plain"]
    assert errors["varied"] < judged(student, teacher)


def test_the_commands(teacher: Path, student: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "out.onnx"
    ids, mask = texts(72)[2]
    np.savez(data, ids=ids, mask=mask)
    recovery = ("recover", student, "--teacher", teacher, "--data", data, "-o", out, "--lr", "0.02")
    line = succeeds(*recovery, "--augment-tokens", "ids", "--epochs", 2)
    assert "the tokens of input 'ids' were varied at random" in line
    assert "--no-augment nothing" in fails(*recovery, "--augment-tokens", "ids", "--no-augment")
    shrunk = (teacher, out, "--passes", "sparsify", "--calibration", data)
    line = succeeds(*shrunk, "--recover", 1, "--augment-tokens", "ids")
    assert "the tokens of input 'ids' were varied at random" in line
    assert "--augment-tokens is for --recover" in fails(*shrunk, "--augment-tokens", "ids")


def test_values_beside_a_mask_are_compared(teacher: Path, student: Path) -> None:
    pairs = feature_pairs(load(student)[0], load(teacher)[0])
    assert [(own.name, other.name) for own, other in pairs] == [("y", "y"), ("masked", "masked")]


def test_a_table_of_its_own_is_trained(teacher: Path, tmp_path: Path) -> None:
    found = weights()
    found["table"] = found["table"] * np.float32(0.9)
    student = network(tmp_path / "own.onnx", found)
    done = recover_file(student, teacher, texts(), epochs=2, lr=0.02, augment=False, progress=False)  # fmt: skip
    done.save(tmp_path / "out.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}  # fmt: skip
    assert done.improved
    assert not np.array_equal(stored["table"], found["table"])


def test_what_cannot_be_varied(teacher: Path, student: Path) -> None:
    def problem(augment: TokenAugmentation, data: Any = None, **options: Any) -> str:
        with pytest.raises(UsageError) as caught:
            recover_file(
                student, teacher, texts() if data is None else data, augment=augment, epochs=1, progress=False, **options
            )  # fmt: skip
        return str(caught.value)

    assert "need the name of the input that takes them; inputs of integers: ids, mask" in problem(
        TokenAugmentation()
    )
    assert "no input 'words'" in problem(TokenAugmentation("words"))
    assert "'mask' is not looked up in a table" in problem(TokenAugmentation("mask"))
    assert "table of 200 rows" in problem(TokenAugmentation("ids", vocabulary=300))
    alike = (np.full((20, 6), 7, np.int32), np.arange(120).reshape(20, 6) % 7)
    assert "nothing to vary" in problem(TokenAugmentation("ids"), [alike])
    labels = np.arange(48) % WIDTH
    assert "labels are not known" in problem(TokenAugmentation("ids"), labels=labels)
    for wrong in ({"varied": 2}, {"joined": -1}, {"replaced": np.nan}, {"vocabulary": 1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            TokenAugmentation("ids", **wrong)
