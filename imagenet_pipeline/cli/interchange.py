"""The verbs export (a trained network in the forms other programs load) and import (networks trained elsewhere)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_pipeline.cli.output import Checkpoint, Json, Overrides, Run, overrides_of, say, say_json
from imagenet_pipeline.errors import BadInput, BadRecipe, counted, extent

if TYPE_CHECKING:
    from imagenet_pipeline.interchange.export import Change, Exported, TrainedNetwork
    from imagenet_pipeline.interchange.frozen import Imported, Normalisation
    from imagenet_pipeline.interchange.optimizer_states import Continued
    from imagenet_pipeline.records.classes import ClassTable
    from imagenet_pipeline.training.checkpoint import Checkpoint as Trained


Calibrate = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT|DIR",
        help="Images for --int8: a split of the run's records, or another data set [default: train]",
    ),
]
CalibrationImages = Annotated[int | None, typer.Option(min=1, help="How many of them, evenly spaced [default: 256]")]


def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", help="mxnet, onnx, pytorch, torchscript or torch-export.")],
    out: Annotated[str, typer.Option(help="Where to, without an ending: FOLDER/NAME.")],
    checkpoint: Checkpoint = "best",
    raw: Annotated[bool, typer.Option("--raw", help="Leave normalisation to the caller.")] = False,
    input_size: Annotated[
        int | None, typer.Option("--input", min=1, help="Side of the input, pixels [default: the run's]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX in int8, by ONNX Runtime's static quantisation.")] = False,
    calibrate: Calibrate = None,
    calibration_images: CalibrationImages = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a network that needs nothing of this project.

    It takes float32 [n, 3, height, width], RGB in 0..255, and gives logits [n, classes]; with --raw it takes
    (RGB - mean) / std. Values are float32.

    \b
      mxnet         NAME-symbol.json NAME-0000.params   its input is called data
                    mx.gluon.SymbolBlock.imports("NAME-symbol.json", ["data"], "NAME-0000.params"), or mx.mod.Module
      onnx          NAME.onnx                           its input is called images, its output logits
                    ONNX Runtime, OpenCV and others; with --int8 a quarter of the size, for ONNX Runtime
      pytorch       NAME.py NAME.safetensors
                    import NAME; NAME.load()
      torchscript   NAME.pt                             needs PyTorch here
                    torch.jit.load("NAME.pt"), torch::jit::load in C++
      torch-export  NAME.pt2                            needs PyTorch here
                    torch.export.load("NAME.pt2").module()

    Beside them NAME.FORMAT.json holds the classes in order, mean and std, and every file's SHA-256. Files of an
    earlier export are replaced, others never.

    --int8 looks at some of the run's training images for the range of every activation. What it costs stands in the
    card: rank-1 of the validation images before and after, and the bytes.

    \b
    Examples:
      imagenet-pipeline export output/runs/demo --format onnx --out exported/demo
      imagenet-pipeline export output/runs/demo --format pytorch --out exported/demo --checkpoint latest --raw
      imagenet-pipeline export output/runs/demo --format torchscript --out exported/demo
      imagenet-pipeline export output/runs/demo --format onnx --int8 --out exported/demo_int8
      imagenet-pipeline export output/runs/vgg16 --format onnx --int8 --out exported/vgg16_int8
                        --calibrate output/imagenet --calibration-images 500
    """
    from imagenet_pipeline.interchange.export import export as export_network
    from imagenet_pipeline.interchange.export import format_of
    from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint

    format_of(form)
    _require_int8(int8, form, calibrate, calibration_images)
    opened = load_checkpoint(find_checkpoint(run, checkpoint))
    trained = _trained_network(opened, input_size)
    change = _int8_change(run, opened, trained, raw, calibrate, calibration_images) if int8 else None
    exported = export_network(trained, form, _target(out), raw, change)
    if as_json:
        digests = {str(path): digest for path, digest in exported.files.items()}
        replaced = exported.replaced and dict(zip(("network", "run"), exported.replaced, strict=True))
        say_json({**exported.content, "files": digests, "card": exported.card, "replaced": replaced})
        return
    _say(trained, exported)


