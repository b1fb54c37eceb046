"""The package's face for programs, and what programs add to it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import imagenet_pipeline as ip
from imagenet_pipeline import builders
from imagenet_pipeline.cli import main
from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import folder as folder_builder
from imagenet_pipeline.records import image
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.training.loggers import LOGGERS, Start

README = Path(__file__).resolve().parent.parent / "README.md"
RECIPE = """
network = "lenet"
records = "nowhere"
epochs = 2
batch_size = 16
devices = "cpu"
[input]
size = 28
[loader]
threads = 0
"""


def draw_photos(folder: Path, each: int) -> None:
    """Reddish, greenish and bluish noise, a folder a class."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 120, (40, 48, 3), np.uint8)
            pixels[..., channel] += 120
            (folder / name / f"{number}.jpg").write_bytes(image.encode_jpeg(pixels, 95))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, their records in data/, recipe.toml and a run of two epochs in run/."""
    place = tmp_path_factory.mktemp("world")
    draw_photos(place / "photos", each=20)
    (place / "recipe.toml").write_text(RECIPE)
    ip.build("folder", root=str(place / "photos"), out=place / "data", resize=32, workers=1)
    ip.train(str(place / "recipe.toml"), records=place / "data", run=place / "run")
    return place


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (builders.BUILDERS, LOGGERS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
        monkeypatch.setitem(vars(registry), "_entry_points", {})


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, imagenet_pipeline as ip; dir(ip); ip.__version__; "
        "print({'numpy', 'cv2', 'torch', 'mxnet', 'pydantic', 'typer', 'matplotlib'} & {*sys.modules}); "
        "ip.Recipe; print('pydantic' in sys.modules, 'numpy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["set()", "True", "False"]


def test_records_of_others_are_built_in_a_call(stock_record: Callable[..., bytes], tmp_path: Path) -> None:
    photo = image.encode_png(np.zeros((4, 4, 3), np.uint8))
    for name in ("a", "b"):
        (tmp_path / f"{name}.rec").write_bytes(stock_record(5, 1, photo) + stock_record(7, 2, photo))
    files = [str(tmp_path / "a.rec"), str(tmp_path / "b.rec")]
    assert ip.build("records", train=files, out=tmp_path / "two", workers=1).records == {"train": 4}
    summary = ip.build("records", train=files[0], val=files[1], out=str(tmp_path / "set"), workers=1)
    assert (summary.records, summary.classes) == ({"train": 2, "val": 2}, 2)
    with ip.loader(tmp_path / "set", "val", size=4, batch_size=2, threads=0).evaluation() as batches:
        assert next(batches).labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ip.__all__)
def test_every_name_is_there(name: str) -> None:
    home = pytest.importorskip(f"imagenet_pipeline.{ip._HOMES[name]}", exc_type=ModuleNotFoundError)
    assert getattr(ip, name) is getattr(home, name)
    assert name in dir(ip)


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'biuld'"):
        ip.biuld  # type: ignore[attr-defined]  # noqa: B018


def test_the_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [lines] = re.findall(r"```python\n(import imagenet_pipeline as ip\n.*?)```", README.read_text(), re.DOTALL)
    draw_photos(tmp_path / "photos", each=20)
    monkeypatch.chdir(tmp_path)
    short = lines.replace("epochs=25", 'epochs=1, engine="pytorch"')
    assert short != lines
    exec(short, {})
    *said, batches = capsys.readouterr().out.splitlines()
    assert 0 <= float(said[0].split()[0]) <= 100
    assert 0 <= float(said[1]) <= 100
    assert len(said) == 2 + 1 + 2
    assert said[2].count("probability=") == 3
    assert batches.startswith("(16, 64, 64, 3) [")


def test_a_script_may_build_without_minding_its_workers(world: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = ["import imagenet_pipeline as ip", "print('begun')"]
    lines.append(f"print(ip.build('folder', root={str(world / 'photos')!r}, out='data', workers=2).classes)")
    script.write_text("\n".join(lines))
    said = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout == "begun\n3\n"


def test_the_result_of_a_training_is_what_json_prints(world: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    result = ip.train(world / "run", resume="latest")
    code, out, _ = call("train", world / "run", "--resume", "latest", "--json")
    assert not code
    assert list(json.loads(out)) == [field.name for field in dataclasses.fields(result)]
    assert json.loads(out) == {**dataclasses.asdict(result), "run": str(world / "run")}
    assert (result.epoch, result.finished, len(result.history)) == (2, True, 2)
    assert result.metrics == result.history[-1]
    assert result.best["validation_rank1"] == max(row["validation_rank1"] for row in result.history)
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == 2
    assert "finished after epoch 2" in page


def test_a_recipe_of_ones_own_trains_and_goes_on(world: Path, tmp_path: Path) -> None:
    recipe = Recipe(**{**load_recipe(world / "recipe.toml").model_dump(), "records": str(world / "data")})
    first = ip.train(recipe, run=tmp_path / "run", epochs=1, options={"optimizer.learning_rate": 0.01})
    again = ip.train(str(tmp_path / "run"), resume="latest", epochs=2)
    assert [row["epoch"] for row in again.history] == [1, 2]
    assert again.history[0] == first.metrics
    assert load_recipe(tmp_path / "run" / "recipe.toml").optimizer.learning_rate == 0.01
    with pytest.raises(BadRecipe, match="a recipe without a file needs a folder for its run"):
        ip.train(recipe)


@pytest.mark.usefixtures("registries")
def test_control_c_saves_and_returns(world: Path, tmp_path: Path) -> None:
    class Impatient:
        def __init__(self, start: Start) -> None:
            pass

        def add_epoch(self, row: dict[str, Any]) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        def add_reading(self, step: int, loss: float, rate: float) -> None:
            pass

        def add_picture(self, name: str, picture: Path, step: int) -> None:
            pass

        def close(self) -> None:
            pass

    ip.register_logger("impatient", Impatient)
    changes = {"log.loggers": ["impatient"]}
    stopped = ip.train(world / "recipe.toml", records=world / "data", run=tmp_path / "run", epochs=9, options=changes)
    assert not stopped.finished
    assert stopped.epoch == 1
    assert ip.train(tmp_path / "run", resume="latest", epochs=2, options={"log.loggers": []}).finished


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"learning_rate": 0.1}, "unknown recipe key 'learning_rate'.* did you mean optimizer.learning_rate=0.1"),
        ({"options": {"input.size": "large"}}, "recipe key 'input.size'"),
        ({"options": {"log.loggers": ["wandbb"]}}, "no logger is called 'wandbb'; did you mean wandb"),
        ({"records": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_an_exception(world: Path, tmp_path: Path, keys: dict[str, Any], line: str) -> None:
    with pytest.raises((BadRecipe, BadInput), match=line):
        ip.train(world / "recipe.toml", **{"records": world / "data", **keys}, run=tmp_path / "run")


def test_an_evaluation_is_what_json_prints(
    world: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    result = ip.evaluate(str(world / "run"), split="test", report=str(tmp_path / "page.html"))
    code, out, _ = call("evaluate", world / "run", "--split", "test", "--json")
    assert not code
    told, found = json.loads(out), json.loads(json.dumps(dataclasses.asdict(result), default=str))
    assert list(told) == list(found)
    for name in set(found) - {"images_per_second", "report"}:
        assert told[name] == found[name], name
    assert result.report == tmp_path / "page.html"
    assert result.report.is_file()
    assert f"{result.rank1:.2f} %" in result._repr_html_()
    assert "per_class" not in repr(result)


def test_predictions_are_a_sequence_that_shows_itself(world: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jpg").write_text("no picture")
    found = ip.predict(world / "run", [str(world / "photos" / "red"), tmp_path / "odd.jpg"], top=2, batch_size=8)
    assert len(found) == 21
    assert found[0].path == world / "photos" / "red" / "0.jpg"
    assert [len(one.top) for one in found] == [2] * 20 + [0]
    assert [one.path.name for one in found.unreadable] == ["odd.jpg"]
    assert found._repr_html_().count("<img") == 20
    assert "not read" in found._repr_html_()
    one = ip.predict(world / "run", str(world / "photos" / "red" / "0.jpg"))
    assert one[0].top[0].class_id == found[0].top[0].class_id
    assert one[0].top[0].probability == pytest.approx(found[0].top[0].probability)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda run: ip.predict(run, run / "none.jpg"), "no such picture, folder or list"),
        (lambda run: ip.predict(run, run, top=0), "top: not a number of classes"),
        (lambda run: ip.predict(run, run, crops=3), "not a number of crops"),
        (lambda run: ip.evaluate(run, epochs=3), "recipe key 'epochs' does not apply"),
        (lambda run: ip.evaluate(run / "none"), "there is no run here"),
        (lambda run: ip.evaluate(run, report="page.txt"), "the report is written as HTML"),
    ],
)
def test_what_cannot_be_answered_is_an_exception(world: Path, call: Callable[[Path], Any], line: str) -> None:
    with pytest.raises((BadRecipe, BadInput), match=line):
        call(world / "run")


def test_a_loader_gives_batches_and_closes_its_files_when_it_is_gone(world: Path) -> None:
    loader = ip.loader(world / "data", "train", size=24, batch_size=8, threads=0)
    records: Any = loader.records
    with loader.training(seed=0, epoch=0) as batches:
        assert {batch.images.shape for batch in batches} == {(8, 24, 24, 3)}
    del loader, batches
    assert not records._opened._descriptors
    [file] = (world / "data").glob("val*.rec")
    with ip.loader(str(file), size=24, batch_size=8, threads=0).evaluation() as batches:
        assert sum(len(batch.labels) for batch in batches) == 6


def every(root: Path, step: int = 2, shout: bool = False, seen: list[bytes] | None = None) -> Plan:
    """Build from a folder, every so many of its images.

    A second paragraph.
    """
    whole = folder_builder.plan(root)
    if shout:
        logging.getLogger("imagenet_pipeline").warning("LOUD")
    splits = {name: dataclasses.replace(one, paths=one.paths[::step], labels=one.labels[::step])
              for name, one in whole.splits.items()}  # fmt: skip
    return dataclasses.replace(whole, splits=splits)


@pytest.mark.usefixtures("registries")
def test_a_builder_from_outside_is_called_by_name(
    world: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    ip.register_builder("every", every)
    summary = ip.build("every", root=str(world / "photos"), out=tmp_path / "data", step=3, workers=1)
    assert summary.records["train"] == 16
    words = ["--root", world / "photos", "--out", tmp_path / "lists", "--step", 4, "--shout", "--lists-only", "--json"]
    code, out, _ = call("build", "every", *words)
    assert (code, json.loads(out)["images"]["train"]) == (0, 12)
    code, out, _ = call("build", "every", "--help")
    assert "every so many of its images" in out
    assert all(option in out for option in ("--root", "--step", "--shout / --no-shout", "--out", "--quality"))
    assert "--seen" not in out
    code, out, _ = call("build", "--help")
    assert "every" in out
    code, _, err = call("build", "every", "--out", tmp_path / "data")
    assert code == 2
    assert "--root" in err


def told(
    table: Annotated[Path, "--csv", "The table."],
    kind: Annotated[Literal["short", "long"], "The form of it."] = "short",
    seed: int = 42,
    most: Annotated[int | None, "--limit"] = None,
    names: Annotated[Sequence[str], "A name; may be repeated."] = (),
    parts: list[Path] | None = None,
) -> Plan:
    """Build from a table.

    What it does. Raises BadInput for another.
    """
    raise BadInput(f"{table} {kind} {seed} {most} {names} {parts}")


@pytest.mark.usefixtures("registries")
def test_the_signature_of_a_builder_is_its_command(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    ip.register_builder("told", told)
    code, out, _ = call("build", "told", "--help")
    assert code == 0
    shown = " ".join(out.split())
    for words in ("--csv <path> The table. [required]", "--kind <short|long> The form of it. [default: short]"):
        assert words in shown
    assert "Seed of the cuts" in shown
    assert "A name; may be repeated." in shown
    assert "What it does. Options:" in shown
    words = ["--csv", "a", "--kind", "long", "--names", "x", "--names", "y", "--parts", "p", "--limit", 3]
    _, _, err = call("build", "told", "--out", tmp_path / "out", *words)
    assert err == f"error: a long 42 3 ['x', 'y'] {[Path('p')]}\n"
    _, _, err = call("build", "told", "--out", tmp_path / "out", "--csv", "a")
    assert err == "error: a short 42 None () None\n"
    assert call("build", "told", "--out", tmp_path / "out", "--csv", "a", "--kind", "odd")[0] == 2


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that offers a builder, and one that cannot be imported."""
    info = tmp_path / "site" / "foreign-2.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 2.0\n")
    info.joinpath("entry_points.txt").write_text(
        "[imagenet_pipeline.builders]\nhalf = foreign_builder:plan\nbroken = foreign_not_there:plan\n"
    )
    (tmp_path / "site" / "foreign_builder.py").write_text(
        "from pathlib import Path\nfrom imagenet_pipeline.record_builders import folder\n"
        "def plan(root: Path):\n    'Build half.'\n    return folder.plan(root)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    items = dict(builders.BUILDERS._items)
    vars(builders.BUILDERS).pop("_entry_points", None)
    yield
    vars(builders.BUILDERS).pop("_entry_points", None)
    builders.BUILDERS._items = items


@pytest.mark.usefixtures("offered")
def test_a_builder_is_found_by_its_entry_point(
    world: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    assert ip.build("half", root=world / "photos", out=tmp_path / "data", workers=1).classes == 3
    code, out, _ = call("build", "--help")
    assert (code, "half" in out, "broken" in out) == (0, True, False)
    code, _, err = call("build", "broken", "--out", tmp_path / "more")
    assert code == 2
    assert "builder 'broken' of package foreign 2.0: the entry point 'foreign_not_there:plan' cannot be imported" in err


@pytest.mark.parametrize(
    ("builder", "options", "line"),
    [
        ("fodler", {}, "build: no builder is called 'fodler'; did you mean folder"),
        ("folder", {"root": "x", "val_fractoin": 1}, "build folder: the builder has no option 'val_fractoin'; did you"),
        ("folder", {"root": "x", "resiez": 1}, "did you mean resize"),
        ("folder", {}, "build folder: the option 'root' is missing"),
        ("imagenet", {"root": "x", "class_order": "mine"}, "no such class_order; expected wnid or devkit; found mine"),
        ("folder", {"root": "x", "resize": -1}, "resize is out of range"),
    ],
)
def test_what_cannot_be_built_is_an_exception(tmp_path: Path, builder: str, options: dict[str, Any], line: str) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises((BadRecipe, BadInput), match=line):
        ip.build(
            builder, out=tmp_path / "data", **{**options, **({"root": tmp_path / "x"} if "root" in options else {})}
        )
