"""Parameters that several commands share, and parsers for numbers."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters
from typing import Annotated

import typer

from ..ir.errors import read_number

LARGEST = 2**63 - 1


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for whole numbers from ``least`` to ``most``, in plain digits."""

    def parse(text: str) -> int:
        try:
            found = int(read_number(str(text), int))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number") from None
        if not least <= found <= most:
            raise typer.BadParameter(f"{text} is not from {least} to {most}")
        return found

    return parse


def tolerance(text: str) -> float:
    """A parser for tolerances: finite, and not below 0."""
    try:
        found = float(read_number(str(text), float))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a finite number") from None
    if found < 0:
        raise typer.BadParameter(f"{text} is below 0")
    return found


InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:1x3x224x224",
        help="The shape of an input when the model is run; may be given several times.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(parser=whole_number(0, LARGEST), metavar="N", help="The seed of random inputs."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def positive(text: str) -> float:
    """A parser for finite numbers above 0."""
    found = tolerance(text)
    if not found:
        raise typer.BadParameter(f"{text} is not above 0")
    return found


def milliseconds(text: str) -> float:
    """A parser for latencies such as ``4.2ms``."""
    return positive(str(text).removesuffix("ms"))


_UNITS = {
    "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "b": 1.0,
}  # fmt: skip


def bytes_of(text: str) -> float:
    """A parser for sizes of files such as ``5MB``; a plain number is bytes."""
    text = str(text)
    number = text.rstrip(ascii_letters).rstrip()
    unit = text[len(number) :].strip().lower() or "b"
    if not number or unit not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not a size such as 5MB or 500kB")
    return positive(number) * _UNITS[unit]


Speedup = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="X",
        help="Plan a network that is this many times faster on the device, measured; needs --calibration.",
    ),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        "--latency",
        parser=milliseconds,
        metavar="4.2ms",
        help="Plan for this latency on the device.",
    ),
]
MacsBudget = Annotated[
    float | None,
    typer.Option(
        "--macs", parser=positive, metavar="X", help="Plan for this part of the MACs, such as 0.5."
    ),
]
SizeBudget = Annotated[
    float | None,
    typer.Option(
        "--size",
        parser=bytes_of,
        metavar="5MB",
        help="Plan for this size of the ONNX file; kB, MB, GB, KiB, MiB and GiB are known.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        parser=whole_number(0, 256),
        metavar="N",
        help="Processes that score candidates of a plan, one thread each; 0 uses all cores in one process.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Score candidates of a plan on a Ray cluster: auto finds it, local starts one on this machine.",
    ),
]
FrontierPath = Annotated[
    str | None,
    typer.Option(
        "--frontier",
        metavar="FILE.csv",
        help="Write the whole trade-off of cost and loss, as CSV; the search then goes on beyond the target.",
    ),
]
Repaired = Annotated[
    bool,
    typer.Option(
        "--repair/--no-repair",
        help="Correct other layers of the planned network where its outputs come closer to the original's.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="X",
        help="Plan the fastest network whose outputs differ by at most this: KL divergence in nats, or relative squared error.",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The device that networks are timed on: ort-cpu if not given; litert-cpu is the one for networks that are written as .tflite.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(0, 256),
        metavar="N",
        help="Threads of the device's runtime: 1 if not given; 0 uses all.",
    ),
]
CalibrationPath = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Data for plans, for passes that need them, and for --fp16: .npz, or a folder of .npy or images.",
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(1, LARGEST),
        metavar="N",
        help="The largest number of calibration samples to use.",
    ),
]
CalibrationBatch = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(1, LARGEST),
        metavar="N",
        help="The number of calibration samples in a batch.",
    ),
]
AugmentTokens = Annotated[
    str | None,
    typer.Option(
        metavar="INPUT",
        help="Train on random variants of texts: INPUT takes ids of tokens, (samples, tokens).",
    ),
]
PreprocessText = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="How calibration images become samples, such as resize=256,crop=224,"
        "mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5],layout=nchw, or imagenet.",
    ),
]
FixedShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--fix-shape",
        metavar="NAME:1x3x224x224",
        help="Fix the sizes of an input in the model (? leaves one as it is); may be given several times.",
    ),
]

CustomOps = Annotated[
    list[str] | None,
    typer.Option(
        "--custom-ops",
        metavar="FILE",
        help="A library with kernels of custom operators for onnxruntime; it is native code, which runs. May be repeated.",
    ),
]
Measure = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="How outputs are compared: kl (distributions), error (relative squared), mse, cosine, or auto, which is the default.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.npy",
        help="The classes of the samples, in their order; 'folders' takes them from a folder of images for each class.",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="X",
        help="The learning rate: the part of its size by which a step changes a weight; if not given, several are tried.",
    ),
]
Augment = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Vary images at random in training.")
]