def _require_int8(int8: bool, form: str, calibrate: str | None, images: int | None) -> None:
    if int8 and form != "onnx":
        raise BadRecipe("only ONNX is written in int8", where="--int8", expected="--format onnx", found=form)
    if not int8 and (calibrate is not None or images is not None):
        option = "--calibrate" if calibrate is not None else "--calibration-images"
        raise BadRecipe("nothing is calibrated without --int8", where=option, advice="add --int8 or leave it out")


def _int8_change(
    run: Path, opened: Trained, trained: TrainedNetwork, raw: bool, calibrate: str | None, images: int | None
) -> Change:
    from imagenet_pipeline.evaluation.int8 import CALIBRATION_IMAGES, int8_plan

    return int8_plan(run, opened.state, trained.input_size, raw, calibrate, images or CALIBRATION_IMAGES)


def _target(out: str) -> Path:
    # A path forgets that it ended in a slash.
    if out.endswith("/"):
        raise BadRecipe("an export cannot be named like a folder", where=f"--out {out}", expected=f"{out}NAME")
    return Path(out)


def _trained_network(checkpoint: Trained, input_size: int | None) -> TrainedNetwork:
    from imagenet_pipeline.evaluation.calibration import temperature_of
    from imagenet_pipeline.interchange.export import TrainedNetwork, require_input_size
    from imagenet_pipeline.networks import catalog

    state = checkpoint.state
    if input_size is not None and not catalog.is_zoo_name(state.network):
        network = catalog.build(state.network, len(state.classes))
        require_input_size(state.network, network, input_size, state.input_size, len(state.mean))
    fitted = temperature_of(checkpoint) if state.label_kind == "class" else None
    return TrainedNetwork(
        state.network, input_size or state.input_size, state.class_table, state.mean, state.std, state.crop_fraction,
        checkpoint.weights, checkpoint.weights_digest, str(checkpoint.folder), fitted.temperature if fitted else 1.0,
    )  # fmt: skip


def _say(trained: TrainedNetwork, exported: Exported) -> None:
    for path, digest in exported.files.items():
        say(f"{path}  {path.stat().st_size:,} bytes  sha256 {digest}")
    if exported.replaced:
        say("replaced the export of {} ({})".format(*exported.replaced))
    entry, table = exported.content["input"], trained.classes
    shape = ", ".join(map(str, entry["shape"]))
    say(f"{exported.content['network']} of {trained.origin}: {entry['type']} [{shape}], {entry['values']}, to logits")
    ends = ", ".join(f"{label} is {table.ids[label]}" for label in sorted({0, len(table) - 1}))
    say(f"{counted(len(table), 'class')}, order {table.order}: {ends}; all in {exported.card}")
    if "int8" in exported.content:
        _say_int8(exported.content["int8"])


def _say_int8(int8: dict[str, Any]) -> None:
    seen, scored = int8["calibration"], int8["scored"]
    sizes = "int8 {int8:,} bytes, float32 {float32:,}".format(**int8["bytes"])
    say(f"{sizes}; calibrated on {counted(seen['images'], seen['split'] + ' image')} of {seen['records']}")
    if scored is None:
        say("not scored: no records of these classes have a split val or test")
        return
    for name in (name for name in ("rank1", "rank5") if name in scored):
        words = "int8 {int8:.2f} %, float32 {float32:.2f} %".format(**scored[name])
        say(f"{name[:4]}-{name[4:]}: {words}  ({counted(scored['images'], scored['split'] + ' image')})")


Records = Annotated[Path | None, typer.Option(help="A data set of its classes: gives class table, mean, std.")]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="Names: a class a line (name, id TAB name, n01440764 tench), JSON, or an export's card "
        "[default: numbered classes]"
    ),
]
CropFraction = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=1, help="Share of the shorter edge it is shown [default: the card's, its source's, or 0.875]"
    ),
]


