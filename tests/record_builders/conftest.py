"""ImageNet in miniature, in each form in which people have it: trees of real photos, and archives of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from imagenet_pipeline.record_builders import imagenet_devkit, imagenet_layout
from imagenet_pipeline.records.image import encode_jpeg

WNIDS = ("n00000003", "n00000001", "n00000002")
"""In the kit's order, which runs against the alphabet."""
VAL_IDS = (1, 2, 3, 3, 2, 1)
"""The kit's class id of each validation image."""
TRAIN = [f"{wnid}/{wnid}_{n}" for wnid in sorted(WNIDS) for n in range(4)]
VAL = [f"ILSVRC2012_val_{n:08d}" for n in range(1, len(VAL_IDS) + 1)]


def photo(name: str) -> bytes:
    """A small JPEG that differs by its name."""
    seed = int.from_bytes(name.encode()[-8:], "big")
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8), 90)


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tar_of(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def meta_mat(rows: Sequence[tuple[Any, ...]]) -> bytes:
    """MATLAB's array `synsets` as the kit of 2012 has it, of (id, wnid, words, children)."""
    columns = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in columns])
    for place, row in zip(table, rows, strict=True):
        place[0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    return buffer.getvalue()


def kit_of_2012() -> dict[str, bytes]:
    rows = [(i, wnid, f"name {wnid[-1]}, other", 0) for i, wnid in enumerate(WNIDS, 1)]
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat([*rows, (4, "n00000009", "all of them", 3)]),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{i}\n" for i in VAL_IDS
        ).encode(),
        "ILSVRC2012_devkit_t12/readme.txt": b"no more",
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The metadata of an ILSVRC2015 tree of 3 classes x 4 train, 6 val, without images."""
    root = tmp_path / "ILSVRC2015"
    lists, kit = root / imagenet_layout.LISTS, root / imagenet_layout.DEVKIT
    write(kit / imagenet_devkit.CLASSES, "".join(f"{w} {i} name_{w[-1]}\n" for i, w in enumerate(WNIDS, 1)))
    write(kit / imagenet_devkit.GROUND_TRUTH, "".join(f"{i}\n" for i in VAL_IDS))
    write(kit / imagenet_devkit.BLACKLIST, "2\n6\n")
    write(lists / "train_cls.txt", "".join(f"{row} {i}\n" for i, row in enumerate(TRAIN, 1)))
    write(lists / "val.txt", "".join(f"{name} {i}\n" for i, name in enumerate(VAL, 1)))
    return root


@pytest.fixture
def full_tree(tree: Path) -> Path:
    """`tree` with its images."""
    for name in TRAIN:
        write(tree / imagenet_layout.DATA / "train" / f"{name}.JPEG", photo(name))
    for name in VAL:
        write(tree / imagenet_layout.DATA / "val" / f"{name}.JPEG", photo(name))
    return tree


def write_kaggle(root: Path) -> None:
    """The same images as Kaggle's archive unpacks."""
    data, lists = root / "ILSVRC" / imagenet_layout.DATA, root / "ILSVRC" / imagenet_layout.LISTS
    for name in TRAIN:
        write(data / "train" / f"{name}.JPEG", photo(name))
    for name in VAL:
        write(data / "val" / f"{name}.JPEG", photo(name))
    write(data / "test" / "ILSVRC2012_test_00000001.JPEG", photo("test"))
    write(lists / "train_cls.txt", "".join(f"{row} {i}\n" for i, row in enumerate(TRAIN, 1)))
    write(lists / "val.txt", "".join(f"{name} {i}\n" for i, name in enumerate(VAL, 1)))
    write(root / "LOC_synset_mapping.txt", "".join(f"{w} name {w[-1]}, other\n" for w in sorted(WNIDS)))
    rows = [f"{name},{WNIDS[i - 1]} 1 2 3 4 {WNIDS[i - 1]} 5 6 7 8 \n" for name, i in zip(VAL, VAL_IDS, strict=True)]
    write(root / "LOC_val_solution.csv", "".join(["ImageId,PredictionString\n", *reversed(rows)]))
    write(root / "LOC_train_solution.csv", "ImageId,PredictionString\n")


def write_class_folders(root: Path) -> None:
    """The same images, sorted by class and nothing else."""
    for name in TRAIN:
        write(root / "train" / f"{name}.JPEG", photo(name))
    for name, i in zip(VAL, VAL_IDS, strict=True):
        write(root / "val" / WNIDS[i - 1] / f"{name}.JPEG", photo(name))


def write_archives(root: Path) -> None:
    """The same images in the official archives, out of order."""
    classes = {
        f"{wnid}.tar": tar_of({f"{wnid}_{n}.JPEG": photo(f"{wnid}/{wnid}_{n}") for n in (2, 0, 3, 1)}) for wnid in WNIDS
    }
    write(root / "ILSVRC2012_img_train.tar", tar_of(classes))
    write(root / "ILSVRC2012_img_val.tar", tar_of({f"{name}.JPEG": photo(name) for name in reversed(VAL)}))
    write(root / "ILSVRC2012_devkit_t12.tar.gz", tar_of(kit_of_2012(), "w:gz"))


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    root = tmp_path / "kaggle"
    write_kaggle(root)
    return root


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    root = tmp_path / "sorted"
    write_class_folders(root)
    return root


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    root = tmp_path / "archives"
    write_archives(root)
    return root


@pytest.fixture(name="tar_of", scope="session")
def _tar_of() -> Callable[..., bytes]:
    return tar_of


@pytest.fixture(name="meta_mat", scope="session")
def _meta_mat() -> Callable[..., bytes]:
    return meta_mat


@pytest.fixture(name="photo", scope="session")
def _photo() -> Callable[[str], bytes]:
    return photo
