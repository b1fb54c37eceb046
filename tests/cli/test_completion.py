"""What the shell completes: verbs, options, recipes, runs, networks, recipe keys and their words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.cli import completion, main

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Complete:
    """`complete("train", "de")` is what bash is offered for the last word."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    completion._words.cache_clear()

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_IMAGENET_PIPELINE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["imagenet-pipeline", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    return ask


def test_verbs_and_options(complete: Complete) -> None:
    assert {"start", "train", "build", "export-records"} <= set(complete(""))
    assert complete("exp") == ["export", "export-records"]
    assert "--resume" in complete("train", "demo", "--r")
    assert {"folder", "digits"} <= set(complete("build", ""))


def test_recipes_and_runs(complete: Complete) -> None:
    for name in ("a", "b"):
        (Path(completion.RUNS) / name).mkdir(parents=True)
    Path(completion.RUNS, "a", "recipe.toml").touch()
    assert complete("train", "de") == ["demo"]
    assert "imagenet/resnet50" in complete("train", "imagenet/")
    assert complete("train", "out") == complete("evaluate", "out") == complete("export", "") == ["output/runs/a"]
    assert complete("recipes", "output") == []


def test_networks_keys_and_their_words(complete: Complete) -> None:
    assert complete("networks", "resnet18") == ["resnet18", "resnet18_v2", "resnet18_d"]
    assert "optimizer.weight_decay=" in complete("train", "demo", "optimizer.w")
    # A second word, so that bash puts no space behind the equals sign.
    assert complete("train", "demo", "optimizer.learning") == [
        "optimizer.learning_rate=",
        "optimizer.learning_rate=VALUE",
    ]
    # bash takes an equals sign for a word.
    assert complete("train", "demo", "schedule.kind", "=", "cos") == ["cosine"]
    assert "constant" in complete("train", "demo", "schedule.kind", "=")
    assert complete("train", "demo", "=", "x") == complete("train", "demo", "nothing", "=", "x") == []
    assert complete("train", "demo", "network", "=", "resnet152_v") == ["resnet152_v1", "resnet152_v2"]


def test_words_are_kept_until_what_they_come_from_changes(
    complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete("networks", "lenet")
    kept = tmp_path / "cache" / "imagenet_pipeline" / "words.json"
    words = json.loads(kept.read_text())
    kept.write_text(json.dumps({**words, "networks": ["lenet_kept"]}))
    completion._words.cache_clear()
    assert complete("networks", "lenet") == ["lenet_kept"]
    monkeypatch.setattr(completion, "_stamp", lambda: "another version")
    completion._words.cache_clear()
    assert "lenet" in complete("networks", "lenet")
    kept.write_text("{")
    completion._words.cache_clear()
    assert "lenet" in complete("networks", "lenet")


def test_kept_words_import_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom imagenet_pipeline.cli import main\n"
        "try:\n    main([])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'imagenet_pipeline.config', 'numpy', 'torch', 'mxnet', 'cv2'} & sys.modules.keys()))"
    )
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "_IMAGENET_PIPELINE_COMPLETE": "complete_bash",
        "COMP_WORDS": "imagenet-pipeline train demo epoc",
        "COMP_CWORD": "3",
    }
    answers = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert answers[0].stdout.splitlines()[:2] == ["epochs=", "epochs=VALUE"]
    assert answers[1].stdout.splitlines() == ["epochs=", "epochs=VALUE", "[]"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    with pytest.raises(SystemExit) as ended:
        main(["--show-completion"])
    assert ended.value.code == 0
    assert f"_IMAGENET_PIPELINE_COMPLETE=complete_{shell}" in capsys.readouterr().out


def test_bash_itself_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    with pytest.raises(SystemExit):
        main(["--show-completion"])
    script = capsys.readouterr().out
    command = tmp_path / "imagenet-pipeline"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from imagenet_pipeline.cli import main; main()" "$@"\n')
    command.chmod(0o755)
    asked = 'COMP_WORDS=(imagenet-pipeline train demo schedule.kind = cos); COMP_CWORD=5; COMP_LINE="x"'
    function = "_imagenet_pipeline_completion"
    run = f'{script}\n{asked}\n{function} imagenet-pipeline\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", run], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["cosine"], done.stderr
