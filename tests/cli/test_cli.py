"""The command line as a user meets it: answers, JSON, one-line errors, exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imagenet_pipeline import __version__
from imagenet_pipeline.cli import SECTIONS, doctor
from imagenet_pipeline.records import image

VERBS = [
    "start",
    "build imagenet",
    "build folder",
    "build list",
    "build csv",
    "build digits",
    "build mnist",
    "build cifar",
    "build fer2013",
    "build ckplus",
    "verify",
    "inspect",
    "export-records",
    "mean-image",
    "networks",
    "keys",
    "recipes",
    "recipe",
    "train",
    "evaluate",
    "plot",
    "doctor",
    "benchmark loader",
    "export",
    "import",
    "features",
    "probe",
    "emotion",
    "serve",
]


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        """The one JSON object; anything beside it is an error."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Call = Callable[..., Answer]


@pytest.fixture
def call(call: Callable[..., tuple[int, str, str]]) -> Call:
    return lambda *words: Answer(*call(*words))


def test_without_words_it_shows_help(call: Call) -> None:
    answer = call()
    assert answer.code == 0
    for verb in ("build", "verify", "inspect", "networks", "train", "evaluate", "plot", "benchmark"):
        assert verb in answer.out


def test_the_version_is_printed(call: Call) -> None:
    first, *engines = call("--version").out.splitlines()
    assert first == __version__
    assert [line.split()[0] for line in engines] == ["gluon", "pytorch"]


def test_the_help_has_the_verbs_in_the_order_of_the_work(call: Call) -> None:
    lines = call("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:-1] for line in lines if line.endswith(":") and line[0] != " "] == ["Options", *SECTIONS]
    verbs = [verb for section in SECTIONS.values() for verb in section]
    shown = lines[lines.index("Look at data:") :]
    assert [line.split()[0] for line in shown if line.startswith("  ")] == verbs
    begins = {len(line) - len(line[2:].partition(" ")[2].lstrip()) for line in shown if line.startswith("  ")}
    assert len(begins) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(call: Call, verb: str) -> None:
    answer = call(*verb.split(), "--help")
    assert answer.code == 0
    assert f"imagenet-pipeline {verb}" in answer.out.replace("\n", " ").partition("Example")[2]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "train"),
        (["train"], 2, "recipe"),
        (["train", "nowhere.toml"], 2, "nowhere.toml: no such recipe file"),
        (["build", "imagenet", "--out", "x"], 2, "--root"),
        (["build", "imagenet", "--root", "nowhere", "--out", "x"], 3, "nowhere"),
        (["build", "imagenet", "--root", "x", "--out", "x", "--class-order", "abc"], 2, "wnid or devkit"),
        (["build", "folder", "--root", "nowhere", "--out", "x"], 3, "nowhere"),
        (["build", "list", "--list", "nowhere.lst", "--root", ".", "--out", "x"], 3, "nowhere.lst"),
        (["verify", "nowhere"], 3, "nowhere"),
        (["inspect", "nowhere"], 3, "nowhere"),
        (["inspect", ".", "--records", "8:2"], 2, "FIRST:LAST"),
        (["evaluate", "nowhere"], 2, "nowhere"),
        (["networks", "resnet19"], 2, "resnet18"),
        (["networks", "alexnet", "--input", "30"], 2, "at least"),
        (["plot", "nowhere", "--out", "x.png"], 2, "nowhere"),
        (["benchmark", "loader", "nowhere"], 3, "nowhere"),
        (["export", "nowhere", "--format", "onnx", "--out", "x"], 2, "nowhere"),
        (["export", "nowhere", "--out", "x"], 2, "--format"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    call: Call, words: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(*words)
    assert answer.code == code
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("error: ")
    assert says in answer.err
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_debug_shows_the_traceback_and_keeps_the_exit_code(call: Call) -> None:
    answer = call("train", "nowhere.toml", "--debug")
    assert answer.code == 2
    assert "Traceback" in answer.err


def test_networks_prints_counts(call: Call) -> None:
    assert "25,557,032" in call("networks").out
    assert call("networks", "resnet50", "--json").json["parameters"] == 25_557_032
    googlenet = call("networks", "googlenet").out
    assert "auxiliary4a.dense *" in googlenet
    assert "* auxiliary, in training only: 6,379,728 parameters more" in googlenet


def test_verify_says_whole_and_then_names_the_record_whose_byte_changed(
    call: Call, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(world / "digits", folder)
    answer = call("verify", folder)
    assert answer.code == 0
    assert "undamaged: 1,797 records" in answer.out

    record_file = folder / "train.rec"
    offsets = [int(line.split("\t")[1]) for line in (folder / "train.idx").read_text().splitlines()]
    content = bytearray(record_file.read_bytes())
    content[offsets[7] + 100] ^= 1
    record_file.write_bytes(content)
    answer = call("verify", folder, "--json")
    assert answer.code == 1
    assert any(problem["record"] == 7 for problem in answer.json["problems"])  # type: ignore[attr-defined]
    assert "record 7" in call("verify", folder).out


def test_inspect_shows_records_and_draws_a_montage(call: Call, world: Path, tmp_path: Path) -> None:
    answer = call("inspect", world / "digits", "--records", "0:12", "--montage", tmp_path / "sheet.png", "--json")
    assert answer.code == 0
    assert len(answer.json["records"]) == 12  # type: ignore[arg-type]
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_keys_of_a_recipe_are_listed(call: Call) -> None:
    answer = call("keys", "smoothing")
    assert answer.out.splitlines()[0] == "loss.label_smoothing = 0.0"
    assert {"required": True, "name": "network"}.items() <= call("keys", "--json").json["keys"][0].items()
    assert (call("keys", "smothing").code, call("keys", "smothing").out) == (2, "")


def test_a_second_build_is_already_built(call: Call, world: Path) -> None:
    answer = call("build", "digits", "--out", world / "digits", "--json")
    assert answer.json["already_built"] is True
    assert answer.json["records"] == {"train": 1197, "val": 300, "test": 300}


def test_evaluate_repeats_the_validation_figure_and_writes_a_report(call: Call, world: Path) -> None:
    history = (world / "run" / "history.csv").read_text().splitlines()
    last = dict(zip(history[0].split(","), history[-1].split(","), strict=True))
    figure = call("evaluate", world / "run", "--split", "val", "--checkpoint", "latest", "--json").json
    assert figure["images"] == 300
    assert figure["rank1"] == float(last["validation_rank1"])
    assert figure["rank5"] == float(last["validation_rank5"])
    # Training adds its losses up in float32, on the device.
    assert figure["loss"] == pytest.approx(float(last["validation_loss"]), rel=1e-5)
    page = Path(str(figure["report"])).read_text()
    assert f"{figure['rank1']:.2f} %" in page
    assert str(figure["weights_digest"]) in page
    assert "://" not in page


@pytest.mark.parametrize(("kind", "unit"), [("cross_entropy", "nats"), ("hinge", "(hinge)")])
def test_evaluate_names_the_loss(call: Call, world: Path, tmp_path: Path, kind: str, unit: str) -> None:
    shutil.copytree(world / "run", tmp_path / "run", symlinks=True)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('kind = "cross_entropy"', f'kind = "{kind}"'))
    line = next(line for line in call("evaluate", tmp_path / "run").out.splitlines() if line.startswith("loss"))
    assert f" {unit}  (95 %: " in line
    page = (tmp_path / "run" / "report-test.html").read_text()
    assert ("cross-entropy, nats" in page) == (kind == "cross_entropy")


@pytest.mark.parametrize("crops", [2, 10])
def test_more_crops_score_every_record_once(call: Call, world: Path, crops: int) -> None:
    figure = call("evaluate", world / "run", "--crops", crops, "--json").json
    assert figure["images"] == 300
    assert figure["crops"] == crops


def test_crops_other_than_1_2_10_are_refused(call: Call, world: Path) -> None:
    answer = call("evaluate", world / "run", "--crops", 5)
    assert answer.code == 2
    assert "1, 2 or 10" in answer.err


def test_train_refuses_a_run_that_is_there_and_says_how_to_go_on(call: Call, world: Path) -> None:
    answer = call("train", world / "recipe.toml", "--run", world / "run")
    assert answer.code == 2
    assert "--resume latest" in answer.err


def test_resuming_a_finished_run_changes_nothing(call: Call, world: Path) -> None:
    journal = (world / "run" / "journal.jsonl").read_bytes()
    answer = call("train", world / "recipe.toml", "--run", world / "run", "--resume", "latest", "--json")
    assert answer.code == 0
    assert answer.json["finished"] is True
    assert (world / "run" / "journal.jsonl").read_bytes() == journal


def test_records_of_other_classes_are_refused(call: Call, world: Path, tmp_path: Path) -> None:
    import cv2

    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            image = np.full((30, 30, 3), 20 * number, np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / name / f"{number}.png"), image)
    assert call("build", "folder", "--root", tmp_path / "photos", "--out", tmp_path / "out", "--workers", 1).code == 0
    answer = call("evaluate", world / "run", "--records", tmp_path / "out")
    assert answer.code == 3
    assert "class tables differ" in answer.err


