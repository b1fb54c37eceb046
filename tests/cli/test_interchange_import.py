"""The verb `import` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.interchange.export import export_mxnet
from imagenet_pipeline.interchange.params import read_params, write_params
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.records import manifest
from imagenet_pipeline.records.classes import ClassTable


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """`--symbol S --params P --out RUN` of a LeNet of 4 classes, not normalising."""
    network = catalog.entry("lenet").build(4)
    values = initial_values(network, (3, 28, 28), "he", 1)
    symbol, params = export_mxnet(network, values, (3, 28, 28), tmp_path / "net", None)
    return ["--symbol", str(symbol), "--params", str(params), "--out", str(tmp_path / "run")]


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["import", *words])
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


def test_it_says_what_it_found(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(Path(files[3]), read_params(Path(files[3])) | {"arg:more": np.ones(1, np.float32)})
    code, out, _ = call([*files, "--mean", "123.68,116.779,103.939", "--std", "1,1,1"], capsys)
    assert code == 0
    assert "lenet, 4 classes, 28 px, 8 arrays" in out
    assert "mean 123.68,116.779,103.939  std 1,1,1  from the command line" in out
    assert "in the file but not in the graph: more (1 in all)" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.toml", "journal.jsonl", "history.csv", "checkpoints",
    }  # fmt: skip


def test_one_json_object(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call([*files, "--mean", "0,0,0", "--std", "1,1,1", "--json", "--network", "lenet"], capsys)
    answer = json.loads(out)
    assert code == 0
    assert (answer["network"], answer["classes"], answer["std"], answer["unused"]) == ("lenet", 4, [1, 1, 1], [])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "the normalisation of the network's input is unknown"),
        (["--mean", "1,2,3"], 2, "--mean and --std belong together"),
        (["--mean", "1,2", "--std", "1,1,1"], 2, "three numbers"),
        (["--mean", "1,2,x", "--std", "1,1,1"], 2, "three numbers"),
        (["--mean", "1,2,inf", "--std", "1,1,1"], 2, "three numbers"),
        (["--mean", "1,2,3", "--std", "1,0,1"], 2, "or above"),
        (["--mean", "1,2,3", "--std", "1,1e-45,1"], 2, "1e-06 or above"),
        (["--mean", "1,2,1e300", "--std", "1,1,1"], 2, "three numbers"),
        (
            ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"],
            2,
            "--mean, --std: look like the scale 0..1; expected 0..255; found 0.485,0.456,0.406 and 0.229,0.224,0.225; "
            "multiply both by 255: --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375\n",
        ),
        (["--input", "5000"], 2, "--input"),
        (["--network", "lenett"], 2, "did you mean lenet or"),
        (["--network", "resnet18"], 3, "not resnet18; found your conv1 has 20 filters, resnet18's 64; "),
        (["--params", __file__], 3, "not an MXNet .params file"),
        (["--symbol", __file__], 3, "not a JSON file"),
        (["--symbol", "/absent"], 3, "error: --symbol /absent: cannot be read (No such file or directory)\n"),
        (["--params", "/absent"], 3, "error: --params /absent: cannot be read (No such file or directory)\n"),
        (["--records", ".", "--classes", __file__], 2, "leave --classes out"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], code: int, said: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = call([*files, *words], capsys)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert said in err
    assert not (tmp_path / "run").exists()


def test_swapped_files_are_told(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call([*files, "--symbol", files[3], "--params", files[1]], capsys)
    assert (code, err.count("\n")) == (3, 1)
    assert (
        f"--symbol {files[3]}: the file holds MXNet parameters, not a symbol; expected MXNet's -symbol.json; "
        "--symbol and" in err
    )
    assert err.endswith("; --symbol and --params the other way round?\n")
    assert "other way round" not in call([*files, "--symbol", files[3]], capsys)[2]


def test_it_says_which_classes_it_took(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["--mean", "0,0,0", "--std", "1,1,1"]
    assert "classes: numbered 0..3; --records or --classes names them\n" in call([*files, *plain], capsys)[1]
    (tmp_path / "classes").write_text("a\nb\nc\nd\n")
    words = [*files, *plain, "--classes", str(tmp_path / "classes"), "--out", str(tmp_path / "second")]
    assert "classes: 0 = a, 3 = d, in the order list\n" in call(words, capsys)[1]


def test_a_crop_that_nothing_states_is_told(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [*files, "--mean", "0,0,0", "--std", "1,1,1"]
    line = "centre crop 0.875 of the shorter edge assumed in evaluation (--crop-fraction gives another)\n"
    assert line in call(plain, capsys)[1]
    for place, words in enumerate((["--crop-fraction", "1"], ["input.crop_fraction=1.0"])):
        assert line not in call([*plain, *words, "--out", str(tmp_path / f"{place}")], capsys)[1]


def test_the_records_mean_is_a_guess(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ClassTable("folder", tuple("abcd"), tuple("abcd"))
    numbers = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "counts": {"train": 9}, "digest": "d"}
    data = SimpleNamespace(folder=tmp_path / "data", name=str(tmp_path / "data"), classes=table, **numbers)
    monkeypatch.setattr(manifest, "read_data_set", lambda *_: data)
    out = call([*files, "--records", "data"], capsys)[1]
    assert "mean.json: the mean of these records, if that is what it was trained with\n" in out
    assert "classes: 0 = a, 3 = d, in the order folder\n" in out


def test_a_card_of_an_export_names_the_classes(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"order": "folder", "ids": list("wxyz"), "names": list("WXYZ")}
    (tmp_path / "net.onnx.json").write_text(json.dumps({"written_by": "imagenet-pipeline 1", "classes": table}))
    words = [*files, "--mean", "0,0,0", "--std", "1,1,1", "--classes", str(tmp_path / "net.onnx.json")]
    assert "classes: 0 = w, 3 = z, in the order folder\n" in call(words, capsys)[1]
    card = {"classes": table, "crop_fraction": 1.0}
    (tmp_path / "net.onnx.json").write_text(json.dumps(card))
    for name, more, expected in (("card", [], 1.0), ("told", ["--crop-fraction", "0.95"], 0.95)):
        assert call([*words, "--out", str(tmp_path / name), *more], capsys)[0] == 0
        state = json.loads((tmp_path / name / "checkpoints" / "epoch-0000" / "state.json").read_text())
        assert state["crop_fraction"] == expected
    (tmp_path / "net.onnx.json").write_text(json.dumps({**card, "crop_fraction": 2}))
    assert call([*words, "--out", str(tmp_path / "second")], capsys)[0] == 3
    (tmp_path / "net.onnx.json").write_text(json.dumps({"classes": 3}))
    assert call([*words, "--out", str(tmp_path / "second")], capsys)[0] == 3


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["--help"], capsys)
    assert code == 0
    assert "Examples:" in out


def test_names_of_arrays_do_not_reach_the_terminal_raw(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(Path(files[3]), read_params(Path(files[3])) | {"arg:a\x1b[2J\nb": np.ones(1, np.float32)})
    code, out, err = call([*files, "--mean", "0,0,0", "--std", "1,1,1"], capsys)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "\x1b" not in err


def test_class_ids_that_cannot_be_printed_are_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes").write_text("a\nb\nc\x1b[2J\nd\n")
    code, _, err = call([*files, "--mean", "0,0,0", "--std", "1,1,1", "--classes", str(tmp_path / "classes")], capsys)
    assert code == 3
    assert "'c\\x1b[2J'" in err