def import_network(
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    symbol: Annotated[Path | None, typer.Option(help="MXNet's -symbol.json.")] = None,
    params: Annotated[
        Path | None, typer.Option(help="MXNet's .params; alone, with --network: of Gluon's save_parameters, or .npz.")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="A classifier as an ONNX file.")] = None,
    torch: Annotated[
        Path | None,
        typer.Option("--torchvision", "--timm", help="Weights of torchvision or timm: .pth or safetensors."),
    ] = None,
    network: Annotated[str | None, typer.Option(help="Which network it is [default: whichever fits]")] = None,
    input_size: Annotated[
        int | None, typer.Option("--input", min=1, max=4096, help="Side of its input, pixels [default: its own]")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Which output, of a graph of several, or which inner layer.")
    ] = None,
    records: Records = None,
    classes: Classes = None,
    mean: Annotated[str | None, typer.Option(help="R,G,B it subtracts, 0..255, as 123.68,116.78,103.94.")] = None,
    std: Annotated[str | None, typer.Option(help="R,G,B it divides by, 0..255; 1,1,1 for nothing.")] = None,
    crop_fraction: CropFraction = None,
    states: Annotated[
        Path | None, typer.Option(help="MXNet's .states of SGD beside --params: the run goes on half-way.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=1, max=9999, help="Finished epochs, with --states [default: its name's, -0005].")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make a run of a network trained elsewhere.

    Of what MXNet's Module, FeedForward or Gluon's export saved, a symbol and its parameters; of Gluon's
    save_parameters, which --network has to name; of an ONNX file; or of weights of torchvision's or timm's networks.
    Neither MXNet nor PyTorch is needed, and nothing in the files is executed.

    The graph, or the names of the weights, tells which network it is; a graph that is none of ours is read layer by
    layer. The normalisation comes from the graph where it is inside, else from --mean and --std, else from what
    torchvision or timm state, else from --records. The run is evaluated, exported and trained on like any other;
    KEY=VALUE words go into its recipe.

    A training that was broken off goes on with --states, what Module's save_checkpoint or Gluon's Trainer saved of SGD
    with momentum; what these files do not say (rate, momentum, weight decay, batch size) KEY=VALUE does.

    \b
    Examples:
      imagenet-pipeline import --symbol vgg16-symbol.json --params vgg16-0000.params --out output/runs/vgg16 --mean 123.68,116.779,103.939 --std 1,1,1 --classes synset_words.txt
      imagenet-pipeline import --params net.params --network resnet50_v1 --out output/runs/net --mean 123.68,116.78,103.94 --std 58.4,57.12,57.38
      imagenet-pipeline import --torchvision resnet50-11ad3fa6.pth --out output/runs/resnet50 --records output/imagenet
      imagenet-pipeline import --onnx net.onnx --out output/runs/net --records output/imagenet
      imagenet-pipeline import --symbol net-symbol.json --params net-0005.params --states net-0005.states --records output/imagenet --out output/runs/net optimizer.learning_rate=0.1 optimizer.momentum=0.9 optimizer.weight_decay=1e-4 batch_size=256 epochs=90
      imagenet-pipeline evaluate output/runs/vgg16 --records output/imagenet --split val
    """  # noqa: E501
    from imagenet_pipeline import files
    from imagenet_pipeline.config import InputRecipe
    from imagenet_pipeline.records.class_names import read_classes
    from imagenet_pipeline.records.manifest import read_data_set
    from imagenet_pipeline.training.imported import crop_of_card, make_run, normalisation_of, notes_on, numbered_classes

    if records is not None and classes is not None:
        raise BadRecipe("--records has a class table already", advice="leave --classes out")
    given = _given(mean, std)
    sources = [path for path in (symbol, params, onnx, torch, states) if path is not None]
    data = None if records is None else read_data_set(records)
    imported = _imported(symbol, params, onnx, torch, network, input_size, output)
    normalisation, source = normalisation_of(imported, given, data)
    before = _before(states, symbol, params, imported, epoch)
    if data is not None:
        table = data.classes
    elif classes is not None:
        table = read_classes(classes)
    else:
        table = imported.class_table or numbered_classes(imported.classes)
    digests = {str(path): files.sha256_of(path) for path in sources}
    crop_fraction = crop_fraction or (crop_of_card(classes) if classes else None) or imported.crop_fraction
    origin = {"files": digests, "normalisation_from": source}
    options = overrides_of(overrides)
    make_run(out, imported, table, normalisation, data, origin, crop_fraction, options, before)
    notes = [*imported.notes, *(notes_on(before, options) if before else ())]
    if crop_fraction is None and "input.crop_fraction" not in options:
        share = f"{InputRecipe().crop_fraction} of the shorter edge"
        notes.append(f"centre crop {share} assumed in evaluation (--crop-fraction gives another)")
    imported = replace(imported, notes=tuple(notes))
    _tell(out, imported, table, normalisation, source, before, as_json)


def _imported(
    symbol: Path | None,
    params: Path | None,
    onnx: Path | None,
    torch: Path | None,
    network: str | None,
    input_size: int | None,
    output: str | None,
) -> Imported:
    if torch is not None:
        from imagenet_pipeline.interchange.torch_import import import_torch

        if symbol is not None or params is not None or onnx is not None:
            raise BadRecipe("weights of torchvision or timm come alone", advice="leave the other files out")
        return import_torch(torch, network, input_size)
    if onnx is not None:
        from imagenet_pipeline.interchange.onnx_import import import_onnx

        if symbol is not None or params is not None:
            raise BadRecipe("an ONNX file has its values inside", advice="leave --symbol and --params out")
        return import_onnx(onnx, network, input_size, output)
    if params is None:
        advice = "--symbol FILE --params FILE, --params FILE --network NAME, --onnx FILE or --torchvision FILE"
        raise BadRecipe("nothing to import", expected=advice)
    if symbol is not None:
        from imagenet_pipeline.interchange.mxnet_import import import_mxnet

        _require_in_order(symbol, params)
        return import_mxnet(symbol, params, network, input_size, output)
    from imagenet_pipeline.interchange.gluon_import import import_gluon

    return import_gluon(params, network, input_size)


def _before(
    states: Path | None, symbol: Path | None, params: Path | None, imported: Imported, epoch: int | None
) -> Continued | None:
    """Read what the run goes on with, of a training that was broken off."""
    if states is None:
        if epoch is not None:
            raise BadRecipe("--epoch is that of --states", advice="leave it out, or give both")
        return None
    if symbol is None or params is None:
        raise BadRecipe("--states goes with --symbol and --params", where=f"--states {states}")
    from imagenet_pipeline.interchange.optimizer_states import continued, epoch_of

    named = {path: epoch_of(path) for path in (states, params)}
    finished = epoch or named[states] or named[params]
    if not finished:
        raise BadRecipe("the number of finished epochs is unknown", where=f"--states {states}", advice="give --epoch N")
    if epoch is None and None not in named.values() and len(set(named.values())) > 1:
        found = " and ".join(map(str, named.values()))
        raise BadRecipe("--states and --params are of different epochs", where=f"--states {states}", found=found)
    return continued(states, symbol, params, imported, finished)


def _tell(
    out: Path,
    imported: Imported,
    table: ClassTable,
    normalisation: Normalisation,
    source: str,
    before: Continued | None,
    as_json: bool,
) -> None:
    from imagenet_pipeline.config import shown_size
    from imagenet_pipeline.networks.catalog import FILE_NAME
    from imagenet_pipeline.training.data import NUMBERED
    from imagenet_pipeline.training.imported import COMMAND_LINE

    mean, std = normalisation
    own_file = None if imported.layers is None else out / FILE_NAME
    if as_json:
        say_json(
            {
                "run": out, "network": imported.network, "classes": imported.classes, "class_order": table.order,
                "also": imported.also,
                "input_size": imported.input_size, "arrays": len(imported.values), "mean": mean, "std": std,
                "normalisation_from": source, "unused": imported.unused,
                "network_file": own_file, "notes": imported.notes, "epoch": before.epoch if before else 0,
            }
        )  # fmt: skip
        return
    size, arrays = shown_size(imported.input_size), len(imported.values)
    say(f"{out}: {imported.network}, {counted(imported.classes, 'class')}, {size} px, {arrays} arrays")
    if before:
        momenta = f"the momentum of {len(before.displacements)} arrays"
        say(f"after epoch {before.epoch}, with {momenta}: train {out} --resume latest goes on")
    if own_file:
        say(f"no network of the catalogue: its layers are in {own_file}")
    is_guess = imported.normalisation is None and source != COMMAND_LINE
    guess = ": the mean of these records, if that is what it was trained with" if is_guess else ""
    say(f"mean {_words(mean)}  std {_words(std)}  from {source}{guess}")
    if table.order == NUMBERED:
        say(f"classes: numbered {extent(0, len(table) - 1)}; --records or --classes names them")
    else:
        ends = ", ".join(f"{label} = {table.ids[label]}" for label in sorted({0, len(table) - 1}))
        say(f"classes: {ends}, in the order {table.order}")
    if imported.also:
        say(f"the same function as {', '.join(imported.also)}")
    if imported.unused:
        say(f"in the file but not in the graph: {', '.join(imported.unused[:3])} ({len(imported.unused)} in all)")
    for note in imported.notes:
        say(note)


def _require_in_order(symbol: Path, params: Path) -> None:
    from imagenet_pipeline.interchange.params import LIST_MAGIC

    first, second = _start("--symbol", symbol), _start("--params", params)
    if first == LIST_MAGIC.to_bytes(8, "little") and second.lstrip().startswith(b"{"):
        raise BadInput(
            "the file holds MXNet parameters, not a symbol",
            where=f"--symbol {symbol}",
            expected="MXNet's -symbol.json",
            advice="--symbol and --params the other way round?",
        )


def _start(option: str, path: Path) -> bytes:
    from imagenet_pipeline import files

    try:
        with files.regular_file(path) as (stream, _):
            return stream.read(8)
    except BadInput as error:
        raise BadInput(error.what, where=f"{option} {path}") from error


def _given(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    from imagenet_pipeline.config import looks_like_0_to_1
    from imagenet_pipeline.interchange.graph import SMALLEST_DEVIATION

    if (mean is None) != (std is None):
        raise BadRecipe("--mean and --std belong together", advice="--std 1,1,1 divides by nothing")
    if mean is None or std is None:
        return None
    numbers = _numbers("--mean", mean), _numbers("--std", std)
    if min(numbers[1]) < SMALLEST_DEVIATION:
        raise BadRecipe(
            "a deviation is too small",
            where="--std",
            expected=f"three numbers, {SMALLEST_DEVIATION:g} or above",
            found=std,
        )
    if looks_like_0_to_1(*numbers):
        of_bytes = [_words(tuple(255 * number for number in triple)) for triple in numbers]
        raise BadRecipe(
            "look like the scale 0..1",
            where="--mean, --std",
            expected="0..255",
            found=f"{mean} and {std}",
            advice=f"multiply both by 255: --mean {of_bytes[0]} --std {of_bytes[1]}",
        )
    return numbers


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from imagenet_pipeline.interchange.graph import LARGEST_NUMBER

    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(abs(number) <= LARGEST_NUMBER for number in numbers):
        raise BadRecipe("the value cannot be read", where=option, expected="three numbers, R,G,B, 0..255", found=text)
    return numbers


def _words(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
