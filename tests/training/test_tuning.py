"""Hyperparameter search: what a word of the command line searches, and studies that are killed, pruned and refused."""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.errors import BadRecipe, Damaged, OutOfRoom, PipelineError
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.tuning_space import Range, Space, read_space

EPOCHS = 4
SPACE = ["optimizer.learning_rate=0.001..0.5", "optimizer.momentum=0..0.95", "optimizer.nesterov=true..false"]


def searched(recipe: Path, *words: str) -> Space:
    return read_space(recipe, words)[0]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("optimizer.learning_rate=0.001..0.5", Range(0.001, 0.5, whole=False, logarithmic=True)),
        ("optimizer.learning_rate=1e-2..0.05", Range(0.01, 0.05, whole=False, logarithmic=False)),
        ("optimizer.weight_decay=0..1", Range(0, 1, whole=False, logarithmic=False)),
        ("batch_size=16..256", Range(16, 256, whole=True, logarithmic=True)),
        ("schedule.warmup_epochs=0..2", Range(0, 2, whole=False, logarithmic=False)),
        ("batch_size=16..32..64", ("16", "32", "64")),
        ("optimizer.name=sgd..adamw", ("sgd", "adamw")),
        ("network=lenet..minivggnet", ("lenet", "minivggnet")),
        ("augmentation.area=[0.5, 1.0]..[0.8, 1.0]", None),
    ],
)
def test_words_are_ranges_or_choices(recipe: Path, word: str, kind: Range | tuple[str, ...] | None) -> None:
    if kind is None:  # a value that begins like a list or a path is no search
        with pytest.raises(BadRecipe, match="no key is searched"):
            searched(recipe, word)
        return
    assert searched(recipe, word).keys == {word.partition("=")[0]: kind}


@given(st.floats(1e-6, 1.0))
def test_a_trial_is_read_back_as_it_was_proposed(rate: float) -> None:
    space = Space({"optimizer.learning_rate": Range(1e-6, 1, False, True), "optimizer.name": ("sgd", "adam")})
    values = {"optimizer.learning_rate": rate, "optimizer.name": "adam"}
    assert space.changes(values) == values
    assert space.changes({"optimizer.name": "sgd"}) == {"optimizer.name": "sgd"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer.learning_rate=0.1..0.1"], "not a range or choices"),
        (["optimizer.learning_rate=0.5..0.1"], "the lower first"),
        (["optimizer.learning_rate=0.5.."], "not a range or choices"),
        (["optimizer.learning_rate=-1..0.1"], "greater than 0"),
        (["optimizer.name=sgd..sdg"], "did you mean sgd"),
        (["optimizer.larning_rate=0.1..0.5"], "did you mean optimizer.learning_rate"),
        (["records=a..b"], "trials on other records cannot be compared"),
        (["epochs=2..20"], "cannot be searched"),
        (["epochs=3"], "no key is searched"),
        (["network=lenet..minivgnet"], "did you mean minivggnet"),
        (["augmentation.mixup=0.2", "batch_size=7..13"], "must be even"),
        (["network=alexnet", "input.size=12", "optimizer.momentum=0..0.9"], "an input of 12x12 is too small"),
    ],
)
def test_a_range_without_sense_is_refused_before_anything_is_made(
    recipe: Path, tmp_path: Path, words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(recipe), *words, "--out", str(tmp_path / "study")])
    assert ended.value.code == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "study").exists()


class Killed(BaseException):
    """The searching process dies here."""


