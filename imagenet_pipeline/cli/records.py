"""The verbs about records that are there: verify, inspect, export-records."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_pipeline.cli.output import Json, list_names, say, say_json, say_table
from imagenet_pipeline.errors import BadRecipe, Negative, counted
from imagenet_pipeline.progress import Bar

if TYPE_CHECKING:
    from imagenet_pipeline.records.twins import Duplicates, Twin

PROBLEMS_SHOWN = 20
"""Lines for each kind of problem; --json has them all."""
_NAMES = re.compile(r"[0-9][0-9.,a-fx]*|\(.*|;.*")


def verify(
    path: Annotated[
        Path, typer.Argument(help="A data set folder, its address (s3://...), or a .rec file, ours or another's.")
    ],
    no_decode: Annotated[
        bool,
        typer.Option("--no-decode", help="Decode no image: of records without a checksum look at the frames alone."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes for a folder's shards [default: one a core where it is large].")
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Look for photos that are there twice, or nearly, as well.")
    ] = False,
    distance: Annotated[
        int | None, typer.Option(help="Bits of 64 by which the hashes of near duplicates may differ [default: 4]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every record, index, count and digest.

    A record of ours is whole if its checksum is right; the images of records without a checksum are decoded, and
    those that `build --no-mean` did not decode. The exit code is 1 if anything is wrong.

    --duplicates names the pairs of nearly the same photo, in a split and in two, by a perceptual hash (ImageHash): what
    was resized, re-encoded or changed in colour is found, what was mirrored or cut to another frame is not. They are
    kept beside the records, duplicates.json, for the reports of `evaluate`, and do not change the exit code.

    \b
    Examples:
      imagenet-pipeline verify output/imagenet
      imagenet-pipeline verify output/photos --duplicates
      imagenet-pipeline verify s3://bucket/imagenet
      imagenet-pipeline verify theirs/train.rec --no-decode
    """
    from imagenet_pipeline.records.manifest import REBUILD
    from imagenet_pipeline.records.verify import verify as verify_records

    started = time.monotonic()
    if distance is not None and not duplicates:
        raise BadRecipe(
            "a distance of nothing", where="--distance", advice="it is of near duplicates: add --duplicates"
        )
    if duplicates:
        from imagenet_pipeline.records.twins import require_searchable

        require_searchable(path, distance)
    with Bar("verify", "records") as bar:
        report = verify_records(path, bar.show, decode=not no_decode, workers=workers)
    found = _duplicates(path, distance, workers) if duplicates and not report.problems else None
    if as_json:
        say_json({**dataclasses.asdict(report), "duplicates": found and dataclasses.asdict(found)})
    else:
        _say_problems(report.problems)
        state = f"{len(report.problems):,} wrong" if report.problems else "undamaged"
        looked = _looked_at(report, not no_decode)
        say(f"{report.path}: {state}: {counted(report.records, 'record')}{looked}, {time.monotonic() - started:.1f} s")
        if report.problems and path.is_dir():
            say(f"to mend it: {REBUILD}")
        if found:
            _say_duplicates(found)
    if report.problems:
        raise Negative


def _duplicates(path: Path, distance: int | None, workers: int | None) -> Duplicates:
    from imagenet_pipeline.records.twins import find_duplicates

    with Bar("duplicates", "photos") as bar:
        return find_duplicates(path, distance, bar.show, workers)


def _say_duplicates(found: Duplicates) -> None:
    """The pairs in two splits first, then those of two labels, then the rest; and counts."""
    pairs = sorted(found.pairs, key=lambda pair: (pair.first.split == pair.second.split, pair.same_labels))
    for pair in pairs[:PROBLEMS_SHOWN]:
        labels = "" if pair.same_labels else ", DIFFERENT LABELS"
        say(f"distance {pair.distance}: {_twin(pair.first)} and {_twin(pair.second)}{labels}")
    if len(pairs) > PROBLEMS_SHOWN:
        say(f"... and {len(pairs) - PROBLEMS_SHOWN:,} more pairs")
    counts = {**found.within, **found.between}
    kinds = ", ".join(f"{count:,} in {name.replace('-', ' and ')}" for name, count in counts.items() if count)
    different = f"; {found.different_labels:,} of different labels" if found.different_labels else ""
    unread = f", {found.unreadable:,} unreadable" if found.unreadable else ""
    said = f"{counted(len(pairs), 'pair')} of near duplicates (distance <= {found.distance} of 64 bits)"
    say(f"{found.path}: {said} among {counted(found.pictures, 'photo')}{unread}{kinds and f': {kinds}'}{different}")
    for split, count in found.in_train.items():
        if count:
            say(f"{split}: {counted(count, 'photo')} in train, too")


