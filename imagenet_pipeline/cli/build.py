"""The verb build, a sub-command for each builder: those with much to say are below, others by their signature."""

from __future__ import annotations

import contextlib
import inspect
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

from imagenet_pipeline.builders import BUILDERS, SHIPPED_BUILDERS, STORED, hints_of, options_of, plan_of, store
from imagenet_pipeline.cli.output import LARGEST_SEED, Json, announce, list_names, say, say_json
from imagenet_pipeline.errors import BadRecipe, PipelineError, counted, first_few


class _Builders(TyperGroup):
    """The commands below, and a command for each other builder: shipped, registered, or of another package."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(filter(_is_there, BUILDERS.names()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        shipped = super().get_command(ctx, cmd_name)
        return _offered(cmd_name) if shipped is None and cmd_name in BUILDERS else shipped


def _is_there(name: str) -> bool:
    """Tell whether a builder can be imported; a builder that cannot says why when it is called."""
    with contextlib.suppress(PipelineError):
        return name in SHIPPED_BUILDERS or bool(BUILDERS.get(name))
    return False


build_app = typer.Typer(
    cls=_Builders,
    help="Make a data set of records.\n\n"
    "With lists, class table, mean colour and manifest. The same command again goes on with a killed build, "
    "and mends a finished data set that was damaged since.",
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="Folder of the data set, or its address: s3://bucket/folder.")]
_SEED = typer.Option(min=0, max=LARGEST_SEED, help="Seed of the cuts and of the order of training images.")
Seed = Annotated[int, _SEED]
Resize = Annotated[int, typer.Option(min=0, help="Shorter edge, pixels; smaller images stay; 0 keeps all sizes.")]
ResizeMode = Annotated[
    str,
    typer.Option(
        help="shorter; squash presses into a square of RESIZE pixels; letterbox fits into one, grey beside it."
    ),
]
Interpolation = Annotated[str, typer.Option(help="area (averages; linear where it enlarges), nearest, linear, cubic.")]
Quality = Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of re-encoded images.")]
PassThrough = Annotated[bool, typer.Option("--pass-through", help="Keep the bytes of every plain JPEG or PNG.")]
Shards = Annotated[int | None, typer.Option(min=1, help="Files of the train split [default: one per 8,192 images]")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes [default: one a core]; bytes never depend on it.")]
AtExecutor = Annotated[str | None, typer.Option("--executor", help="dask://HOST:PORT: work on a Dask cluster.")]
MaxRejects = Annotated[int, typer.Option(min=0, help="Stop when more images than this cannot be used.")]
KeepDamaged = Annotated[
    bool, typer.Option("--keep-damaged", help="Store images part of whose picture is lost, too, and count them.")
]
NoMean = Annotated[
    bool,
    typer.Option(
        "--no-mean",
        help="Mean and std from a sample of 100 to 500 photos. Others that keep their bytes are not decoded: header "
        "and end are looked at, lost pixels are left to `verify`.",
    ),
]
TrainVal = Annotated[
    float,
    typer.Option("--train-val-fraction", min=0, max=0.9, help="Share cut out of train as train_val, for `diagnose`."),
]
ListsOnly = Annotated[bool, typer.Option("--lists-only", help="Write and check the lists; touch no image.")]


@dataclass(frozen=True)
class Common:
    """Options of every builder's command: how images are `stored`, by whose workers, and what is printed."""

    stored: Mapping[str, Any]
    train_val_fraction: float = 0.0
    executor: str | None = None
    lists_only: bool = False
    as_json: bool = False


_COMMON: dict[str, tuple[Any, Any]] = {
    "resize": (Resize, 256),
    "resize_mode": (ResizeMode, "shorter"),
    "interpolation": (Interpolation, "area"),
    "quality": (Quality, 95),
    "pass_through": (PassThrough, False),
    "shards": (Shards, None),
    "workers": (Workers, None),
    "executor": (AtExecutor, None),
    "max_rejects": (MaxRejects, 0),
    "keep_damaged": (KeepDamaged, False),
    "no_mean": (NoMean, False),
    "train_val_fraction": (TrainVal, 0.0),
    "lists_only": (ListsOnly, False),
    "as_json": (Json, False),
}
"""The options that builders share: annotation and default."""
_SAID = ("train_val_fraction", "executor", "lists_only", "as_json")
"""Shared options that say nothing of how images are stored."""


def taking_common(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options of these names (by default all), which reach it as `common`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "common"]

        def run(**given: Any) -> None:
            shared = {name: given.pop(name) for name in names or _COMMON}
            said = {name: shared.pop(name) for name in _SAID if name in shared}
            command(**given, common=Common(shared, **said))

        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in _COMMON.items()
            if name in (names or _COMMON)
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        return run

    return decorate


