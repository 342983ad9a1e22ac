"""The terminal picture of the README: a real run of the command on a small network, recorded as SVG.

``python website/terminal.py`` writes docs/images/terminal.svg. The network is the one for digits in examples/, trained; the samples are its
training images, without labels. The run is timed: let nothing else run meanwhile.
The README shows the picture once a line ``![...](docs/images/terminal.svg)`` names it.
"""

from __future__ import annotations

import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "graphshrink model.onnx small.onnx --speedup 1.5 --calibration samples/"
COLUMNS = 100
SAMPLES = 400


def prepare(folder: Path) -> None:
    """Write the model and its samples."""
    sys.path.insert(0, str(ROOT / "examples"))
    import digits

    from graphshrink import shrink

    images, *_ = digits.images()
    network = digits.trained()
    shrink(network, "", example_inputs=(images[:1],)).save(folder / "model.onnx")
    (folder / "samples").mkdir()
    for i, image in enumerate(images[:SAMPLES].numpy()):
        np.save(folder / f"samples/{i:03d}.npy", image)


def recorded(folder: Path) -> str:
    """What the command prints on a terminal, with its codes for colours.

    Raises:
        SystemExit: If it fails.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    words = [sys.executable, "-m", "graphshrink", *shlex.split(COMMAND)[1:]]
    # Standard error, with the progress bar, is no terminal: the bar is gone at the end.
    environment = {**os.environ, "TERM": "xterm-256color", "XDG_CACHE_HOME": str(folder)}
    process = subprocess.Popen(
        words, stdout=theirs, stderr=subprocess.PIPE, cwd=folder, env=environment
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed.
            break
        if not part:
            break
        parts.append(part)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    if process.wait():
        raise SystemExit(message)
    return b"".join(parts).decode().replace("\r\n", "\n")


def picture(printed: str) -> str:
    """The command and what it printed, as SVG."""
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
    console.print(Text.from_ansi(printed), end="")
    text = console.export_svg(title="graphshrink", unique_id="terminal")
    # No fonts from other servers; the viewer's own monospaced font is as wide.
    head, _, rest = text.partition("@font-face")
    kept = rest[rest.index(".terminal-matrix") :]
    return (head + kept).replace("Fira Code", "ui-monospace")


def main() -> None:
    """Record the run and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        printed = recorded(Path(name))
    sys.stdout.write(printed)
    target = ROOT / "docs/images/terminal.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(picture(printed))


if __name__ == "__main__":
    main()
