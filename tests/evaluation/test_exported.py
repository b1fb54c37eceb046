"""An exported ONNX file classifies as its run does; another's file is refused in a line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom
from imagenet_pipeline.evaluation.calibration import Temperature
from imagenet_pipeline.evaluation.exported import open_export, open_run_or_export
from imagenet_pipeline.evaluation.predict import open_classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PHOTOS = [np.random.default_rng(7).integers(0, 256, (60, 40 + n, 3), np.uint8) for n in range(5)]


@pytest.fixture(scope="module")
def run(drawn_run: Callable[..., Path]) -> Path:
    return drawn_run("n01", "n02", "n03", names=("cat", "dog", "犬"))


@pytest.fixture(scope="module")
def export(run: Path) -> Callable[..., Path]:
    """`export("--raw")`: the run as an ONNX file."""

    def written(*words: str) -> Path:
        out = run / f"net{''.join(words)}"
        with pytest.raises(SystemExit) as ended:
            main(["export", str(run), "--format", "onnx", "--out", str(out), *words])
        assert not ended.value.code
        return Path(f"{out}.onnx")

    return written


@pytest.mark.pytorch
@pytest.mark.parametrize("words", [(), ("--raw",)])
def test_a_file_gives_the_run_s_probabilities(run: Path, export: Callable[..., Path], words: tuple[str, ...]) -> None:
    opened = open_export(export(*words))
    np.testing.assert_allclose(
        opened.probabilities(PHOTOS), open_classifier(run).probabilities(PHOTOS), rtol=1e-4, atol=1e-6
    )
    assert opened.classes.names == ("cat", "dog", "犬")


@pytest.mark.pytorch
def test_a_file_keeps_the_temperature_of_its_run(
    drawn_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    run = drawn_run("a", "b", "c")
    plain = open_classifier(run)
    fitted = Temperature(2.5, plain.checkpoint.weights_digest, "0" * 64, "val", 9, 1.0, 0.9, 0.1, 0.05)
    files.write_json(plain.checkpoint.folder / "temperature.json", asdict(fitted))
    with pytest.raises(SystemExit):
        main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "net"), "--json"])
    assert json.loads(capsys.readouterr().out)["temperature"] == 2.5
    tempered, found = open_classifier(run).probabilities(PHOTOS), open_export(tmp_path / "net.onnx")
    assert caplog.messages[-1] == "probabilities are those at temperature 2.500, which the file holds"
    np.testing.assert_allclose(found.probabilities(PHOTOS), tempered, rtol=1e-4, atol=1e-6)
    assert np.abs(plain.probabilities(PHOTOS) - tempered).max() > 0.01


def test_predict_takes_a_file(export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), PHOTOS[0])
    file = export()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(file), str(tmp_path / "photo.png"), "--top", "2", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (ended.value.code, answer["checkpoint"]) == (0, "net.onnx")
    assert len(answer["predictions"][0]["top"]) == 2


def changed(file: Path, out: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(file)
    change(model)
    onnx.save(model, out)
    return out


def without_notes(model: Any) -> None:
    del model.metadata_props[:]


def of_two_classes(model: Any) -> None:
    (notes,) = [entry for entry in model.metadata_props if entry.key == "classes"]
    notes.value = json.dumps({"order": "folder", "ids": ["a", "b"], "names": ["a", "b"]})


def of_no_crop(model: Any) -> None:
    (notes,) = [entry for entry in model.metadata_props if entry.key == "crop_fraction"]
    notes.value = "[" * 5000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_notes, "does not say its classes, mean, std and crop; expected .* `export` wrote; .*import --onnx /"),
        (of_no_crop, "does not say its classes"),
        (of_two_classes, r"notes are not of its graph; expected .*'logits': \[2\].*found .*'logits': \[3\]"),
    ],
)
def test_a_file_that_does_not_say_what_it_is(
    export: Callable[..., Path], tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        open_export(changed(export(), tmp_path / "other.onnx", change))


@pytest.mark.parametrize(
    ("name", "said", "raised"),
    [
        ("Fail", "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9", OutOfRoom),
        ("RuntimeException", "Exception during initialization: std::bad_alloc", OutOfRoom),
        ("InvalidArgument", "Got invalid dimensions", None),
    ],
)
def test_of_onnx_runtime_s_errors_those_of_memory_are_told(
    export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, said: str, raised: type[Exception] | None
) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state

    kind = getattr(onnxruntime_pybind11_state, name)

    class Session:
        def run(self, *_: object) -> None:
            raise kind(said)

    opened = open_export(export())
    monkeypatch.setattr(opened.engine, "_session", Session())
    with pytest.raises(raised or kind):
        opened.probabilities(PHOTOS)


def test_what_is_no_file_of_onnx(tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(BadInput, match="ONNX Runtime cannot open this file"):
        open_export(tmp_path / "text.onnx")
    with pytest.raises(BadInput, match=r"nothing\.onnx"):
        open_export(tmp_path / "nothing.onnx")
    for which, overrides in (("latest", {}), ("best", {"engine": "pytorch"})):
        with pytest.raises(BadRecipe, match="no checkpoints and no recipe"):
            open_run_or_export(export(), which, overrides)
