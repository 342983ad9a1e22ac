"""Wrong calls, broken and hostile files, kills: one line, exit code 2, what was there is left as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.cli import call, external_model, fails, small_model, succeeds
from support.onnx_run import outputs_of

COMMAND = [sys.executable, "-m", "graphshrink"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "in.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    return path


def test_files_that_are_no_models(model: Path, tmp_path: Path, out: Path) -> None:
    whole = model.read_bytes()
    path = tmp_path / "bad.onnx"
    cases: list[tuple[bytes, str]] = [
        (b"", "is empty"),
        (b"not a model\n", "not an ONNX"),
        (b"\x80\x02}q\x00.", "not an ONNX"),
        (b"PK\x03\x04" + bytes(60), "not an ONNX"),
        (bytes(1000), "not an ONNX"),
        (whole[:-50], "truncated or not an ONNX"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        for arguments in ((path, out), ("inspect", path), ("compare", path, path)):
            line = fails(*arguments)
            assert message in line
            assert "bad.onnx" in line
    assert "no such file" in fails(tmp_path / "none.onnx", out)
    assert "is a folder" in fails(tmp_path, out)
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_never_end_in_a_traceback(
    seed: int, model: Path, tmp_path: Path, out: Path
) -> None:
    """Bytes cut off or changed anywhere: a model, or one line."""
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(model.read_bytes(), np.uint8)
    path = tmp_path / "bad.onnx"
    # The graph's structure, not the weights, is where damage has consequences.
    structure = [*range(260), *range(len(whole) - 120, len(whole))]
    for _ in range(60):
        damaged = whole.copy()
        places = rng.choice(structure, rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        end = len(whole) if rng.random() < 0.8 else int(rng.integers(0, len(whole)))
        path.write_bytes(damaged[:end].tobytes())
        out.write_bytes(b"old")
        done = call(path, out)
        assert done.code in (0, 2), done.err
        if done.code == 2:
            assert len(done.err.splitlines()) == 1
            assert "a bug in graphshrink" not in done.err, path.read_bytes()
            assert out.read_bytes() == b"old"


def test_wrong_options(model: Path, out: Path) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        ((model,), "Missing argument 'OUT'"),
        ((model, out, "more"), "unexpected extra argument"),
        ((model, out, "--chek"), "--check"),
        ((model, out, "--seed", "x"), "'--seed'"),
        ((model, out, "--passes", "prun-dead"), "did you mean 'prune-dead'"),
        ((model, out, "--passes", "merge-linear{max-kernal=5}"), "did you mean 'max-kernel'"),
        (
            (model, out, "--passes", "merge-linear{max-kernel=big}"),
            "takes int, at least 1, not 'big'",
        ),
        ((model, out, "--passes", "merge-linear{max-kernel=5"), "do not match"),
        ((model, out, "--passes", "fold-constants{max-growth=-1}"), "must be at least 0"),
        ((model, out, "--input", "xx:1x3x16x16"), "did you mean 'x'"),
        ((model, out, "--input", "x=1x3"), "is not NAME:"),
        ((model, out, "--input", "x:1x-3x16x16"), "is not NAME:"),
        ((model, out, "--input", "x:1x3x"), "is not NAME:"),
        ((model, out, "--input", "x:1x3x8x8"), "takes batchx3x16x16, not 1x3x8x8"),
        ((model, out, "--input", "x:3x16x16"), "takes batchx3x16x16, not 3x16x16"),
        ((model, out, "--input", "x:1x3x16x16", "--input", "x:2x3x16x16"), "twice"),
        (("inspct", model), "did you mean 'inspect'"),
        (("inspect",), "Missing argument"),
        (("compare", model, model, "--runs", "0"), "'--runs'"),
    ]
    for arguments, message in cases:
        assert message in fails(*arguments), arguments
    assert out.read_bytes() == b"old"


def test_outputs_that_cannot_be_written(model: Path, tmp_path: Path, out: Path) -> None:
    before = model.read_bytes()
    assert "does not exist" in fails(model, tmp_path / "no" / "out.onnx")
    assert "does not exist" in fails(model, out / "out.onnx")  # A file where a folder should be.
    assert "only .onnx" in fails(model, tmp_path / "out.pt")
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in fails(model, tmp_path / "folder.onnx")
    assert "does not exist" in fails(model, out, "--report", tmp_path / "no" / "r.json")
    assert "would overwrite" in fails(model, out, "--report", out)
    assert "would overwrite" in fails(model, out, "--report", model)
    assert "it is a file" in fails(model, out, "--dump-dir", out)
    assert out.read_bytes() == b"old"
    assert model.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: run the tests as a user")
def test_read_only_folder(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "read-only" in fails(model, folder / "out.onnx")


def test_a_folder_that_turns_out_to_be_read_only(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What even root meets: a file system that is mounted read-only, or full."""

    opened = os.open

    def refuse(path: object, flags: int, *rest: object, **options: object) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(out.parent)):
            raise OSError(30, "Read-only file system")
        return opened(path, flags, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    assert "cannot write" in fails(model, out)
    assert out.read_bytes() == b"old"


def test_external_data_must_be_there_and_inside(tmp_path: Path, out: Path) -> None:
    outside, folder = tmp_path / "secret.bin", tmp_path / "model"
    outside.write_bytes(bytes(48))
    assert "is missing" in fails(external_model(folder, "w.bin"), out)
    assert "outside" in fails(external_model(folder, "../secret.bin"), out)
    assert "outside" in fails(external_model(folder, str(outside)), out)
    assert "outside" in fails(external_model(folder, "C:\\secret.bin"), out)
    (folder / "link.bin").symlink_to(outside)
    assert "outside" in fails(external_model(folder, "link.bin"), out)
    (folder / "up").symlink_to(tmp_path)
    assert "outside" in fails(external_model(folder, "up/secret.bin"), out)
    (folder / "short.bin").write_bytes(bytes(40))
    assert "ends at byte 48" in fails(external_model(folder, "short.bin"), out)
    assert out.read_bytes() == b"old"


def test_a_claim_of_huge_data_takes_no_memory(tmp_path: Path, out: Path) -> None:
    path = external_model(tmp_path / "model", "w.bin")
    (path.parent / "w.bin").write_bytes(bytes(48))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())
    assert "needs 13194139533312 bytes" in fails(path, out)


