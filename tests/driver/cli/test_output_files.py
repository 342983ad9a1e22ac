"""What a run writes, replaces, removes and leaves: nothing that belongs to somebody else is touched."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphshrink import UsageError, shrink
from graphshrink.ir.files import write_bytes, write_text
from graphshrink.passes.infra.observers import Dump
from graphshrink.training.recovery.checkpoints import Checkpoints
from support.cli import external_model, fails, small_model, succeeds, write
from support.onnx_run import outputs_of

X = {"x": np.ones((1, 3), np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "in.onnx")


def dense(folder: Path, value: float) -> Path:
    """A dense layer of equal weights, which lie in another file: every output is three times ``value``."""
    path = external_model(folder, "w.bin")
    np.full(12, value, np.float32).tofile(folder / "w.bin")
    return path


def result(path: Path) -> float:
    (y,) = outputs_of(path, X)
    assert len(set(y.ravel().tolist())) == 1
    return float(y[0, 0]) / 3


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Data files.


@pytest.mark.parametrize("keep", ["rename", "copy", "hard link", "link"])
def test_a_kept_result_keeps_its_numbers(keep: str, tmp_path: Path) -> None:
    first, second = dense(tmp_path / "1", 1), dense(tmp_path / "2", 2)
    folder = tmp_path / "out"
    folder.mkdir()
    out, best = folder / "out.onnx", folder / "best.onnx"
    succeeds(first, out)
    if keep == "rename":
        out.rename(best)
    elif keep == "copy":
        shutil.copy(out, best)
    elif keep == "hard link":
        os.link(out, best)
    else:
        elsewhere = tmp_path / "elsewhere.onnx"
        shutil.copy(out, elsewhere)
        best.symlink_to(elsewhere)
    succeeds(second, out)
    assert result(out) == 2
    if keep != "link":  # onnxruntime looks for the data of a link beside the file that it leads to.
        assert result(best) == 1
    assert len(list(folder.glob("out.onnx.*.data"))) == 2


def test_a_replaced_result_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    for value in (1, 2, 3):
        said = succeeds(dense(tmp_path / "in", value), out)
        assert "left:" not in said
        assert result(out) == value
    assert len(list(tmp_path.glob("out.onnx*"))) == 2


def test_the_input_may_be_a_renamed_result(tmp_path: Path) -> None:
    out, kept = tmp_path / "out.onnx", tmp_path / "kept.onnx"
    succeeds(dense(tmp_path / "in", 1), out)
    out.rename(kept)
    succeeds(kept, out)
    assert (result(kept), result(out)) == (1, 1)


@pytest.mark.parametrize(
    "name",
    ["?.onnx", "[a].onnx", "*.onnx", "two words.onnx", "-x.onnx", "50%.onnx", "größe.onnx", "a'b.onnx"],
)  # fmt: skip
def test_names_are_names_and_no_patterns(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    other, out = folder / "a.onnx", folder / name
    succeeds(dense(tmp_path / "1", 1), other)
    succeeds(dense(tmp_path / "2", 2), out)
    assert (result(other), result(out)) == (1, 2)
    succeeds(dense(tmp_path / "3", 3), out)
    assert (result(other), result(out)) == (1, 3)
    assert len(names(folder)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="such names are no names on Windows")
@pytest.mark.parametrize("name", ["C:m.onnx", "a\\b.onnx", "\\m.onnx", "new\nline.onnx", "x" * 240 + ".onnx"])  # fmt: skip
def test_data_files_get_names_that_a_model_can_state(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    succeeds(dense(tmp_path / "in", 1), out)
    assert result(out) == 1
    succeeds(out, tmp_path / "again.onnx")
    assert result(tmp_path / "again.onnx") == 1


def test_one_name_is_one_content(tmp_path: Path) -> None:
    """Models whose numbers are the same bytes in a row, in another layout, have data files of their own."""

    def layers(sizes: list[tuple[int, int]]) -> Path:
        tensors, nodes, offset, last = [], [], 0, "x"
        for i, dims in enumerate(sizes):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=dims)
            tensor.data_location = TensorProto.EXTERNAL
            length = 4 * dims[0] * dims[1]
            for key, value in (("location", "w.bin"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            offset += length
            tensors.append(tensor)
            nodes += [
                helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
                helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
            ]
            last = f"r{i}"
        path = tmp_path / f"in{len(sizes)}.onnx"
        return write(path, nodes, {"x": [1, sizes[0][0]]}, {last: [1, sizes[-1][1]]}, tensors)

    np.arange(1, 33, dtype=np.float32).tofile(tmp_path / "w.bin")
    out, kept = tmp_path / "out.onnx", tmp_path / "kept.onnx"
    succeeds(layers([(8, 4)]), out)
    before = outputs_of(out, {"x": np.ones((1, 8), np.float32)})
    out.rename(kept)
    succeeds(layers([(4, 4), (4, 4)]), out)
    after = outputs_of(kept, {"x": np.ones((1, 8), np.float32)})
    np.testing.assert_array_equal(before, after)
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 2


def test_a_file_that_has_the_name_already_is_not_changed(tmp_path: Path) -> None:
    source, out = dense(tmp_path / "in", 1), tmp_path / "out.onnx"
    succeeds(source, out)
    (data,) = tmp_path.glob("out.onnx.*.data")
    out.unlink()
    data.write_bytes(b"mine")
    succeeds(source, out)
    assert data.read_bytes() == b"mine"
    assert result(out) == 1
    succeeds(dense(tmp_path / "in", 2), out)
    assert data.read_bytes() == b"mine"
    assert result(out) == 2


def test_in_place_says_what_it_left(tmp_path: Path) -> None:
    source = dense(tmp_path / "in", 1)
    assert f"{source.parent / 'w.bin'} is left" in succeeds(source, source)
    assert (source.parent / "w.bin").exists()
    assert result(source) == 1
    # Now the data file is one of ours, and nobody else's.
    assert "left:" not in succeeds(source, source)
    assert result(source) == 1
    assert len(names(source.parent)) == 3
    # But not when another model reads it.
    other = source.with_name("other.onnx")
    shutil.copy(source, other)
    model = onnx.load(source)
    model.graph.initializer[0].raw_data = np.full(12, 5, np.float32).tobytes()
    onnx.save(model, tmp_path / "in" / "new.onnx", save_as_external_data=True,
              location="new.bin", size_threshold=0)  # fmt: skip
    assert "is left" in succeeds(source.with_name("new.onnx"), source)
    assert (result(source), result(other)) == (5, 1)


def test_a_whole_model_replaces_a_split_one(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    succeeds(dense(tmp_path / "in", 1), out)
    succeeds(small_model(tmp_path / "small.onnx"), out)
    assert names(tmp_path) == {"in", "small.onnx", "out.onnx"}


def test_runs_at_the_same_time_leave_models_that_work(tmp_path: Path) -> None:
    graphs = {v: shrink(dense(tmp_path / str(v), v)) for v in range(4)}
    targets = [tmp_path / f"out{i}.onnx" for i in range(2)]
    failed: list[BaseException] = []

    def go(value: int) -> None:
        try:
            for _ in range(12):
                for target in targets:
                    graphs[value].save(target)
                    onnx.load(target)  # With its numbers, of whichever run.
        except BaseException as error:
            failed.append(error)

    # Two of them write the same numbers.
    graphs[3] = graphs[2]
    threads = [threading.Thread(target=go, args=(value,)) for value in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A model may be replaced, and its old data removed, while it is read; nothing else may happen.
    assert all(isinstance(error, FileNotFoundError | onnx.checker.ValidationError) for error in failed)  # fmt: skip
    for target in targets:
        assert result(target) in (0, 1, 2)
    assert not list(tmp_path.glob(".*"))


def test_a_failed_run_leaves_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    succeeds(dense(tmp_path / "in", 1), out)
    before = names(tmp_path)
    replaced = os.replace

    def refuse(source: object, target: object) -> None:
        if str(target) == str(out):
            raise OSError(28, "No space left on device")
        replaced(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", refuse)
    assert "No space left" in fails(dense(tmp_path / "in", 2), out)
    assert names(tmp_path) == before
    assert result(out) == 1


# Links, devices and pipes.


def test_links_are_written_through(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in ("out.onnx", "r.json"):
        (store / name).write_bytes(b"old")
        (store / name).chmod(0o640)
        (tmp_path / name).symlink_to(Path("store") / name)
    succeeds(model, tmp_path / "out.onnx", "--report", tmp_path / "r.json")
    for name in ("out.onnx", "r.json"):
        assert (tmp_path / name).is_symlink()
        assert stat.S_IMODE((store / name).stat().st_mode) == 0o640
    assert json.loads((store / "r.json").read_text())["schema"] == 1
    onnx.checker.check_model(onnx.load(store / "out.onnx"))
    assert names(store) == {"out.onnx", "r.json"}
    # A data file would lie beside one of the two only.
    said = fails(dense(tmp_path / "in", 1), tmp_path / "out.onnx")
    assert (
        f"link into another folder, and the model has a data file beside it; give {store}" in said
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files on this system")
def test_pipes_devices_and_loops_are_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    # No device of the machine: a fault here, run as root, would replace it.
    keyboard, screen = os.openpty()
    pipe, device, loop = tmp_path / "p.onnx", tmp_path / "d.onnx", tmp_path / "l.onnx"
    os.mkfifo(pipe)
    device.symlink_to(os.ttyname(screen))
    loop.symlink_to(loop)
    for path, why in ((pipe, "is a pipe"), (loop, "links")):
        assert why in fails(model, path)
        assert why in fails(model, out, "--report", path)
    assert "is a device" in fails(model, device)
    assert "is a device" in fails(model, out, "--report", device)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert device.is_symlink()
    os.close(keyboard)
    os.close(screen)
    assert not out.exists()
    (tmp_path / "dump").mkdir()
    os.mkfifo(tmp_path / "dump" / "00-input.txt")
    assert "is a pipe" in fails(model, out, "--dump-dir", tmp_path / "dump")
    # A side-car is an output like the rest.
    os.mkfifo(tmp_path / "out.trt.json")
    assert "is a pipe" in fails(model, out, "--target", "tensorrt")


def test_the_report_may_go_to_standard_output(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    command = [sys.executable, "-m", "graphshrink", str(model), str(out), "--report"]
    log = tmp_path / "log.txt"
    # Not /dev/stdout itself, which a fault here, run as root, would replace.
    for path in ("/dev/fd/1", str(log)):
        # Into the open file, not beside it, whatever its name.
        with log.open("w") as file:
            subprocess.run([*command, path], stdout=file, check=True)
        report, _, rest = log.read_text().partition("\n}\n")
        assert json.loads(report + "}")["schema"] == 1
        assert rest.startswith(str(out))


def test_a_dash_is_standard_output_and_no_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = json.loads(succeeds(model, "out.onnx", "--report", "-"))
    assert printed["before"]["nodes"] == 3
    assert "takes a folder, not standard output" in fails(model, "out.onnx", "--dump-dir", "-")
    assert "only .onnx" in fails(model, "-")
    assert not (tmp_path / "-").exists()
    succeeds(model, "out.onnx", "--report", "./-")
    assert json.loads((tmp_path / "-").read_text())["before"] == printed["before"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_the_report_may_go_to_the_null_device(model: Path, tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.stat(os.devnull).st_rdev)
    except OSError:
        pytest.skip("devices cannot be made here")
    succeeds(model, tmp_path / "out.onnx", "--report", null)
    assert stat.S_ISCHR(null.stat().st_mode)
    write_text(null, "nothing")
    assert stat.S_ISCHR(null.stat().st_mode)


# Outputs that are inputs.


def test_no_output_is_an_input(tmp_path: Path) -> None:
    source, out = dense(tmp_path / "in", 1), tmp_path / "out.onnx"
    folder = source.parent
    data = folder / "w.bin"
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    samples = tmp_path / "samples"
    samples.mkdir()
    np.save(samples / "0.npy", np.ones((2, 3), np.float32))
    (tmp_path / "soft.json").symlink_to(data)
    os.link(data, tmp_path / "hard.json")
    os.link(source, tmp_path / "model.json")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    planned = ("--passes", f"remove-activations{{plan={plan}}}")
    calibrated = ("--calibration", samples)
    cases: list[tuple[object, ...]] = [
        (source, out, "--report", data),
        (source, out, "--report", folder / ".." / "in" / "w.bin"),
        (source, out, "--report", tmp_path / "soft.json"),
        (source, out, "--report", tmp_path / "hard.json"),
        (source, out, "--report", tmp_path / "model.json"),
        (source, out, "--report", source),
        (source, source, "--report", source),
        (source, source, "--report", data),
        (source, out, "--report", plan, *planned),
        (source, out, "--report", samples / "0.npy", *calibrated),
    ]
    for arguments in cases:
        assert "would overwrite" in fails(*arguments), arguments
    assert not out.exists()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("target", "file"), [("onnx", "w.onnx"), ("tensorrt", "m.trt.json"), ("tflite", "m.tflite")])  # fmt: skip
def test_no_target_overwrites_the_numbers_that_it_reads(
    target: str, file: str, tmp_path: Path
) -> None:
    source = external_model(tmp_path / "in", file)
    data = source.parent / file
    np.full(12, 1, np.float32).tofile(data)
    before = data.read_bytes()
    out = source.parent / (file if target == "onnx" else f"m.{'tflite' if target == 'tflite' else 'onnx'}")  # fmt: skip
    assert "external data" in fails(source, out, "--target", target)
    with pytest.raises(UsageError, match="external data"):
        shrink(source).save(out, target)
    assert data.read_bytes() == before


def test_a_dump_does_not_overwrite_what_is_read(tmp_path: Path) -> None:
    source = external_model(tmp_path / "in", "00-input.txt")
    np.full(12, 1, np.float32).tofile(source.parent / "00-input.txt")
    before = (source.parent / "00-input.txt").read_bytes()
    assert "external data" in fails(source, tmp_path / "o.onnx", "--dump-dir", source.parent)
    assert (source.parent / "00-input.txt").read_bytes() == before
    assert Dump(tmp_path).inputs == ()


# Files in general.


def test_replaced_files_keep_their_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"1")
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode
    path.chmod(0o600)
    write_text(path, "2\n")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("2\n", 0o600)
    assert names(tmp_path) == {"a", "b"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: run the tests as a user")
def test_a_read_only_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    path.chmod(0o400)
    with pytest.raises(UsageError, match="read-only"):
        write_bytes(path, b"2")


def test_checkpoints_delete_only_what_the_old_one_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    other = tmp_path / "step-00000100.safetensors"
    other.write_bytes(b"of another program")
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"x": torch.ones(2)})
    assert names(tmp_path) == {other.name, "recovery.json", "step-00000002.safetensors"}
    assert other.read_bytes() == b"of another program"
