"""Several checkpoints scored beside each other and together, against their mean probabilities worked out in NumPy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from imagenet_pipeline.record_builders.imagenet_devkit import parse_devkit, validation_labels

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.compare import Ensemble, examine
from imagenet_pipeline.evaluation.evaluate import Crops, Evaluation, evaluate, open_checkpoint
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.record_builders import folder
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from imagenet_pipeline.training.engine_setup import build_engine


@pytest.fixture(scope="session")
def three_runs(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two networks, both engines (where both are installed) and three views."""
    place = tmp_path_factory.mktemp("runs")
    return [
        make_run(place / "one"),
        make_run(place / "two", engine="auto", seed=2, crop_fraction=1.0),
        make_run(place / "three", network="shallownet", size=32, seed=3),
    ]


def together(runs: list[Path], crops: Crops = 1) -> Ensemble:
    result = examine(runs, crops=crops).result
    assert isinstance(result, Ensemble)
    return result


def probabilities(run: Path, crops: Crops) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], list[int]]:
    """Of every test image, the plain way, with its label."""
    recipe, checkpoint = open_checkpoint(run, "best", {})
    state, engine = checkpoint.state, build_engine(recipe, checkpoint.state, checkpoint.weights)
    rows, labels = [], []
    with RecordSet.open(Path(recipe.records), "test") as records:
        loader = Loader(records, state.input_size, 1, threads=0)
        with loader.evaluation(state.crop_fraction, crops) as batches:
            for batch in batches:
                scores = np.exp(engine.logits(batch.images))
                rows.append((scores / scores.sum(1, keepdims=True)).mean(0))
                labels.append(int(batch.labels[0]))
    return np.array(rows), labels


@pytest.mark.parametrize("crops", [1, 2])
def test_an_ensemble_scores_the_mean_of_its_members_probabilities(three_runs: list[Path], crops: Crops) -> None:
    result = together(three_runs, crops)
    mean, labels = sum(probabilities(run, crops)[0] for run in three_runs) / 3, probabilities(three_runs[0], crops)[1]
    ranked = np.argsort(-mean, axis=1)
    assert (result.images, result.split, result.classes) == (12, "test", 6)
    assert result.rank1_hits == sum(int(row[0] == label) for row, label in zip(ranked, labels, strict=True))
    assert result.rank5_hits == sum(label in row[:5] for row, label in zip(ranked, labels, strict=True))
    assert result.rank1 == pytest.approx(100 * result.rank1_hits / 12)
    np.testing.assert_allclose(result.loss, -np.log(mean[np.arange(12), labels]).mean(), rtol=1e-9)


def test_each_member_s_own_figures_are_those_of_its_own_evaluation(three_runs: list[Path]) -> None:
    for member, run in zip(together(three_runs).members, three_runs, strict=True):
        alone = evaluate(run)
        assert (member.rank1_hits, member.rank5_hits, member.images) == (alone.rank1_hits, alone.rank5_hits, 12)
        np.testing.assert_allclose(member.loss, alone.loss, rtol=1e-12)
        assert (member.engine, member.weights_digest) == (alone.engine, alone.weights_digest)


def test_one_run_is_the_case_of_one_member(three_runs: list[Path]) -> None:
    found = examine(three_runs[:1])
    assert isinstance(found.result, Evaluation)
    assert found.evaluations == [found.result]
    assert found.outcomes is found.own[0]
    assert (found.result.rank1_hits, found.result.loss) == (
        evaluate(three_runs[0]).rank1_hits,
        evaluate(three_runs[0]).loss,
    )


def test_a_run_twice_scores_as_it_does_once(three_runs: list[Path], tmp_path: Path) -> None:
    again = Path(shutil.copytree(three_runs[0], tmp_path / "again", symlinks=True))
    result, alone = together([three_runs[0], again]), evaluate(three_runs[0])
    assert (result.rank1_hits, result.rank5_hits) == (alone.rank1_hits, alone.rank5_hits)
    np.testing.assert_allclose(result.loss, alone.loss, rtol=1e-9)
    # The very same folder, given twice, is one.
    assert examine([three_runs[0]] * 2).result.run == alone.run  # type: ignore[union-attr]