def test_external_data_goes_along_to_another_folder(tmp_path: Path) -> None:
    source, out = external_model(tmp_path / "model", "w.bin"), tmp_path / "elsewhere" / "out.onnx"
    weights = np.arange(12, dtype=np.float32)
    (source.parent / "w.bin").write_bytes(weights.tobytes())
    out.parent.mkdir()
    succeeds(source, out)
    succeeds(source, out)
    assert len(list(out.parent.iterdir())) == 2
    (y,) = outputs_of(out, {"x": np.ones((1, 3), np.float32)})
    assert y.tolist() == [weights.reshape(4, 3).sum(1).tolist()]


def test_inputs_of_compare(model: Path, tmp_path: Path) -> None:
    other = external_model(tmp_path / "model", "w.bin")
    (other.parent / "w.bin").write_bytes(bytes(48))
    assert "input 'x' is f32[batch, 3, 16, 16] in" in fails("compare", model, other)
    data = tmp_path / "x.npz"
    assert "No such file" in fails("compare", model, model, "--data", data)
    data.write_bytes(b"junk")
    assert "not an .npz" in fails("compare", model, model, "--data", data)
    np.savez(data, np.array([{}], object))
    assert "not an .npz" in fails("compare", model, model, "--data", data)
    np.savez(data, y=np.zeros(3))
    assert "no input 'y'" in fails("compare", model, model, "--data", data)
    np.savez(data, x=np.zeros((1, 3, 16, 16)))
    assert "takes float32, not float64" in fails("compare", model, model, "--data", data)
    np.savez(data, x=np.zeros((1, 3, 8, 8), np.float32))
    assert "not 1x3x8x8" in fails("compare", model, model, "--data", data)


