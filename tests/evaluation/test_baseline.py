"""Baselines on the records: against scikit-learn's own classifiers on the same pixels, in memory and beyond it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation import baseline as baselines
from imagenet_pipeline.evaluation.baseline import Baseline, Pieces, run_baseline
from imagenet_pipeline.evaluation.compare import Examination
from imagenet_pipeline.record_builders import listing
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import LabelKind
from imagenet_pipeline.records.manifest import DataSet, read_data_set


@pytest.fixture(scope="module")
def digits(digits_records: Path) -> DataSet:
    return read_data_set(digits_records)


def whole(data: DataSet, split: str, baseline: Baseline) -> tuple[np.ndarray, np.ndarray]:
    pieces = list(Pieces(data, split, baseline))
    return np.concatenate([piece.features for piece in pieces]), np.concatenate([piece.labels for piece in pieces])


@pytest.mark.parametrize("neighbours", [1, 5])
def test_k_nn_is_scikit_learn_s_on_all_pixels_at_once(digits: DataSet, tmp_path: Path, neighbours: int) -> None:
    chosen = Baseline("knn", size=8, neighbours=neighbours)
    found = run_baseline(chosen, digits, "test", tmp_path).outcomes
    known = KNeighborsClassifier(neighbours, algorithm="brute").fit(*whole(digits, "train", chosen))
    expected = known.predict(whole(digits, "test", chosen)[0])
    assert (found.top[:, 0] == expected).mean() >= 0.997  # of equally near pictures either takes its own
    assert found.rank1_right.mean() > 0.95


def test_a_linear_model_is_scikit_learn_s_with_the_same_steps(digits: DataSet, tmp_path: Path) -> None:
    chosen = Baseline("sgd", "l1", size=8, epochs=2, seed=3)
    found = run_baseline(chosen, digits, "test", tmp_path).outcomes
    features, labels = whole(digits, "train", chosen)
    scaler = StandardScaler().fit(features)

    def read(rows: np.ndarray) -> np.ndarray:
        return scaler.transform(rows) / np.sqrt(features.shape[1])

    known = SGDClassifier(loss="log_loss", penalty="l1", alpha=1e-4, learning_rate="constant", eta0=0.1, random_state=3)
    for epoch in range(2):
        for number, start in enumerate(range(0, len(labels), baselines.PIECE_IMAGES)):
            rows = np.arange(start, min(start + baselines.PIECE_IMAGES, len(labels)))
            rows = rows[np.random.default_rng([3, epoch, number]).permutation(len(rows))]
            known.partial_fit(read(features[rows]), labels[rows], classes=np.arange(10))
    test, truth = whole(digits, "test", chosen)
    probabilities = known.predict_proba(read(test))
    assert found.rank1_right.mean() == pytest.approx((known.predict(read(test)) == truth).mean(), abs=0.004)
    np.testing.assert_allclose(found.losses, -np.log(probabilities[np.arange(len(truth)), truth]), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("model", ["knn", "logistic"])
def test_a_set_beyond_memory_gives_the_same(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: baselines.Model
) -> None:
    monkeypatch.setattr(baselines, "PIECE_IMAGES", 200)
    chosen = Baseline(model, size=8, epochs=2)
    kept = run_baseline(chosen, digits, "test", tmp_path / "kept")
    monkeypatch.setattr(baselines, "_fits", lambda size_bytes: False)
    streamed = run_baseline(chosen, digits, "test", tmp_path / "streamed")
    assert np.array_equal(kept.outcomes.top, streamed.outcomes.top)
    assert np.array_equal(kept.outcomes.losses, streamed.outcomes.losses)
    assert digest_of(kept) == digest_of(streamed)


def digest_of(found: Examination) -> str:
    (evaluation,) = found.evaluations
    return evaluation.weights_digest


def test_an_l1_penalty_sets_weights_to_zero(digits: DataSet) -> None:
    train = Pieces(digits, "train", Baseline("svm", size=8))
    zeros = {}
    for penalty in ("l1", "l2"):
        chosen = Baseline("svm", penalty, size=8, strength=1e-2, epochs=2)  # type: ignore[arg-type]
        with baselines.Bar("test", "images", shown=False) as bar:
            model = baselines._linear(chosen, train, train, 10, bar).model
        zeros[penalty] = float((model.coef_ == 0).mean())
    assert zeros["l1"] > 0.3 > zeros["l2"]


def test_features_describe_what_they_say() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    assert baselines.pixels(stripes).max() == 1
    assert len(baselines.pixels(stripes)) == 768
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    histogram = baselines.colour_histogram(red)
    assert histogram.sum() == 1
    assert histogram.max() == 1
    assert len(histogram) == 512
    if hasattr(cv2, "HOGDescriptor"):
        across, along = (
            baselines.oriented_gradients(np.ascontiguousarray(image)) for image in (stripes, stripes.transpose(1, 0, 2))
        )
        assert len(across) == 36
        assert np.abs(across - along).max() > 0.1


@pytest.mark.skipif(not hasattr(cv2, "HOGDescriptor"), reason="this OpenCV has no HOG")
def test_the_verb_prints_figures_and_writes_the_report(
    digits: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["baseline", str(digits.folder), "--model", "perceptron", "--features", "hog", "--epochs", "3", "--json"])
    assert not ended.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["rank1"] > 90
    assert answer["engine"] == "scikit-learn"
    assert answer["images"] == 300
    page = Path(answer["report"])
    assert page == Path(f"output/baselines/{digits.folder.name}-perceptron-l2-hog-32/report-test.html")
    assert "perceptron" in page.read_text()
    assert (page.parent / "recipe.toml").is_file()


def test_wrong_settings_are_a_line(digits: DataSet, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="HOG"):
        Baseline(features="hog", size=20)
    with pytest.raises(BadRecipe, match="no split 'nowhere'"):
        run_baseline(Baseline(), digits, "nowhere", tmp_path)


@pytest.mark.parametrize("kind", ["classes", "number"])
@pytest.mark.parametrize("model", ["knn", "logistic"])
def test_records_without_a_class_each_are_a_line(
    kind: LabelKind, model: baselines.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"classes": [[0, 1], [1, 1], [1, 0], [0, 0]], "number": [[0.0], [1.0], [1.0], [0.0]]}[kind]
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), 20 * number, np.uint8))
    lists.write_list(tmp_path / "x.lst", range(4), labels, [f"{number}.png" for number in range(4)])
    plan = listing.plan(tmp_path / "x.lst", tmp_path, val_fraction=0.5, label_kind=kind)
    build(plan, tmp_path / "set", BuildOptions(resize=0, workers=1))
    with pytest.raises(BadInput, match="one class each"):
        run_baseline(Baseline(model, size=8), read_data_set(tmp_path / "set"), "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "strength"), [("logistic", 0.0), ("svm", 0.0), ("sgd", -1.0), ("sgd", math.inf), ("knn", math.nan)]
)
def test_a_factor_of_the_penalty_that_is_none_is_a_line(model: baselines.Model, strength: float) -> None:
    with pytest.raises(BadRecipe, match="--strength"):
        Baseline(model, strength=strength)
    assert Baseline("sgd", "none", strength=0.0).strength == 0


def test_weights_that_grow_without_end_are_a_line(digits: DataSet, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not finite"):
        run_baseline(Baseline("svm", size=8, strength=1e30, epochs=1), digits, "test", tmp_path)


def test_an_output_folder_that_is_a_file_is_a_line(digits: DataSet, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        run_baseline(Baseline(size=8, epochs=1), digits, "test", tmp_path / "out")


def test_a_piece_of_large_images_is_no_larger_in_memory() -> None:
    assert Baseline(size=32).piece_images == Baseline(size=128).piece_images == 1024
    for size in (256, 512):
        assert 3 * size**2 * Baseline(size=size).piece_images <= 2**26
