"""Averaged weights: against NumPy's mean and torch's update_bn, on both engines, greedy by the figures of a split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as pytorch
from safetensors.numpy import load_file

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.engines import FRAMEWORKS, is_installed
from imagenet_pipeline.errors import BadInput, BadRecipe, PipelineError
from imagenet_pipeline.evaluation.averaging import average
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import load_checkpoint
from imagenet_pipeline.training.data import loader_of
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

torch: Any = pytorch
ENGINES = [engine for engine in FRAMEWORKS if is_installed(engine)]
KEYS = {
    "epochs": 4, "batch_size": 300, "input.size": 8, "devices": "cpu", "engine": ENGINES[-1], "loader.threads": 0,
    "augmentation.crop": "centre", "augmentation.flip": 0.5, "optimizer.learning_rate": 0.05,
}  # fmt: skip
"""Three whole batches of digits an epoch."""


def go(records: Path, folder: Path, **keys: Any) -> Path:
    made = load_recipe("demo", {"records": str(records), **KEYS, **keys})
    train(open_run(made, folder=folder))
    return folder


@pytest.fixture(scope="module")
def plain(digits_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 epochs, without running statistics."""
    return go(digits_records, tmp_path_factory.mktemp("runs") / "plain", network="mlp:32")


@pytest.fixture(scope="module")
def normalised(digits_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return go(digits_records, folder / "normalised", network="mlp:32", **{"network_options.normalisation": "before"})


def weights(run: Path, epoch: int = 0) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"epoch-{epoch:04d}" / "weights.safetensors")


