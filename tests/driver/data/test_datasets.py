"""Labelled images: every format, and what is wrong with damaged ones; the accuracy of ONNX files; the example."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from PIL import Image

from graphshrink import MissingExtra, UsageError
from graphshrink.accuracy import onnx_accuracy
from graphshrink.datasets import Batches, LabelledImages, read_images
from support.cli import write

EXAMPLE = Path(__file__).parents[3] / "examples" / "depthshrinker.py"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12) % 3


def everything(images: Any) -> Any:
    return images.take(np.arange(len(images)))


def image(pixels: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tree(folder: Path, names: tuple[str, ...] = ("train", "test"), side: int = 32) -> Path:
    """A class a folder, as torchvision has it."""
    for part, name in enumerate(names):
        for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            place = folder / name / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            if part == 0 or i < 6:
                Image.fromarray(pixels[:side, :side]).save(place / f"{i:02}.png")
    return folder


def check(found: LabelledImages, train: Any, labels: Any, count: int) -> None:
    assert np.array_equal(everything(found.train), train)
    assert np.array_equal(found.train_labels, labels)
    assert len(found.test) == len(found.test_labels) == count


def test_folders_with_parts(tmp_path: Path) -> None:
    order = np.argsort(LABELS, kind="stable")
    for name in ("test", "val"):
        found = read_images(tree(tmp_path / name, ("train", name)))
        check(found, PIXELS[order], LABELS[order], 6)
        assert found.classes == ("class0", "class1", "class2")


def test_folders_without_parts(tmp_path: Path) -> None:
    found = read_images(tree(tmp_path, ("",)))
    order = np.argsort(LABELS, kind="stable")
    kept = [i for i in range(12) if i % 5 != 4]
    check(found, PIXELS[order][kept], LABELS[order][kept], 2)
    assert np.array_equal(everything(found.test), PIXELS[order][4::5])


def test_images_of_all_kinds_and_sizes(tmp_path: Path) -> None:
    for i, (mode, size) in enumerate((("L", (40, 20)), ("RGBA", (16, 16)), ("P", (9, 30)))):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new(mode, size, 5).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "a" / f"x{i}.jpg")
    found = read_images(tmp_path, size=16)
    assert everything(found.train).shape == (5, 16, 16, 3)
    with pytest.raises(UsageError, match=r"1\.png is 16x16, others are 40x20: give a size"):
        everything(read_images(tmp_path).train)


def cifar(folder: Path, kind: str) -> Path:
    planes = PIXELS.transpose(0, 3, 1, 2).reshape(12, -1)
    for name, rows in (("data_batch_1", slice(0, 5)), ("data_batch_2", slice(5, 9)), ("test_batch", slice(9, 12))):  # fmt: skip
        if kind == "bin":
            data = np.concatenate([LABELS[rows, None].astype(np.uint8), planes[rows]], 1).tobytes()
            (folder / f"{name}.bin").write_bytes(data)
        else:
            data = {b"data": planes[rows], b"labels": LABELS[rows].tolist(), b"batch_label": b"x"}
            (folder / name).write_bytes(pickle.dumps(data, protocol=2))
    return folder


def test_cifar_binary(tmp_path: Path) -> None:
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\nfrog\n\n")
    found = read_images(cifar(tmp_path, "bin"))
    check(found, PIXELS[:9], LABELS[:9], 3)
    assert found.classes == ("cat", "dog", "frog")
    assert np.array_equal(everything(found.test), PIXELS[9:])


def test_cifar_pickles_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains pickles, which are loaded only on request"):
        read_images(cifar(tmp_path, "python"))
    check(read_images(tmp_path, pickles=True), PIXELS[:9], LABELS[:9], 3)


def test_pickles_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "done",))

    cifar(tmp_path, "python")
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(UsageError, match="data_batch_2 is not a batch of CIFAR-10: it refers to"):
        read_images(tmp_path, pickles=True)
    assert not (tmp_path / "done").exists()


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS[:, None], x_test=PIXELS[:4], y_test=LABELS[:4])
    check(read_images(path), PIXELS, LABELS, 4)
    np.savez(path, x_train=PIXELS[..., 0], y_train=LABELS, x_test=PIXELS[:4, ..., 0], y_test=LABELS[:4])  # fmt: skip
    check(read_images(path), PIXELS[..., :1], LABELS, 4)


def encoded(**changes: Any) -> dict[str, Any]:
    files = [image(p) for p in PIXELS]
    made: dict[str, Any] = {"classes": np.array(["a", "b", "c"])}
    for part, rows in (("train", slice(0, 9)), ("test", slice(9, 12))):
        made[f"{part}_jpeg"] = np.frombuffer(b"".join(files[rows]), np.uint8)
        made[f"{part}_offsets"] = np.cumsum([0, *map(len, files[rows])])
        made[f"{part}_labels"] = LABELS[rows].astype(np.uint8)
    return {**made, **changes}


def test_npz_of_encoded_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **encoded())
    found = read_images(tmp_path / "x.npz")
    check(found, PIXELS[:9], LABELS[:9], 3)
    assert found.classes == ("a", "b", "c")


@pytest.mark.parametrize(("arrays", "said"), [
    ({"x": PIXELS}, "has neither x_test, x_train, y_test, y_train nor test_jpeg"),
    ({"x_train": PIXELS * 1.0, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS}, "images must be uint8"),
    ({"x_train": PIXELS, "y_train": LABELS[:4], "x_test": PIXELS, "y_test": LABELS}, "there are 12 train images, but 4 labels"),
    (encoded(train_offsets=np.array([0, 10**9])), "train_offsets are not positions in train_jpeg"),
    (encoded(train_jpeg=np.zeros(10**5, np.uint8)), "image 0 of train in .* cannot be read as an image"),
    ({"x_train": np.array([{}])}, "is not an .npz file of arrays"),
])  # fmt: skip
def test_npz_that_do_not_fit(arrays: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=said):
        read_images(tmp_path / "x.npz")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("missing", "file.txt"):
        with pytest.raises(UsageError, match=r"is neither a folder nor an \.npz file"):
            read_images(tmp_path / name)
    with pytest.raises(UsageError, match="has no folders of images"):
        read_images(tmp_path)
    tree(tmp_path / "a", ("test",))
    with pytest.raises(UsageError, match="has a folder test but no folder train"):
        read_images(tmp_path / "a")
    (tree(tmp_path / "b") / "test" / "other").mkdir()
    with pytest.raises(UsageError, match="has a class 'other' that"):
        read_images(tmp_path / "b")
    cut = cifar(tmp_path, "bin") / "data_batch_1.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"data_batch_1\.bin is damaged: its size is no multiple"):
        read_images(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    cut.unlink()
    with pytest.raises(UsageError, match=r"cannot read .*test_batch\.bin"):
        read_images(tmp_path)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_images(tree(tmp_path))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[images\]"):
        everything(found.train)


def test_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
    data = read_images(tmp_path / "x.npz")
    plain = list(Batches(data, 5, train=False, shift=4, mirror=True))
    assert [len(x) for x, _ in plain] == [5, 5, 2]
    x, y = (torch.cat(parts) for parts in zip(*plain, strict=True))
    assert y.tolist() == LABELS.tolist()
    assert x.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    train = Batches(data, 5, train=True, mirror=True)
    torch.manual_seed(0)
    epochs = [list(train) for _ in range(2)]
    assert [[len(x) for x, _ in e] for e in epochs] == [[5, 5]] * 2
    assert len(train) == 2
    # Every image is there as it was or mirrored.
    flips = 0
    for batch, labels in epochs[0]:
        for one, label in zip(batch, labels, strict=True):
            places = [i for i in range(12) if torch.equal(one, x[i]) or torch.equal(one.flip(2), x[i])]  # fmt: skip
            assert [LABELS[i] for i in places] == [label]
            flips += not torch.equal(one, x[places[0]])
    assert 0 < flips < 10
    shifted = next(iter(Batches(data, 12, train=True, shift=3)))[0]
    assert all(
        any(torch.equal(one[:, 3:-3, 3:-3], F[:, a : a + 26, b : b + 26])
            for F in x for a in range(7) for b in range(7))
        for one in shifted
    )  # fmt: skip


@pytest.mark.parametrize("size", ["batch", 4])
def test_accuracy_of_files(size: Any, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"x": [size, 3]}, {"y": [size, 3]}, [])
    scores = RNG.standard_normal((10, 3)).astype(np.float32)
    classes = scores.argmax(1)
    classes[:3] = (classes[:3] + 1) % 3
    batches = [(torch.from_numpy(scores[i : i + 4]), classes[i : i + 4]) for i in (0, 4, 8)]
    assert onnx_accuracy(path, batches) == 0.7
    with pytest.raises(UsageError, match="there are no batches"):
        onnx_accuracy(path, [])
    if size == 4:
        with pytest.raises(UsageError, match="takes batches of 4, not of 10"):
            onnx_accuracy(path, [(scores, classes)])


def test_the_example_on_a_folder_of_images(tmp_path: Path) -> None:
    """From images to files; one epoch of each."""
    for i in range(3):
        tree(tmp_path / "data" / f"{i}")
        for part in ("train", "test"):
            for label in range(3):
                place = tmp_path / "data" / part / f"class{label}"
                place.mkdir(parents=True, exist_ok=True)
                for file in (tmp_path / "data" / f"{i}" / part / f"class{label}").iterdir():
                    file.rename(place / f"{i}{file.name}")
    command = [sys.executable, str(EXAMPLE), "--data", str(tmp_path / "data"), "--size", "24", "--output",
               str(tmp_path / "out.onnx"), "--base", "1", "--search", "1", "--epochs", "1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert not done.returncode, done.stderr[-2000:]
    assert (tmp_path / "out.onnx").exists()
    assert "speed, onnxruntime on one thread" in done.stdout


def test_fewer_training_images_than_a_batch_takes(tmp_path: Path) -> None:
    tree(tmp_path)
    data = read_images(tmp_path)
    with pytest.raises(
        UsageError, match=f"takes 99 training images, and there are {len(data.train)}:"
    ):
        Batches(data, 99, train=True)
    assert len(Batches(data, 99, train=False)) == 1
