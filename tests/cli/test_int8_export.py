"""`export --int8`: a quarter of the bytes, nearly the same rank-1, and a card that says so."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import OutOfRoom
from imagenet_pipeline.evaluation.int8 import _Spread
from imagenet_pipeline.interchange.onnx_runtime import OnnxScorer
from imagenet_pipeline.records.reader import RecordSet

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(trained_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits/, and run/ of a LeNet that knows them."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "digits").symlink_to(trained_digits / "digits")
    demo = Path(__file__).parents[2] / "config" / "demo.toml"
    words = [f"records={folder / 'digits'}", "epochs=2", "loader.threads=0", "--run", str(folder / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(demo), *words])
    assert not ended.value.code
    return folder


def images_of(world: Path) -> Any:
    """Some digits, as evaluation shows them."""
    from imagenet_pipeline.loading.loader import Loader

    with RecordSet.open(world / "digits", "val") as records, Loader(records, 28, 50).evaluation(1.0) as batches:
        return next(batches).images.copy()


def test_int8_keeps_the_rank_1_in_a_quarter_of_the_bytes(call: Call, world: Path, tmp_path: Path) -> None:
    words = (world / "run", "--format", "onnx", "--out")
    code, out, err = call("export", *words, tmp_path / "small", "--int8", "--calibration-images", 64)
    assert code == 0, err
    call("export", *words, tmp_path / "whole")
    card = json.loads((tmp_path / "small.onnx.json").read_text())
    found, evaluated = card["int8"], json.loads(call("evaluate", world / "run", "--split", "val", "--json")[1])
    assert found["calibration"] == {"records": str(world / "digits"), "split": "train", "images": 64}
    assert found["scored"]["images"] == evaluated["images"] == 300
    assert found["scored"]["rank1"]["float32"] == pytest.approx(evaluated["rank1"])
    assert evaluated["rank1"] > 80
    assert abs(found["scored"]["rank1"]["int8"] - evaluated["rank1"]) <= 2
    assert abs(found["scored"]["rank5"]["int8"] - evaluated["rank5"]) <= 2
    assert found["bytes"]["int8"] == (tmp_path / "small.onnx").stat().st_size < 0.3 * found["bytes"]["float32"]
    rates = found["scored"]["rank1"]
    assert f"rank-1: int8 {rates['int8']:.2f} %, float32 {rates['float32']:.2f} %  (300 val images)\n" in out

    model, images = onnx.load(tmp_path / "small.onnx"), images_of(world)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert json.loads({note.key: note.value for note in model.metadata_props}["classes"]) == card["classes"]
    small, whole = (OnnxScorer(tmp_path / f"{name}.onnx").logits(images) for name in ("small", "whole"))
    assert 0 < np.abs(small - whole).max() < 0.1 * np.abs(whole).max()


def test_the_same_images_give_the_same_bytes(call: Call, world: Path, tmp_path: Path) -> None:
    words = ("export", world / "run", "--format", "onnx", "--int8", "--calibrate", "val", "--calibration-images", 20)
    answers = [json.loads(call(*words, "--out", tmp_path / "net", "--json")[1]) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["int8"]["calibration"]["split"] == "val"


def test_raw_is_calibrated_on_normalised_images(call: Call, world: Path, tmp_path: Path) -> None:
    words = ("export", world / "run", "--format", "onnx", "--int8", "--calibration-images", 64, "--out")
    assert call(*words, tmp_path / "raw", "--raw")[0] == call(*words, tmp_path / "whole")[0] == 0
    card, images = json.loads((tmp_path / "raw.onnx.json").read_text()), images_of(world)
    raw = OnnxScorer(tmp_path / "raw.onnx", (tuple(card["mean"]), tuple(card["std"]))).logits(images)
    whole = OnnxScorer(tmp_path / "whole.onnx").logits(images)
    assert np.abs(raw - whole).max() < 0.1 * np.abs(whole).max()
    assert card["int8"]["scored"]["rank1"]["int8"] > 50


def test_another_data_set_is_calibrated_on_where_the_run_s_own_is_gone(call: Call, world: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(world / "run", tmp_path / "run", symlinks=True))
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(world / "digits"), str(tmp_path / "gone")))
    words = ("export", run, "--format", "onnx", "--out", tmp_path / "net", "--int8")
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert err.startswith(f"error: {tmp_path / 'gone'}: no data set here")
    assert err.endswith("; --calibrate DIR names a data set\n")
    code, out, err = call(*words, "--calibrate", world / "digits", "--calibration-images", 16)
    assert (code, "(300 val images)" in out) == (0, True), err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["--format", "mxnet", "--int8"],
            2,
            "--int8: only ONNX is written in int8; expected --format onnx; found mxnet",
        ),
        (["--format", "onnx", "--calibrate", "val"], 2, "--calibrate: nothing is calibrated without --int8"),
        (["--format", "onnx", "--calibration-images", "9"], 2, "--calibration-images: nothing is calibrated"),
        (["--format", "onnx", "--int8", "--calibrate", "nope"], 3, "nope: no data set here"),
        (["--format", "onnx", "--int8", "--calibration-images", "0"], 2, "--calibration-images"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], code: int, says: str, call: Call, world: Path, tmp_path: Path) -> None:
    answer = call("export", world / "run", *words, "--out", tmp_path / "net")
    assert answer[:2] == (code, "")
    assert answer[2].count("\n") == 1
    assert says in answer[2]
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_it_says_what_to_install(
    call: Call, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = call("export", world / "run", "--format", "onnx", "--int8", "--out", tmp_path / "net")
    assert code == 2
    assert err.endswith("; pip install 'imagenet-pipeline[int8]'\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(call: Call, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, opened = files.whole_file, []

    def filling(path: Path) -> Any:
        opened.append(path)
        if len(opened) == 2:
            raise OutOfRoom("cannot be written (No space left on device)", where=path)
        return whole(path)

    monkeypatch.setattr(files, "whole_file", filling)
    words = ("export", world / "run", "--format", "onnx", "--int8", "--calibration-images", 4)
    assert call(*words, "--out", tmp_path / "net")[0] == 5
    assert list(tmp_path.iterdir()) == []


def test_images_are_spread_over_the_records(world: Path) -> None:
    with RecordSet.open(world / "digits", "val") as records:
        numbers = [[_Spread(records, count).location(at)[1] for at in range(count)] for count in (1, 4, 300)]
        assert numbers[0] == [records.location(0)[1]]
        assert [records.location(at)[1] for at in (0, 100, 199, 299)] == numbers[1]
        assert numbers[2] == [records.location(at)[1] for at in range(300)]
