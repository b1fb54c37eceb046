"""What is handed out: the source distribution is complete, and the wheel made from it stands alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
REPOSITORY = Path(__file__).resolve().parent.parent
STAND_INS = ("record_builders", "recipes")
"""Folders of imagenet_pipeline/ that lie elsewhere in a checkout."""


def call(code: str, folder: Path, **variables: str) -> str:
    """What Python prints for `code` in `folder`, away from this repository's modules."""
    words = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONPATH": "", **variables}
    return subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "output", "*.egg-info", "build")
    shutil.copytree(REPOSITORY, folder / "checkout", ignore=left_out)
    call("from setuptools import build_meta; build_meta.build_sdist('..')", folder / "checkout")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("imagenet_pipeline-*/"))


@pytest.fixture(scope="module")
def installed(source: Path) -> Path:
    """The wheel of that source, unpacked as pip does it."""
    call("from setuptools import build_meta; build_meta.build_wheel('..')", source)
    site = source.parent / "site"
    with zipfile.ZipFile(next(source.parent.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def names_of(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


RECIPES = names_of(REPOSITORY / "config", "*.toml")


def test_the_source_holds_what_a_checkout_holds(source: Path) -> None:
    for folder in ("benchmarks", "config", "docs", "imagenet_pipeline", "record_builders", "scripts", "tests"):
        for pattern in ("*.py", "*.pyi", "*.c", "*.sh", "*.toml", "*.md", "*.txt"):
            assert names_of(source / folder, pattern) == names_of(REPOSITORY / folder, pattern)
    assert (source / "LICENSE").exists()
    assert (source / "setup.py").exists()
    assert not names_of(source, "*.so")


def test_the_wheel_claims_one_name_and_holds_all_of_it(installed: Path) -> None:
    package = installed / "imagenet_pipeline"
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["imagenet_pipeline"]
    modules = names_of(REPOSITORY / "imagenet_pipeline", "*.py") - {f"{name}/__init__.py" for name in STAND_INS}
    builders = {f"record_builders/{name}" for name in names_of(REPOSITORY / "record_builders", "*.py")}
    assert names_of(package, "*.py") == modules | builders
    assert names_of(package / "recipes", "*") >= RECIPES
    for name in ("py.typed", "serving/page.html", "serving/files/page.js", "serving/files/page.css"):
        assert (package / name).is_file()


def test_the_wheel_alone_finds_recipes_and_builders(installed: Path, tmp_path: Path) -> None:
    code = (
        "from imagenet_pipeline.config.shipped import shipped_networks, shipped_paths\n"
        "from imagenet_pipeline.record_builders import cutting\n"
        "print(cutting.__file__, *map(str, [*shipped_paths().values(), *shipped_networks().values()]), sep='\\n')"
    )
    module, *recipes = call(code, tmp_path, PYTHONPATH=str(installed)).split()
    assert module == str(installed / "imagenet_pipeline" / "record_builders" / "cutting.py")
    assert set(recipes) == {str(installed / "imagenet_pipeline" / "recipes" / name) for name in RECIPES}


def test_a_machine_without_a_compiler_makes_a_wheel_for_any_machine(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    call("from setuptools import build_meta; build_meta.build_wheel('..')", tmp_path / "source", CC="/bin/false")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "imagenet_pipeline/records/image.py" in names
    assert not [name for name in names if name.endswith(".so")]