def _twin(twin: Twin) -> str:
    """A record as people know it."""
    name = twin.photo.removeprefix(f"{twin.split}/") or f"record {twin.record}"
    return f"{twin.split} {name}" + (f" ({twin.class_id})" if twin.class_id else "")


def _say_problems(problems: Sequence[Any]) -> None:
    """The first of each kind; a kind is what differs in numbers and names alone."""
    kinds: dict[str, list[Any]] = {}
    for problem in problems:
        kinds.setdefault(_NAMES.sub("", problem.what), []).append(problem)
    for those in kinds.values():
        for problem in those[:PROBLEMS_SHOWN]:
            say(_problem_line(problem))
        if len(those) > PROBLEMS_SHOWN:
            say(f"... and {len(those) - PROBLEMS_SHOWN:,} more like that")


def _looked_at(report: Any, decode: bool) -> str:
    """Name what was checked besides the frames."""
    checked = report.readable - report.unchecked
    parts = [f"{counted(checked, 'checksum')} right"] if checked else []
    if report.unchecked:
        parts.append(f"{report.unchecked:,} without a checksum")
        parts.append(f"{counted(report.decoded, 'image')} decoded" if decode else "no image decoded, the frames alone")
    if report.without_image:
        parts.append(f"{report.without_image:,} without an image")
    if report.compared:
        parts.append(f"{counted(report.compared, 'number')} compared with the .idx")
    return "".join(f", {part}" for part in parts)


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A data set folder, its address (s3://...), or a .rec file, ours or another's.")
    ],
    split: Annotated[str | None, typer.Option(help="train, val or test of a folder [default: the first]")] = None,
    records: Annotated[str, typer.Option(help="Which records, as 0:8.")] = "0:8",
    montage: Annotated[Path | None, typer.Option(help="Write a contact sheet of them, PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in a data set or record file.

    Counts, classes, and a few records.

    \b
    Examples:
      imagenet-pipeline inspect output/digits --records 0:24 --montage digits.png
      imagenet-pipeline inspect s3://bucket/imagenet --split val
    """
    from imagenet_pipeline.records.inspect import inspect as look_into

    chosen = _range(records)
    report = look_into(path, chosen, split)
    if montage:
        from imagenet_pipeline.pictures.data import montage as draw_montage

        draw_montage(path, montage, chosen, split)
    if as_json:
        say_json(report)
        return
    _say_inspection(report)
    if montage:
        say(f"montage: {montage}")


def export_records(
    path: Annotated[
        Path, typer.Argument(help="A data set folder, its address (s3://...), or a .rec file, ours or another's.")
    ],
    form: Annotated[str, typer.Option("--format", help="folder, tar, webdataset or rec.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    split: Annotated[str | None, typer.Option(help="train, val or test [default: all]")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Largest shard of webdataset, MB.")] = 500,
    as_json: Json = False,
) -> None:
    """Write records in a form that other programs read.

    The images keep their bytes. OUT is made whole or not at all. It also has classes.txt, a line of folder and name
    for each class, and SPLIT.lst, im2rec's list of number, label and path (webdataset: no list).

    \b
      folder      SPLIT/CLASS/NUMBER.jpg       what `build folder` reads
      tar         SPLIT.tar                    the same, one file a split; equal records give equal bytes
      webdataset  SPLIT-000000.tar ...         NUMBER.jpg, NUMBER.cls (label), NUMBER.json (class)
      rec         SPLIT.rec SPLIT.idx          RecordIO without checksums, as MXNet's im2rec writes it

    A class whose id cannot be a folder's name has the folder class-LABEL.

    \b
    Examples:
      imagenet-pipeline export-records output/imagenet --format webdataset --out shards --shard-size 1000
      imagenet-pipeline export-records output/photos --format folder --out photos-again
      imagenet-pipeline export-records old/train.rec --format tar --out tars
    """
    from imagenet_pipeline.records.export import export_records as write_records

    with Bar("export", "records") as bar:
        exported = write_records(path, form, out, split, shard_size * 10**6, bar.show)
    if as_json:
        say_json(exported)
        return
    say(f"{exported.folder}: {list_names(exported.records)} records, format {exported.form}")
    say(f"files: {_several(exported.files)}")


def mean_image(
    path: Annotated[Path, typer.Argument(help="A data set folder, as `build` made it.")],
    size: Annotated[int, typer.Option(min=1, max=4096, help="Side of the image, pixels: input.size of the recipe.")],
    crop_fraction: Annotated[float, typer.Option(min=0.01, max=1, help="input.crop_fraction of the recipe.")] = 0.875,
    as_json: Json = False,
) -> None:
    """Write the mean image of the training photos, mean.npy, beside the records.

    Of each pixel the mean over the centre crops of all of them, float64 [3, size, size], RGB in 0..255: MXNet's
    mean_img. input.transform=mean_image takes it where size and crop are the recipe's. mean_image.json says what it is
    of; the manifest stays as it is.

    \b
    Examples:
      imagenet-pipeline mean-image output/imagenet --size 224
      imagenet-pipeline mean-image output/digits --size 28 --crop-fraction 1
    """
    from imagenet_pipeline.training.mean_image import CARD, write_mean_image

    made = write_mean_image(path, size, crop_fraction)
    if as_json:
        say_json({"file": str(made.path), "card": CARD, "shape": list(made.pixels.shape), "images": made.images})
        return
    shape = "x".join(map(str, made.pixels.shape))
    means = _three(made.pixels.mean((1, 2)))
    say(f"{made.path}: {shape}, the mean of {counted(made.images, 'training image')}; R, G, B {means}")


def _several(names: Sequence[str]) -> str:
    """The names, in part where they are many."""
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:3])} ... {names[-1]} ({len(names)} in all)"


def _say_inspection(report: Any) -> None:
    say(f"{report.path}: {list_names(report.splits) or counted(report.count, 'record')}")
    if report.mean and report.std:
        sample = f" (of a sample of {counted(report.mean_images, 'image')})" if report.mean_images else ""
        say("mean R, G, B: " + _three(report.mean) + "; standard deviation: " + _three(report.std) + sample)
    counts = sorted(report.class_counts.values())
    if counts:
        each = f"{counts[0]:,} to {counts[-1]:,}" if counts[0] < counts[-1] else f"{counts[0]:,}"
        say(f"{report.split or 'file'}: {counted(len(counts), 'class')} of {each} records")
    say_table(
        ["record", "number", "label", "class", "size", "bytes", "checksum"],
        [
            (r.position, r.number, _labels(r.labels), r.class_name or "", _size(r), f"{r.bytes:,}",
             "right" if r.checked else "none")
            for r in report.records
        ],
    )  # fmt: skip


def _labels(labels: Sequence[float]) -> str:
    """The first four, and how many there are."""
    shown = " ".join(f"{label:g}" for label in labels[:4])
    return f"{shown} ... ({len(labels)} numbers)" if len(labels) > 4 else shown


def _problem_line(problem: Any) -> str:
    position = "" if problem.record is None else f", record {problem.record}"
    position += "" if problem.offset is None else f", offset {problem.offset:,}"
    return f"{problem.file}{position}: {problem.what}"


def _three(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _size(record: Any) -> str:
    return f"{record.width}x{record.height}" if record.width else "not an image"


def _range(words: str) -> range:
    first, colon, last = words.partition(":")
    try:
        start = int(first or 0)
        stop = int(last) if colon else start + 1
    except ValueError:
        start, stop = 0, -1
    if not 0 <= start < stop:
        raise BadRecipe("the range cannot be read", where="--records", expected="FIRST:LAST as in 0:8", found=words)
    return range(start, stop)
