"""The verb build, a sub-command for each kind of source."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.output import LARGEST_SEED, Json, list_names, say, say_json
from imagenet_pipeline.errors import BadRecipe, first_few
from imagenet_pipeline.progress import Bar

build_app = typer.Typer(
    help="Make a data set of records.\n\n"
    "With lists, class table, mean colour and manifest. The same command again goes on with a killed build, "
    "and mends a finished data set that was damaged since.",
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="Folder of the data set.")]
Seed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the cuts and of the order of training images.")
]
Resize = Annotated[int, typer.Option(min=0, help="Shorter edge, pixels; smaller images stay; 0 keeps all sizes.")]
Quality = Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of re-encoded images.")]
PassThrough = Annotated[bool, typer.Option("--pass-through", help="Keep the bytes of every plain JPEG or PNG.")]
Shards = Annotated[int | None, typer.Option(min=1, help="Files of the train split [default: one per 8,192 images]")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes [default: one a core]; bytes never depend on it.")]
MaxRejects = Annotated[int, typer.Option(min=0, help="Stop when more images than this cannot be used.")]
KeepDamaged = Annotated[
    bool, typer.Option("--keep-damaged", help="Store images part of whose picture is lost, too, and count them.")
]
Classes = Annotated[
    Path | None,
    typer.Option(help="Names: a class a line (name, id TAB name), or JSON [default: folders, or labels]."),
]
ListsOnly = Annotated[bool, typer.Option("--lists-only", help="Write and check the lists; touch no image.")]


@build_app.command()
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
    resize: Resize = 256,
    quality: Quality = 95,
    pass_through: PassThrough = False,
    shards: Shards = None,
    workers: Workers = None,
    max_rejects: MaxRejects = 0,
    keep_damaged: KeepDamaged = False,
    lists_only: ListsOnly = False,
    as_json: Json = False,
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
    """
    from imagenet_pipeline.record_builders import imagenet as builder

    if class_order not in ("wnid", "devkit"):
        raise BadRecipe("--class-order", expected="wnid or devkit", found=class_order)
    plan = builder.plan(root, class_order, drop_blacklisted, test_images, seed, test_per_class)  # type: ignore[arg-type]
    _make(plan, out, lists_only, as_json, resize, quality, pass_through, shards, workers, max_rejects, keep_damaged)


@build_app.command()
def folder(
    root: Annotated[Path, typer.Option(help="One sub-folder a class; or train/ val/ test/ of such folders.")],
    out: Out,
    val_fraction: Annotated[float | None, typer.Option(min=0, max=0.9, help="Share cut out of train as val.")] = None,
    test_fraction: Annotated[float | None, typer.Option(min=0, max=0.9, help="Share cut out of train as test.")] = None,
    classes: Classes = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Follow no symbolic link that leaves ROOT; each is named.")
    ] = False,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A folder in ROOT not to look at; may be repeated.")
    ] = None,
    seed: Seed = 42,
    resize: Resize = 256,
    quality: Quality = 95,
    pass_through: PassThrough = False,
    shards: Shards = None,
    workers: Workers = None,
    max_rejects: MaxRejects = 0,
    keep_damaged: KeepDamaged = False,
    lists_only: ListsOnly = False,
    as_json: Json = False,
) -> None:
    """Build from folders of photos, one sub-folder a class; cuts keep the share of every class.

    The folders of the splits have any usual name, in any case: train (training), val (valid, validation, dev), test
    (testing, evaluation). The fractions count where there is none for val or test [default: 0.1 without ROOT/train,
    else none]. Of fewer than ten images a class the default is one a class. Symbolic links are followed. What is not
    read is named.

    --classes names the folders, in any order: lines of the folder, a tab, the name, or "n01440764 tench"; or JSON,
    {folder: name}, {number: [folder, name]} and the like. A file of as many names, and no folder among them, names
    the sorted folders in turn.

    \b
    Examples:
      imagenet-pipeline build folder --root photos --out output/photos
      imagenet-pipeline build folder --root photos --leave-out unsorted --classes names.txt --out output/photos
    """
    from imagenet_pipeline.record_builders import folder as builder

    plan = builder.plan(root, val_fraction, test_fraction, seed, classes, not no_follow, leave_out or ())
    _make(plan, out, lists_only, as_json, resize, quality, pass_through, shards, workers, max_rejects, keep_damaged)


@build_app.command("list")
def listing(
    list_file: Annotated[Path, typer.Option("--list", help="im2rec-style .lst: number TAB label(s) TAB path.")],
    root: Annotated[Path, typer.Option(help="Folder the paths start from.")],
    out: Out,
    val_list: Annotated[Path | None, typer.Option(help="A list for val.")] = None,
    test_list: Annotated[Path | None, typer.Option(help="A list for test.")] = None,
    classes: Classes = None,
    val_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share cut out as val.")] = 0.0,
    test_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share cut out as test.")] = 0.0,
    seed: Seed = 42,
    resize: Resize = 256,
    quality: Quality = 95,
    pass_through: PassThrough = False,
    shards: Shards = None,
    workers: Workers = None,
    max_rejects: MaxRejects = 0,
    keep_damaged: KeepDamaged = False,
    lists_only: ListsOnly = False,
    as_json: Json = False,
) -> None:
    """Build from an im2rec-style list.

    Labels are whole numbers from 0. Without --classes every label up to the largest has a training image; with it,
    class i is the i-th of the file, or that with the number i, and need have none.

    \b
    Examples:
      imagenet-pipeline build list --list train.lst --root photos --out output/mine
      imagenet-pipeline build list --list train.lst --root photos --classes names.txt --out output/named
    """
    from imagenet_pipeline.record_builders import listing as builder

    plan = builder.plan(list_file, root, val_list, test_list, val_fraction, test_fraction, classes, seed)
    _make(plan, out, lists_only, as_json, resize, quality, pass_through, shards, workers, max_rejects, keep_damaged)