@build_app.command()
@taking_common()
def imagenet(
    root: Annotated[Path, typer.Option(help="The folder of ImageNet, in one of the forms below.")],
    out: Out,
    class_order: Annotated[str, typer.Option(help="wnid (sorted, as torchvision) or devkit (the book's).")] = "wnid",
    drop_blacklisted: Annotated[
        bool, typer.Option("--drop-blacklisted", help="Leave out the development kit's blacklist.")
    ] = False,
    test_images: Annotated[
        int | None,
        typer.Option(min=0, help="Images cut out of train as test, each class in proportion; 0 for none."),
    ] = None,
    test_per_class: Annotated[
        int | None, typer.Option(min=0, help="Cut exactly so many of each class out of train instead.")
    ] = None,
    seed: Seed = 42,
    *,
    common: Common,
) -> None:
    """Build from ImageNet (ILSVRC CLS-LOC), in any of the forms in which people have it.

    \b
    ROOT is one of these; the log and the manifest say which it was:
      Data/CLS-LOC, ImageSets/CLS-LOC and devkit: the ILSVRC2015 tree
      ILSVRC/, LOC_synset_mapping.txt and LOC_val_solution.csv: Kaggle's (or its ILSVRC/)
      train/n01440764/ and val/n01440764/: class folders; or a flat val/ and a development kit
      ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz:
        the official archives, read as they are

    The official test images have no public labels and are not used: test is cut out of train. By default it has 50
    times as many images as there are classes, each class in proportion to its training images: of ImageNet's 28 to 51
    each. --test-per-class 50 takes exactly 50 of each.

    \b
    Examples:
      imagenet-pipeline build imagenet --root ILSVRC2015 --out output/imagenet
      imagenet-pipeline build imagenet --root kaggle --out output/imagenet --test-per-class 50
      imagenet-pipeline build imagenet --root ILSVRC2015 --out s3://bucket/imagenet
      imagenet-pipeline build imagenet --root /shared/ILSVRC2015 --out /shared/imagenet --executor dask://10.0.0.1:8786
    """
    if class_order not in ("wnid", "devkit"):
        raise BadRecipe("unknown class order", where="--class-order", expected="wnid or devkit", found=class_order)
    options = {"root": root, "class_order": class_order, "drop_blacklisted": drop_blacklisted, "seed": seed}
    options |= {"test_images": test_images, "test_per_class": test_per_class}
    _make("imagenet", out, options, common)


_RecordFiles = list[Path] | None


@build_app.command()
@taking_common("workers", "executor", "max_rejects", "keep_damaged", "as_json")
def records(
    train: Annotated[_RecordFiles, typer.Option(metavar="FILE.rec", help="Records; may be repeated.")] = None,
    val: Annotated[_RecordFiles, typer.Option(metavar="FILE.rec", help="Records for val; may be repeated.")] = None,
    test: Annotated[_RecordFiles, typer.Option(metavar="FILE.rec", help="Records for test; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the data set [default with --adopt: that of the files]")
    ] = None,
    lists: Annotated[
        _RecordFiles,
        typer.Option("--list", metavar="FILE.lst", help="The list a file was packed from, for the photos' names."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names: a class a line (name, number TAB name), or JSON [default: the labels].")
    ] = None,
    label_column: Annotated[
        int | None, typer.Option(min=0, help="Which of several labels is the class, from 0.")
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Leave the files where they are; write the manifest beside them.")
    ] = False,
    *,
    common: Common,
) -> None:
    """Build from record files (.rec) of im2rec and other programs, as they are.

    Bytes, order and numbers stay. By default the files are hard links, which take no room, and copies where they cannot
    be linked; they are never written to. No .idx is needed. Every image is decoded once, for mean, std and damage.

    Labels are whole numbers of any kind, with gaps or from 1: they stay in the records, and the classes are 0, 1, ...
    in their order. Records without an image, as face sets have, are left out and counted.

    
    Examples:
      imagenet-pipeline build records --train train.rec --val val.rec --out output/mine
      imagenet-pipeline build records --train data/train.rec --list data/train.lst --adopt
      imagenet-pipeline build records --train faces.rec --label-column 0 --out output/faces
    """
    found = [*(train or ()), *(val or ()), *(test or ())]
    if out is None and not (adopt and found):
        raise BadRecipe("no folder for the data set", where="build records", expected="--out DIR, or --adopt")
    options: dict[str, Any] = {"train": train or (), "val": val or (), "test": test or (), "lists": lists or ()}
    options |= {"classes": classes, "label_column": label_column, "adopt": adopt}
    _make("records", found[0].parent if out is None else out, options, common)


_TAKEN = (int, float, str, bool, Path)
"""Types that an option of the command line can have, or a list of."""

_USUAL: dict[tuple[str, type], Any] = {
    ("seed", int): _SEED,
    ("val_fraction", float): typer.Option(min=0, max=0.9, help="Share cut out as val."),
    ("test_fraction", float): typer.Option(min=0, max=0.9, help="Share cut out as test."),
    ("classes", Path): typer.Option(
        help="Names: a class a line (name, id TAB name), or JSON [default: folders, or labels]."
    ),
}
"""Options that builders call by the same name, for those that say nothing of their own about them."""


def _offered(name: str) -> Any:
    """The command of a builder by its signature: its parameters are the options, its docstring the help.

    A parameter `Annotated[kind, "text"]` has this help; a text before it that begins with "--" is the option's name.
    """
    function = BUILDERS.get(name, where="build")
    hints = hints_of(function, annotated=True)
    # A parameter named as a shared option is that option.
    parameters = [parameter for parameter in options_of(function).values() if parameter.name not in _COMMON]
    options = [_option(name, parameter, hints.get(parameter.name, str)) for parameter in parameters]

    def command(*, out: Path, common: Common, **given: Any) -> None:
        _make(name, out, {option: value for option, value in given.items() if value is not None}, common)

    out_option = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, annotation=Out)
    common = inspect.Parameter("common", inspect.Parameter.KEYWORD_ONLY, annotation=Common)
    own = [option for option in options if option is not None]
    required = [option for option in own if option.default is option.empty]
    others = [option for option in own if option.default is not option.empty]
    command.__signature__ = inspect.Signature([*required, out_option, *others, common])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    shared = [option for option in _COMMON if option not in STORED.get(name, {})]
    app.command(name, help=_help_of(function))(taking_common(*shared)(command))
    return typer.main.get_command(app)


