"""Builds the sdist and the wheel, and installs and runs them in clean environments of several Pythons.

``python release/check.py`` (``make dist``) writes both to dist/. The wheel is made from the sdist, so that it shows what the sdist lacks. Each
environment is new and has only the package with its required dependencies; in each, the program prints its version and help, and shrinks a
small ONNX file, whose outputs are compared in onnxruntime. ``--python 3.12`` names one Python; without it, all of 3.11 to 3.13 that are
found run, and missing ones are named.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")

USE = """
import sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
import graphshrink

assert "torch" not in sys.modules
rng = np.random.default_rng(0)
weights = {"w": rng.standard_normal((8, 3, 3, 3)), "s": rng.standard_normal((8, 1, 1))}
nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "s"], ["b"]), helper.make_node("Identity", ["b"], ["y"])]
shape = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None, None])
tensors = [numpy_helper.from_array(np.float32(v), k) for k, v in weights.items()]
graph = helper.make_graph(nodes, "small", [shape("x")], [shape("y")], tensors)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "in.onnx")
"""
COMPARE = """
import numpy as np, onnx, onnxruntime
x = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
a, b = (onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, x)[0] for p in ("in.onnx", "out.onnx"))
np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
assert [node.op_type for node in onnx.load("out.onnx").graph.node] == ["Conv"]
"""


def run(*words: object, cwd: Path | None = None) -> str:
    """The standard output of a command.

    Raises:
        SystemExit: If it fails.
    """
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))[:200]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def find(version: str) -> str | None:
    """The interpreter of a version: on the path, else of pyenv."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
        return found
    for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return str(path)
    return None


def environment(python: str, folder: Path) -> Path:
    """A new environment; returns its folder of programs."""
    run(python, "-m", "venv", folder)
    return folder / "bin"


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it."""
    programs = environment(sys.executable, folder / "build")
    run(programs / "python", "-m", "pip", "install", "--quiet", "build", "twine")
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    run(programs / "python", "-m", "build", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    print(run(programs / "python", "-m", "twine", "check", "--strict", sdist, wheel).strip())
    return sdist, wheel


def check(package: Path, python: str, folder: Path) -> None:
    """Install a package in a new environment and use it, far from the sources."""
    programs = environment(python, folder)
    run(programs / "python", "-m", "pip", "install", "--quiet", package)
    version = run(programs / "graphshrink", "--version", cwd=folder).strip()
    assert version in package.name, (version, package.name)
    assert "shrink" in run(programs / "graphshrink", "--help", cwd=folder)
    run(programs / "python", "-c", USE, cwd=folder)
    printed = run(programs / "graphshrink", "in.onnx", "out.onnx", "--check", cwd=folder).strip()
    run(programs / "python", "-c", COMPARE, cwd=folder)
    print(f"{package.name} in {python}: {printed}")


def main() -> None:
    """Build and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="a Python to check with")
    wanted = parser.parse_args().python or PYTHONS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        checked = 0
        for version in wanted:
            python = find(version)
            if python is None:
                print(f"Python {version}: not found, not checked")
                continue
            packages = (wheel,) if checked else (wheel, sdist)
            for package in packages:
                place = folder / f"{version}{package.suffix}"
                check(package, python, place)
                shutil.rmtree(place)
            checked += 1
    if not checked:
        raise SystemExit("none of these Pythons was found")


if __name__ == "__main__":
    main()
