"""Webdataset, TFRecord and parquet: the records of the folder, byte for byte; bad input is one line."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imagenet_pipeline as ip
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import parquet, tfrecord, webdataset
from imagenet_pipeline.records.build import BuildSummary
from imagenet_pipeline.records.plan import Plan

Tar = Callable[..., bytes]
Row = tuple[str, int, bytes]
"""Name, label and photo of a sample."""
CLASSES = ("n00000001", "n00000002", "n00000003")


def build(builder: str, **options: Any) -> BuildSummary:
    with ThreadPoolExecutor(1) as executor:
        return ip.build(builder, executor=executor, resize=16, **options)


@pytest.fixture(scope="module")
def rows(photo: Callable[[str], bytes]) -> dict[str, list[Row]]:
    """The photos of train and val as they lie in folders of classes."""
    found: dict[str, list[Row]] = {}
    for split, each in (("train", 6), ("val", 2)):
        names = [(label, f"{name}_{split}_{n}.JPEG") for label, name in enumerate(CLASSES) for n in range(each)]
        found[split] = [(name, label, photo(name)) for label, name in names]
    return found


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[Row]]) -> dict[str, bytes]:
    """The record files that the builder of folders makes of them."""
    place = tmp_path_factory.mktemp("folder")
    for split, samples in rows.items():
        for name, label, content in samples:
            path = place / "photos" / split / CLASSES[label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    build("folder", root=place / "photos", out=place / "out", shards=2)
    return records_of(place / "out")


def records_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".rec", ".idx")}


def classes_of(folder: Path) -> Any:
    return json.loads((folder / "classes.json").read_text())


def halves(samples: Sequence[Row]) -> Iterable[Sequence[Row]]:
    """Two shards of the samples, of unlike sizes."""
    return samples[: len(samples) // 3], samples[len(samples) // 3 :]


# Webdataset


def label_files(label: int, kind: str) -> dict[str, bytes]:
    texts = {
        "cls": {"cls": str(label)},
        "names": {"txt": CLASSES[label] + "\n", "notes": "no label"},
        "json": {"json": json.dumps({"label": label, "width": 3})},
    }
    return {ending: text.encode() for ending, text in texts[kind].items()}


def write_tars(folder: Path, rows: Mapping[str, Sequence[Row]], tar_of: Tar, kind: str = "cls") -> Path:
    folder.mkdir()
    for split, samples in rows.items():
        for number, part in enumerate(halves(samples)):
            members: dict[str, bytes] = {}
            for name, label, content in part:
                stem = name.removesuffix(".JPEG")
                members |= {f"{stem}.{end}": text for end, text in label_files(label, kind).items()}
                members[f"{stem}.jpg"] = content
            (folder / f"set-{split}-{number:06d}.tar").write_bytes(tar_of(members))
    return folder


@pytest.mark.parametrize("kind", ["cls", "names", "json"])
def test_webdataset_gives_the_records_of_the_folder(
    kind: str, tmp_path: Path, rows: dict[str, list[Row]], of_folder: dict[str, bytes], tar_of: Tar
) -> None:
    root = write_tars(tmp_path / "tars", rows, tar_of, kind)
    summary = build("webdataset", root=root, out=tmp_path / "out", shards=2)
    assert summary.records == {"train": 18, "val": 6}
    assert records_of(tmp_path / "out") == of_folder
    assert classes_of(tmp_path / "out")["ids"] == list(CLASSES if kind == "names" else "012")
    # A photo is called by its tar and its name there.
    assert (tmp_path / "out" / "val.lst").read_text().startswith("0\t0\tset-val-000000.tar/n00000001_val_0.jpg\n")


def test_webdatasets_in_a_zip_and_by_name(
    tmp_path: Path, rows: dict[str, list[Row]], of_folder: dict[str, bytes], tar_of: Tar
) -> None:
    root = write_tars(tmp_path / "tars", rows, tar_of)
    with zipfile.ZipFile(tmp_path / "tars.zip", "w") as archive:
        for path in root.iterdir():
            archive.write(path, f"tars/{path.name}")
    given = {"train": ["set-train-{000000..000001}.tar"], "val": ["set-val-*.tar"]}
    build("webdataset", root=tmp_path / "tars.zip", out=tmp_path / "out", shards=2, **given)
    assert records_of(tmp_path / "out") == of_folder


def webdataset_of(tmp_path: Path, shard: bytes, **options: Any) -> Plan:
    (tmp_path / "train-0.tar").write_bytes(shard)
    return webdataset.plan(tmp_path, **options)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"a.jpg": b"x", "a.cls": b"0", "b.jpg": b"x"}, {}, "b: the sample has no label; expected .cls or .json or .t"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"0"}, {}, "a: the sample has two images; found a.jpg, a.png"),
        ({"a.jpg": b"x", "a.JPG": b"x", "a.cls": b"0"}, {}, "a.JPG: the sample has two files of an ending; found .JPG"),
        ({"a.jpg": b"x", "a.txt": b"c\rat"}, {}, "the name of a class cannot be printed; found 'c\\\\rat'"),
        ({"a.jpg": b"x", "a.cls": b"0"}, {"train": ["train-0.tar", "train-*"]}, "train-0.tar: the file is named twice"),
        ({"a.jpg": b"x", "a.cls": b"0"}, {"train": ["train-0.tar"], "val": ["*"]}, "the file is named twice"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, {}, "a.cls: the label cannot be read"),
        ({"a.jpg": b"x", "a.json": b'{"k": 1}'}, {}, "a.json: no key 'label'; found k; name it with --label-key"),
        ({"a.jpg": b"x", "a.json": b'{"label": [1]}'}, {}, "a.json: is no label; expected a number or the name"),
        ({"a.jpg": b"x", "a.json": b"[" * 9000}, {}, "a.json: the label cannot be read"),
        ({"a.jpg": b"x", "a.cls": b"0"}, {"label": "txt"}, "no label; expected .txt; found .jpg, .cls"),
        ({"a.jpg": b"x", "a.cls": b"9" * 2**21}, {}, "a.cls: is too large for a label"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, {}, "there are no samples of train"),
        ({"a.jpg": b"x", "a.cls": b"-1", "b.jpg": b"x", "b.cls": b"0"}, {}, "a.jpg: the sample has no label; found -1"),
        ({"a.txt": b"x"}, {}, "there are no samples of train"),
        ({"../a.jpg": b"x"}, {}, "leads out of the folder"),
        ({"a.jpg": b"x", "a.cls": b"0"}, {"train": ["train-{0..2}.tar"]}, "train-1.tar: no such file"),
        ({"a.jpg": b"x", "a.cls": b"0"}, {"train": ["../train-0.tar"]}, "no such file; files are named as they lie"),
    ],
)
def test_bad_webdatasets_are_one_line(
    members: dict[str, bytes], options: dict[str, Any], message: str, tmp_path: Path, tar_of: Tar
) -> None:
    with pytest.raises(BadInput, match=message.replace("[", "\\[")) as error:
        webdataset_of(tmp_path, tar_of(members), **options)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    for name in ("train-00000-of-00004", "train-00002-of-00004", "validation-00000-of-00001"):
        (tmp_path / name).touch()
    with pytest.raises(
        BadInput, match="files of train are missing; expected 4 files; found 2, none train-00001-of-000"
    ):
        tfrecord.plan(tmp_path)
    (tmp_path / "train-test-00000-of-00001").touch()
    with pytest.raises(BadInput, match="the file's name means two splits"):
        tfrecord.plan(tmp_path)
    with pytest.raises(BadInput, match="no files of this kind; expected train-000000"):
        webdataset.plan(tmp_path)


def test_two_versions_of_a_file_are_told(tmp_path: Path) -> None:
    for name in (
        "train-00000-of-00002-1a.parquet",
        "train-00001-of-00002-1a.parquet",
        "train-00000-of-00002-2b.parquet",
    ):
        (tmp_path / name).touch()
    with pytest.raises(BadInput, match="two files are the same part; found train-00000-of-00002-1a"):
        parquet.plan(tmp_path)


def test_a_number_that_val_alone_has_is_no_class(tmp_path: Path, tar_of: Tar) -> None:
    (tmp_path / "val-0.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": b"2"}))
    with pytest.raises(BadInput, match=r"val-0\.tar/a\.jpg: the class is not in train; found 2"):
        webdataset_of(tmp_path, tar_of({"a.jpg": b"x", "a.cls": b"0", "b.jpg": b"x", "b.cls": b"1"}))
    (tmp_path / "names.txt").write_text("ape\ncat\ndog\n")
    assert len(webdataset.plan(tmp_path, classes=tmp_path / "names.txt").classes) == 3


# TFRecord


@functools.cache
def example_class() -> Any:
    """tf.train.Example as Protocol Buffers themselves have it."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example_of_tests.proto", package="tests", syntax="proto3")
    kinds = {"BytesList": "TYPE_BYTES", "FloatList": "TYPE_FLOAT", "Int64List": "TYPE_INT64"}
    repeated = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    optional = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL

    def field(message: Any, name: str, number: int, label: int, kind: str) -> None:
        added = message.field.add(name=name, number=number, label=label)
        if kind.startswith("TYPE"):
            added.type = getattr(descriptor_pb2.FieldDescriptorProto, kind)
        else:
            added.type, added.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, f".tests.{kind}"

    for name, kind in kinds.items():
        field(file.message_type.add(name=name), "value", 1, repeated, kind)
    feature = file.message_type.add(name="Feature")
    for number, name in enumerate(kinds, 1):
        field(feature, name.lower(), number, optional, name)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, optional, "TYPE_STRING")
    field(entry, "value", 2, optional, "Feature")
    field(features, "feature", 1, repeated, "Features.FeatureEntry")
    field(file.message_type.add(name="Example"), "features", 1, optional, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.Example"))


def example(values: Mapping[str, bytes | int | list[int] | list[float]]) -> bytes:
    made = example_class()()
    for name, value in values.items():
        feature = made.features.feature[name]
        if isinstance(value, bytes):
            feature.byteslist.value.append(value)
        elif isinstance(value, list) and value and isinstance(value[0], float):
            feature.floatlist.value.extend(value)
        else:
            feature.int64list.value.extend(value if isinstance(value, list) else [value])
    content: bytes = made.SerializeToString()
    return content


def framed(records: Iterable[bytes]) -> bytes:
    def masked(content: bytes) -> bytes:
        checksum = int(google_crc32c.value(content))
        return struct.pack("<I", (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) % 2**32)

    heads = [(struct.pack("<Q", len(record)), record) for record in records]
    return b"".join([head + masked(head) + record + masked(record) for head, record in heads])


def imagenet_example(row: Row) -> bytes:
    name, label, content = row
    return example(
        {
            "image/height": 24,
            "image/object/bbox/xmin": [0.25, 0.5],
            "image/class/label": label + 1,
            "image/class/synset": CLASSES[label].encode(),
            "image/class/text": f"class {label}".encode(),
            "image/encoded": content,
            "image/filename": name.encode(),
        }
    )


def write_tfrecords(folder: Path, rows: Mapping[str, Sequence[Row]], made: Callable[[Row], bytes]) -> Path:
    folder.mkdir()
    for split, samples in rows.items():
        name = "validation" if split == "val" else split
        for number, part in enumerate(halves(samples)):
            (folder / f"{name}-{number:05d}-of-00002").write_bytes(framed(map(made, part)))
    return folder


def test_tfrecords_give_the_records_of_the_folder(
    tmp_path: Path, rows: dict[str, list[Row]], of_folder: dict[str, bytes]
) -> None:
    root = write_tfrecords(tmp_path / "records", rows, imagenet_example)
    build("tfrecord", root=root, out=tmp_path / "out", shards=2)
    assert records_of(tmp_path / "out") == of_folder
    assert classes_of(tmp_path / "out") == {
        "ids": list(CLASSES),
        "names": ["class 0", "class 1", "class 2"],
        "order": "wnid",
    }
    first = "0\t0\tvalidation-00000-of-00002/0/n00000001_val_0.JPEG\n"
    assert (tmp_path / "out" / "val.lst").read_text().startswith(first)


def test_tfrecords_of_other_keys(tmp_path: Path, rows: dict[str, list[Row]], of_folder: dict[str, bytes]) -> None:
    root = write_tfrecords(tmp_path / "tfds", rows, lambda row: example({"image": row[2], "label": row[1]}))
    build("tfrecord", root=root, out=tmp_path / "out", shards=2)
    assert records_of(tmp_path / "out") == of_folder
    root = write_tfrecords(tmp_path / "own", rows, lambda row: example({"x": row[2], "y": [row[1]]}))
    with pytest.raises(BadInput, match="record 0: no such feature; expected image/encoded or image; found x, y"):
        tfrecord.plan(root)
    assert tfrecord.plan(root, image_key="x", label_key="y").counts == {"train": 18, "val": 6}


def test_the_frame_is_that_of_tensorboards_writer(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    records = [b"", b"x" * 3000, bytes(range(256))]
    with open(tmp_path / "x.tfrecord", "wb") as stream:
        for record in records:
            writer.RecordWriter(stream).write(record)
    assert [record for _, record in tfrecord.records(tmp_path / "x.tfrecord")] == records
    assert (tmp_path / "x.tfrecord").read_bytes() == framed(records)


NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8), st.one_of(st.binary(max_size=40), NUMBERS), max_size=5))
def test_examples_are_read_as_protocol_buffers_wrote_them(values: dict[str, Any]) -> None:
    content = example(values)
    found = {
        name: content[slice(*value[0])] if isinstance(value[0], tuple) else value
        for name, value in tfrecord.features(content).items()
        if value
    }
    assert found == values


