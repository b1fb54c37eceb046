"""Probes: against scikit-learn by hand, on features of which the answer is known, and on files that are none."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from imagenet_pipeline.errors import BadInput, OutOfRoom, PipelineError
from imagenet_pipeline.evaluation import probe as probing
from imagenet_pipeline.evaluation.features import FeatureFile, new_archive, open_rows, write_array
from imagenet_pipeline.evaluation.probe import GRID, Kind, probe

CLASSES = 7


def write(path: Path, splits: dict[str, tuple[Any, Any]], classes: int = CLASSES) -> Path:
    with new_archive(path) as archive:
        for split, (features, labels) in splits.items():
            with open_rows(archive, f"{split}_features", features.shape) as write_rows:
                write_rows(features)
            write_array(archive, f"{split}_labels", np.asarray(labels, np.int64))
            write_array(archive, f"{split}_records", np.arange(len(labels)))
        write_array(archive, "classes", np.array([f"class{number}" for number in range(classes)]))
        write_array(archive, "about", np.array(json.dumps({"layer": "flatten"})))
    return path


def clouds(count: int, seed: int, classes: int = CLASSES, width: int = 12) -> tuple[Any, Any]:
    """Overlapping clouds of points, one a class, on axes of very different length; one axis says nothing."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(99).normal(0, 1.2, (classes, width))
    labels = np.arange(count) % classes
    features = (centres[labels] + random.normal(0, 1, (count, width))) * np.geomspace(0.01, 1000, width) + 5
    features[:, 3] = 2.5
    return features.astype(np.float32), labels


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "f.npz", {"train": clouds(140, 1), "val": clouds(70, 2), "test": clouds(35, 3)})


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_a_probe_is_what_scikit_learn_s_pipeline_gives(file: Path, kind: Kind) -> None:
    found = probe(file, kind, seed=5)
    (x, y), (vx, vy) = clouds(140, 1), clouds(70, 2)

    def model(c: float) -> Any:
        fitted = LogisticRegression(C=c, max_iter=1000) if kind == "logistic" else LinearSVC(C=c, random_state=5)
        return make_pipeline(StandardScaler(), fitted)

    cuts = list(StratifiedKFold(5, shuffle=True, random_state=5).split(x, y))
    wanted = [np.mean([100 * model(c).fit(x[a], y[a]).score(x[b], y[b]) for a, b in cuts]) for c in GRID]
    # A solver that starts elsewhere ends within its tolerance: one record of 140 may fall to the other side.
    assert len(found.tried) > 5
    np.testing.assert_allclose([one.rank1 for one in found.tried], wanted[: len(found.tried)], atol=0.8)
    assert found.c == max(found.tried, key=lambda one: (one.rank1, -one.c)).c
    own = model(found.c).fit(x, y)
    ranked = np.argsort(-own.decision_function(vx), axis=1)
    assert abs(found.splits["val"].rank1_hits - (ranked[:, 0] == vy).sum()) <= 1
    assert abs(found.splits["val"].rank5_hits - (ranked[:, :5] == vy[:, None]).any(1).sum()) <= 1
    assert (found.splits["val"].images, found.splits["test"].images, found.images, found.features) == (70, 35, 140, 12)
    assert found.splits["val"].rank1 > 60
    assert (found.folds, found.about) == (5, {"layer": "flatten"})


