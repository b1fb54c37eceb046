"""Training, resuming, scoring and predicting where labels are not one class; figures against scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
)

from imagenet_pipeline import api
from imagenet_pipeline.cli import main
from imagenet_pipeline.config import LossRecipe, Recipe
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.evaluation.features import extract
from imagenet_pipeline.evaluation.scoring import outputs_of
from imagenet_pipeline.evaluation.vector_report import lines_of
from imagenet_pipeline.evaluation.vectors import (
    VectorEvaluation,
    VectorOutcomes,
    average_precision,
    class_figures,
    evaluate_vectors,
    losses_of,
    number_figures,
)
from imagenet_pipeline.pictures.layers import draw_grad_cam
from imagenet_pipeline.record_builders import listing
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable, LabelKind

ENGINES = ("gluon", "pytorch")
NAMES: dict[LabelKind, list[str]] = {"classes": ["even", "large", "prime"], "number": ["ink"]}
LOSSES: dict[LabelKind, str] = {"classes": "binary_cross_entropy", "number": "mse"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits with two lists: even, above 4 and prime; and the share of ink."""
    folder, digits = tmp_path_factory.mktemp("photos"), load_digits()
    images, kinds = digits.images[:300], digits.target[:300]
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number}.png"), np.kron(image * 15, np.ones((2, 2))).astype(np.uint8))
    tags = np.stack([kinds % 2 == 0, kinds > 4, np.isin(kinds, (2, 3, 5, 7))], axis=1).astype(np.float32)
    ink = (images.mean(axis=(1, 2), keepdims=True)[:, 0] / 4).astype(np.float32)
    for kind, labels in {"classes": tags, "number": ink}.items():
        lists.write_list(folder / f"{kind}.lst", range(300), labels.tolist(), [f"{n}.png" for n in range(300)])
        (folder / f"{kind}.txt").write_text("\n".join(NAMES[kind]))  # type: ignore[index]
    return folder


@pytest.fixture(scope="module")
def built(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[LabelKind], Path]:
    made: dict[str, Path] = {}

    def of(kind: LabelKind) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("set") / kind
            named = {"classes": photos / f"{kind}.txt", "label_kind": kind}
            plan = listing.plan(photos / f"{kind}.lst", photos, val_fraction=0.2, test_fraction=0.2, **named)  # type: ignore[arg-type]
            build(plan, made[kind], BuildOptions(resize=0, workers=1))
        return made[kind]

    return of


def recipe_of(records: Path, engine: str, kind: LabelKind, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "network": "shallownet", "records": str(records), "engine": engine, "devices": "cpu", "epochs": 3,
            "batch_size": 30, "precision": "float32", "input": {"size": 16, "crop_fraction": 1.0},
            "augmentation": {"crop": "random", "pad": 1, "flip": 0.0}, "loss": {"kind": LOSSES[kind]},
            "optimizer": {"name": "adam", "learning_rate": 0.003, "weight_decay": 0.0}, "loader": {"threads": 0},
            **changes,
        },
        strict=False,
    )  # fmt: skip


Trained = Callable[[str, LabelKind], Path]


