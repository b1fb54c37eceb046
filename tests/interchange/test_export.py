"""The verb export: a checkpoint in, files and a card out, nobody's file replaced."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, OutOfRoom
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.weights import read_weights
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.checkpoint import State, prune, save_checkpoint

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
NAMES = {
    "mxnet": ["net-0000.params", "net-symbol.json", "net.mxnet.json"],
    "onnx": ["net.onnx", "net.onnx.json"],
    "pytorch": ["net.py", "net.pytorch.json", "net.safetensors"],
    "torchscript": ["net.pt", "net.torchscript.json"],
    "torch-export": ["net.pt2", "net.torch-export.json"],
}
ALL = "mxnet, onnx, pytorch, torchscript or torch-export"


@dataclass
class Answer:
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, words)])
        captured = capsys.readouterr()
        return Answer(int(ended.value.code or 0), captured.out, captured.err)

    return run


def checkpoint(
    run: Path, epoch: int, rank1: float, network: str = "minigooglenet", input_size: int = 32, weights: Any = None
) -> None:
    state = State(
        epoch=epoch,
        step=9 * epoch,
        network=network,
        input_size=input_size,
        classes=("n02", "n01"),
        class_names=("dog, hound", 'a "cat"\nü'),
        class_order="devkit",
        mean=MEAN,
        std=STD,
        data_digest="d",
        engine="gluon",
        versions={},
        metrics={"validation_rank1": rank1},
    )
    if weights is None:
        weights = initial_values(catalog.entry(network).build(2), (3, input_size, input_size), "msra", epoch)
    save_checkpoint(run, state, weights, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of two epochs, the first of them the best."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint(folder, 1, 60.0)
    checkpoint(folder, 2, 50.0)
    prune(folder, "all")
    return folder


def logits(path: Path, pixels: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": pixels})[0]


@pytest.mark.parametrize("form", NAMES)
def test_files_and_card_are_written_and_said(form: str, call: Call, run: Path, tmp_path: Path) -> None:
    answer = call(run, "--format", form, "--out", tmp_path / "deep" / "net")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == NAMES[form]
    card = json.loads((tmp_path / "deep" / f"net.{form}.json").read_text())
    assert card["files"] == {
        name: files.sha256_of(tmp_path / "deep" / name) for name in NAMES[form] if name != f"net.{form}.json"
    }
    assert card["classes"] == {"order": "devkit", "ids": ["n02", "n01"], "names": ["dog, hound", 'a "cat"\nü']}
    assert (card["mean"], card["std"], card["network"]) == (list(MEAN), list(STD), "minigooglenet")
    assert card["input"]["shape"] == ["n", 3, 32, 32]
    assert card["origin"].endswith("epoch-0001")
    for words in (*card["files"].values(), "RGB, 0..255", "2 classes, order devkit: 0 is n02, 1 is n01"):
        assert words in answer.out


def test_json_is_one_object(call: Call, run: Path, tmp_path: Path) -> None:
    answer = json.loads(call(run, "--format", "pytorch", "--out", tmp_path / "net", "--json").out)
    assert answer["card"] == str(tmp_path / "net.pytorch.json")
    assert set(answer["files"]) == {str(tmp_path / "net.py"), str(tmp_path / "net.safetensors")}


def test_the_checkpoint_asked_for_is_exported(call: Call, run: Path, tmp_path: Path) -> None:
    for which, epoch in (("best", 1), ("latest", 2), ("2", 2)):
        assert call(run, "--format", "pytorch", "--out", tmp_path / "net", "--checkpoint", which).code == 0
        found = read_weights(tmp_path / "net.safetensors")
        wanted = initial_values(catalog.entry("minigooglenet").build(2), (3, 32, 32), "msra", epoch)
        np.testing.assert_array_equal(found["conv1.conv.weight"], wanted["conv1.conv.weight"])


def test_raw_leaves_the_normalisation_to_the_caller(call: Call, run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 32, 32)).astype(np.float32)
    call(run, "--format", "onnx", "--out", tmp_path / "whole")
    call(run, "--format", "onnx", "--out", tmp_path / "raw", "--raw")
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (MEAN, STD))
    whole, raw = logits(tmp_path / "whole.onnx", pixels), logits(tmp_path / "raw.onnx", (pixels - mean) / std)
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(raw, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    assert json.loads((tmp_path / "raw.onnx.json").read_text())["input"]["values"] == "(RGB - mean) / std"


def test_another_input_size(call: Call, run: Path, tmp_path: Path) -> None:
    assert call(run, "--format", "onnx", "--out", tmp_path / "net.onnx", "--input", 48).code == 0
    assert logits(tmp_path / "net.onnx", np.zeros((1, 3, 48, 48), np.float32)).shape == (1, 2)
    assert not (tmp_path / "net.onnx.onnx").exists()


def test_dense_layers_fix_the_input(call: Call, tmp_path: Path) -> None:
    network = catalog.entry("lenet").build(2)
    values = initial_values(network, (3, 28, 28), "msra", 1)
    checkpoint(tmp_path / "run", 1, 50.0, network="lenet", input_size=28, weights=values)
    answer = call(tmp_path / "run", "--format", "onnx", "--out", tmp_path / "net", "--input", 40)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "error: --input 40: the dense layers of lenet fix its input; expected 28; leave --input out\n"
    )
    assert not list(tmp_path.glob("net*"))
    answer = call(tmp_path / "run", "--format", "onnx", "--out", tmp_path / "net", "--input", 4)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "error: --input 4: " in answer.err


def test_it_says_whose_export_it_replaced(call: Call, run: Path, tmp_path: Path) -> None:
    words = ("--format", "onnx", "--out", tmp_path / "net")
    checkpoint(tmp_path / "other", 1, 50.0)
    assert "replaced" not in call(run, *words).out
    assert "replaced" not in call(run, *words, "--checkpoint", "latest").out
    answer = call(tmp_path / "other", *words, "--json")
    assert json.loads(answer.out)["replaced"] == {"network": "minigooglenet", "run": str(run)}
    assert f"replaced the export of minigooglenet ({tmp_path / 'other'})\n" in call(run, *words).out


def test_no_such_run_folder(call: Call, tmp_path: Path) -> None:
    answer = call(tmp_path / "nope", "--format", "onnx", "--out", tmp_path / "net")
    expected = "expected a folder that `train` or `import` made"
    assert (answer.code, answer.err) == (2, f"error: {tmp_path / 'nope'}: there is no run here; {expected}\n")


def test_help_names_the_inputs_and_loads_mxnet(call: Call) -> None:
    out = call("--help").out
    assert 'mx.gluon.SymbolBlock.imports("NAME-symbol.json", ["data"], "NAME-0000.params")' in out
    assert "images" in out


def test_the_onnx_model_carries_the_card(call: Call, run: Path, tmp_path: Path) -> None:
    call(run, "--format", "onnx", "--out", tmp_path / "net")
    card = json.loads((tmp_path / "net.onnx.json").read_text())
    notes = {one.key: one.value for one in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(notes["classes"]) == card["classes"]
    assert json.loads(notes["mean"]) == list(MEAN)
    assert notes["weights_digest"] == card["weights_digest"]


def test_an_earlier_export_is_replaced_and_nothing_else(call: Call, run: Path, tmp_path: Path) -> None:
    words = (run, "--format", "pytorch", "--out", tmp_path / "net")
    (tmp_path / "net.py").write_text("mine")
    answer = call(*words)
    assert answer.code == 3
    assert answer.err == (
        f"error: {tmp_path / 'net.py'}: the file exists already, and no finished export wrote it; "
        "remove it or choose another --out\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]
    (tmp_path / "net.py").unlink()
    assert call(*words).code == 0
    assert call(*words).code == 0


@pytest.mark.parametrize("form", ["mxnet", "pytorch"])
def test_a_full_disk_leaves_nothing_and_the_same_command_goes_on(
    form: str, call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (run, "--format", form, "--out", tmp_path / "net")
    whole, opened = files.whole_file, []

    @contextlib.contextmanager
    def filling(path: Path, durable: bool = True) -> Iterator[Any]:
        opened.append(path)
        if len(opened) == 2:
            raise OutOfRoom("cannot be written (No space left on device)", where=path)
        with whole(path, durable) as stream:
            yield stream

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole_file", filling)
        answer = call(*words)
    assert answer.code == 5
    assert f"error: {tmp_path / 'net'}: cannot be written" in answer.err
    assert list(tmp_path.iterdir()) == []
    assert call(*words).code == 0


def test_an_export_killed_between_its_files_is_no_obstacle(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (run, "--format", "pytorch", "--out", tmp_path / "net")
    rename, done = files.rename, []

    def stopping(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", stopping)
        assert call(*words).code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pytorch.json", "net.safetensors"]
    assert call(*words).code == 0


def test_a_folder_is_no_name_to_write_under(call: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    for out in (tmp_path / "exported", f"{tmp_path}/new/", f"{tmp_path}/exported/."):
        answer = call(run, "--format", "onnx", "--out", out)
        assert answer.code == 2
        assert f"--out {str(out).removesuffix('/.')}" in answer.err
        assert "NAME" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_a_card_of_someone_else_is_not_replaced(call: Call, run: Path, tmp_path: Path) -> None:
    for text in ("[]", "{", '{"written_by": "me"}', '{"written_by": "imagenet-pipeline 9", "files": 3}'):
        (tmp_path / "net.onnx.json").write_text(text)
        (tmp_path / "net.onnx").write_text("mine")
        assert call(run, "--format", "onnx", "--out", tmp_path / "net").code == 3, text
        assert (tmp_path / "net.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--format", "tflite"], 2, f"expected {ALL}; found tflite\n"),
        (["--format", "torch"], 2, f"expected {ALL}; found torch; did you mean pytorch or torchscript or "),
        (["--format", "onnx", "--checkpoint", "7"], 2, "one of 1, 2"),
        (["--format", "onnx", "--input", "0"], 2, "--input"),
        (["--format", "onnx", "--out", "/"], 2, "expected /NAME"),
        (["--format", "onnx", "--out", ""], 2, "FOLDER/NAME"),
        (["--format", "pytorch", "--out", "a-b"], 2, "not the name of a Python module"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], code: int, says: str, call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(run, *words, *(() if "--out" in words else ("--out", "net")))
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.count("\n") == 1
    assert says in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_normalisation_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    table = ClassTable("list", ("a", "b"), ("a", "b"))
    trained = TrainedNetwork("lenet", 28, table, MEAN, (60.0, 1e-45, 62.0), 1.0, {}, "d", "RUN")
    with pytest.raises(BadInput, match="RUN: its mean and std are unusable in float32"):
        export(trained, "onnx", tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
