"""The manifest and the small files it vouches for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.files import sha256_of
from imagenet_pipeline.records.manifest import Manifest, _digest, read_data_set


@pytest.fixture
def folder(data_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "set"))


def rewritten(folder: Path, **changes: Any) -> None:
    """A manifest with other values and a right digest, as an attacker or a later version would have it."""
    body = json.loads((folder / "manifest.json").read_text())
    body.pop("digest")
    body |= changes
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": _digest(body)}))


def test_a_data_set_is_read(data_set: Path) -> None:
    found = read_data_set(data_set)
    assert list(found.counts) == ["train", "val", "test"]
    assert found.digest == sha256_of(data_set / "manifest.json")
    assert all(0 < value < 255 for value in (*found.mean, *found.std))
    assert found.manifest.options["resize"] == 32


def test_any_change_of_the_manifest_is_noticed(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"rejected": 0', '"rejected": 1', 1))
    with pytest.raises(Damaged, match="has changed"):
        Manifest.read(folder)
    for other in ("", "[]", "null", "{", "[" * 100_000):
        (folder / "manifest.json").write_text(other)
        with pytest.raises(Damaged):
            Manifest.read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "imagenet-pipeline records 2"},
        {"surprise": 1},
        {"splits": []},
        {"splits": {"train": {"records": -1, "rejected": 0, "shards": [], "actions": {}}}},
        {"files": {"../../etc/passwd": "0" * 64}},
        {"classes": "10"},
    ],
)
def test_another_shape_is_not_understood(folder: Path, changes: dict[str, Any]) -> None:
    rewritten(folder, **changes)
    with pytest.raises(Damaged, match="not understood"):
        Manifest.read(folder)


@pytest.mark.parametrize("name", ["classes.json", "mean.json"])
def test_a_changed_small_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(Damaged, match=name):
        read_data_set(folder)


def test_an_unfinished_build_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no data set here"):
        read_data_set(tmp_path)
    (tmp_path / ".building").mkdir()
    with pytest.raises(BadInput, match="not finished"):
        read_data_set(tmp_path)