@build_app.command()
def digits(out: Out, seed: Seed = 42, workers: Workers = None, as_json: Json = False) -> None:
    """Build scikit-learn's 1,797 handwritten digits, through a miniature ILSVRC2015 tree: data that is always there.

    Example: imagenet-pipeline build digits --out output/digits
    """
    from imagenet_pipeline.record_builders import digits as builder

    _make(builder.plan(out, seed), out, False, as_json, 256, 95, False, None, workers, 0)


@build_app.command()
def fer2013(
    csv: Annotated[
        Path, typer.Option(help="fer2013.csv or icml_face_data.csv: emotion, pixels, Usage; .xz and .gz too.")
    ],
    out: Out,
    classes: Annotated[int, typer.Option(help="7, or 6 with disgust merged into angry.")] = 7,
    swapped: Annotated[
        bool, typer.Option("--swapped", help="PrivateTest as val, PublicTest as test: the book.")
    ] = False,
    ferplus: Annotated[Path | None, typer.Option(help="FER+'s votes, fer2013new.csv: its 8 classes instead.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Build the faces of FER2013: Training, PublicTest and PrivateTest become train, val and test, without loss.

    \b
    Examples:
      imagenet-pipeline build fer2013 --csv fer2013.csv --out output/fer2013
      imagenet-pipeline build fer2013 --csv fer2013.csv --ferplus fer2013new.csv --out output/ferplus
    """
    from imagenet_pipeline.record_builders import fer2013 as builder

    if classes not in (6, 7) or (ferplus and classes != 7):
        expected = "nothing with --ferplus, which has 8" if ferplus else "6 or 7"
        raise BadRecipe("--classes", expected=expected, found=classes)
    plan = builder.plan(csv, out, classes, swapped, ferplus)  # type: ignore[arg-type]
    _make(plan, out, False, as_json, 0, 95, True, None, workers, 0)


@build_app.command()
def ckplus(
    root: Annotated[Path, typer.Option(help="A sub-folder an emotion, of faces S010_004_00000017.png.")],
    out: Out,
    val_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="Share cut out as val.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="Share cut out as test.")] = 0.1,
    seed: Seed = 42,
    workers: Workers = None,
    max_rejects: MaxRejects = 0,
    keep_damaged: KeepDamaged = False,
    lists_only: ListsOnly = False,
    as_json: Json = False,
) -> None:
    """Build the faces of CK+; val and test are cut by subject, that no face is in two splits.

    Example: imagenet-pipeline build ckplus --root CK+48 --out output/ckplus
    """
    from imagenet_pipeline.record_builders import ckplus as builder

    plan = builder.plan(root, val_fraction, test_fraction, seed)
    _make(plan, out, lists_only, as_json, 0, 95, True, None, workers, max_rejects, keep_damaged)


def _make(
    plan: Any,
    out: Path,
    lists_only: bool,
    as_json: bool,
    resize: int,
    quality: int,
    pass_through: bool,
    shards: int | None,
    workers: int | None,
    max_rejects: int,
    keep_damaged: bool = False,
) -> None:
    from imagenet_pipeline.records.build import BuildOptions, build
    from imagenet_pipeline.records.plan import write_lists

    if lists_only:
        paths = write_lists(plan, out)
        if as_json:
            say_json({"lists": paths, "images": plan.counts, "classes": len(plan.classes)})
        else:
            say(f"{out}: {list_names(plan.counts)} in {len(plan.classes):,} classes; lists only, no image was read")
        return
    started = time.monotonic()
    options = BuildOptions(resize, quality, pass_through, shards, workers, max_rejects, keep_damaged)
    with Bar("build", "images") as bar:
        summary = build(plan, out, options, bar.show)
    if as_json:
        say_json(summary)
        return
    _say_summary(summary, time.monotonic() - started)


def _say_summary(summary: Any, seconds: float) -> None:
    done = f"built in {seconds:.1f} s"
    if summary.already_built:
        done = f"was damaged, and is mended: {first_few(summary.remade)}" if summary.remade else "was built already"
    contents = f"{list_names(summary.records)} in {summary.classes:,} classes, {summary.bytes:,} bytes"
    say(f"{summary.folder}: {done}: {contents}")
    stored = {"unchanged" if name == "kept" else name: count for name, count in summary.actions.items()}
    stored.pop("damaged", None)  # said by itself: those are unchanged or resized as well
    if stored:
        say(f"images: {list_names(stored)}")
    if damaged := summary.actions.get("damaged"):
        say(f"damaged: {damaged:,} stored all the same, as --keep-damaged asks")
    if any(summary.rejected.values()):
        say(f"rejected: {list_names(summary.rejected)}; reasons in {summary.folder / 'rejects.csv'}")
    if summary.changed:
        say(
            f"photos of another size or time than when they were stored: {first_few(summary.changed)}; the records "
            "hold them as they were; to take them as they are, remove the data set and build it again"
        )
