"""Feature extraction: the activations of a layer for every record, in a file of features.

A checkpoint's network runs up to that layer, on its engine. The file is a NumPy archive, written row by row and read
member by member:

    SPLIT_features [n, k] float32   SPLIT_labels [n] int64   SPLIT_records [n] int64   classes [c] text   about, JSON

`numpy.load(FILE, allow_pickle=False)` reads it. Equal features give equal bytes.
"""

from __future__ import annotations

import ast
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, Size
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.scoring import one_behind, require_finite
from imagenet_pipeline.loading.loader import Batches
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, output_shape, parameters
from imagenet_pipeline.networks.subnetwork import until
from imagenet_pipeline.records.classes import require_one_class
from imagenet_pipeline.records.manifest import DataSet, no_split
from imagenet_pipeline.records.plan import SPLITS
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint
from imagenet_pipeline.training.data import loader_of, records_to_read
from imagenet_pipeline.training.engine_setup import scoring_engine
from imagenet_pipeline.training.metrics import watched

BYTES_A_RECORD = 2 * 8
"""Label and number."""


@dataclass(frozen=True)
class Extraction:
    """Content and origin of a file of features. `shape` is the layer's, flattened to `features` numbers."""

    run: str
    checkpoint: str
    network: str
    layer: str
    shape: Shape
    features: int
    images: dict[str, int]
    input_size: Size
    crop_fraction: float
    engine: str
    precision: str
    weights_digest: str
    data_digest: str


