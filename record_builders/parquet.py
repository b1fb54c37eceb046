"""Parquet as Hugging Face's hub has data sets of images: a column of encoded images, a column of labels, into a plan.

The images lie compressed in a file, so that a build first writes those of each file out, one after the other, into its
building folder. pyarrow reads the files (the extra `parquet`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.plan import Plan

from .sharded import Samples, plan_of_samples, split_files

LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")
"""Columns that are taken for labels where a file does not say which is."""
_FILE = re.compile(r".+\.parquet")
_BATCH_ROWS = 256


def plan(
    root: Annotated[Path, "The folder of the files (or a folder with them in data/), or a single file."],
    image_column: Annotated[str | None, "The column of the images [default: as the file says]."] = None,
    label_column: Annotated[str | None, "The column of the labels [default: as the file says, or label]."] = None,
    classes: Path | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 42,
) -> Plan:
    """Build from parquet files with a column of images, as data sets on Hugging Face's hub are.

    The files of a split are those with train, val (validation) or test in their names, train-00000-of-00001.parquet,
    all of them. The classes are those that the files name (ClassLabel), or else the labels in their order. A split
    whose labels are all -1 is left out.

    \b
    Examples:
      imagenet-pipeline build parquet --root imagenette/data --out output/imagenette
      imagenet-pipeline build parquet --root beans --image-column image --label-column labels --out output/beans

    Raises BadInput, naming the file, for one that is cut or damaged, and where there is no column of images.
    """
    root, found = _files(root)
    splits = {split: Samples() for split in found}
    paths = [(split, path) for split, named in found.items() for path in named]
    known: dict[int, tuple[str, str]] = {}
    unpack = {}
    with Bar("scan", "files") as bar:
        for done, (split, path) in enumerate(paths):
            bar.show(done, len(paths))
            with _opened(path) as table:
                image, label, names = _columns(table.schema_arrow, path, image_column, label_column)
                _add(splits[split], table, path, image, label)
            if known and names != known:
                raise BadInput("the file names other classes than those before it", where=path)
            known = names
            unpack[path.name] = partial(write_images, path, image)
    fractions = {"val": val_fraction, "test": test_fraction}
    return plan_of_samples(
        root,
        splits,
        {"builder": "parquet"},
        known=known,
        classes=classes,
        fractions=fractions,
        seed=seed,
        unpack=unpack,
    )


def write_images(path: Path, column: str, stream: BinaryIO) -> None:
    """Write the bytes of every image of a file, one after the other. Raises OutOfRoom, BadInput."""
    files.check_free_space(Path(stream.name).parent, path.stat().st_size)
    with _opened(path) as table:
        for batch in table.iter_batches(_BATCH_ROWS, columns=[column]):
            for content in _contents(batch.column(0)):
                with files.explaining(Path(stream.name)):
                    stream.write(content.as_buffer() if content.is_valid else b"")


def _files(root: Path) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of the files, and those of each split."""
    if root.is_file():
        return root.parent, {"train": [root]}
    if root.is_dir() and not any(root.glob("*.parquet")) and (root / "data").is_dir():
        root /= "data"
    return root, split_files(root, _FILE, {}, "train-00000-of-00001.parquet")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield a pyarrow.parquet.ParquetFile. Raises BadInput for what is met in the block, BadRecipe without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        advice = "pip install 'imagenet-pipeline[parquet]'"
        raise BadRecipe(f"pyarrow cannot be imported ({error})", where="build parquet", advice=advice) from error
    try:
        with (
            files.regular_file(path) as (stream, _),
            parquet.ParquetFile(stream, page_checksum_verification=True) as table,
        ):
            yield table
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, KeyError) as error:
        raise BadInput(f"cannot be read as parquet ({str(error)[:200]})", where=path) from error


def _columns(
    schema: Any, path: Path, image: str | None, label: str | None
) -> tuple[str, str, dict[int, tuple[str, str]]]:
    """The columns of images and of labels, and the classes by number, of which the file may say nothing."""
    said = _said(schema)
    holding = [field.name for field in schema if _holds_images(field.type)]
    images = [name for name in holding if said.get(name, {}).get("_type") == "Image"] or holding
    labels = [name for name, feature in said.items() if feature.get("_type") == "ClassLabel" and name in schema.names]
    labels = labels or [name for name in LABEL_NAMES if name in schema.names]
    image = _chosen(images, image, schema.names, path, "images")
    label = _chosen(labels, label, schema.names, path, "labels")
    if image not in holding:
        raise BadInput(
            "the column has no images", where=path, expected="bytes", found=f"{image}: {schema.field(image).type}"
        )
    names = said.get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    return image, label, {number: (name, name) for number, name in enumerate(names)}


def _said(schema: Any) -> dict[str, dict[str, Any]]:
    """The notes of Hugging Face's library on each column; nothing where the file is of others."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_images(kind: Any) -> bool:
    """Tell whether a column may hold encoded images: bytes, or bytes and a path."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _chosen(found: list[str], given: str | None, names: list[str], path: Path, what: str) -> str:
    option = f"--{what[:-1]}-column"
    if given is not None:
        if given not in names:
            advice = did_you_mean(given, names, f"there are {', '.join(names)[:300]}")
            raise BadInput(f"no column {given!r}", where=path, advice=advice)
        return given
    if len(found) != 1:
        wrong = f"several columns of {what}" if found else f"no column of {what}"
        shown = ", ".join(found or names)[:300]
        raise BadInput(f"the file has {wrong}", where=path, found=shown, advice=f"name it with {option}")
    return found[0]


def _add(samples: Samples, table: Any, path: Path, image: str, label: str) -> None:
    """Add the rows of a file; spans are those in what `write_images` writes."""
    at = row = 0
    for batch in table.iter_batches(_BATCH_ROWS, columns=[image, label]):
        column = batch.column(batch.schema.get_field_index(image))
        names = _paths(column)
        for content, value in zip(_contents(column), batch.column(batch.schema.get_field_index(label)), strict=True):
            number = value.as_py()
            if isinstance(number, bool) or not isinstance(number, int | str):
                expected, found = "a whole number or the name of a class", repr(number)[:80]
                raise BadInput("is no label", where=f"{path}, row {row}", expected=expected, found=found)
            size_bytes = content.as_buffer().size if content.is_valid else -1
            name = next(names)
            samples.add(f"{path.name}/{row}" + (f"/{name}" if name else ""), number, (at, size_bytes))
            at += max(0, size_bytes)
            row += 1


def _contents(column: Any) -> Any:
    """The bytes of a column of images, as pyarrow has them."""
    from pyarrow import types

    return column.field("bytes") if types.is_struct(column.type) else column


def _paths(column: Any) -> Iterator[str]:
    """The file name that each image of a column once had; "" where the file does not say."""
    from pyarrow import types

    known = types.is_struct(column.type) and any(field.name == "path" for field in column.type)
    for value in column.field("path") if known else column:
        text = value.as_py() if known else None
        yield "".join(letter for letter in text if letter.isprintable()) if isinstance(text, str) else ""