def _help_of(function: Callable[..., Any]) -> str:
    """The docstring, without what it says of exceptions."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(paragraph.partition("Raises ")[0] for paragraph in paragraphs)


def _option(builder: str, parameter: inspect.Parameter, hint: Any) -> inspect.Parameter | None:
    """A builder's parameter as an option; none for a type that a command line cannot give."""
    kind, *texts = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    taken = [_taken(alternative) for alternative in inner if alternative is not types.NoneType]
    if None in taken or len(taken) != 1:
        if parameter.default is parameter.empty:
            what = f"the parameter {parameter.name!r} cannot be given on the command line"
            raise BadRecipe(what, where=f"build {builder}", found=str(kind), advice="call imagenet_pipeline.build")
        return None
    names = [text for text in texts if text.startswith("-")]
    words = next((text for text in texts if not text.startswith("-")), None)
    option = typer.Option(*names, help=words) if texts else _USUAL.get((parameter.name, taken[0]), typer.Option())
    optional = parameter.default is None or parameter.default == ()
    return parameter.replace(
        kind=inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[taken[0] | None if optional else taken[0], option],
        default=None if optional else parameter.default,
    )


def _taken(kind: Any) -> Any:
    """The type as an option has it, of a sequence a list, which may be repeated; none for others."""
    if kind in _TAKEN or get_origin(kind) is Literal:
        return kind
    items = [item for item in get_args(kind) if item is not ...]
    if get_origin(kind) in (list, tuple, Sequence) and len(items) == 1 and items[0] in _TAKEN:
        return list[items[0]]  # type: ignore[valid-type]
    return None


def _make(builder: str, out: Path, options: Mapping[str, Any], common: Common) -> None:
    announce(f"{out}: planning, by the builder {builder}")
    from imagenet_pipeline.records.build import BuildOptions
    from imagenet_pipeline.records.plan import write_lists
    from imagenet_pipeline.records.tasks import reached
    from imagenet_pipeline.storage import require_folder

    if common.train_val_fraction:
        options = {**options, "train_val_fraction": common.train_val_fraction}
    if common.lists_only:
        require_folder(out, "--lists-only")  # before a builder packs pictures for it
        plan = plan_of(builder, out, options)
        paths = write_lists(plan, out)
        if common.as_json:
            say_json({"lists": paths, "images": plan.counts, "classes": len(plan.classes)})
        else:
            contents = f"{list_names(plan.counts)} in {counted(len(plan.classes), 'class')}"
            say(f"{out}: {contents}; lists only, no image was read")
        return
    with reached(common.executor) as executor:
        plan = plan_of(builder, out, options)
        started = time.monotonic()
        summary = store(plan, out, BuildOptions(**{**STORED.get(builder, {}), **common.stored}), executor)
    if common.as_json:
        say_json(summary)
    else:
        _say_summary(summary, time.monotonic() - started)


def _say_summary(summary: Any, seconds: float) -> None:
    done = f"built in {seconds:.1f} s"
    if summary.already_built:
        done = f"was damaged, and is mended: {first_few(summary.remade)}" if summary.remade else "was built already"
    contents = f"{list_names(summary.records)} in {counted(summary.classes, 'class')}, {summary.bytes:,} bytes"
    say(f"{summary.folder}: {done}: {contents}")
    stored = {"unchanged" if name == "kept" else name: count for name, count in summary.actions.items()}
    stored.pop("damaged", None)  # said by itself: those are unchanged or resized as well
    without_image = stored.pop("without-image", 0)
    if stored:
        say(f"images: {list_names(stored)}")
    if damaged := summary.actions.get("damaged"):
        say(f"damaged: {damaged:,} stored all the same, as --keep-damaged asks")
    if without_image:
        say(f"records without an image: {without_image:,}, left out")
    if any(summary.rejected.values()):
        say(f"rejected: {list_names(summary.rejected)}; reasons in {summary.folder}/rejects.csv")
    if summary.changed:
        say(
            f"photos of another size or time than when they were stored: {first_few(summary.changed)}; the records "
            "hold them as they were; to take them as they are, remove the data set and build it again"
        )