def test_the_uniform_mean_is_numpy_s_and_makes_a_run_like_any_other(plain: Path, tmp_path: Path) -> None:
    made = average([plain], tmp_path / "mean", epochs="2-4")
    parts = [weights(plain, epoch) for epoch in (2, 3, 4)]
    for name, value in weights(tmp_path / "mean").items():
        wanted = np.mean([part[name] for part in parts], axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(value, wanted)
    assert (made.statistics_images, made.precision) == (0, None), "nothing was computed"
    assert [part.checkpoint for part in made.parts] == ["epoch-0002", "epoch-0003", "epoch-0004"]
    assert Journal(tmp_path / "mean").events()[-1]["averaged"]["parts"] == [vars(part) for part in made.parts]
    assert evaluate(tmp_path / "mean", split="val").images == 300
    train(open_run(tmp_path / "mean", {"epochs": 1}, resume="latest"))
    assert load_checkpoint(tmp_path / "mean" / "checkpoints" / "latest").state.epoch == 1


def micro_batches(run: Path, epoch: int) -> Iterator[Any]:
    """The training images of an epoch as a device had them at a time, as uint8 [n, height, width, channels]."""
    recipe = load_recipe(run / "recipe.toml")
    with (
        RecordSet.of(read_data_set(recipe.records), "train") as records,
        loader_of(recipe, records, 8, 10).training(recipe.seed, epoch, recipe.augmentation) as produced,
    ):
        for batch in produced:
            yield from np.split(batch.images.copy(), recipe.accumulation)


MIXED = {"augmentation.mixup": 0.4, "augmentation.mix_epochs": 3, "accumulation": 4, "loader.repeats": 2}


@pytest.mark.parametrize(
    ("keys", "which", "epochs"),
    [({}, "2-4", [3]), ({}, "2-3", [2]), (MIXED, "2-4", [3, 4])],
    ids=["last", "before", "mixed at first"],
)
def test_statistics_are_those_of_torch_s_update_bn_in_the_last_epoch_averaged(
    keys: dict[str, Any], which: str, epochs: list[int], normalised: Path, digits_records: Path, tmp_path: Path
) -> None:
    """torch's variances are those of n - 1, as PyTorch keeps them; ours are what both engines keep.

    Where an epoch is repeated half of the images, the next has the others.
    """
    run = normalised
    if keys:
        options = {"network_options.normalisation": "before", **keys}
        run = go(digits_records, tmp_path / "run", network="mlp:32", **options)
    made = average([run], tmp_path / "mean", epochs=which, overrides={"precision": "float64"})
    assert made.statistics_images == 900 * len(epochs)
    state = load_checkpoint(tmp_path / "mean" / "checkpoints" / "latest").state
    found = weights(tmp_path / "mean")
    held = [images for epoch in epochs for images in micro_batches(run, epoch)]
    pixels = [(images - np.array(state.mean)) / np.array(state.std) for images in held]
    flat = [images.transpose(0, 3, 1, 2).reshape(len(images), -1) for images in pixels]
    hidden = [rows @ found["dense1.weight"].T.astype(np.float64) + found["dense1.bias"] for rows in flat]
    twin = torch.nn.BatchNorm1d(32).double()
    torch.optim.swa_utils.update_bn([torch.from_numpy(rows) for rows in hidden], twin)
    (mean,) = (name for name in found if name.endswith("running_mean"))
    np.testing.assert_allclose(found[mean], twin.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    variance = found[mean.replace("mean", "var")]
    biased = np.mean([rows.var(0) for rows in hidden], axis=0)
    assert min(np.abs(variance / one - 1).max() for one in (twin.running_var.numpy(), biased)) < 1e-5


@pytest.mark.skipif(len(ENGINES) < 2, reason="needs both engines")
def test_both_engines_make_the_same_run(normalised: Path, tmp_path: Path) -> None:
    for engine in ENGINES:
        average([normalised], tmp_path / engine, last=2, overrides={"engine": engine, "precision": "float64"})
    first, second = (weights(tmp_path / engine) for engine in ENGINES)
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-6, atol=1e-7)


def test_statistics_of_frozen_layers_stay(normalised: Path, digits_records: Path, tmp_path: Path) -> None:
    first, *later = (name.removesuffix(".running_mean") for name in weights(normalised, 1) if name.endswith("_mean"))
    options = {"network_options.normalisation": "before", "transfer.frozen": {first: 4}, "epochs": 3}
    run = go(digits_records, tmp_path / "frozen", network="mlp:32,16", **options)
    average([run], tmp_path / "mean", epochs="2-3")
    before, made = weights(run, 2), weights(tmp_path / "mean")
    assert later == []
    assert np.array_equal(made[f"{first}.running_var"], before[f"{first}.running_var"])
    others = [name for name in made if name.endswith("running_var") and not name.startswith(first)]
    assert others
    assert not any(np.array_equal(made[name], before[name]) for name in others)


def test_the_greedy_mean_keeps_what_leaves_it_no_worse(plain: Path, tmp_path: Path) -> None:
    """Against every step by hand: means in NumPy, scored as runs of their own."""
    made = average([plain], tmp_path / "soup", epochs="1-4", greedy=True)
    alone = {epoch: evaluate(plain, str(epoch), "val").rank1 for epoch in (1, 2, 3, 4)}
    assert {int(part.checkpoint[-1]): part.value for part in made.parts} == pytest.approx(alone)
    first, *others = sorted(alone, key=lambda epoch: -alone[epoch])
    kept, best = [first], alone[first]
    for number, epoch in enumerate(others):
        folder = tmp_path / str(number)
        average([plain], folder, epochs=",".join(map(str, [*kept, epoch])))
        if (found := evaluate(folder, split="val").rank1) >= best:
            kept, best = [*kept, epoch], found
    assert {int(part.checkpoint[-1]) for part in made.parts if part.kept} == {*kept}
    assert (made.figure, made.value) == ("val_rank1", pytest.approx(best))
    assert best >= max(alone.values())
    assert evaluate(tmp_path / "soup", split="val").rank1 == pytest.approx(best)


def test_a_mean_is_a_run_with_a_network_file_only_where_its_parts_are(
    digits_records: Path, plain: Path, tmp_path: Path
) -> None:
    lenet = go(digits_records, tmp_path / "lenet", network="lenet", **{"input.size": 28, "epochs": 2})
    for run, has_file in ((lenet, False), (plain, True)):
        made = tmp_path / f"mean of {run.name}"
        average([run], made, last=2)
        assert (made / "network.json").exists() == (run / "network.json").exists() == has_file
        assert evaluate(made, split="val").images == 300


def test_several_runs_of_a_network_give_their_best(plain: Path, tmp_path: Path) -> None:
    again = shutil.copytree(plain, tmp_path / "again", symlinks=True)
    made = average([plain, again], tmp_path / "mean")
    assert len(made.parts) == 2
    best = load_checkpoint(plain / "checkpoints" / "best").weights
    for name, value in weights(tmp_path / "mean").items():
        np.testing.assert_array_equal(value, best[name])


def test_runs_drawn_by_other_seeds_are_averaged_with_a_warning(
    plain: Path, digits_records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = go(digits_records, tmp_path / "other", network="mlp:32", seed=9, epochs=1)
    average([plain, other], tmp_path / "mean")
    assert "began with weights drawn by other seeds (42, 9)" in caplog.text
    caplog.clear()
    average([plain], tmp_path / "own", last=2)
    assert "other seeds" not in caplog.text


def test_the_last_epochs_are_those_that_follow_each_other(plain: Path, tmp_path: Path) -> None:
    """A run keeps its best epoch, too, however old."""
    run = shutil.copytree(plain, tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "checkpoints" / "epoch-0003")
    with pytest.raises(BadRecipe, match=r"keeps fewer epochs; expected 2; found 2 whole epochs: 2, 4; train with"):
        average([run], tmp_path / "mean", last=2)


FAULTS: dict[str, tuple[dict[str, Any], type[PipelineError], str]] = {
    "not kept": ({"epochs": "3-6"}, BadRecipe, r"no checkpoint of epoch 5; expected latest, best or one of 1, 2, 3, 4"),
    "one": ({"epochs": "3"}, BadRecipe, r"a mean needs two checkpoints at least; found 1 checkpoint"),
    "the same": ({"epochs": "4,4,latest"}, BadRecipe, r"a mean needs two checkpoints at least; found 1 checkpoint"),
    "none": ({}, BadRecipe, r"nothing says which epochs to average; expected --epochs 16-20 or --last 5"),
    "both": ({"epochs": "1-2", "last": 2}, BadRecipe, r"--epochs and --last both say which; give one of the two"),
    "words": ({"epochs": "4-2"}, BadRecipe, r"--epochs 4-2: not epochs of a run; expected 16-20 or 5,10,best"),
    "too many": ({"last": 9}, BadRecipe, r"the run keeps fewer epochs; expected 9; found 4 whole epochs"),
    "split": ({"last": 2, "greedy": True, "split": "holdout"}, BadRecipe, r"no split"),
    "key": ({"last": 2, "overrides": {"epochs": 3}}, BadRecipe, r"recipe key 'epochs' does not apply"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_averaged_is_one_line_and_makes_nothing(name: str, plain: Path, tmp_path: Path) -> None:
    words, kind, message = FAULTS[name]
    with pytest.raises(kind, match=message):
        average([plain], tmp_path / "mean", **words)
    assert not list(tmp_path.iterdir())


def test_runs_of_other_networks_and_folders_that_exist_are_refused(
    plain: Path, normalised: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"the checkpoint is of another network; expected mlp:32"):
        average([plain, normalised], tmp_path / "mean")
    with pytest.raises(BadRecipe, match=r"the folder exists already; choose another --out"):
        average([plain], tmp_path, last=2)
    with pytest.raises(BadRecipe, match="there is no run here"):
        average([tmp_path / "nothing"], tmp_path / "mean", last=2)


def test_the_verb_says_what_it_made(
    normalised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        assert ended.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    said = run("average", normalised, "--last", 2, "--greedy", "--out", tmp_path / "a", "devices=cpu")
    assert f"{tmp_path / 'a'}: the mean of " in said
    assert "val_rank1 " in said
    with pytest.raises(SystemExit):
        main(["average", str(normalised), "--last", "2", "--split", "val", "--out", str(tmp_path / "b")])
    assert capsys.readouterr().err.endswith("error: --split: has no effect without --greedy; found val\n")
    answer = json.loads(run("average", normalised, "--epochs", "3-4", "--out", tmp_path / "b", "--json"))
    assert (answer["run"], answer["statistics_images"], len(answer["parts"])) == (str(tmp_path / "b"), 900, 2)
