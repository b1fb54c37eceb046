"""The verb recipes: what is shipped, to read, to train or to copy and change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Json, say, say_json, say_table
from imagenet_pipeline.config.shipped import copy_shipped, read_shipped, shipped_paths, shipped_text
from imagenet_pipeline.errors import BadRecipe


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, as it is written.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Write it to a file of your own, to change it.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write [default: NAME.toml in this folder]")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with this program, print one of them, or copy one.

    `train NAME` trains one as it is. A copy is written with all its comments; a file that is there stays.

    \b
    Examples:
      imagenet-pipeline recipes
      imagenet-pipeline recipes imagenet/resnet50
      imagenet-pipeline recipes --copy imagenet/resnet50 --out mine.toml
    """
    if name is None:
        if copy or out:
            raise BadRecipe("--copy", expected="the name of a recipe", advice="`recipes` lists them")
        _list(as_json)
    elif copy or out:
        written = copy_shipped(name, out)
        if as_json:
            say_json({"name": name, "written": written})
        else:
            say(f"{name}: written to {written}")
    elif as_json:
        say_json({**dataclasses.asdict(read_shipped(name)), "text": shipped_text(name)})
    else:
        for line in shipped_text(name).splitlines():
            say(line)


def _list(as_json: bool) -> None:
    found = [read_shipped(name) for name in shipped_paths()]
    if as_json:
        say_json({"recipes": [dataclasses.asdict(recipe) for recipe in found]})
        return
    say_table(["recipe", "network", "records", "what it is"], [dataclasses.astuple(recipe) for recipe in found])