def test_the_same_seed_gives_the_same_probe(file: Path) -> None:
    assert probe(file, seed=1) == probe(file, seed=1)
    assert probe(file, seed=1).tried != probe(file, seed=2).tried


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_weights_score_raw_features(classes: int, tmp_path: Path) -> None:
    splits = {"train": clouds(60, 1, classes), "val": clouds(42, 2, classes)}
    found = probe(write(tmp_path / "f.npz", splits, classes), out=tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as weights:
        assert weights["weights"].shape == (classes, 12)
        scores = splits["val"][0] @ weights["weights"].T.astype(np.float64) + weights["biases"]
        hits = weights["labels"][scores.argmax(1)] == splits["val"][1]
    assert hits.sum() == found.splits["val"].rank1_hits
    assert classes > 2 or found.splits["val"].rank5 == 100.0


def test_few_records_a_class_have_fewer_folds_and_a_class_of_val_alone_is_never_hit(tmp_path: Path) -> None:
    features, labels = clouds(21, 1)
    found = probe(write(tmp_path / "f.npz", {"train": (features, labels), "val": (features, labels * 0 + 7)}, 8))
    assert found.folds == 3
    assert (found.splits["val"].rank1_hits, found.splits["val"].rank5_hits) == (0, 0)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_what_does_not_converge_is_one_line_of_our_own(
    kind: Kind, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(one.converged for one in probe(file).tried)
    monkeypatch.setitem(probing.MOST_ITERATIONS, kind, 5)
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        found = probe(file, kind)
    values = ", ".join(f"{one.c:g}" for one in found.tried if not one.converged)
    assert values
    assert f"no convergence in 5 iterations with C = {values}: what is said of them is approximate" in caplog.text
    assert "scikit-learn warned" not in caplog.text


def test_what_else_scikit_learn_warns_of_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "imagenet_pipeline"), probing._gathered_warnings():
        for word in ("first", "second"):
            warnings.warn(f"{word} thing\nand more", RuntimeWarning, stacklevel=1)
    assert caplog.messages == ["scikit-learn warned while fitting: 2 x RuntimeWarning; the first: first thing"]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("f.npz", "would overwrite an input"),
        ("folder", "a folder, not a file to write"),
        ("weights.txt", "a name that ends in .npz"),
        ("f.npz/weights.npz", "cannot be written"),
    ],
)
def test_where_no_weights_can_be_written_nothing_is_fitted(
    out: str, says: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = file.read_bytes()
    (file.parent / "folder").mkdir()
    monkeypatch.setattr(FeatureFile, "load", lambda *_: pytest.fail("was read"))
    with pytest.raises(PipelineError, match=says):
        probe(file, out=file.parent / out)
    assert file.read_bytes() == content


def test_memory_is_looked_at_before_the_features_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "available_memory_bytes", lambda: 40_000)
    monkeypatch.setattr(FeatureFile, "load", lambda *_: pytest.fail("was read"))
    with pytest.raises(
        OutOfRoom, match=r"svm on 140 x 12 features; expected 60,480 bytes; found 40,000 bytes free; --"
    ):
        probe(file, "svm")
    assert probing._require_memory(FeatureFile.read(file), "logistic") is None


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"val": clouds(14, 1)}, "the file has no training features; found features of val"),
        ({"train": clouds(8, 1)}, "2 records or more; found 7 classes, the smallest of 1"),
        ({"train": (np.ones((4, 2), np.float32), [0, 0, 0, 0])}, "found 1 class"),
        ({"train": (np.zeros((0, 2), np.float32), [])}, "found 0 classes"),
        ({"train": (np.ones((4, 2), np.float32), [0, 0, 9, 9])}, "a label that none of the 7 classes has in train"),
        ({"train": (np.ones((4, 2), np.float32), [0, 0, 1])}, "4 rows and 3 labels"),
        ({"train": (np.full((4, 2), np.nan, np.float32), [0, 0, 1, 1])}, "infinities or NaN in train"),
        ({"train": clouds(14, 1), "val": clouds(14, 1, width=5)}, "splits of different width"),
        ({}, "features of no split"),
    ],
)
def test_features_that_no_probe_can_be_fitted_on(splits: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.npz", splits)
    with pytest.raises(BadInput, match=f"^{path}: .*{says}"):
        probe(path)


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04" + bytes(50), b"\x80\x02}q\x00.", archive(a=np.ones(3)),
        archive(train_features=np.ones((3, 2)), classes=np.array(["a"]), about=np.array("{}")),
        archive(train_features=np.ones((3, 2), np.float32), classes=np.arange(3), about=np.array("{}")),
        archive(train_features=np.ones((3, 2), np.float32), classes=np.array(["a"]), about=np.array("[" * 100_000)),
        archive(train_features=np.array([{}], object), classes=np.array(["a"]), about=np.array("{}")),
    ],
)  # fmt: skip
def test_what_is_no_file_of_features_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"f\.npz: not a file of features; expected a file that the verb features wrote"):
        probe(tmp_path / "f.npz")


def test_a_file_that_is_not_there_and_one_that_claims_too_much_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        probe(tmp_path / "nothing.npz")
    path = write(tmp_path / "f.npz", {"train": clouds(14, 1)})
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(stream, "w") as taken:
        for name in given.namelist():
            content = given.read(name)
            if name == "train_features.npy":
                content = content.replace(b"(14, 12)", b"(14, 1_000_000_000)".replace(b"_", b"")[:8])
            taken.writestr(name, content)
    path.write_bytes(stream.getvalue())
    with pytest.raises(BadInput, match="not a file of features"):
        probe(path)


@given(st.integers(0, 2**32))
def test_damage_gives_features_or_one_line(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    place = tmp_path_factory.getbasetemp() / "damaged.npz"
    content = bytearray(write(place, {"train": clouds(14, 1)}).read_bytes())
    random = np.random.default_rng(seed)
    for _ in range(random.integers(1, 6)):
        content[random.integers(len(content))] = random.integers(256)
    place.write_bytes(content[: random.integers(1, len(content) + 1)] if random.random() < 0.3 else content)
    with contextlib.suppress(BadInput):
        file = FeatureFile.read(place)
        for split in file.shapes:
            assert file.load(split).features.shape == file.shapes[split]