def wire(field: int, content: bytes) -> bytes:
    """A field of bytes as Protocol Buffers write it."""
    return bytes([field << 3 | 2, len(content)]) + content


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.binary(max_size=12), st.booleans())
def test_no_bytes_of_an_example_raise_anything_else(at: int, noise: bytes, cut: bool) -> None:
    entries = [
        wire(1, b"image") + wire(2, wire(1, wire(1, b"a jpeg"))),
        wire(1, b"label") + wire(2, wire(3, b"\n\1\7")),
    ]
    content = wire(1, b"".join(wire(1, entry) for entry in entries))
    assert tfrecord.features(content) == {"image": [(17, 23)], "label": [7]}
    at %= len(content)
    damaged = content[:at] + (b"" if cut else noise + content[at + len(noise) :])
    with contextlib.suppress(ValueError):
        for values in tfrecord.features(damaged).values():
            spans = [value for value in values if isinstance(value, tuple)]
            assert all(0 <= start <= end <= len(damaged) for start, end in spans)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
def test_cut_and_flipped_tfrecords_are_one_line(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("noise") / "train.tfrecord"
    whole = framed([b"x" * 50, b"y" * 90])
    at %= len(whole)
    path.write_bytes(whole[:at] + (b"" if cut else noise + whole[at + len(noise) :]))
    ends = (0, 16 + 50, len(whole))
    if path.read_bytes() in [whole[:end] for end in ends]:
        assert len(list(tfrecord.records(path))) == ends.index(path.stat().st_size)
    else:
        with pytest.raises(BadInput, match=r"record [012]: "):
            list(tfrecord.records(path))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([b"\xff"], "record 0: not a tf.train.Example .no number at byte"),
        ([{"image": b"x", "label": [1, 2]}], "record 0: the feature label is another than expected; expected a single"),
        ([{"image": 3, "label": 1}], "the feature image is another than expected; expected a single image"),
        ([{"image": b"x"}], "record 0: no such feature; expected image/class/label or label; found image"),
        (
            [{"image": b"x", "label": 1, "image/class/synset": name} for name in (b"n01", b"n02")],
            "record 1: the label 1 has two names; expected n01; found n02",
        ),
    ],
)
def test_bad_tfrecords_are_one_line(records: list[Any], message: str, tmp_path: Path) -> None:
    contents = [record if isinstance(record, bytes) else example(record) for record in records]
    (tmp_path / "train.tfrecord").write_bytes(framed(contents))
    with pytest.raises(BadInput, match=message):
        tfrecord.plan(tmp_path)


