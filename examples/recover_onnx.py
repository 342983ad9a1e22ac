"""Repairs shrunk ONNX files without labels: a digits classifier with fewer MACs, and with 2:4 sparse weights.

``python examples/recover_onnx.py`` takes a few minutes on two cores. What it does to files is what these commands do::

    graphshrink digits.onnx planned.onnx --macs 0.2 --calibration samples.npz
    graphshrink recover planned.onnx --teacher digits.onnx --data samples.npz -o recovered.onnx --epochs 8 --no-augment
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import digits
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from graphshrink import plan, recover_file, shrink

EPOCHS = 8


def accuracy(file: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """The part of the test images that a file classifies correctly, in onnxruntime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((np.asarray(scores).argmax(1) == labels).mean())


def export(file: Path) -> None:
    """Write the trained network as an ONNX file, with its batch norms folded into its convolutions."""
    _, _, test, _ = digits.images()
    shrink(digits.trained(), example_inputs=(test[:4],)).save(file)


def main() -> None:
    """Shrink, recover, and print the accuracy of each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--macs", type=float, default=0.2, help="part of the MACs that the plan keeps"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    train, _, test, test_labels = (x.numpy() for x in digits.images())
    table = Table("file", "before recovery", "after recovery", title="test accuracy")
    with tempfile.TemporaryDirectory() as name:
        given = Path(name, "digits.onnx")
        export(given)
        table.add_row("digits.onnx", f"{accuracy(given, test, test_labels):.2%}", "")
        planned, sparse = Path(name, "planned.onnx"), Path(name, "sparse.onnx")
        plan(given, train, macs=args.macs).apply().save(planned)
        shrink(given, "sparsify", calibration=train).save(sparse)
        for file in (planned, sparse):
            # Small images of one kind, and many of them: random variants would only be harder.
            done = recover_file(file, given, train, epochs=args.epochs, augment=False)
            out = file.with_stem(f"{file.stem}-recovered")
            done.save(out)
            found = (accuracy(f, test, test_labels) for f in (file, out))
            table.add_row(file.name, *(f"{x:.2%}" for x in found))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
