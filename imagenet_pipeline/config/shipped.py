"""Recipes that come with the package: found by name ("demo", "imagenet/resnet50"), listed and copied; network files.

They are the files of the repository's config/, which the wheel carries as `imagenet_pipeline.recipes`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from imagenet_pipeline import files, recipes
from imagenet_pipeline.errors import BadRecipe, did_you_mean

_NETWORKS = "networks/"


@dataclass(frozen=True)
class ShippedRecipe:
    """One line of the list of recipes."""

    name: str
    network: str
    records: str
    summary: str
    """The first sentence of its comment."""


@cache
def shipped_paths() -> dict[str, Path]:
    """The file of every shipped recipe, by name, the names sorted."""
    paths = {name.removesuffix(".toml"): path for name, path in _files().items() if not name.startswith(_NETWORKS)}
    return dict(sorted(paths.items()))


@cache
def shipped_networks() -> dict[str, Path]:
    """Every network that is shipped as a file, by the name a recipe gives it: "networks/mlp_1024.toml"."""
    return {name: path for name, path in _files().items() if name.startswith(_NETWORKS)}


def _files() -> dict[str, Path]:
    folder = Path(next(iter(recipes.__path__)))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.toml"))}


def shipped_name(path: Path) -> str | None:
    """The name of the shipped recipe in this file; None for any other file."""
    return next((name for name, shipped in shipped_paths().items() if shipped == path.absolute()), None)


def shipped_path(name: str) -> Path:
    """The file of a shipped recipe. Raises BadRecipe with the nearest names."""
    if name not in shipped_paths():
        advice = did_you_mean(name, shipped_paths(), "`recipes` lists them")
        raise BadRecipe("no such shipped recipe", where=name, advice=advice)
    return shipped_paths()[name]


def shipped_instead_of(path: Path) -> Path:
    """Find the shipped recipe named by a path that is no recipe file; a folder that is none either stays as it is.

    Raises BadRecipe, with the nearest names of shipped recipes and of recipe files beside it, where there is nothing.
    """
    name = path.as_posix()
    if name in shipped_paths():
        return shipped_paths()[name]
    if path.exists():
        return path
    word = name.removeprefix("config/").removesuffix(".toml")
    beside = sorted(file.as_posix() for file in path.parent.glob("*.toml"))
    advice = did_you_mean(word, [*shipped_paths(), *beside], "`recipes` lists those that are shipped")
    raise BadRecipe("no such recipe file", where=path, advice=advice)


def read_shipped(name: str) -> ShippedRecipe:
    """Describe a shipped recipe: its name, network, records and summary. Raises BadRecipe for any other name."""
    text = shipped_text(name)
    values = tomllib.loads(text)
    comment = " ".join(line.lstrip("# ") for line in text[: text.index("\nnetwork")].splitlines())
    # "et al." ends no sentence.
    summary = re.split(r": |(?<!al)\. |\.$", comment)[0]
    return ShippedRecipe(name, values["network"], values["records"], summary)


def shipped_text(name: str) -> str:
    """A shipped recipe as it is written. Raises BadRecipe for a name that is not shipped."""
    return shipped_path(name).read_text(encoding="utf-8")


def copy_shipped(name: str, out: Path | None = None) -> Path:
    """Write a shipped recipe to a file, by default `imagenet-resnet50.toml` in the current folder; return its path.

    Raises BadRecipe for a name that is not shipped, or where something is already.
    """
    text = shipped_text(name)
    out = out or Path(f"{name.replace('/', '-')}.toml")
    if out.exists() or out.is_symlink():
        raise BadRecipe("the file exists already and is kept", where=out, advice="give another --out, or remove it")
    files.write_whole(out, text)
    return out