def test_plot_draws_two_runs(call: Call, world: Path, tmp_path: Path) -> None:
    assert call("plot", world / "run", world / "run", "--out", tmp_path / "c.png").code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("compiled", ["9.9.9", None])
def test_doctor_says_whether_the_crop_decoder_is_there(
    call: Call, monkeypatch: pytest.MonkeyPatch, compiled: str | None
) -> None:
    monkeypatch.setattr(doctor, "engine_versions", dict)
    monkeypatch.setattr(image, "jpeg_crop", compiled and SimpleNamespace(LIBJPEG_TURBO=compiled))
    assert call("doctor", "--json").json["crop_decoder"] == compiled
    said = call("doctor").out
    assert ("libjpeg-turbo 9.9.9" in said) == bool(compiled)
    assert ("apt-get install gcc" in said) == (not compiled)


def test_benchmark_loader_measures(call: Call, world: Path) -> None:
    figure = call("benchmark", "loader", world / "digits", "--size", 28, "--threads", 1, "--json").json
    assert figure["threads"] == 1
    assert float(figure["images_per_second"]) > 0  # type: ignore[arg-type]


def test_ctrl_c_promises_no_more_than_the_verb_keeps(
    call: Call, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imagenet_pipeline.evaluation.probe.probe", interrupted)
    monkeypatch.setattr("imagenet_pipeline.records.put.store", interrupted)
    probe, build = call("probe", tmp_path / "f.npz"), call("build", "digits", "--out", tmp_path / "digits")
    assert (probe.code, probe.err) == (130, "error: interrupted\n")
    assert (build.code, build.err.splitlines()[-1]) == (
        130, "error: interrupted; what was finished is kept, and the same command goes on",
    )  # fmt: skip