def test_several_checkpoints_of_a_run_are_members(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = load_checkpoint(run / "checkpoints" / "epoch-0001")
    state = type(first.state)(**{**vars(first.state), "epoch": 4, "metrics": {}})
    save_checkpoint(run, state, {name: value * 1.5 for name, value in first.weights.items()}, {})
    found = examine([run], ["4", "best", "1"])
    # The best is epoch 1.
    assert [member.epoch for member in found.evaluations] == [4, 1]
    assert [member.loss for member in found.evaluations] == [evaluate(run, str(epoch)).loss for epoch in (4, 1)]
    with pytest.raises(BadRecipe, match="no checkpoint of epoch 2"):
        examine([run], ["1", "2"])


def test_other_classes_are_an_error_that_names_both_runs(
    make_run: Callable[..., Path], three_runs: list[Path], tmp_path: Path
) -> None:
    more = make_run(tmp_path / "more", classes=tuple(f"class{number}" for number in range(7)))
    with pytest.raises(BadInput, match=r"one and .*more differ; expected 6 classes; found 7; an ensemble"):
        examine([three_runs[0], more])
    turned = make_run(tmp_path / "turned", classes=tuple(f"class{number}" for number in (1, 0, 2, 3, 4, 5)))
    with pytest.raises(BadInput) as caught:
        examine([three_runs[0], turned])
    assert str(caught.value) == (
        f"the class tables of {three_runs[0]} and {turned} differ; expected label 0 = class0; found class1; an "
        "ensemble needs runs that tell the same classes apart"
    )


def test_records_of_some_of_the_classes_are_scored_in_the_network_s_own(
    make_run: Callable[..., Path], photo_records: Path, tmp_path: Path
) -> None:
    ids = ("x", "class5", "class1", "class2", "class3", "class4", "class0", "y")
    found = examine([make_run(tmp_path / "wider", classes=ids)], records=photo_records)
    assert {ids[label] for label in found.outcomes.labels} == {f"class{number}" for number in range(6)}
    with RecordSet.open(photo_records, "test") as records:
        assert [f"class{int(label)}" for label in records.first_labels()] == [ids[n] for n in found.outcomes.labels]
    assert found.notes == ["the records have 6 of the network's 8 classes, matched by class id"]


def test_a_split_that_is_not_there_and_a_key_of_training_are_refused(three_runs: list[Path]) -> None:
    with pytest.raises(BadRecipe, match="no split 'all'; expected one of train, val, test"):
        examine(three_runs, split="all")
    with pytest.raises(BadRecipe, match="'epochs' does not apply"):
        examine(three_runs, overrides={"epochs": 3})


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8))


def test_imagenetv2_s_folders_are_scored_by_their_numbers(make_run: Callable[..., Path], tmp_path: Path) -> None:
    wnids = tuple(f"n{number:08d}" for number in range(7, 7007, 7))
    for number in range(1000):
        noise(tmp_path / "v2" / str(number) / "image.png", number)
    build(folder.plan(tmp_path / "v2", 0.0, 0.0), tmp_path / "records", BuildOptions(resize=0, workers=1))
    run = make_run(tmp_path / "run", classes=wnids)
    found = examine([run], split="train", records=tmp_path / "records", overrides={"batch_size": 500})
    rows = {row.index: int(row.path.split("/")[0]) for row in read_list(tmp_path / "records" / "train.lst")}
    assert found.outcomes.labels.tolist() == [rows[number] for number in found.outcomes.numbers.tolist()]
    assert sorted(found.outcomes.labels.tolist()) == list(range(1000))
    assert found.table.ids == wnids
    assert "0 to 999" in found.notes[0]


def test_real_labels_are_those_of_the_images_that_the_records_name(
    make_run: Callable[..., Path], unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    meta = unpacked("imagenet_meta.tar.xz") / "imagenet_meta"
    kit = parse_devkit(meta / "devkit" / "data")
    labels = validation_labels(kit)[:40].tolist()
    for number, label in enumerate(labels, 1):
        noise(tmp_path / "photos" / kit.classes.ids[label] / f"ILSVRC2012_val_{number:08d}.png", number)
    build(folder.plan(tmp_path / "photos", 0.0, 0.0), tmp_path / "records", BuildOptions(resize=0, workers=1))
    run = make_run(tmp_path / "run", classes=kit.classes.ids)
    found = examine([run], split="train", records=tmp_path / "records", real=meta / "real.json")
    lists = json.loads((meta / "real.json").read_text())[:40]
    assert found.real is not None
    rows = {row.index: int(row.path[-12:-4]) for row in read_list(tmp_path / "records" / "train.lst")}
    first = {rows[n]: guess for n, guess in zip(found.outcomes.numbers.tolist(), found.outcomes.top[:, 0], strict=True)}
    rate = found.real.rate(found.outcomes.numbers, found.outcomes.top[:, 0])
    assert rate.images == sum(map(bool, lists)) < 40
    assert rate.hits == sum(first[number] in shown for number, shown in enumerate(lists, 1))
    with pytest.raises(BadInput, match="not a JSON file"):
        examine([run], split="train", records=tmp_path / "records", real=run / "recipe.toml")