def extract(
    run: Path,
    layer: str,
    out: Path,
    splits: Sequence[str] = (),
    which: str = "best",
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> tuple[Extraction, float]:
    """Write `layer`'s output for the centre crop of every record of `splits` (none given: all), and say images/s.

    `records` names another data set, of any classes, or a record file, which is whatever split is asked for.
    Memory is that of a batch, and 16 bytes a record.
    Raises BadRecipe for a layer the network lacks or a split the records lack, OutOfRoom before a byte is
    written where the disk has no room for all.
    """
    recipe, checkpoint = open_checkpoint(Path(run), which, overrides or {}, "features")
    data = records_to_read(recipe, records)
    images = _images_of(data, splits)
    engine, shape = engine_until(recipe, checkpoint, layer, "features")
    state, width = checkpoint.state, math.prod(shape)
    if out.is_dir():
        raise BadRecipe("a folder, not a file to write", where=f"--out {out}")
    files.require_ending(out, ".npz", "features are written as a NumPy archive")
    files.check_free_space(out, sum(images.values()) * (4 * width + BYTES_A_RECORD) + 2**20)
    extraction = Extraction(
        str(run), checkpoint.folder.name, state.network_name, layer, shape, width, images, state.input_size,
        state.crop_fraction, engine.name, engine.precision, checkpoint.weights_digest, data.digest,
    )  # fmt: skip
    started = time.monotonic()
    with new_archive(out) as archive:
        for split, count in images.items():
            _write_split(archive, split, (count, width), engine, _Origin(recipe, checkpoint, data))
        write_array(archive, "classes", np.array(data.classes.ids))
        write_array(archive, "about", np.array(json.dumps(asdict(extraction))))
    return extraction, sum(images.values()) / (time.monotonic() - started)


class _Origin(NamedTuple):
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet


def _images_of(data: DataSet, splits: Sequence[str]) -> dict[str, int]:
    require_one_class(data.classes, data.name, "`features`")
    splits = splits or list(data.counts)
    there = {split: data.count(split) for split in SPLITS if data.count(split)}
    for split in splits:
        if split not in there:
            raise no_split(data.name, split, there)
    return {split: there[split] for split in there if split in splits}


def _write_split(archive: zipfile.ZipFile, split: str, shape: tuple[int, int], engine: Engine, source: _Origin) -> None:
    recipe, checkpoint, data = source
    labels, numbers = np.empty(shape[0], np.int64), np.empty(shape[0], np.int64)

    def issued(batches: Batches) -> Iterator[Callable[[], Array]]:
        for batch in watched(batches, split):
            own = slice(batch.first_position, batch.first_position + len(batch.labels))
            labels[own], numbers[own] = batch.labels, batch.records
            yield engine.issue_logits(batch.images)

    size, crop_fraction = checkpoint.state.input_size, checkpoint.state.crop_fraction
    with RecordSet.of(data, split) as records, open_rows(archive, f"{split}_{FEATURES}", shape) as write:
        channels = len(checkpoint.state.mean)
        loader = loader_of(recipe, records, size, len(data.classes), empty=engine.host_array, channels=channels)
        with loader.evaluation(crop_fraction) as batches:
            for wait in one_behind(issued(batches)):
                rows = wait()
                require_finite(rows, checkpoint.folder)
                write(rows)
    for name, column in ((LABELS, labels), (RECORDS, numbers)):
        write_array(archive, f"{split}_{name}", column)


Array = npt.NDArray[Any]
Write = Callable[[Array], None]
_format: Any = np.lib.format
FEATURES, LABELS, RECORDS = "features", "labels", "records"
EXPECTED = "a file that the verb features wrote"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip knows: when it was written is not what a file holds
_MOST_DEFLATED = 1100  # a byte of a zip holds no more than 1,032
_PIECE_BYTES = 2**24
_LONGEST_HEADER = 10_000
_SPOILT = (
    zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, SyntaxError,
)  # fmt: skip
"""Raised by zipfile and NumPy for bytes that are no archive of theirs."""


@dataclass(frozen=True)
class FeatureSplit:
    """The features [n, k] float32 of a split, with label and record number [n] of each row."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]


@contextmanager
def new_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Write an archive that appears whole under its name, or not at all. Raises OutOfRoom."""
    with files.whole_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        yield archive


@contextmanager
def open_rows(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> Iterator[Write]:
    """Yield a function that writes the next rows of a float32 array of this shape; a single array at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with archive.open(_entry(name), "w", force_zip64=True) as member:
        _format.write_array_header_1_0(member, header)
        yield lambda rows: _put(member, rows)


def write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Write a whole array: numbers or text."""
    with archive.open(_entry(name), "w", force_zip64=True) as member:
        _format.write_array(member, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)


@dataclass(frozen=True)
class FeatureFile:
    """A file of features, its table of contents read and checked. `shapes` has [n, k] of each split."""

    path: Path
    shapes: Mapping[str, tuple[int, int]]
    classes: tuple[str, ...]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> FeatureFile:
        """Read everything but the features. Raises BadInput for a file that is none of features."""
        with _archive(path) as archive:
            there = set(archive.namelist())
            shapes = {split: _shape(archive, split, path) for split in SPLITS if f"{split}_{FEATURES}.npy" in there}
            classes = tuple(map(str, _array(archive, "classes", "U", path).tolist()))
            about = json.loads(str(_array(archive, "about", "U", path)))
            if not shapes or not isinstance(about, dict) or not classes:
                raise _none(path, "features of no split, or no classes")
        if len({width for _, width in shapes.values()}) > 1:
            raise _none(path, "splits of different width")
        return cls(path, shapes, classes, about)

    def load(self, split: str) -> FeatureSplit:
        """Load a split, all of it in memory. Raises BadInput where it is damaged or no label of the table."""
        with _archive(self.path) as archive:
            features = _array(archive, f"{split}_{FEATURES}", "f", self.path)
            labels, records = (_array(archive, f"{split}_{word}", "i", self.path) for word in (LABELS, RECORDS))
        if len(labels) != len(features) or len(records) != len(features):
            raise _none(self.path, f"{len(features)} rows and {len(labels)} labels in {split}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise _none(self.path, f"a label that none of the {len(self.classes)} classes has in {split}")
        if not all(np.isfinite(rows).all() for rows in np.array_split(features, max(1, features.size >> 20))):
            raise _none(self.path, f"infinities or NaN in {split}")
        return FeatureSplit(features, labels, records)


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy", _EPOCH)


def _put(member: IO[bytes], rows: Array) -> None:
    member.write(np.ascontiguousarray(rows, "<f4").reshape(-1).data)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with files.regular_file(path) as (stream, _):
        try:
            with zipfile.ZipFile(stream) as archive:
                yield archive
        except _SPOILT as error:
            raise _none(path, ascii(str(error))[1:-1][:100]) from error


def _shape(archive: zipfile.ZipFile, split: str, path: Path) -> tuple[int, int]:
    with archive.open(f"{split}_{FEATURES}.npy") as member:
        shape, kind, _ = _header(member)
    size = archive.getinfo(f"{split}_{FEATURES}.npy").file_size
    if len(shape) != 2 or kind != np.float32 or not 0 <= size - shape[0] * shape[1] * kind.itemsize < 2**16:
        raise _none(path, f"{split}_{FEATURES} of shape {shape}, {kind}")
    return shape[0], shape[1]


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and whether columns come first. NumPy's own reader would mend what Python 2 wrote."""
    if member.read(8) != b"\x93NUMPY\x01\0":
        raise ValueError("an array of another format")
    length = int.from_bytes(member.read(2), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("an array of too long a header")
    fields = ast.literal_eval(member.read(length).decode("ascii"))
    shape, kind = fields["shape"], fields["descr"]
    if not all(isinstance(axis, int) and axis >= 0 for axis in shape) or not isinstance(kind, str):
        raise ValueError("an array of no shape or type")
    return tuple(shape), np.dtype(kind), bool(fields["fortran_order"])


def _array(archive: zipfile.ZipFile, name: str, kind: str, path: Path) -> Array:
    """Read a whole array of NumPy's kind "f", "i" or "U"; nothing is allocated that the file does not fill."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_size > path.stat().st_size or entry.file_size > _MOST_DEFLATED * entry.compress_size:
        raise _none(path, f"{name} of {entry.file_size:,} bytes")
    with archive.open(entry) as member:
        shape, dtype, in_columns = _header(member)
        content = memoryview(bytearray(entry.file_size - member.tell()))
        if dtype.kind != kind or in_columns or dtype.itemsize * int(np.prod(shape, dtype=object)) != len(content):
            raise _none(path, f"{name} of shape {shape}, {dtype}")
        for start in range(0, len(content), _PIECE_BYTES):
            content[start : start + _PIECE_BYTES] = member.read(len(content[start : start + _PIECE_BYTES]))
    return np.frombuffer(content, dtype).reshape(shape)


def _none(path: Path, found: str) -> BadInput:
    return BadInput("not a file of features", where=path, expected=EXPECTED, found=found)


def own_network(name: str, classes: int | None) -> Sequential:
    """Build a network of this package, or of a file; without `classes` with its own. Raises BadRecipe for a zoo's."""
    if catalog.is_zoo_name(name):
        raise BadRecipe("the layers of a zoo's network are not known here", where=f"network {name}")
    return catalog.build(name, classes or catalog.entry(name).classes)


def engine_until(recipe: Recipe, checkpoint: Checkpoint, layer: str, verb: str) -> tuple[Engine, Shape]:
    """Create an engine whose "logits" are the layer's output; also returns the output's shape for an image.

    Raises BadRecipe for a layer there is not, and where several processes were started.
    """
    state = checkpoint.state
    cut = until(own_network(state.network, len(state.classes)), layer, state.network)
    values = {name: checkpoint.weights[name] for name in parameters(cut, state.input_shape)}
    blueprint = Blueprint(cut, state.input_size, state.mean, state.std, recipe)
    engine = create_engine(scoring_engine(recipe, state), blueprint.for_scoring(), values)
    if engine.ranks > 1:
        raise BadRecipe(
            f"{verb} runs in one process", found=f"{engine.ranks} processes", advice="start a single process"
        )
    return engine, output_shape(cut, state.input_shape)