# Parquet


def table_of(samples: Sequence[Row], names: Sequence[str] | None = CLASSES, **columns: Any) -> Any:
    """A table as Hugging Face's library writes it."""
    pa = pytest.importorskip("pyarrow")
    images = pa.array(
        [{"bytes": content, "path": name} for name, _, content in samples],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = pa.array([label for _, label, _ in samples], pa.int64())
    table = pa.table({"image": images, "label": labels, **columns})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(said if names else {})


def write_parquet(path: Path, table: Any) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def hub(tmp_path: Path, rows: dict[str, list[Row]]) -> Path:
    """The folder of a data set of the hub."""
    for split, samples in rows.items():
        name = "validation" if split == "val" else split
        for number, part in enumerate(halves(samples)):
            write_parquet(tmp_path / "hub" / "data" / f"{name}-{number:05d}-of-00002.parquet", table_of(part))
    return tmp_path / "hub"


def test_parquet_gives_the_records_of_the_folder(hub: Path, tmp_path: Path, of_folder: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    build("parquet", root=hub, out=out, shards=2)
    assert records_of(out) == of_folder
    assert classes_of(out)["ids"] == list(CLASSES)
    first = "0\t0\tvalidation-00000-of-00002.parquet/0/n00000001_val_0.JPEG\n"
    assert (out / "val.lst").read_text().startswith(first)
    next(out.glob("train-*.rec")).unlink()
    assert build("parquet", root=hub, out=out, shards=2).remade
    assert records_of(out) == of_folder
    assert not (out / ".building").exists()


def test_parquet_of_others(tmp_path: Path, rows: dict[str, list[Row]], of_folder: dict[str, bytes]) -> None:
    pa = pytest.importorskip("pyarrow")
    for split, samples in rows.items():
        photos = pa.array([content for _, _, content in samples], pa.large_binary())
        words = pa.array([CLASSES[label] for _, label, _ in samples])
        write_parquet(
            tmp_path / "own" / f"{split}.parquet", pa.table({"photo": photos, "word": words, "n": [1] * len(words)})
        )
    with pytest.raises(BadInput, match="no column of labels; found photo, word, n; name it with --label-column"):
        parquet.plan(tmp_path / "own")
    build("parquet", root=tmp_path / "own", out=tmp_path / "out", label_column="word", shards=2)
    assert records_of(tmp_path / "out") == of_folder


def test_a_parquet_file_by_itself_and_a_split_without_labels(hub: Path, rows: dict[str, list[Row]]) -> None:
    unlabelled = [(name, -1, content) for name, _, content in rows["val"]]
    write_parquet(hub / "data" / "test-00000-of-00001.parquet", table_of(unlabelled))
    assert parquet.plan(hub).counts == {"train": 18, "val": 6}
    assert parquet.plan(hub / "data" / "train-00001-of-00002.parquet").counts == {"train": 12}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda table: table.drop_columns(["image"]), {}, "no column of images; found label; name it with --image-col"),
        (lambda table: table.drop_columns(["label"]), {}, "the file has no column of labels; found image"),
        (lambda table: table, {"image_column": "imag"}, "no column 'imag'; did you mean image?"),
        (
            lambda table: table,
            {"image_column": "label"},
            "the column has no images; expected bytes; found label: int64",
        ),
        (lambda table: table, {"label_column": "image"}, "row 0: is no label"),
        (
            lambda table: table.append_column("labels", table["label"]).replace_schema_metadata({}),
            {},
            "several columns of labels; found label, labels; name it with --label-column",
        ),
        (
            lambda table: table.append_column("photo", table["image"]).replace_schema_metadata({}),
            {},
            "several columns of images; found image, photo; name it with --image-column",
        ),
    ],
)
def test_bad_tables_are_one_line(
    change: Callable[[Any], Any], options: dict[str, Any], message: str, tmp_path: Path, rows: dict[str, list[Row]]
) -> None:
    write_parquet(tmp_path / "train.parquet", change(table_of(rows["train"])))
    with pytest.raises(BadInput, match=message.replace("?", "\\?")):
        parquet.plan(tmp_path, **options)


