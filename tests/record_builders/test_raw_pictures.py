"""MNIST's and CIFAR's files become plans whose pictures are theirs, pixel by pixel."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from imagenet_pipeline import api, files
from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import cifar, mnist
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.plan import Plan

DRAW = np.random.default_rng(0)
DIGITS = DRAW.integers(0, 256, (40, 5, 4), dtype=np.uint8)
NUMBERS = (np.arange(40) % 4).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def set_of(prefix: str, end: str = "", rows: slice = slice(None), dash: str = "-") -> dict[str, bytes]:
    """The files of images and labels, "train-images-idx3-ubyte.gz" and so on."""
    return {
        f"{prefix}-images{dash}idx3-ubyte{end}": idx(DIGITS[rows]),
        f"{prefix}-labels{dash}idx1-ubyte{end}": idx(NUMBERS[rows]),
    }


def stored(plan: Plan) -> dict[str, list[tuple[NDArray[np.uint8], str]]]:
    """Pixels and class of every picture of each split, as they lie in the tar."""
    found: dict[str, list[tuple[NDArray[np.uint8], str]]] = {}
    for split, images in plan.splits.items():
        assert images.spans is not None
        for path, label, (offset, size) in zip(images.paths, images.labels, images.spans.tolist(), strict=True):
            content = (plan.root / path.partition("/")[0]).read_bytes()[offset : offset + size]
            found.setdefault(split, []).append((decode_rgb(content), plan.classes.ids[label]))
    return found


def require_same(rows: Sequence[tuple[NDArray[np.uint8], str]], pixels: Any, names: Sequence[str]) -> None:
    """The rows are these pictures, in any order."""
    expected = sorted((np.broadcast_to(p, (*p.shape[:2], 3)).tobytes(), n) for p, n in zip(pixels, names, strict=True))
    assert sorted((p.tobytes(), n) for p, n in rows) == expected


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)), st.integers(0, 200))
def test_idx_comes_back_as_it_was_and_damage_is_told(array: NDArray[np.uint8], at: int) -> None:
    content = idx(array)
    np.testing.assert_array_equal(mnist.read_idx(content, 3, "it"), array)
    with pytest.raises(BadInput):
        mnist.read_idx(content[: at % len(content)], 3, "it")
    with pytest.raises(BadInput, match="the file is longer than it says"):
        mnist.read_idx(content + b"\0", 3, "it")
    spoilt = bytearray(content)
    spoilt[at % 16] ^= 1 + at
    with pytest.raises(BadInput):
        mnist.read_idx(bytes(spoilt), 3, "it")


def test_idx_is_the_format_as_it_is_written_down() -> None:
    golden = bytes.fromhex("00000803 00000001 00000002 00000003 000102 0a0b0c")
    assert mnist.read_idx(golden, 3, "it").tolist() == [[[0, 1, 2], [10, 11, 12]]]
    assert mnist.read_idx(bytes.fromhex("00000801 00000002 0709"), 1, "it").tolist() == [7, 9]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_mnist_is_split_as_its_files_are(end: str, dash: str, tmp_path: Path) -> None:
    contents = set_of("train", end, slice(30), dash) | set_of("t10k", end, slice(30, 40), dash)
    plan = mnist.plan(write(tmp_path / "MNIST" / "raw", contents).parent, tmp_path / "out", val_images=6)
    assert plan.counts == {"train": 24, "val": 6, "test": 10}
    assert plan.classes.ids == ("0", "1", "2", "3")
    rows = stored(plan)
    assert [name for _, name in rows["test"]] == [str(n) for n in NUMBERS[30:]]
    require_same(rows["train"] + rows["val"], DIGITS[:30, ..., None], [str(n) for n in NUMBERS[:30]])
    require_same(rows["test"], DIGITS[30:, ..., None], [str(n) for n in NUMBERS[30:]])


def test_a_file_by_itself_is_cut(tmp_path: Path) -> None:
    root = write(tmp_path / "in", set_of("t10k", ".gz"))
    plan = mnist.plan(root, tmp_path / "out", val_images=8, test_fraction=0.25)
    assert plan.counts == {"train": 22, "val": 8, "test": 10}
    assert mnist.plan(root, tmp_path / "out").counts == {"train": 32, "val": 4, "test": 4}
    with pytest.raises(BadRecipe, match="--val-fraction and --val-images are both given"):
        mnist.plan(root, tmp_path / "out", val_images=8, val_fraction=0.1)
    with pytest.raises(BadInput, match=r"--test-images is out of range; expected 0\.\.39; found 40"):
        mnist.plan(root, tmp_path / "other", test_images=40)
    with pytest.raises(BadInput, match=r"the fractions leave nothing to train on; .*found val 0\.5, test 0\.5"):
        mnist.plan(root, tmp_path / "other", val_images=20, test_images=20)
    assert not (tmp_path / "other").exists()


def test_emnist_is_turned_and_named_by_its_mapping(tmp_path: Path) -> None:
    contents = set_of("emnist-letters-train", ".gz") | set_of("emnist-digits-train", ".gz")
    contents["emnist-letters-mapping.txt"] = b"0 65 97\n1 66 98\n2 67 99\n3 68 100\n"
    root = write(tmp_path / "gzip", contents)
    plan = mnist.plan(root, tmp_path / "out", "emnist-letters")
    assert plan.classes.names == ("Aa", "Bb", "Cc", "Dd")
    rows = [row for split in stored(plan).values() for row in split]
    require_same(rows, DIGITS.transpose(0, 2, 1)[..., None], [str(n) for n in NUMBERS])
    with pytest.raises(BadInput, match="several data sets; found emnist-digits, emnist-letters; say --set"):
        mnist.plan(root, tmp_path / "out")
    with pytest.raises(BadInput, match="no data set is called 'emnist-leters'; did you mean emnist-letters"):
        mnist.plan(root, tmp_path / "out", "emnist-leters")


@pytest.mark.parametrize("line", [b"", b"0", b"0 99999999999", b"0 10", b"0 x", b"\xff"])
def test_a_mapping_that_says_nothing_of_a_class_leaves_its_number(line: bytes, tmp_path: Path) -> None:
    contents = set_of("emnist-letters-train") | {"emnist-letters-mapping.txt": line + b"\n1 66 98\n2 67\n3 68\n"}
    plan = mnist.plan(write(tmp_path / "in", contents), tmp_path / "out")
    assert plan.classes.names == ("0", "Bb", "C", "D")


def test_labels_may_have_gaps_and_names(tmp_path: Path) -> None:
    contents = set_of("train") | {"train-labels-idx1-ubyte": idx(NUMBERS * 3 + 1)}
    root = write(tmp_path / "in", contents)
    assert mnist.plan(root, tmp_path / "out").classes.ids == ("1", "4", "7", "10")
    (tmp_path / "names.txt").write_text("T-shirt\nTrouser\nPullover\nDress\n")
    plan = mnist.plan(root, tmp_path / "out", classes=tmp_path / "names.txt")
    assert plan.classes.names == ("T-shirt", "Trouser", "Pullover", "Dress")


def test_pictures_are_packed_once_and_of_one_source(tmp_path: Path) -> None:
    root = write(tmp_path / "in", set_of("train"))
    first = mnist.plan(root, tmp_path / "out")
    written = (first.root / "mnist.tar").stat().st_mtime_ns
    packed = write(tmp_path / "packed", set_of("train", ".gz"))
    assert mnist.plan(packed, tmp_path / "out").digest == first.digest
    assert (first.root / "mnist.tar").stat().st_mtime_ns == written
    other = write(tmp_path / "other", set_of("train") | {"train-images-idx3-ubyte": idx(255 - DIGITS)})
    with pytest.raises(BadInput, match=r"mnist\.tar: the file holds pictures of another source; choose another --out"):
        mnist.plan(other, tmp_path / "out")


@pytest.mark.parametrize("left", [0, 1024, 2048, 5000, 5120])
def test_damaged_pictures_are_packed_again(left: int, tmp_path: Path) -> None:
    root = write(tmp_path / "in", set_of("train"))
    tar = mnist.plan(root, tmp_path / "out").root / "mnist.tar"
    whole = tar.read_bytes()
    for end in (b"", bytes(1024)):
        tar.write_bytes(whole[:left] + end)
        (tar.parent / f".{tar.name}{files.PART_MARK}{2**22 + 1}-0").touch()  # of a killed build: no such process
        assert mnist.plan(root, tmp_path / "out").counts == {"train": 32, "val": 4, "test": 4}
        assert tar.read_bytes() == whole
        assert list(tar.parent.iterdir()) == [tar]


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        ({}, r"no files of this data set; expected train-images-idx3-ubyte .*; found README"),
        ({IMAGES: idx(DIGITS)}, f"{IMAGES}: there are no labels of these images"),
        ({LABELS: idx(NUMBERS)}, f"{LABELS}: there are no images of these labels"),
        ({IMAGES: idx(DIGITS), LABELS: idx(NUMBERS[:-1])}, "expected 40 labels, as there are images; found 39"),
        ({IMAGES: idx(NUMBERS), LABELS: idx(NUMBERS)}, "not an IDX file of bytes in 3 dimensions; .*found 00 00 08 01"),
        ({IMAGES: idx(DIGITS)[:-1], LABELS: idx(NUMBERS)}, "the file is cut; expected 816 bytes; found 815"),
        ({IMAGES: idx(DIGITS[:0]), LABELS: idx(NUMBERS)}, "the file is empty; found 0 x 5 x 4"),
        ({IMAGES: idx(DIGITS), LABELS: idx(NUMBERS * 0)}, "all pictures have one label"),
        ({"a/" + IMAGES: idx(DIGITS), "b/" + IMAGES: idx(DIGITS)}, f"two files are called {IMAGES}; .*the folder of"),
        ({"cifar.tar.gz": b""}, r"say --root .*cifar\.tar\.gz"),
    ],
)
def test_what_is_wrong_is_one_line(contents: dict[str, bytes], line: str, tmp_path: Path) -> None:
    root = write(tmp_path / "in", contents | {"README": b""})
    with pytest.raises(BadInput, match=line):
        mnist.plan(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_gz_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "in", set_of("train", ".gz"))
    path = root / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"train-images-idx3-ubyte\.gz: the file is cut or damaged"):
        mnist.plan(root, tmp_path / "out")


def test_the_published_digits_are_those_of_their_statistics(shared_data: Path, tmp_path: Path) -> None:
    plan = mnist.plan(shared_data, tmp_path / "out", val_images=1000, test_images=1000)
    assert plan.counts == {"train": 8000, "val": 1000, "test": 1000}
    counts = np.bincount(np.concatenate([images.labels for images in plan.splits.values()])).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    with gzip.open(shared_data / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = mnist.read_idx(stream.read(), 3, "it")
    assert pixels.mean() / 255 == pytest.approx(0.1325, abs=5e-5)


# CIFAR


def pictures(count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random pictures, planes of red, green and blue [n, 3072], and labels 0..9, each of them."""
    draw = np.random.default_rng(count)
    return draw.integers(0, 256, (count, 3072), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def as_rgb(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


NAMES = [f"kind {n}" for n in range(10)]


def binary_ten() -> dict[str, bytes]:
    rows = {}
    for name, count in {"data_batch_1.bin": 20, "data_batch_2.bin": 30, "test_batch.bin": 10}.items():
        planes, labels = pictures(count)
        rows[name] = np.hstack([labels[:, None], planes]).tobytes()
    return rows | {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode(), "readme.html": b""}


def python_ten(protocol: int, keys: type = str) -> dict[str, bytes]:
    def key(word: str) -> Any:
        return word if keys is str else word.encode()

    files = {}
    for name, count in {"data_batch_1": 20, "data_batch_2": 30, "test_batch": 10}.items():
        planes, labels = pictures(count)
        files[name] = pickle.dumps({key("data"): planes, key("labels"): labels.tolist()}, protocol)
    return files | {"batches.meta": pickle.dumps({key("label_names"): [key(name) for name in NAMES]}, protocol)}


def check_ten(plan: Plan) -> None:
    assert plan.classes.ids == tuple(NAMES)
    assert plan.counts == {"train": 40, "val": 10, "test": 10}
    rows = stored(plan)
    pixels, labels = (np.concatenate(columns) for columns in zip(pictures(20), pictures(30), strict=True))
    require_same(rows["train"] + rows["val"], as_rgb(pixels), [NAMES[n] for n in labels])
    require_same(rows["test"], as_rgb(pictures(10)[0]), NAMES)


def test_cifar_10_of_either_version_is_the_same(tmp_path: Path, tar_of: Callable[..., bytes]) -> None:
    members = {f"cifar-10-batches-bin/{name}": content for name, content in binary_ten().items()}
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(tar_of(members, "w:gz"))
    packed = {f"{name}.gz": content for name, content in binary_ten().items()}
    plans = [
        cifar.plan(write(tmp_path / "bin", binary_ten()), tmp_path / "a", val_images=10),
        cifar.plan(write(tmp_path / "gz", packed), tmp_path / "b", val_images=10),
        api.plan_of("cifar", tmp_path / "c", {"root": archive, "val_images": 10}),
        cifar.plan(write(tmp_path / "two", python_ten(2)), tmp_path / "d", val_images=10),
        cifar.plan(write(tmp_path / "four", python_ten(4, bytes)), tmp_path / "e", val_images=10),
    ]  # fmt: skip
    check_ten(plans[0])
    assert len({plan.digest for plan in plans}) == 1
    assert len({(plan.root / "cifar.tar").read_bytes() for plan in plans}) == 1


def hundred() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """CIFAR-100 with 200 and 100 pictures, binary and for Python."""
    binary, python = {}, {}
    for name, count in {"train": 200, "test": 100}.items():
        planes, fine = pictures(count)[0], (np.arange(count) % 100).astype(np.uint8)
        rows = np.hstack([(fine // 5)[:, None], fine[:, None], planes])
        binary[f"{name}.bin"] = rows.astype(np.uint8).tobytes()
        labels = {"coarse_labels": (fine // 5).tolist(), "fine_labels": fine.tolist()}
        python[name] = pickle.dumps({"data": planes, **labels}, 2)
    names = {"fine_label_names": [f"f{n}" for n in range(100)], "coarse_label_names": [f"c{n}" for n in range(20)]}
    binary |= {f"{key}.txt": "\n".join(words).encode() for key, words in names.items()}
    return binary, python | {"meta": pickle.dumps(names, 2)}


def test_cifar_100_has_either_kind_of_labels(tmp_path: Path) -> None:
    binary, python = hundred()
    one, two = write(tmp_path / "bin", binary), write(tmp_path / "py", python)
    fine = cifar.plan(one, tmp_path / "out", val_images=0)
    assert fine.classes.ids[:2] == ("f0", "f1")
    assert fine.counts == {"train": 200, "test": 100}
    coarse = cifar.plan(one, tmp_path / "out", "coarse", val_images=20)
    assert coarse.classes.ids[:2] == ("c0", "c1")
    assert [name for _, name in stored(coarse)["test"]] == [f"c{n // 5}" for n in range(100)]
    assert cifar.plan(two, tmp_path / "other", val_images=0).digest == fine.digest
    assert cifar.plan(two, tmp_path / "other", "coarse", val_images=20).digest == coarse.digest


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit(9)",)


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        ({"data_batch_1.bin": b"x" * 3072}, "the file is cut; expected rows of 3,073 bytes; found 3072"),
        ({"data_batch_1.bin": b"\x0b" + bytes(3072)}, r"a label is out of range; expected 0\.\.9; found 11 in row 0"),
        ({"train.bin": b"\x14\x00" + bytes(3072)}, r"out of range; expected 0\.\.19; found 20 in row 0"),
        ({"batches.meta.txt": b""}, "there are no batches of pictures"),
        (
            {f"data_batch_{n}.bin": bytes(3073) for n in (1, 2, 4)},
            r"data_batch_4\.bin: a batch is missing before this one; found data_batch_1\.bin, data_batch_2",
        ),
        (
            binary_ten() | {"batches.meta.txt": b"cat\ndog\n"},
            "does not name the classes; expected the names of 10 class",
        ),
        (binary_ten() | {"train.bin": b""}, "several data sets; .*found CIFAR-10, CIFAR-100"),
        ({"data_batch_1": pickle.dumps(Evil())}, r"holds builtins\.exec, which no batch of CIFAR has: nothing was"),
        ({"data_batch_1": pickle.dumps([1])}, "the pickle is no batch of CIFAR; expected a dictionary"),
        (
            {"data_batch_1": pickle.dumps({"data": 1, "labels": [1]})},
            r"no batch of CIFAR; expected data, uint8 \[n, 3,",
        ),
        (
            {"data_batch_1": pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]})},
            r"no batch of CIFAR; expected data, uint8",
        ),
        (
            {"data_batch_1": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 2**90]})},
            r"no batch of CIFAR; expected data, uint8",
        ),
    ],
)
def test_what_is_wrong_with_cifar_is_one_line(contents: dict[str, bytes], line: str, tmp_path: Path) -> None:
    root = write(tmp_path / "in", contents)
    with pytest.raises(BadInput, match=line):
        cifar.plan(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_cifar_10_has_not(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there are no coarse labels; expected --labels fine"):
        cifar.plan(write(tmp_path / "in", binary_ten()), tmp_path / "out", "coarse")


def test_lists_for_an_address_are_refused_before_pictures_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGENET_PIPELINE_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "in", set_of("train"))
    with pytest.raises(SystemExit):
        main(["build", "mnist", "--root", str(root), "--out", f"file://{tmp_path}/out", "--lists-only"])
    assert "--lists-only is for a folder of this machine" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_records_are_built_once_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    build = ("build", "mnist", "--root", write(tmp_path / "in", set_of("train")), "--out", tmp_path / "out")
    assert "images: 40 unchanged" in run(*build, "--workers", 1)
    assert "was built already" in run(*build)
    assert "undamaged: 40 records" in run("verify", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "pictures" / "mnist.tar") as tar:
        member = tar.extractfile("train/000007.png")
        assert member is not None
        np.testing.assert_array_equal(decode_rgb(member.read())[..., 0], DIGITS[7])
