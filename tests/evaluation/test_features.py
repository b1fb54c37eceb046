"""Activations to a file: what is in it against the engine itself and NumPy, its memory, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, OutOfRoom
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import extract
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.engine_setup import build_engine


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("lenet") / "run")


def loaded(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_the_last_layer_s_features_are_the_logits_of_every_record_once(run: Path, tmp_path: Path) -> None:
    extraction, _ = extract(run, "classifier", tmp_path / "f.npz")
    found = loaded(tmp_path / "f.npz")
    assert extraction.images == {"train": 30, "val": 6, "test": 12}
    recipe, checkpoint = open_checkpoint(run, "best", {})
    engine = build_engine(recipe, checkpoint.state, checkpoint.weights)
    for split in ("train", "val", "test"):
        with RecordSet.open(Path(recipe.records), split) as records:
            loader = Loader(records, 28, len(records), threads=0)
            with loader.evaluation(checkpoint.state.crop_fraction) as batches:
                batch = next(batches)
                wanted = engine.logits(batch.images)
                np.testing.assert_array_equal(found[f"{split}_labels"], batch.labels)
                np.testing.assert_array_equal(found[f"{split}_records"], batch.records)
        assert found[f"{split}_features"].dtype == np.float32
        np.testing.assert_allclose(found[f"{split}_features"], wanted, rtol=1e-6, atol=1e-6)
    assert found["classes"].tolist() == [f"class{number}" for number in range(6)]
    about = json.loads(str(found["about"]))
    assert (about["layer"], about["shape"], about["features"]) == ("classifier", [6], 6)


def test_an_early_layer_is_what_numpy_makes_of_the_pixels(run: Path, tmp_path: Path) -> None:
    extract(run, "conv1", tmp_path / "f.npz", ["val"])
    found = loaded(tmp_path / "f.npz")
    recipe, checkpoint = open_checkpoint(run, "best", {})
    state, weight, bias = checkpoint.state, checkpoint.weights["conv1.weight"], checkpoint.weights["conv1.bias"]
    with (
        RecordSet.open(Path(recipe.records), "val") as records,
        Loader(records, 28, 6, threads=0).evaluation() as passes,
    ):
        pixels = ((next(passes).images - np.array(state.mean)) / np.array(state.std)).transpose(0, 3, 1, 2)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (5, 5), (2, 3))
    wanted = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    np.testing.assert_allclose(found["val_features"], wanted.reshape(6, -1), rtol=1e-5, atol=1e-5)
    assert set(found) == {"val_features", "val_labels", "val_records", "classes", "about"}


@pytest.mark.gluon
@pytest.mark.parametrize(("network", "layer"), [("resnet18", "stage2.unit1.conv1"), ("squeezenet1_1", "fire3")])
def test_both_engines_give_the_same_features_of_an_image_shaped_layer(
    network: str, layer: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    place = make_run(tmp_path / "run", network, 32)
    for engine in ("gluon", "pytorch"):
        extraction, _ = extract(place, layer, tmp_path / f"{engine}.npz", ["val"], overrides={"engine": engine})
        assert (extraction.engine, len(extraction.shape)) == (engine, 3)
    first, second = loaded(tmp_path / "gluon.npz"), loaded(tmp_path / "pytorch.npz")
    assert first["val_features"].shape == (6, extraction.features)
    np.testing.assert_allclose(first["val_features"], second["val_features"], rtol=1e-5, atol=1e-6)


def test_a_concatenation_s_features_are_those_of_all_its_branches(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    place = make_run(tmp_path / "run", "minigooglenet", 32)
    extraction, _ = extract(place, "inception4b", tmp_path / "f.npz", ["val"])
    assert extraction.shape == (336, 7, 7)
    found = loaded(tmp_path / "f.npz")["val_features"]
    assert found.shape == (6, extraction.features)
    recipe, checkpoint = open_checkpoint(place, "best", {})
    weight, bias = checkpoint.weights["classifier.weight"], checkpoint.weights["classifier.bias"]
    engine = build_engine(recipe, checkpoint.state, checkpoint.weights)
    with (
        RecordSet.open(Path(recipe.records), "val") as records,
        Loader(records, 32, 6, threads=0).evaluation() as passes,
    ):
        wanted = engine.logits(next(passes).images)
    np.testing.assert_allclose(found.reshape(6, 336, -1).mean(2) @ weight.T + bias, wanted, rtol=1e-4, atol=1e-4)


def test_equal_features_give_equal_bytes_whatever_the_batch(run: Path, tmp_path: Path) -> None:
    for name, batch_size in (("a", 7), ("b", 7)):
        extract(run, "flatten", tmp_path / f"{name}.npz", overrides={"batch_size": batch_size})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    extract(run, "flatten", tmp_path / "c.npz", overrides={"batch_size": 1})
    first, other = loaded(tmp_path / "a.npz"), loaded(tmp_path / "c.npz")
    np.testing.assert_allclose(first["train_features"], other["train_features"], rtol=1e-6, atol=1e-6)


def test_records_of_other_classes_will_do(make_run: Callable[..., Path], photo_records: Path, tmp_path: Path) -> None:
    many = make_run(tmp_path / "many", classes=tuple(f"other{number}" for number in range(9)))
    extraction, _ = extract(many, "relu1", tmp_path / "f.npz", ["test"], records=photo_records)
    assert extraction.images == {"test": 12}
    assert len(loaded(tmp_path / "f.npz")["classes"]) == 6


def test_what_cannot_be_is_refused_before_a_byte_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRecipe, match=r"no layer is called 'conv9'; did you mean conv.*networks lenet` lists"):
        extract(run, "conv9", tmp_path / "f.npz")
    with pytest.raises(BadRecipe, match="no split 'validation'; expected one of train, val, test"):
        extract(run, "conv1", tmp_path / "f.npz", ["train", "validation"])
    with pytest.raises(BadRecipe, match="a folder, not a file"):
        extract(run, "conv1", tmp_path)
    with pytest.raises(BadRecipe, match="'epochs' does not apply"):
        extract(run, "conv1", tmp_path / "f.npz", overrides={"epochs": 1})
    asked = []
    monkeypatch.setattr(files, "check_free_space", lambda place, count: asked.append(count))
    extract(run, "flatten", tmp_path / "f.npz")
    size = (tmp_path / "f.npz").stat().st_size
    assert size < asked[0] < size + 2**21

    def full(place: Path, count: int) -> None:
        raise OutOfRoom("not enough free disk space", where=place)

    monkeypatch.setattr(files, "check_free_space", full)
    with pytest.raises(OutOfRoom, match="not enough free disk space"):
        extract(run, "flatten", tmp_path / "g.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz"}


def test_a_failure_half_way_leaves_the_earlier_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(run, "flatten", tmp_path / "f.npz")
    before = (tmp_path / "f.npz").read_bytes()

    def broken(*anything: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagenet_pipeline.evaluation.features._put", broken)
    with pytest.raises(OutOfRoom, match=r"f\.npz: cannot be written"):
        extract(run, "conv1", tmp_path / "f.npz")
    assert (tmp_path / "f.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from imagenet_pipeline.evaluation.features import new_archive, open_rows
rows = np.ones((64, 16384), np.float32)
for batches in (4, 60):
    with new_archive(Path(sys.argv[1])) as archive, open_rows(archive, "f", (64 * batches, 16384)) as write:
        for _ in range(batches):
            write(rows)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    """240 MB of features, 4 MB at a time."""
    words = [sys.executable, "-c", GROWTH, str(tmp_path / "f.npz")]
    few, many = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert int(many) - int(few) < 20_000
    assert (tmp_path / "f.npz").stat().st_size > 60 * 64 * 16384 * 4
    (tmp_path / "f.npz").unlink()
