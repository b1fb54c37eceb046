"""The verb export: a trained network in the forms other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from imagenet_pipeline.cli.output import Json, say, say_json
from imagenet_pipeline.errors import BadRecipe

if TYPE_CHECKING:
    from imagenet_pipeline.interchange.export import Exported, Subject


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    form: Annotated[str, typer.Option("--format", help="mxnet, onnx or pytorch.")],
    out: Annotated[Path, typer.Option(help="Where to, without an ending: FOLDER/NAME.")],
    checkpoint: Annotated[str, typer.Option(help='"best", "latest" or an epoch.')] = "best",
    raw: Annotated[bool, typer.Option("--raw", help="Leave normalisation to the caller.")] = False,
    input_size: Annotated[
        int | None, typer.Option("--input", min=1, help="Side of the input, pixels [default: the run's]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a network that needs nothing of this project.

    It takes float32 [n, 3, height, width], RGB in 0..255, and gives logits [n, classes]; with --raw it takes
    (RGB - mean) / std. Values are float32.

    \b
      mxnet    NAME-symbol.json NAME-0000.params   mx.gluon.SymbolBlock.imports, mx.mod.Module
      onnx     NAME.onnx                           ONNX Runtime, OpenCV and others
      pytorch  NAME.py NAME.safetensors            import NAME; NAME.load()

    Beside them NAME.FORMAT.json holds the classes in order, mean and std, and every file's SHA-256. Files of an
    earlier export are replaced, others never.

    \b
    Examples:
      imagenet-pipeline export output/runs/demo --format onnx --out exported/demo
      imagenet-pipeline export output/runs/demo --format pytorch --out exported/demo --checkpoint latest --raw
    """
    from imagenet_pipeline.interchange.export import Format
    from imagenet_pipeline.interchange.export import export as export_network

    if form not in get_args(Format):
        raise BadRecipe("--format", expected="mxnet, onnx or pytorch", found=form)
    subject = _subject(run, checkpoint, input_size)
    exported = export_network(subject, form, out, raw)  # type: ignore[arg-type]
    if as_json:
        digests = {str(path): digest for path, digest in exported.files.items()}
        say_json({**exported.content, "files": digests, "card": exported.card})
        return
    _say(subject, exported)


def _subject(run: Path, which: str, input_size: int | None) -> Subject:
    from imagenet_pipeline.interchange.export import Subject
    from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(run, which))
    state = checkpoint.state
    return Subject(
        state.network,
        input_size or state.input_size,
        state.class_table,
        state.mean,
        state.std,
        state.crop_fraction,
        checkpoint.weights,
        checkpoint.weights_digest,
        str(checkpoint.folder),
    )


def _say(subject: Subject, exported: Exported) -> None:
    for path, digest in exported.files.items():
        say(f"{path}  {path.stat().st_size:,} bytes  sha256 {digest}")
    entry, table = exported.content["input"], subject.classes
    shape = ", ".join(map(str, entry["shape"]))
    say(f"{subject.network} of {subject.origin}: {entry['type']} [{shape}], {entry['values']}, to logits")
    ends = ", ".join(f"{label} = {table.ids[label]}" for label in sorted({0, len(table) - 1}))
    say(f"{len(table):,} classes in the order {table.order}: {ends}; all in {exported.card}")
