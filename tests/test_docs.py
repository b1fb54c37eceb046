"""The documentation: every verb, option, recipe key and file that it names is there, and the quick start runs."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from imagenet_pipeline.cli import app, main
from imagenet_pipeline.config import recipe_keys
from imagenet_pipeline.interchange import gluoncv_script, mxnet_script

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "benchmarks/README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
    )
    if path.parent.name != "reference"
)
KEYS = {key.name for key in recipe_keys()}
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
OPEN_SECTIONS = ("transfer.frozen.", "transfer.rates.")
"""Keys of any layer's name stand in these."""
KEY_AND_VALUE = re.compile(r"([a-z][a-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*)=\S+")
WORDS_OF_OTHERS = {"rotate", "kv_store", "table"}
"""MXNet's, which the pages for its users name, and the builder that a page adds."""
FOLDERS = ("config", "scripts", "deploy", "benchmarks", "tests", "record_builders", "docs")

ROOMS = [
    path.name for path in (REPOSITORY / "imagenet_pipeline").iterdir() if path.is_dir() and path.name not in FOLDERS
]


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def code(text: str) -> Iterator[str]:
    """Lines of the code blocks but Python's, continued ones joined, and the code spans of a page."""
    text = re.sub(r"\\\n\s*", "", text)
    for block in re.findall(r"^```(?!python)\w*\n(.*?)^```", text, re.M | re.S):
        yield from (line.strip() for line in block.splitlines())
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    yield from (line.strip() for line in re.findall(r"^    (.*)", text, re.M))
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))


def faults(text: str) -> Iterator[str]:
    """What a page names that is not there."""
    for line in code(text):
        yield from files_missing(line)
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: prose, or a program's output
            continue
        if "imagenet-pipeline" in words:
            yield from command_faults(words[words.index("imagenet-pipeline") + 1 :], line)
        elif len(words) > 1 and words[0] in command_line().commands:
            yield from command_faults(words, line)
        elif len(words) == 1:
            yield from key_faults(words[0], line)


def command_faults(words: list[str], line: str) -> Iterator[str]:
    command = command_line()
    while words and hasattr(command, "commands") and (inner := command.get_command(None, words[0])):
        command = inner
        words.pop(0)
    if words and words[0] in WORDS_OF_OTHERS:
        return
    if words and words[0].islower() and words[0][0] != "-" and hasattr(command, "commands"):
        yield f"{line}: no verb {words[0]}"
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "--debug"}
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in options:
            yield f"{line}: no option {word}"
        yield from key_faults(word, line, dotted=False)


def key_faults(word: str, line: str, dotted: bool = True) -> Iterator[str]:
    """A recipe key, with a value or (where `dotted`) without: one that is not there."""
    match = KEY_AND_VALUE.fullmatch(word)
    key = match[1] if match else word
    section, _, rest = key.partition(".")
    if not match and not (dotted and section in SECTIONS and rest and "/" not in key and not rest.startswith("*")):
        return
    if rest in ("py", "safetensors") or key.startswith(OPEN_SECTIONS) or key in WORDS_OF_OTHERS:
        return
    if key not in KEYS:
        yield f"{line}: no recipe key {key}"


def files_missing(line: str) -> Iterator[str]:
    for path in re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w/.-]*\.(?:toml|sh|py|md|yaml)\b", line):
        if not (REPOSITORY / path).exists() and not path.startswith("docs/reference/"):
            yield f"{line}: no file {path}"
    for path in re.findall(rf"(?<![\w/.-])(?:{'|'.join(ROOMS)})/[\w/]*\.py\b", line):
        if not (REPOSITORY / "imagenet_pipeline" / path).exists():
            yield f"{line}: no file {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    assert list(faults(page.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "    imagenet-pipeline trian config/demo.toml", "`imagenet-pipeline train config/nope.toml`",
        "    imagenet-pipeline verify output --decode", "`train RECIPE lr=0.1`", "`optimizer.lr`", "`optimizer.lr=0.1`",
        "`build floder --root photos`", "```\nimagenet-pipeline train \\\n  config/demo.toml epoch=3\n```",
        "`records/nothing.py`", "`bash scripts/nothing.sh`",
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(text: str) -> None:
    assert list(faults(text))


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (REPOSITORY / "README.md").read_text())
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def not_named(names: Iterable[str]) -> list[str]:
    """The names that the page for MXNet's users has in no code span; `--max-random-*` is all that begin so."""
    spans = re.findall(r"`([^`]+)`", (REPOSITORY / "docs/mxnet.md").read_text())
    words = {word for span in spans for word in re.findall(r"[\w.*-]+", span)}
    beginnings = tuple(word.rstrip("*") for word in words if word.endswith("-*"))
    return sorted(name for name in names if name not in words and not (beginnings and name.startswith(beginnings)))


def test_every_flag_that_a_recipe_is_made_of_is_on_the_page() -> None:
    names = {*gluoncv_script.FLAGS, *gluoncv_script.CIFAR_FLAGS, *mxnet_script.FLAGS} - {"use-se"}
    assert not_named([f"--{name}" for name in names]) == []


@pytest.mark.gluon
def test_what_mxnet_s_users_used_is_on_the_page(mx: Any) -> None:
    parameters = re.findall(r"^(\w+) : ", mx.io.ImageRecordIter.__doc__, re.M)
    assert len(parameters) > 60
    assert not_named(parameters) == []
    assert not_named(set(inspect.signature(mx.mod.Module.fit).parameters) - {"self"}) == []
    for module in (mx.callback, mx.metric, mx.lr_scheduler):
        own = {name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
        of_users = {name for name in own if name[0].isupper()} - {"EvalMetric", "LRScheduler"}
        assert len(of_users) > 2
        assert not_named(of_users) == []
    im2rec = (Path(inspect.getfile(mx)).parent / "tools" / "im2rec.py").read_text()
    flags = re.findall(r"add_argument\('(--[\w-]+)'", im2rec)
    assert "--pass-through" in flags
    assert not_named(flags) == []


def test_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "docs/quick-start.md").read_text()
    (tmp_path / "config").symlink_to(REPOSITORY / "config")
    monkeypatch.chdir(tmp_path)
    for line in "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines():
        program, *words = shlex.split(line)
        assert program == "imagenet-pipeline"
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, line
    assert "ILSVRC2012_val_00000001.JPEG" in capsys.readouterr().out
    assert Path("output/runs/demo/report-test.html").exists()
    assert Path("output/runs/demo/checkpoints/epoch-0003/state.json").exists()
    assert Path("output/digits.png").exists()