@pytest.fixture(scope="module")
def trained(built: Callable[[LabelKind], Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of three epochs, made once for an engine and a kind of label."""
    made: dict[tuple[str, str], Path] = {}

    def run(engine: str, kind: LabelKind) -> Path:
        if (engine, kind) not in made:
            made[engine, kind] = tmp_path_factory.mktemp("run") / "whole"
            api.train(recipe_of(built(kind), engine, kind), run=made[engine, kind])
        return made[engine, kind]

    return run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", LOSSES)
def test_training_learns_and_goes_on_to_the_same_bytes(
    engine: str, kind: LabelKind, trained: Trained, built: Callable[[LabelKind], Path], tmp_path: Path
) -> None:
    whole, parts = trained(engine, kind), tmp_path / "parts"
    header, *rows = (whole / "history.csv").read_text().splitlines()
    first, second = ("accuracy", "exact") if kind == "classes" else ("mae", "rmse")
    assert header.startswith(f"epoch,step,learning_rate,train_loss,train_{first},train_{second},validation_loss,")
    losses = [float(row.split(",")[6]) for row in rows]
    assert losses[2] < 0.8 * losses[0]
    api.train(recipe_of(built(kind), engine, kind), run=parts, steps=8)  # six are an epoch
    api.train(parts, resume="latest", epochs=3)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (parts / "checkpoints/latest" / name).read_bytes() == (whole / "checkpoints/latest" / name).read_bytes()
    assert [row.split(",")[:9] for row in (parts / "history.csv").read_text().splitlines()[1:]] == [
        row.split(",")[:9] for row in rows
    ]
    assert json.loads((whole / "checkpoints/latest/state.json").read_text())["label_kind"] == kind


@pytest.mark.gluon
@pytest.mark.pytorch
def test_the_engines_train_alike(trained: Trained) -> None:
    for kind in LOSSES:
        histories = [(trained(engine, kind) / "history.csv").read_text().splitlines() for engine in ENGINES]
        rows = [np.array([row.split(",")[3:9] for row in lines[1:]], np.float64) for lines in histories]
        np.testing.assert_allclose(rows[0][:, 0], rows[1][:, 0], rtol=0.1)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_classes_are_scored_as_scikit_learn_does(engine: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(engine, "classes")
    found = evaluate_vectors(run)
    truths, odds = found.outcomes.targets, found.outcomes.outputs
    figures, probabilities = found.evaluation.figures, 1 / (1 + np.exp(-odds))
    assert len(truths) == found.evaluation.images == 60
    assert figures["mean_average_precision"] == pytest.approx(100 * average_precision_score(truths, odds))
    assert figures["f1"] == pytest.approx(100 * f1_score(truths, odds > 0, average="micro"))
    for label, row in enumerate(found.evaluation.per_label):
        of = truths[:, label], odds[:, label] > 0
        assert row["name"] == NAMES["classes"][label]
        assert row["positives"] == truths[:, label].sum()
        assert row["precision"] == pytest.approx(100 * precision_score(*of, zero_division=0))
        assert row["recall"] == pytest.approx(100 * recall_score(*of))
    wanted = np.mean([log_loss(truths[:, label], probabilities[:, label]) for label in range(3)])
    assert found.evaluation.loss == pytest.approx(wanted)
    result = api.evaluate(run, report=tmp_path / "page.html")
    assert isinstance(result, VectorEvaluation)
    assert result.figures == figures
    assert json.loads((tmp_path / "page.json").read_text())["figures"] == figures
    assert "even" in (tmp_path / "page.html").read_text()
    assert "| even |" in (tmp_path / "page.md").read_text()
    assert any(line.startswith("mAP") for line in lines_of(result))


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_are_scored_as_scikit_learn_does(engine: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(engine, "number")
    found = evaluate_vectors(run)
    of = found.outcomes.targets, found.outcomes.outputs
    figures = found.evaluation.figures
    assert figures["mae"] == pytest.approx(mean_absolute_error(*of))
    assert figures["rmse"] == pytest.approx(mean_squared_error(*of) ** 0.5)
    assert figures["r2"] == pytest.approx(r2_score(*of))
    assert found.evaluation.loss == pytest.approx(figures["rmse"] ** 2)
    api.evaluate(run, report=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('<circle class="dot"') == 60


@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_are_told_their_labels(engine: str, trained: Trained, photos: Path, tmp_path: Path) -> None:
    (named,) = api.predict(trained(engine, "classes"), photos / "2.png")
    assert all(choice.probability > 0.5 for choice in named.top)
    assert {choice.name for choice in named.top} <= {*NAMES["classes"]}
    (counted,) = api.predict(trained(engine, "number"), photos / "2.png")
    assert counted.top == ()
    assert [amount.name for amount in counted.numbers] == ["ink"]
    seen = draw_grad_cam(trained(engine, "classes"), [photos / "2.png"], tmp_path / "maps.png").images[0]
    assert seen.class_name in NAMES["classes"]
    with pytest.raises(BadInput, match="Grad-CAM asks for a class, and this run says numbers"):
        draw_grad_cam(trained(engine, "number"), [photos / "2.png"], tmp_path / "numbers.png")
    assert not (tmp_path / "numbers.png").exists()


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        (
            "classes",
            "cross_entropy",
            "cross_entropy does not fit.*any number of classes.*expected binary_cross_entropy",
        ),
        ("classes", "mse", "mse does not fit"),
        ("number", "hinge", "hinge does not fit.*numbers for labels.*expected mae or mse or huber"),
    ],
)
def test_a_loss_that_does_not_fit_the_labels(
    kind: LabelKind, loss: str, message: str, built: Callable[[LabelKind], Path], tmp_path: Path
) -> None:
    with pytest.raises(BadRecipe, match=message):
        api.train(recipe_of(built(kind), "auto", kind, loss={"kind": loss}), run=tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_for_one_class_each_says_so(engine: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(engine, "classes")
    with pytest.raises(BadInput, match=r"`features` takes records of one class each.*several classes"):
        extract(run, "flatten", tmp_path / "features.npz")
    with pytest.raises(BadInput, match="scoring by rank takes records of one class each"):
        examine([run])
    with pytest.raises(BadRecipe, match="for records of one class each"):
        api.evaluate(run, real_labels=tmp_path / "real.json")


def verb(*words: str | Path) -> object:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return ended.value.code or 0


@pytest.mark.pytorch
@pytest.mark.parametrize("kind", LOSSES)
def test_an_export_says_its_kind_of_labels_and_comes_back_with_it(
    kind: LabelKind,
    trained: Trained,
    built: Callable[[LabelKind], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained("pytorch", kind)
    assert verb("export", run, "--format", "onnx", "--checkpoint", "latest", "--out", tmp_path / "net") == 0
    card = json.loads((tmp_path / "net.onnx.json").read_text())
    assert card["output"].startswith({"classes": "a logit a class", "number": "the numbers themselves"}[kind])
    sources: dict[str, tuple[str | Path, ...]] = {"alone": (), "beside": ("--records", built(kind))}
    for name, records in sources.items():
        assert verb("import", "--onnx", tmp_path / "net.onnx", "--out", tmp_path / name, *records) == 0
        # In float32: among scores in bfloat16, which "auto" may choose, ranks change places.
        exact: dict[str, object] = {"precision": "float32"}
        back = evaluate_vectors(tmp_path / name, "latest", records=built(kind), overrides=exact).evaluation
        own = evaluate_vectors(run, "latest", overrides=exact).evaluation
        assert back.figures == pytest.approx(own.figures, rel=1e-4)
    assert api.train(tmp_path / "beside", resume="latest", options={"epochs": 1, "devices": "cpu"}).finished
    assert verb("export", run, "--format", "onnx", "--int8", "--out", tmp_path / "small") == 3
    assert "--int8 takes records of one class each" in capsys.readouterr().err
    assert not [*tmp_path.glob("small*")]


@given(st.data())
def test_average_precision_is_scikit_learn_s(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    truths = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count)), np.float64)
    found = average_precision(truths, scores)
    if not truths.any():
        assert found is None
    else:
        assert found == pytest.approx(100 * average_precision_score(truths, scores))


def test_crops_average_probabilities_and_numbers() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 3)) * 5
    odds = outputs_of(logits, "classes", 2)
    mean = (1 / (1 + np.exp(-logits))).reshape(3, 2, 3).mean(axis=1)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), mean, rtol=1e-12)
    np.testing.assert_allclose(outputs_of(logits, "number", 2), logits.reshape(3, 2, 3).mean(axis=1))
    far = np.array([[800.0, -800.0]])
    np.testing.assert_array_equal(outputs_of(far, "classes"), far)
    assert losses_of(far, np.array([[1.0, 0.0]]), LossRecipe(kind="binary_cross_entropy")) == 0


def test_labels_without_a_positive_or_a_spread_have_no_figure() -> None:
    table = ClassTable("list", ("a", "b"), ("a", "b"), "classes")
    targets = np.array([[1.0, 0.0], [0.0, 0.0]])
    figures, per_label = class_figures(VectorOutcomes(np.arange(2), targets, targets - 0.5, np.zeros(2)), table)
    assert [row["average_precision"] for row in per_label] == [100.0, None]
    assert figures["mean_average_precision"] == 100.0
    same = VectorOutcomes(np.arange(2), np.ones((2, 1)), np.zeros((2, 1)), np.zeros(2))
    figures, per_label = number_figures(same, ClassTable("list", ("a",), ("a",), "number"))
    assert (figures, per_label[0]["r2"]) == ({"mae": 1.0, "rmse": 1.0}, None)
