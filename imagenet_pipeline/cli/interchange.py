"""The verb export: a trained network in the forms other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from imagenet_pipeline.cli.output import Checkpoint, Json, say, say_json
from imagenet_pipeline.errors import BadRecipe

if TYPE_CHECKING:
    from imagenet_pipeline.interchange.export import Exported, Subject


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    form: Annotated[str, typer.Option("--format", help="mxnet, onnx or pytorch.")],
    out: Annotated[str, typer.Option(help="Where to, without an ending: FOLDER/NAME.")],
    checkpoint: Checkpoint = "best",
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
      mxnet    NAME-symbol.json NAME-0000.params   its input is called data
               mx.gluon.SymbolBlock.imports("NAME-symbol.json", ["data"], "NAME-0000.params"), or mx.mod.Module
      onnx     NAME.onnx                           its input is called images, its output logits
               ONNX Runtime, OpenCV and others
      pytorch  NAME.py NAME.safetensors
               import NAME; NAME.load()

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
        advice = "did you mean pytorch?" if form == "torch" else None
        raise BadRecipe("--format", expected="mxnet, onnx or pytorch", found=form, advice=advice)
    subject = _subject(run, checkpoint, input_size)
    exported = export_network(subject, form, _target(out), raw)  # type: ignore[arg-type]
    if as_json:
        digests = {str(path): digest for path, digest in exported.files.items()}
        replaced = exported.replaced and dict(zip(("network", "run"), exported.replaced, strict=True))
        say_json({**exported.content, "files": digests, "card": exported.card, "replaced": replaced})
        return
    _say(subject, exported)


def _target(out: str) -> Path:
    # A path forgets that it ended in a slash.
    if out.endswith("/"):
        raise BadRecipe("a folder, not a name to write under", where=f"--out {out}", expected=f"{out}NAME")
    return Path(out)


def _subject(run: Path, which: str, input_size: int | None) -> Subject:
    from imagenet_pipeline.interchange.export import Subject
    from imagenet_pipeline.interchange.input_size import require_input_size
    from imagenet_pipeline.networks import catalog
    from imagenet_pipeline.networks.zoo import ZooNetwork
    from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(run, which))
    state = checkpoint.state
    network = catalog.build(state.network, len(state.classes))
    if input_size is not None and not isinstance(network, ZooNetwork):
        require_input_size(state.network, network, input_size, state.input_size)
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
    if exported.replaced:
        say("replaced the export of {} ({})".format(*exported.replaced))
    entry, table = exported.content["input"], subject.classes
    shape = ", ".join(map(str, entry["shape"]))
    say(f"{subject.network} of {subject.origin}: {entry['type']} [{shape}], {entry['values']}, to logits")
    ends = ", ".join(f"{label} is {table.ids[label]}" for label in sorted({0, len(table) - 1}))
    say(f"{len(table):,} classes, order {table.order}: {ends}; all in {exported.card}")
