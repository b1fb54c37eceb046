"""Fixtures for every test: the shared real data, where it is."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The machines are shared and slow now and then; a slow example is no failure.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Python before 3.11.4 unpacks without a filter; the archives are our own.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real data: IMAGENET_PIPELINE_DATA, or else ../shared/data."""
    folder = Path(os.environ.get("IMAGENET_PIPELINE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder} (IMAGENET_PIPELINE_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`unpacked("odd_images_shared.tar.xz")` is a folder with that archive's content, unpacked once a session."""
    folders: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in folders:
            archive = shared_data / name
            if not archive.is_file():
                pytest.skip(f"no {name} in {shared_data}")
            folder = tmp_path_factory.mktemp(name.partition(".")[0])
            with tarfile.open(archive) as tar:
                tar.extractall(folder, **SAFELY)
            folders[name] = folder
        return folders[name]

    return unpack