def test_labels_beyond_the_names_are_refused(tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    write_parquet(tmp_path / "train.parquet", table_of(rows["train"], names=CLASSES[:2]))
    with pytest.raises(BadInput, match="the label means no class; found 2"):
        parquet.plan(tmp_path)


def test_pages_with_checksums_are_checked(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    samples = [(f"{n}.jpg", n % 2, bytes([n]) * 90) for n in range(9)]
    pq.write_table(table_of(samples), path, write_page_checksum=True, compression="none")
    assert parquet.plan(tmp_path).counts == {"train": 9}
    path.write_bytes(path.read_bytes().replace(bytes([7]) * 90, bytes([9]) * 90))
    with pytest.raises(BadInput, match=r"train\.parquet: cannot be read .*CRC"):
        parquet.plan(tmp_path)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
def test_cut_and_flipped_parquet_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, cut: bool
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.mktemp("noise") / "train.parquet"
    buffer = io.BytesIO()
    pq.write_table(table_of([(f"{n}.jpg", n % 2, bytes([n]) * 90) for n in range(9)]), buffer)
    whole = buffer.getvalue()
    at %= len(whole)
    path.write_bytes(whole[:at] + (b"" if cut else noise + whole[at + len(noise) :]))
    with contextlib.suppress(BadInput):
        plan = parquet.plan(path)
        for write in plan.unpack.values():
            with open(path.with_name("images"), "wb") as stream:
                write(stream)
        assert np.asarray(plan.splits["train"].spans).shape == (9, 2)
