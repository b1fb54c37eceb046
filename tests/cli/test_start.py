"""The verb start: from a folder of photos to a report, and one line where there is nothing to start from."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline import processes
from imagenet_pipeline.builders import plan_of
from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.records import survey

Call = Callable[..., tuple[int, str, str]]
SMALL = ("network=lenet", "input.size=28", "epochs=1", "devices=cpu", "precision=float32")
LONG = bool(os.environ.get("IMAGENET_PIPELINE_LONG"))


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (60, 50)))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of twelve photos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(("cat", "dog", "emu")):
        for number in range(12):
            draw(Path("photos") / name / f"{name}.{number}.jpg", 100 * label + number)
    return Path("photos")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Sequence[str]]:
    """The commands that were run; they run in this process, which has the engine imported already."""
    ran: list[Sequence[str]] = []

    def run_along(words: Sequence[str], captured: bool = False) -> tuple[int, str]:
        ran.append(words)
        with pytest.raises(SystemExit) as ended:
            main([*words])
        return int(ended.value.code or 0), capsys.readouterr().out if captured else ""

    monkeypatch.setattr(processes, "run_along", run_along)
    return ran


def test_without_a_terminal_it_shows_what_it_would_do(
    call: Call, photos: Path, here: list[Sequence[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    code, out, _ = call("start", photos, *SMALL)
    assert (code, here) == (0, [])
    assert "36 in 3 classes: 28 train, 4 val, 4 test, cut out here" in out
    assert caplog.messages[0] == "photos: looking at the photos"
    recipe = Path("output/photos.toml").read_text()
    assert 'network = "lenet"' in recipe
    assert not Path("output/photos").exists()
    shown = [line.strip() for line in out.splitlines() if line.startswith("  imagenet-pipeline ")]
    assert shown == [
        "imagenet-pipeline build folder --root photos --out output/photos",
        "imagenet-pipeline verify output/photos",
        "imagenet-pipeline train output/photos.toml --run output/runs/photos",
        "imagenet-pipeline evaluate output/runs/photos --report output/runs/photos/report.html",
    ]


def test_in_one_command_from_nothing_to_a_report_and_again(call: Call, photos: Path, here: list[Sequence[str]]) -> None:
    Path("photos/dog/dog.3.jpg").write_bytes(b"not a photo")
    shutil.copy("photos/cat/cat.1.jpg", "photos/emu/emu.50.jpg")
    code, out, _ = call("start", photos, "--yes", "--json", *SMALL)
    assert code == 0
    answer: dict[str, Any] = json.loads(out)
    assert [path for path, _ in answer["seen"]["unusable"]] == ["dog/dog.3.jpg"]
    assert ["cat/cat.1.jpg", "emu/emu.50.jpg"] in [sorted(pair) for pair in answer["seen"]["repeated"]]
    assert list(answer["answers"]) == ["build", "verify", "train", "evaluate"]
    assert answer["answers"]["train"]["finished"]
    assert answer["answers"]["evaluate"]["images"] == 4
    assert Path(answer["report"]).is_file()
    assert answer["time"]["seconds"] > 0
    recipe = Path("output/photos.toml").read_text()

    assert call("start", photos, "--yes", *SMALL)[0] == 0  # the very same command
    assert [words[0] for words in here] == ["build", "verify", "train", "evaluate", "build", "verify", "evaluate"]
    assert Path("output/photos.toml").read_text() == recipe

    # As after a kill.
    journal = Path("output/runs/photos/journal.jsonl")
    *kept, last = journal.read_text().splitlines()
    assert '"end"' in last
    journal.write_text("\n".join(kept) + "\n")
    assert call("start", photos, "--yes")[0] == 0
    assert [*here[-2]][-4:] == ["--run", "output/runs/photos", "--resume", "latest"]

    code, _, err = call("start", photos, "--yes", "network=lenet", "epochs=5")
    assert (code, "output/photos.toml: the recipe is there already, and is kept; found epochs;" in err) == (2, True)

    # A finished run does not stand for another recipe, changed by hand or proposed anew.
    ran, other = len(here), "error: output/runs/photos: the finished run here is of another recipe; found another"
    Path("output/photos.toml").write_text(recipe.replace("epochs = 1\n", "epochs = 2\n", 1))
    code, _, err = call("start", photos, "--yes")
    assert (code, err.splitlines()[-1]) == (
        2, f"{other} epochs; move it away to train anew, or try to go on with it: imagenet-pipeline train "
        "output/photos.toml --run output/runs/photos --resume latest",
    )  # fmt: skip
    Path("output/photos.toml").unlink()
    code, _, err = call("start", photos, "--yes", *SMALL, "network=shallownet")
    assert (code, err.splitlines()[-1]) == (2, f"{other} network; move it away to train anew")
    assert (len(here), Path("output/photos.toml").exists()) == (ran, False)


def test_keys_after_a_first_look_make_a_new_proposal(call: Call, photos: Path) -> None:
    recipe = Path("output/photos.toml")
    assert call("start", photos)[0] == 0
    looked = recipe.read_text()
    assert call("start", photos, "epochs=3", *SMALL[:1])[0] == 0
    proposed = load_recipe(recipe)
    assert (proposed.epochs, recipe.read_text() != looked) == (3, True)
    code, _, err = call("start", photos, "epochs=4")
    assert (code, "the recipe is there already, and is kept; found epochs; change it there" in err) == (2, True)
    recipe.write_text(looked.replace("epochs = ", "seed = 1\nepochs = ", 1))
    assert call("start", photos, "epochs=3")[0] == 2
    assert load_recipe(recipe).seed == 1


def test_damage_that_a_sample_did_not_show_is_allowed_for(
    call: Call, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("folder", "output/photos", {"root": photos})
    looked_at = {path for _, path, *_ in survey._chosen(plan, 12)}
    (photos / next(path for path in plan.splits["train"].paths if path not in looked_at)).write_bytes(b"no photo")
    monkeypatch.setattr(survey, "survey", partial(survey.survey, most=12))
    Path("output/runs/photos").mkdir(parents=True)
    Path("output/runs/photos/journal.jsonl").write_bytes(b'{"event": "st')  # of a run killed at its first line
    code, out, _ = call("start", photos, *SMALL)
    assert code == 0
    count = len(looked_at)
    assert f"damaged     none, of a sample of {count}\nrepeated    none, of a sample of {count}\n" in out
    assert f"--max-rejects {10 + round(3 * 36 / count)}\n" in out


def test_names_of_files_may_be_the_classes(call: Call, photos: Path) -> None:
    flat = Path("flat")
    flat.mkdir()
    for path in photos.rglob("*.jpg"):
        path.rename(flat / path.name)
    code, out, _ = call("start", flat, *SMALL)
    assert code == 0
    assert "36 in 3 classes:" in out
    assert "\n            there are no folders of classes: these are the beginnings of the files' names\n" in out
    assert r"--label-from '^([^\W\d_]+)'" in out


def bad_one_photo(root: Path) -> None:
    draw(root / "cat" / "1.jpg", 1)


def bad_one_class(root: Path) -> None:
    for number in range(9):
        draw(root / "cat" / f"{number}.jpg", number)


def bad_one_photo_a_class(root: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw(root / name / "1.jpg", number)


def bad_few_without_val(root: Path) -> None:
    for number, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        for photo in (1, 2):
            draw(root / name / f"{photo}.jpg", 10 * number + photo)


def bad_flat(root: Path) -> None:
    for number in range(9):
        draw(root / f"IMG_{number}.jpg", number)


def bad_cameras(root: Path) -> None:
    for number in range(24):
        draw(root / f"{('IMG', 'DSC', 'n')[number % 3]}_{number}.jpg", number)


def bad_damaged(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(9):
            (root / name / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")


def bad_file(root: Path) -> None:
    draw(root.with_suffix(".jpg"), 1)
    root.with_suffix(".jpg").rename(root)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bad_one_photo, "the folder has a single class"),
        (bad_one_class, "the folder has a single class"),
        (bad_one_photo_a_class, "none to spare (cat/1.jpg); expected an image of each class for every split; add"),
        (bad_few_without_val, "too few training photos to cut val out of; found 4; add photos"),
        (bad_flat, "the folder has no class folders"),
        (bad_cameras, "the folder has no class folders"),
        (Path.mkdir, "the folder has no class folders"),
        (bad_damaged, "no photo can be used"),
        (bad_file, "a file, not a folder"),
        (lambda root: None, "no such folder"),
    ],
)
def test_nothing_to_start_from_is_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("photos"))
    code, out, err = call("start", "photos", "--yes")
    assert (code, out) == (3, "")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: photos: ")
    assert says in error
    assert err.splitlines()[-1] == error
    assert not Path("output").exists()


def test_a_folder_that_cannot_be_written_is_one_line(call: Call, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refuse(path: Path, *words: Any, **more: Any) -> None:
        if path == Path("output"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *words, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = call("start", photos, "--yes", *SMALL)
    assert (code, err.splitlines()[-1]) == (3, "error: output/photos.toml: cannot be written (Read-only file system)")


def test_splits_without_val_get_one(call: Call, photos: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, f"divided/{split}")
    out = call("start", "divided", *SMALL)[1]
    assert "72 in 3 classes: 32 train, 4 val, 36 test, cut out here" in out
    assert "repeated    36 in two splits or classes: " in out
    assert "--out output/divided --val-fraction 0.1" in out


def test_a_run_is_fine_tuned(call: Call, photos: Path, drawn_run: Callable[..., Path]) -> None:
    run = drawn_run(*"abcde", names=tuple("abcde"))
    answer = json.loads(call("start", photos, "--weights", run, "--json", "devices=cpu", "precision=float32")[1])
    assert answer["proposal"]["initial"] == {"weights": str(run), "new_head": True}
    assert answer["time"]["step_seconds"] > 0


@pytest.mark.skipif(not LONG, reason="long: each verb in a process of its own, and a Ctrl-C")
def test_each_verb_is_a_process_of_its_own(photos: Path) -> None:
    words = [sys.executable, "-m", "imagenet_pipeline", "start", str(photos), "--yes", *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "$ imagenet-pipeline evaluate output/runs/photos" in done.stderr
    assert done.stdout.splitlines()[-1] == "report: output/runs/photos/report.html"


def test_a_verb_that_ends_well_in_spite_of_ctrl_c_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        """A process that is past hearing a signal, and has done its work."""

        returncode, sent = 0, 0

        def __init__(self, *words: Any, **options: Any) -> None: ...

        def __enter__(self) -> Ending:
            return self

        def __exit__(self, *error: object) -> None: ...

        def communicate(self) -> tuple[str, None]:
            if not self.sent:
                raise KeyboardInterrupt
            return "", None

        def send_signal(self, number: int) -> None:
            self.sent = number

    monkeypatch.setattr(subprocess, "Popen", Ending)
    with pytest.raises(KeyboardInterrupt):
        processes.run_along(["verify", "photos"])
    monkeypatch.setattr(Ending, "returncode", 3)
    assert processes.run_along(["verify", "photos"]) == (3, "")