def test_a_traceback_only_with_debug(tmp_path: Path) -> None:
    for extra, expected in (([], False), (["--debug"], True)):
        done = subprocess.run(
            [*COMMAND, "inspect", str(tmp_path / "no.onnx"), *extra],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ("Traceback" in done.stderr) is expected
        assert done.returncode == (1 if expected else 2)


WAITING = """
import sys, time
from graphshrink import passes, cli
def run(self, graph, rw, ctx):
    print("waiting", flush=True)
    {what}
passes.PruneDead.run = run
sys.argv = ["graphshrink", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    "what",
    [
        "time.sleep(60)",
        # An extension module that turns the interrupt into an error of its own.
        "\n    try: time.sleep(60)\n    except KeyboardInterrupt: raise ImportError('initialization')",
        # A destructor, which drops it.
        "type('D', (), {'__del__': lambda self: time.sleep(60)})()\n    time.sleep(60)",
    ],
)
def test_an_interrupt_in_a_pass_is_one_line(what: str, model: Path, out: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(what=what), str(model), str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "graphshrink: interrupted\n")
    assert out.read_bytes() == b"old"
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


HELD = """
import os, sys, time
from graphshrink import cli
count, call = [], os.{call}
def stopping(*arguments, **options):
    result = call(*arguments, **options)
    count.append(1)
    if len(count) == {at}:
        print("waiting", flush=True)
        time.sleep(60)
    return result
os.{call} = stopping
sys.argv = ["graphshrink", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "call_", "at"),
    [
        (signal.SIGTERM, 143, "fsync", 1),  # The data file is whole and has no name yet,
        (signal.SIGHUP, 129, "link", 1),  # has its name, and there is no model,
        (signal.SIGTERM, 143, "fsync", 2),  # and the model is whole and has no name yet.
        (signal.SIGINT, 130, "fsync", 2),
    ],
)
def test_whatever_ends_a_run_leaves_no_temporary_file(
    number: int, code: int, call_: str, at: int, tmp_path: Path
) -> None:
    """In the middle of writing, with a second signal while the first is dealt with."""
    source, out = external_model(tmp_path / "model", "w.bin"), tmp_path / "out.onnx"
    (source.parent / "w.bin").write_bytes(data_of(1))
    out.write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", HELD.format(call=call_, at=at), str(source), str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    message = "interrupted" if number == signal.SIGINT else "ended by a signal"
    assert (process.returncode, said) == (code, f"graphshrink: {message}\n")
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out.onnx"}
    assert out.read_bytes() == b"old"


FOREIGN = """
import signal, sys
from graphshrink import shrink, cli
def mine(number, frame): pass
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, mine)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
source, out = sys.argv[1:]
shrink(source, check=True).save(out)
seen = []
from graphshrink import passes
run = passes.PruneDead.run
def watched(*arguments):
    seen.extend(map(signal.getsignal, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
    return run(*arguments)
passes.PruneDead.run = watched
sys.argv = ["graphshrink", source, out]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
assert seen[:3] == seen[-3:] == [mine, mine, signal.SIG_IGN], seen
"""