class Training:
    """Stands for the process of a run: each look at it is an epoch, whose figure is a function of the recipe."""

    looks_left = math.inf
    failing: dict[int, PipelineError] = {}  # noqa: RUF012
    fails_after = 1
    at_work: list[str] = []  # noqa: RUF012
    seen: set[tuple[str, ...]] = set()  # noqa: RUF012
    carried: dict[Path, Any] = {}  # noqa: RUF012

    def __init__(self, words: list[str], said: Path) -> None:
        self.run = Path(words[words.index("--run") + 1])
        keys = parse_overrides([word for word in words[2:] if "=" in word])
        begun = Journal(self.run).exists()
        assert ("--resume" in words) == begun
        # A key given again with --resume is a change, which a learning rate makes of the very next step.
        assert not (begun and keys.keys() - {"devices"})
        self.recipe = load_recipe(words[1], self.carried.setdefault(self.run, keys))
        self.returncode: int | None = None
        self.said, self.asked = said, False
        self.at_work.append(self.recipe.devices)
        if not Journal(self.run).exists():
            self.run.mkdir()
            Journal(self.run).write("start")

    def poll(self) -> int | None:
        Training.looks_left -= 1
        self.seen.add(tuple(sorted(self.at_work)))
        if Training.looks_left <= 0:
            raise Killed
        done = sum(event["event"] == "epoch" for event in Journal(self.run).events())
        if (error := self.failing.get(int(self.run.name))) and done == self.fails_after:
            self.said.write_text(f"pytorch on cpu\nerror: {error}\n")
            self.returncode = error.exit_code
        elif self.asked:
            self.returncode = 0
        elif done < EPOCHS:
            Journal(self.run).write("epoch", epoch=done + 1, step=done, validation_rank1=self.figure(done + 1))
        else:
            Journal(self.run).write("end")
            self.returncode = 0
        if self.returncode is not None:
            self.at_work.remove(self.recipe.devices)
        return self.returncode

    def figure(self, epoch: int) -> float:
        optimizer = self.recipe.optimizer
        distance = abs(math.log10(optimizer.learning_rate) + 1.5) + abs(optimizer.momentum - 0.8)
        return (90 - 20 * distance + 3 * optimizer.nesterov) * epoch / EPOCHS

    def send_signal(self, number: int) -> None:
        self.asked = True

    def wait(self) -> None:
        pass


