"""A shallower network where only an ONNX file is left: from file to file, with the accuracy of both.

``python examples/depth_from_onnx.py`` takes a minute or two on two cores. It first trains a network of inverted residual blocks on
scikit-learn's digits and exports it with its batch norms folded; from there on, it has nothing but this file and the images:

1. ``to_torch`` reads the file as a module, with fresh batch norms in the place of the folded ones;
2. gates find the blocks that need no activations inside (:func:`depthshrinker.shallow`);
3. these activations fade while the network is trained with the given one as its teacher, and then they are removed;
4. ``shrink`` merges the layers and writes the new file.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import depthshrinker
import torch
from rich.console import Console
from rich.table import Table

from graphshrink import recover, shrink, to_torch
from graphshrink.accuracy import onnx_accuracy
from graphshrink.datasets import Batches
from graphshrink.report import Size


def export(file: Path, train: Batches, epochs: int) -> None:
    """Train a network and write it as users find theirs: one ONNX file, with its batch norms folded into convolutions."""
    x, _ = next(iter(train))
    base = depthshrinker.network(x.shape[1], 10, x.shape[2])
    recover(base, train, epochs=epochs, lr=5e-3, progress=False)
    shrink(base.eval(), example_inputs=(x,)).save(file)


def shrunk(given: Path, out: Path, train: Batches, options: argparse.Namespace) -> None:
    """Make the network of a file shallower."""
    x, _ = next(iter(train))
    some = torch.cat([images for images, _ in islice(train, 10)])
    module = to_torch(given, fresh_norms=True, calibration=some.numpy())
    small = depthshrinker.shallow(module, (x,), train, options)
    shrink(small, example_inputs=(x,), check=True, on_failure="raise").save(out)


def main() -> None:
    """Run it, and print what the two files are like."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--keep", type=float, default=0.35, help="share of the blocks that stay")
    parser.add_argument("--base", type=int, default=5, help="epochs of the network itself")
    parser.add_argument("--search", type=int, default=1, help="epochs of the search")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the recovery")
    parser.add_argument("--output", type=Path, help="the file to write; none is kept if not given")
    options = parser.parse_args()
    options.data = None
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    start = time.perf_counter()
    images = depthshrinker.images_of(options)
    train = Batches(images, depthshrinker.BATCH, train=True, shift=1)
    test = Batches(images, depthshrinker.BATCH, train=False)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given.onnx"), options.output or Path(folder, "shallow.onnx")
        export(given, train, options.base)
        shrunk(given, out, train, options)
        table = Table("file", "convolutions", "MACs", "test accuracy")
        for file in (given, out):
            size = Size.of(shrink(file, "prune-dead").graph)
            accuracy = f"{onnx_accuracy(file, test):.2%}"
            table.add_row(file.name, f"{size.ops['Conv']}", f"{size.macs:,}", accuracy)
    Console(width=100).print(table, f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