def test_handlers_of_others_stay(model: Path, out: Path) -> None:
    subprocess.run([sys.executable, "-c", FOREIGN, str(model), str(out)], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    succeeds(model, out)
    assert [signal.getsignal(number) for number in numbers] == before


STARTING = """
import sys
from graphshrink import cli
from graphshrink.cli.interrupts import Interrupts
enter = Interrupts.__enter__
def entered(self):
    enter(self)
    print("starting", flush=True)
    return self
Interrupts.__enter__ = entered
sys.argv = ["graphshrink", *sys.argv[1:]]
cli.main()
"""


def test_an_interrupt_of_the_start_up_is_one_line(model: Path, out: Path) -> None:
    for wait in (0.0, 0.05, 0.1, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", STARTING, str(model), str(out), "--check"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        # Before that it is Python itself that starts, and says what it likes.
        assert process.stdout.readline() == "starting\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        # Or the work was done already, and Python is on its way out.
        assert process.returncode in (130, -signal.SIGINT, 0)
        if process.returncode == 130:
            assert said == "graphshrink: interrupted\n"


def test_a_closed_pipe_is_no_error(model: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m graphshrink passes | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


DRIVER = """
import os, signal, sys
from graphshrink.cli import main
from graphshrink import api
from graphshrink.targets import onnx
source, folder = sys.argv[1:]
CALLS = ("replace", "fsync", "unlink", "open", "link")

def child(stop, late):
    count = 0
    def wrap(call):
        def stopping(*arguments, **options):
            nonlocal count
            count += 1
            if count == stop and not late:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return stopping
    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    sys.argv = ["graphshrink", source, f"{folder}/{stop}{'ba'[late]}/out.onnx"]
    sys.stdout = open(os.devnull, "w")
    main()

# What is imported when it is needed is there once and for all.
shown, sys.stdout = sys.stdout, open(os.devnull, "w")
sys.argv = ["graphshrink", source, f"{folder}/before.onnx"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
sys.stdout = shown

for late in (False, True):
    stop, killed = 1, True
    while killed:
        pid = os.fork()
        if pid == 0:
            child(stop, late)
        status = os.waitpid(pid, 0)[1]
        killed = os.WIFSIGNALED(status)
        print(stop, late, killed, os.waitstatus_to_exitcode(status), flush=True)
        stop += 1
"""


def data_of(value: float) -> bytes:
    return np.full(12, value, np.float32).tobytes()


@pytest.mark.parametrize("external", [False, True])
def test_killed_at_every_step_of_writing(external: bool, tmp_path: Path) -> None:
    """The old model or the new one, each with its own numbers; and the next run cleans up or goes on."""
    source = external_model(tmp_path / "model", "w.bin")
    data = source.parent / "w.bin"
    data.write_bytes(data_of(1))
    if not external:
        onnx.save(onnx.load(source), source)
    steps = 24
    (tmp_path / "first").mkdir()
    succeeds(source, tmp_path / "first" / "out.onnx")
    for step in range(1, steps + 1):
        for when in "ba":
            shutil.copytree(tmp_path / "first", tmp_path / "out" / f"{step}{when}")
    if external:
        data.write_bytes(data_of(2))
    else:
        model = onnx.load(source)
        model.graph.initializer[0].raw_data = data_of(2)
        onnx.save(model, source)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(source), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    runs = [line.split() for line in done.stdout.splitlines()]
    killed = [(int(stop), late == "True") for stop, late, dead, _ in runs if dead == "True"]
    assert len(killed) >= (8 if external else 4)
    assert max(killed)[0] < steps
    assert [code for _, _, dead, code in runs if dead == "False"] == ["0", "0"]
    seen = set()
    for stop, late in killed:
        path = tmp_path / "out" / f"{stop}{'ba'[late]}" / "out.onnx"
        (y,) = outputs_of(path, {"x": np.ones((1, 3), np.float32)})
        assert y.tolist() in ([[3.0] * 4], [[6.0] * 4])
        seen.add(float(y[0, 0]))
        succeeds(source, path)
        (y,) = outputs_of(path, {"x": np.ones((1, 3), np.float32)})
        assert y.tolist() == [[6.0] * 4]
    assert seen == {3.0, 6.0}


def test_killed_at_any_moment(tmp_path: Path) -> None:
    source, out = external_model(tmp_path / "model", "w.bin"), tmp_path / "out.onnx"
    data = source.parent / "w.bin"
    data.write_bytes(data_of(1))
    succeeds(source, out)
    for attempt in range(6):
        data.write_bytes(data_of(attempt))
        process = subprocess.Popen([*COMMAND, str(source), str(out)], stdout=subprocess.DEVNULL)
        time.sleep(0.2 + 0.06 * attempt)
        process.kill()
        process.wait()
        (y,) = outputs_of(out, {"x": np.ones((1, 3), np.float32)})
        assert len(set(y.ravel().tolist())) == 1