@pytest.fixture
def studied(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study of made-up trainings, by its name: `studied(name, trials, ...)`; its picture only if `drawn`."""
    pytest.importorskip("optuna")
    from imagenet_pipeline.training import tuning, tuning_findings

    monkeypatch.setattr(tuning, "started_apart", Training)
    monkeypatch.setattr(tuning, "SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(Training, "looks_left", math.inf)
    monkeypatch.setattr(Training, "failing", {})
    monkeypatch.setattr(Training, "fails_after", 1)
    monkeypatch.setattr(Training, "at_work", [])
    monkeypatch.setattr(Training, "seen", set())

    draw = tuning_findings.draw_study

    def made(
        name: str, trials: int = 14, words: list[str] = SPACE, drawn: bool = False, **options: Any
    ) -> tuning_findings.Findings:
        monkeypatch.setattr(tuning_findings, "draw_study", draw if drawn else lambda *given: None)
        space, changes = read_space(recipe, words)
        plan = tuning.Plan(load_recipe(recipe, changes), space, tmp_path / name, trials, **options)
        return tuning.tune(plan, lambda done, total, state: None)

    return made


def known_of(found: Any) -> list[Any]:
    return [(trial.number, trial.state, trial.value, trial.epochs, trial.changes) for trial in found.trials]


def test_a_study_killed_anywhere_ends_as_if_it_had_not_been(studied: Any) -> None:
    whole = studied("whole", 10)
    assert whole.finished
    assert len(whole.trials) == 10
    assert {trial.state for trial in whole.trials} == {"complete", "pruned"}
    found = None
    for looks in itertools.chain((1, 3, 7, 13, 5), itertools.repeat(math.inf)):
        Training.looks_left = looks
        with contextlib.suppress(Killed):
            found = studied("killed", 10)
            break
    assert looks == math.inf
    assert known_of(found) == known_of(whole)
    assert found.best == whole.best


def test_the_first_trial_is_the_recipe_and_later_ones_are_better(studied: Any, recipe: Path) -> None:
    found = studied("study", 14, drawn=True)
    own = load_recipe(recipe).optimizer
    assert found.trials[0].changes["optimizer.learning_rate"] == own.learning_rate
    assert found.best.value > found.trials[0].value
    assert found.best.value == max(trial.value for trial in found.trials if trial.state == "complete")
    assert set(found.importance) == {word.partition("=")[0] for word in SPACE}
    assert sum(found.importance.values()) == pytest.approx(1)
    best = load_recipe(found.folder / "best.toml")
    assert {key: getattr(best.optimizer, key.partition(".")[2]) for key in found.importance} == {
        key: value == "true" if value in ("true", "false") else value for key, value in found.best.changes.items()
    }
    rows = list(csv.DictReader((found.folder / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == [trial.state for trial in found.trials]
    assert (found.folder / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_pruned_trial_was_below_the_median_of_its_epoch(studied: Any) -> None:
    found = studied("study", 10)
    curves = [list(Journal(found.folder / f"trials/{t.number:04d}").events()) for t in found.trials]
    figures = [[row["validation_rank1"] for row in rows if row["event"] == "epoch"] for rows in curves]
    pruned = [trial.number for trial in found.trials if trial.state == "pruned"]
    assert pruned
    assert min(pruned) >= 4
    for number in pruned:
        epochs = len(figures[number])
        whole = [trial.number for trial in found.trials[:number] if trial.state == "complete"]
        assert epochs < EPOCHS
        assert max(figures[number]) < statistics.median(figures[other][epochs - 1] for other in whole)
    assert not [trial for trial in studied("unpruned", 6, prune=False).trials if trial.state == "pruned"]


def test_several_places_take_trials_at_the_same_time(studied: Any) -> None:
    found = studied("study", 7, devices=("cpu:0", "cpu:1"))
    assert found.finished
    assert sorted(trial.number for trial in found.trials) == [*range(7)]
    assert Training.at_work == []
    assert Training.seen == {("cpu:0",), ("cpu:0", "cpu:1"), ("cpu:1",)}


def test_a_study_goes_on_to_more_trials_and_refuses_another_recipe(studied: Any) -> None:
    few = studied("study", 3)
    more = studied("study", 6)
    assert known_of(more)[:3] == known_of(few)
    for changed, says in (
        ({"words": [*SPACE, "batch_size=60"]}, "batch_size = 60"),
        ({"words": ["optimizer.learning_rate=0.001..0.4", *SPACE[1:]]}, "0.001..0.4"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(BadRecipe, match="of another") as refused:
            studied("study", 6, **changed)
        assert says in str(refused.value)
    assert known_of(studied("study", 6)) == known_of(more)


def test_a_trial_that_fails_is_told_and_the_others_go_on(studied: Any) -> None:
    diverged = BadRecipe("the loss is not finite (nan) at step 9, counted from 0")
    Training.failing = {2: diverged, 3: OutOfRoom("out of memory")}
    found = studied("study", 6)
    assert [trial.state for trial in found.trials][2:4] == ["pruned", "failed"]
    assert "not finite" in found.trials[2].reason
    assert "out of memory" in found.trials[3].reason
    assert found.finished


def test_the_error_of_the_first_trial_ends_the_search(studied: Any) -> None:
    Training.failing = {0: OutOfRoom("out of memory")}
    with pytest.raises(OutOfRoom, match="trial 0: out of memory"):
        studied("study", 6)
    Training.failing = {}
    found = studied("study", 2, words=[*SPACE, "batch_size=60"])
    assert [trial.state for trial in found.trials] == ["complete", "complete"]


def test_a_trial_that_fails_beside_another_is_told_and_the_search_goes_on(studied: Any) -> None:
    Training.failing, Training.fails_after = {1: OutOfRoom("out of memory")}, 0
    found = studied("study", 4, devices=("cpu:0", "cpu:1"))
    assert [trial.state for trial in found.trials] == ["complete", "failed", "complete", "complete"]


def test_where_no_trial_can_be_trained_not_all_of_them_are_spent(studied: Any, tmp_path: Path) -> None:
    Training.failing, Training.fails_after = dict.fromkeys(range(3), OutOfRoom("out of memory")), 0
    for _ in range(2):
        with pytest.raises(OutOfRoom, match="trial 1: out of memory"):
            studied("study", 3, devices=("cpu:0", "cpu:1"))
        assert len(list((tmp_path / "study/trials").glob("*.log"))) == 2
    Training.failing = {}
    found = studied("study", 3, devices=("cpu:0", "cpu:1"))
    assert [trial.state for trial in found.trials].count("failed") == 1
    assert found.finished


def test_a_first_trial_that_diverges_was_drawn_badly(studied: Any) -> None:
    diverged = BadRecipe("the loss is no longer finite (nan) at step 3, counted from 0")
    Training.failing, Training.fails_after = {0: diverged}, 0
    found = studied("study", 3, words=["optimizer.learning_rate=0.1..0.5", *SPACE[1:]])
    assert [trial.state for trial in found.trials] == ["pruned", "complete", "complete"]


def test_a_disk_that_fills_ends_the_search_and_fails_no_trial(studied: Any) -> None:
    whole = known_of(studied("whole", 4))
    Training.failing = {2: OutOfRoom(f"journal.jsonl: cannot be written ({os.strerror(errno.ENOSPC)})")}
    with pytest.raises(OutOfRoom, match=r"trial 2: .*No space left"):
        studied("study", 4)
    Training.failing = {}
    assert known_of(studied("study", 4)) == whole


def test_a_study_killed_while_it_was_made_is_made_again(studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    whole = known_of(studied("whole", 2))
    kept, keys = optuna.Study.set_user_attr, ["space", "recipe"]

    def killed(study: Any, key: str, value: Any) -> None:
        if key in keys:
            keys.remove(key)
            raise Killed
        kept(study, key, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            studied("study", 2)
    assert known_of(studied("study", 2)) == whole


def test_what_an_unfinished_study_has_trained_is_never_removed(studied: Any, tmp_path: Path) -> None:
    Training.looks_left = 3
    with pytest.raises(Killed):
        studied("study", 2)
    Training.looks_left = math.inf
    checkpoint = tmp_path / "study/trials/0000/checkpoints/epoch-0001"
    checkpoint.mkdir(parents=True)
    with pytest.raises(BadRecipe, match="of another seed"):
        studied("study", 2, seed=1)
    assert checkpoint.exists()


def test_trials_without_their_study_are_not_gone_on_with(studied: Any, tmp_path: Path) -> None:
    studied("study", 1)
    (tmp_path / "study/study.db").unlink()
    with pytest.raises(BadRecipe, match="trials without their study"):
        studied("study", 1, seed=1)


def test_the_database_is_in_the_folder_whatever_its_name_and_a_damaged_one_is_a_line(
    studied: Any, tmp_path: Path
) -> None:
    studied("ä?b c#d%20", 1)
    database = tmp_path / "ä?b c#d%20/study.db"
    assert database.read_bytes().startswith(b"SQLite")
    database.write_bytes(b"no database" * 100)
    with pytest.raises(Damaged, match="file is not a database") as refused:
        studied("ä?b c#d%20", 1)
    assert str(database) in str(refused.value)


def test_a_trial_far_below_the_others_stands_at_the_edge_of_the_picture() -> None:
    pytest.importorskip("optuna")
    from matplotlib.figure import Figure

    from imagenet_pipeline.training.tuning_findings import Findings, TrialResult
    from imagenet_pipeline.training.tuning_pictures import _dots

    trials = tuple(
        TrialResult(number, "pruned" if value < 50 else "complete", value, 1, {}, "")
        for number, value in enumerate((97.0, 96.0, 10.0))
    )
    axes = Figure().subplots()
    _dots(axes, Findings(Path(), "validation_rank1", True, trials, trials[0], {}), [(t, t.number) for t in trials])
    low, high = axes.get_ylim()
    drawn = [float(line.get_ydata()[0]) for line in axes.lines]  # type: ignore[index]
    assert drawn == [97.0, 96.0, low]
    assert high < 99


@pytest.mark.skipif(os.environ.get("IMAGENET_PIPELINE_LONG") != "1", reason="trains for minutes")
def test_a_study_of_real_trainings_killed_by_signal_9_ends_as_an_unbroken_one(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    words = [sys.executable, "-m", "imagenet_pipeline", "tune", str(recipe), *SPACE, "epochs=3", "--trials", "6"]

    def known(study: Path) -> list[list[str]]:
        return list(csv.reader((study / "trials.csv").read_text().splitlines()))

    whole = subprocess.run([*words, "--out", str(tmp_path / "whole"), "--json"], stdout=subprocess.PIPE, check=True)
    for seconds in (6, 13, 21, 34, 55):
        process = subprocess.Popen([*words, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*words, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, check=True)
    assert known(tmp_path / "killed") == known(tmp_path / "whole")
    best = json.loads(whole.stdout)["best"]["number"]
    runs = [
        tmp_path / study / f"trials/{best:04d}/checkpoints/best/weights.safetensors" for study in ("whole", "killed")
    ]
    assert runs[0].read_bytes() == runs[1].read_bytes()
