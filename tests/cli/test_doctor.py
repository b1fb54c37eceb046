"""The verb doctor: what a report needs, and whether an engine can be used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.cli import doctor
from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.processes import quotas

Call = Callable[..., tuple[int, str, str]]
INSTALLED = [engine for engine in ("gluon", "pytorch") if is_installed(engine)]


def test_it_says_what_a_report_needs(call: Call) -> None:
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert code == (0 if INSTALLED else 1)
    assert found["python"] == sys.version.split()[0]
    assert [engine["name"] for engine in found["engines"] if engine["version"]] == INSTALLED
    assert not any(engine["trouble"] for engine in found["engines"])
    assert found["processors"] >= 1
    assert found["disk"]["free_bytes"] > 0
    assert found["packages"]["numpy"]
    assert set(found["compiled"]) == {"jpeg_crop", "area_average"}
    assert found["extras"] == {} or "docs" not in found["extras"]


@pytest.mark.parametrize(
    ("versions", "program", "code", "says"),
    [
        ({"gluon": None, "pytorch": None}, "print(0)", 1, "not installed: pip install 'imagenet-pipeline[gluon]'"),
        ({"gluon": None, "pytorch": "9.9"}, "print(2)", 0, "pytorch       9.9, 2 GPUs"),
        ({"gluon": None, "pytorch": "9.9"}, "raise OSError('no libGL')", 1, "cannot be imported (OSError: no libGL)"),
        (
            {"gluon": "1.9", "pytorch": "9.9"},
            "import sys\nif sys.argv[1] == 'gluon': exit(7)\nprint(0)",
            0,
            "with code 7",
        ),
    ],
)
def test_the_exit_code_says_whether_an_engine_can_be_used(
    call: Call, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], program: str, code: int, says: str
) -> None:
    monkeypatch.setattr(doctor, "engine_versions", lambda: versions)
    monkeypatch.setattr(doctor, "_PROBE", program)
    ended, out, _ = call("doctor")
    assert ended == code
    assert says in out
    assert all(len(line) < 140 for line in out.splitlines())


def test_a_missing_extra_is_named_with_what_installs_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["numpy>=1.26", 'onnx>=1.16; extra == "onnx"', 'nowhere<2; python_version > "3" and extra == "far"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor, "engine_versions", lambda: {"gluon": None, "pytorch": None})
    monkeypatch.setattr(doctor, "_version", lambda *names: None if "nowhere" in names else "1.0")
    out = call("doctor")[1]
    assert "extras        onnx\n" in out
    assert "no nowhere: pip install 'imagenet-pipeline[far]'" in out


def test_quotas_are_the_least_of_the_groups_around_it(tmp_path: Path) -> None:
    assert quotas(tmp_path) == (None, None)
    group = tmp_path / "sys/fs/cgroup/outer/inner"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert quotas(tmp_path) == (None, None)
    (group.parent / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text(f"{2**33}\n")
    assert quotas(tmp_path) == (1.5, 2**33)
