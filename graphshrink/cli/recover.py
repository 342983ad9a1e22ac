"""The command ``recover``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..ir.errors import UsageError
from .parameters import (
    Augment,
    AugmentTokens,
    CalibrationBatch,
    CalibrationSamples,
    Json,
    Labels,
    LearningRate,
    Measure,
    PreprocessText,
    Seed,
    whole_number,
)
from .terminal import writable

if TYPE_CHECKING:
    from ..training.recovery.files import RecoveredFile
    from ..training.recovery.token_augmentation import TokenAugmentation


def recover(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The shrunk ONNX file.")],
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The ONNX file to write.")
    ],
    teacher: Annotated[
        str, typer.Option(metavar="FILE", help="The ONNX file that the student was made from.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Samples without labels: an .npz file with an array for each input, or a folder of .npy files or images.",
        ),
    ],
    epochs: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 10**6), metavar="N", help="Times to go through the samples."
        ),
    ] = 3,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="PASSES",
            help="Quantise the student first, 'quantize' or with options 'quantize{method=mse}', and train what the integers compute.",
        ),
    ] = None,
    samples: CalibrationSamples = None,
    batch: CalibrationBatch = None,
    preprocess: PreprocessText = None,
    labels: Labels = None,
    lr: LearningRate = None,
    measure: Measure = None,
    augment: Augment = True,
    augment_tokens: AugmentTokens = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write checkpoints there; the same command goes on from the last one.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Repair what shrinking cost: train the student to give the teacher's outputs, on samples without labels.

    One sample of eight is held out. The file that is written is judged by them, and the training is undone if it did not help.
    """
    from ..guarded import files_read
    from ..ir.files import check_overwrites
    from ..passes import Pipeline
    from .planned import calibration_data

    writable(out, ".onnx")
    read = [("the student", Path(student)), ("the teacher", Path(teacher))]
    read += [*files_read(data, Pipeline("prune-dead")), *labels_read(labels)]
    check_overwrites([out], read[1:])
    done = run_recovery(
        student,
        teacher,
        calibration_data(data, samples, None, preprocess),
        epochs,
        quantize=False if quantize is None else quantize,
        labels=labels,
        batch_size=batch,
        lr=lr,
        measure=measure or "auto",
        augment=augmentation(augment, augment_tokens),
        checkpoint=checkpoint,
        seed=seed,
    )
    path = destination(done, out, student, checkpoint) if is_first() else None
    if path is not None:
        done.save(path)
        if as_json:
            typer.echo(json.dumps(recovery_data(done), indent=1))
        else:
            typer.echo(f"{out if path == Path(out) else path}: {recovery_text(done)}")
            for note in done.notes:
                typer.echo(f"note: {note}")
    if done.interrupted:
        raise KeyboardInterrupt


def labels_read(labels: str | None) -> list[tuple[str, Path]]:
    """The file that ``--labels`` names, for checks of outputs."""
    return [("the labels", Path(labels))] if labels not in (None, "folders") else []


def augmentation(images: bool, tokens: str | None) -> bool | TokenAugmentation:
    """The variants that options ask for: those of the tokens of an input, if one is named."""
    from ..training.recovery.token_augmentation import TokenAugmentation

    if tokens is None:
        return images
    if not images:
        raise UsageError(
            "--augment-tokens varies texts, and --no-augment nothing: give one of them"
        )
    return TokenAugmentation(tokens)


def run_recovery(
    student: Any,
    teacher: Any,
    data: Any,
    epochs: int,
    checkpoint: str | None = None,
    lr: float | None = None,
    **options: Any,
) -> RecoveredFile:
    """Recover a model; if Ctrl-C ends it, say how to go on."""
    from ..training.recovery.files import recover_file

    done = recover_file(
        student, teacher, data, epochs=epochs, lr=lr, checkpoint=checkpoint, **options
    )
    if done.interrupted:
        further = (
            f"the same command goes on from the checkpoint in {checkpoint}"
            if checkpoint
            else "with --checkpoint FOLDER, the same command can go on where it ended"
        )
        typer.echo(
            f"graphshrink: interrupted after {len(done.history) - 1} of {epochs} epochs: the best so far is kept; {further}",
            err=True,
        )
    return done


def destination(done: RecoveredFile, out: str, source: str, checkpoint: str | None) -> Path | None:
    """The file to write; a line says so if it is not the wanted one.

    An interrupted recovery leaves the file that it was given as it was: if that is the file to write too, the best so far goes beside it, or stays
    in the checkpoint, from which the same command goes on.

    Returns:
        The file, or ``None`` if there is none to write.
    """
    from ..ir.files import same_file

    if not done.interrupted or not same_file(out, source):
        return Path(out)
    if checkpoint is not None:
        typer.echo(f"graphshrink: {out} stays as it was: to go on, it is read again", err=True)
        return None
    given = Path(out)
    names = (f"{given.stem}.interrupted{i or ''}{given.suffix}" for i in count())
    beside = next(path for name in names if not os.path.lexists(path := given.with_name(name)))
    typer.echo(f"graphshrink: {out} stays as it was; the best so far is in {beside}", err=True)
    return beside


def is_first() -> bool:
    """Whether this process writes the results: the only one, or the first of ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def recovery_text(done: RecoveredFile) -> str:
    """What a recovery achieved, in one line."""
    what = "recovered" if done.improved else "not recovered"
    return f"{what}; held-out samples: {done.before} -> {done.after}"


def recovery_data(done: RecoveredFile) -> dict[str, Any]:
    """What a recovery achieved, as plain data."""
    return {
        "improved": done.improved, "before": asdict(done.before), "after": asdict(done.after),
        "interrupted": done.interrupted, "history": done.history, "notes": done.notes,
    }  # fmt: skip
