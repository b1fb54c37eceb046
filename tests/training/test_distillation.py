"""A run that has a teacher: what the teacher sees, what a restart makes of it, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.engines import FRAMEWORKS, is_installed
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, PipelineError
from imagenet_pipeline.loading.loader import Batch, Loader
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import load_checkpoint
from imagenet_pipeline.training.distillation import SCORES, Teacher, columns_of, resized
from imagenet_pipeline.training.engine_setup import build_engine
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.run import Run

ENGINES = [engine for engine in FRAMEWORKS if is_installed(engine)]
SMALL = {"network": "mlp:32", "input.size": 8, "epochs": 2, "precision": "float64", "augmentation.crop": "centre"}
TEACHER, SCORED = "distillation.teacher", "distillation.scores"


def go(recipe: Path, folder: Path, resume: str | None = None, **keys: Any) -> Path:
    train(open_run(recipe, keys if resume else {**SMALL, **keys}, folder, resume))
    return folder


@pytest.fixture(scope="module")
def teacher(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 2 epochs on the last of the engines, at 12 px; the second is the best."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return go(recipe, folder, engine=ENGINES[-1], **{"input.size": 12, "stopping.figure": "validation_loss"})


def student(recipe: Path, folder: Path, named: object, **keys: Any) -> Run:
    return open_run(recipe, {**SMALL, TEACHER: str(named), **keys}, folder)


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "latest" / "weights.safetensors").read_bytes()


def begun(run: Run) -> tuple[Teacher, list[Batch]]:
    """The teacher at work, and copies of the first batches of the run."""
    assert run.teacher
    with RecordSet.of(run.data, "train") as records:
        run.teacher.begin(run, records)
        loader = Loader(records, run.recipe.input.size, 120, threads=0, classes=10)
        batches = []
        with loader.training(42, 0, run.recipe.augmentation) as produced:
            for batch in produced:
                batches.append(Batch(batch.images.copy(), batch.labels.copy(), batch.records.copy(), 0, 0.0))
    run.resources.close()
    return run.teacher, batches


@pytest.mark.parametrize("engine", ENGINES)
def test_the_teacher_sees_the_student_s_batch_at_its_own_size(
    engine: str, recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    taught, batches = begun(student(recipe, tmp_path, teacher, engine=engine))
    checkpoint = load_checkpoint(teacher / "checkpoints" / "best")
    alone = build_engine(load_recipe(teacher / "recipe.toml"), checkpoint.state, checkpoint.weights)
    for batch in batches[:2]:
        enlarged = np.stack([cv2.resize(image, (12, 12), interpolation=cv2.INTER_LINEAR) for image in batch.images])
        np.testing.assert_array_equal(taught.logits(batch), alone.logits(enlarged))


def test_scores_of_records_are_those_of_evaluation_whatever_the_student_sees(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    taught, batches = begun(student(recipe, tmp_path, teacher, **{SCORED: "records"}))
    checkpoint = load_checkpoint(teacher / "checkpoints" / "best")
    alone = build_engine(load_recipe(teacher / "recipe.toml"), checkpoint.state, checkpoint.weights)
    known = {}
    with RecordSet.of(read_data_set(load_recipe(recipe).records), "train") as records:
        for seen in Loader(records, 12, 50, threads=0, classes=10).evaluation(0.875):
            known.update(zip(seen.records.tolist(), alone.logits(seen.images), strict=True))
    for batch in batches:
        wanted = np.stack([known[number] for number in batch.records.tolist()])
        np.testing.assert_allclose(taught.logits(batch), wanted, rtol=1e-6, atol=1e-6)
    assert np.load(tmp_path / SCORES).shape == (len(known),)


def test_a_run_without_labels_in_its_loss_still_learns_from_its_teacher(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    keys = {"engine": ENGINES[-1], "distillation.share": 1.0, "distillation.kind": "hard", SCORED: "records"}
    go(recipe, tmp_path, **{TEACHER: str(teacher), **keys})
    ranks = [Journal(run).events()[-2]["validation_rank1"] for run in (teacher, tmp_path)]
    assert min(ranks) > 25, "guessing has 10"


@pytest.mark.parametrize(("engine", "scores", "mixup"), [("gluon", "records", 0.0), ("pytorch", "batch", 0.4)])
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    engine: str, scores: str, mixup: float, recipe: Path, teacher: Path, tmp_path: Path, killed_at: Any
) -> None:
    keys = {TEACHER: str(teacher), SCORED: scores, "augmentation.mixup": mixup, "engine": engine}
    go(recipe, tmp_path / "whole", **keys)
    with killed_at(12):
        go(recipe, tmp_path / "broken", **keys, **{"checkpoint.every_steps": 5})
    made = (tmp_path / "broken" / SCORES).stat().st_mtime_ns if scores == "records" else None
    go(recipe, tmp_path / "broken", "latest")
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    assert made == ((tmp_path / "broken" / SCORES).stat().st_mtime_ns if made else None), "scored once"
    entry = next(event for event in Journal(tmp_path / "broken").events() if event["event"] == "start")["teacher"]
    assert entry["sha256"] == load_checkpoint(teacher / "checkpoints" / "best").weights_digest


def test_several_processes_write_the_scores_that_one_does(
    recipe: Path, tmp_path: Path, go_together: Callable[..., list[Any]]
) -> None:
    """Three have 399 records each; the batches of 120 leave 117, 39 for each."""
    assert go_together(1, recipe, tmp_path / "teacher", epochs=1)[0].finished
    keys = {"distillation__teacher": str(tmp_path / "teacher"), "distillation__scores": "records", "epochs": 1}
    for ranks in (1, 3):
        ends = go_together(ranks, recipe, tmp_path / str(ranks), **keys)
        assert all(getattr(end, "finished", False) for end in ends), ends
    scores, again = (np.load(tmp_path / ranks / SCORES) for ranks in ("1", "3"))
    assert (scores["number"] == again["number"]).all()
    assert scores["logits"].std() > 0.1
    np.testing.assert_array_equal(scores["logits"], again["logits"])


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, symlinks=True)
    return folder


def test_another_teacher_is_refused_and_the_same_may_have_moved(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run", **{TEACHER: str(teacher), "epochs": 1})
    moved = copied(teacher, tmp_path / "moved")
    go(recipe, tmp_path / "run", "latest", **{TEACHER: str(moved), "epochs": 2})
    with pytest.raises(
        BadInput, match=r"^distillation.teacher = .*:1': the teacher is not the one this run began with"
    ):
        go(recipe, tmp_path / "run", "latest", **{TEACHER: f"{teacher}:1", "epochs": 3})
    with pytest.raises(BadRecipe, match=r"recipe key 'distillation.teacher' cannot change within a run"):
        go(recipe, tmp_path / "run", "latest", **{TEACHER: "", "epochs": 3})
    go(recipe, tmp_path / "run", "latest", **{TEACHER: str(teacher), "epochs": 3, "distillation.kind": "hard"})


def test_changed_scores_are_refused_and_lost_ones_made_anew(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path, **{TEACHER: str(teacher), SCORED: "records", "epochs": 1})
    scores = tmp_path / SCORES
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Damaged, match=r"teacher-scores.npy: the file has changed since it was written; remove it"):
        go(recipe, tmp_path, "latest", epochs=2)
    scores.unlink()
    go(recipe, tmp_path, "latest", epochs=2)
    assert scores.read_bytes() == whole


def unfinished(run: Path, _: Path) -> str:
    journal = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(journal[:-1]))
    return str(run)


def nowhere(_: Path, folder: Path) -> str:
    return str(folder / "nothing")


def the_student(_: Path, folder: Path) -> str:
    return str(folder / "run")


def no_such_epoch(run: Path, _: Path) -> str:
    return f"{run}:7"


def other_classes(run: Path, _: Path) -> str:
    """A run whose best checkpoint says so, digests and all."""
    for state in run.glob("checkpoints/epoch-*/state.json"):
        content = json.loads(state.read_text())
        content["classes"][3] = "mongoose"
        state.write_text(json.dumps(content))
        reseal(state.parent)
    return str(run)


def vectors(run: Path, _: Path) -> str:
    for state in run.glob("checkpoints/epoch-*/state.json"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "label_kind": "classes"}))
        reseal(state.parent)
    return str(run)


def grey(run: Path, _: Path) -> str:
    for state in run.glob("checkpoints/epoch-*/state.json"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "mean": [1.0], "std": [1.0]}))
        reseal(state.parent)
    return str(run)


def wide(run: Path, _: Path) -> str:
    for state in run.glob("checkpoints/epoch-*/state.json"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "input_size": [8, 18]}))
        reseal(state.parent)
    return str(run)


def reseal(checkpoint: Path) -> None:
    names = ("weights.safetensors", "optimizer.safetensors", "state.json")
    sums = "".join(f"{files.sha256_of(checkpoint / name)}  {name}\n" for name in names)
    (checkpoint / "SHA256SUMS").write_text(sums)


FAULTS: dict[Callable[[Path, Path], str], tuple[type[PipelineError], str]] = {
    unfinished: (BadRecipe, r"the teacher is not finished: its best checkpoint may change; let it end, or name its ep"),
    nowhere: (BadRecipe, r"the teacher is no run with a checkpoint; expected RUN or RUN:EPOCH"),
    the_student: (BadRecipe, r"a run cannot be its own teacher; name another run"),
    no_such_epoch: (BadRecipe, r"no checkpoint of epoch 7; expected latest, best or one of 1, 2"),
    other_classes: (
        BadInput,
        r"the teacher does not know 1 class of the records; expected one that does: .* \(1 in all",
    ),
    vectors: (BadInput, r"a teacher takes records of one class each; found labels that are several classes"),
    grey: (
        BadInput,
        r"the teacher looks at images of another kind; expected RGB images, as the student; found grey im",
    ),
    wide: (
        BadInput,
        r"the teacher looks at images of another kind; expected 8 px, as the student; found 8x18 px; dist",
    ),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_teacher_that_cannot_teach_is_one_line_and_begins_nothing(
    fault: Callable[[Path, Path], str], recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    named = fault(copied(teacher, tmp_path / "teacher"), tmp_path)
    kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message) as raised:
        student(recipe, tmp_path / "run", named)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_an_unfinished_run_teaches_by_its_epoch(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    named = unfinished(copied(teacher, tmp_path / "teacher"), tmp_path)
    opened = student(recipe, tmp_path / "run", f"{named}:1")
    opened.resources.close()
    assert opened.teacher is not None
    assert opened.teacher.checkpoint.state.epoch == 1


def test_a_teacher_of_more_classes_gives_the_scores_of_the_student_s(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    """In another order, too: its outputs go by the classes' ids."""
    opened = student(recipe, tmp_path / "run", teacher)
    opened.resources.close()
    assert opened.teacher
    ids = opened.data.classes.ids
    assert opened.teacher.columns.tolist() == list(range(10))
    state = opened.teacher.checkpoint.state
    shuffled = replace(state, classes=("other", *reversed(ids)), class_names=("other", *reversed(ids)))
    assert columns_of(shuffled, opened.data, "").tolist() == list(range(10, 0, -1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distillation.kind": "hard"}, r"'distillation.kind': has no effect without teacher"),
        ({TEACHER: "x", "distillation.kind": "hard", "distillation.temperature": 2.0}, r"no effect on kind \"hard\""),
        ({TEACHER: "x", "loss.kind": "mse"}, r"'distillation.teacher': goes with cross_entropy, focal or hinge, not m"),
        ({TEACHER: "x", "loss.kind": "binary_cross_entropy"}, r"goes with cross_entropy, focal or hinge"),
        ({TEACHER: "x", SCORED: "records", "augmentation.mixup": 0.2}, r"'distillation.scores': must be \"batch\" whe"),
        ({TEACHER: "x", "batch_size": "auto"}, r"'batch_size': must be a number beside a teacher"),
        ({TEACHER: "x", "distillation.share": 0.0}, r"'distillation.share'"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(recipe: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        load_recipe(recipe, keys)


def test_images_are_averaged_down_and_interpolated_up() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    halves = images.reshape(2, 4, 2, 4, 2, 1).mean((2, 4))
    assert np.abs(resized(images, 4) - halves).max() <= 0.5
    assert resized(images, 8) is images
    assert resized(images, (16, 12)).shape == (2, 16, 12, 1)


def test_what_trains_without_a_run_says_that_the_teacher_has_no_part(
    recipe: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from imagenet_pipeline.training.engine_setup import fresh_engine

    caplog.set_level(logging.INFO)
    made = load_recipe(recipe, {**SMALL, TEACHER: str(teacher)})
    fresh_engine(made, read_data_set(made.records))
    assert "the teacher takes no part here" in caplog.text
