"""The recipe of a command line that trained with MXNet: GluonCV's train_imagenet.py and MXNet's own example scripts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import tomli_w

from imagenet_pipeline.config import Recipe, option_names, read_recipe, recipe_keys
from imagenet_pipeline.errors import BadRecipe, first_few, printable
from imagenet_pipeline.interchange import gluoncv_script, mxnet_script
from imagenet_pipeline.interchange.script_flags import CommandLine, read_commands, read_flags

COLUMNS = 118
_RECORDS = {
    "train_imagenet.py": "output/imagenet",
    "train_cifar10.py": "output/cifar10",
    "fine-tune.py": "output/records",
}
_FIRST = "first: "
"""Begins a note that is a command, and is not wrapped."""
_ALWAYS_WRITTEN = ("", "optimizer", "schedule")
"""Sections whose keys are written where they are our defaults, too."""
_VARIABLE_OF_DEVICES = "CUDA_VISIBLE_DEVICES="


@dataclass(frozen=True)
class ScriptRecipe:
    """A recipe, its text, the script it was read from, and what was assumed or has no counterpart."""

    script: str
    recipe: Recipe
    notes: tuple[str, ...]
    text: str


def recipe_of_command(text: str, records: str | None = None) -> ScriptRecipe:
    """Translate a shell command; `records` is the data set to train on.

    Raises BadRecipe, one line, for a script or flag that is not known, and for values that no recipe may have.
    """
    if records is not None and not records.isprintable():
        raise BadRecipe("the folder's name cannot be printed", where="--records", found=ascii(records[:80]))
    command, others = _chosen(read_commands(text))
    name = PurePosixPath(command.script).name
    if name == "train_mnist.py":
        advice = "`train network=lenet` does, on a data set of colour images that `build folder` or `build list` makes"
        raise BadRecipe("MXNet's script of grey 28 px digits has no recipe here", where=name, advice=advice)
    build: str | None = None
    if _is_gluoncv(command) and _is_cifar(command):
        script, title = "train_cifar10.py", gluoncv_script.CIFAR_TITLE
        where = records or _RECORDS[script]
        arguments = read_flags(command.flags, gluoncv_script.CIFAR_FLAGS, title, gluoncv_script.SHORT)
        keys, assumed = gluoncv_script.translate_cifar(arguments)
    elif _is_gluoncv(command):
        script, title = "train_imagenet.py", gluoncv_script.TITLE
        where = records or _RECORDS[script]
        arguments = read_flags(command.flags, gluoncv_script.FLAGS, title, gluoncv_script.SHORT)
        keys, assumed = gluoncv_script.translate(arguments)
        build = gluoncv_script.records_command(arguments, where)
    else:
        script = mxnet_script.known_script(name, command.names())
        title = f"MXNet's {script}"
        where = records or _RECORDS[script]
        arguments = read_flags(command.flags, mxnet_script.flags_of(script), title)
        keys, assumed = mxnet_script.translate(arguments)
        build = mxnet_script.records_command(arguments, where)
    notes = [f"several commands stand there; this is the recipe of {name}, not of {others}"] if others else []
    notes += [] if name == script else [f"{name} is taken for {title}"]
    if build and records is None:
        notes.append(f"{_FIRST}{build}")
    notes = [*notes, *_about(command), *assumed, *arguments.without_counterpart()]
    defaults = {key.name: key.default for key in recipe_keys()}
    keys = {"records": where, **{key: value for key, value in keys.items() if _is_written(key, value, defaults)}}
    recipe = read_recipe(_nested(keys), "the recipe of this command")
    return ScriptRecipe(title, recipe, tuple(notes), "\n".join([*_head(text, title, notes), *_lines(keys), ""]))


def _chosen(commands: Sequence[CommandLine]) -> tuple[CommandLine, str]:
    """The first command of a script that is known by its name, else the first; and the names of the others."""
    chosen = next((command for command in commands if PurePosixPath(command.script).name in _RECORDS), commands[0])
    others = [PurePosixPath(command.script).name for command in commands if command is not chosen]
    return chosen, first_few(others) if others else ""


def _is_gluoncv(command: CommandLine) -> bool:
    """Tell the scripts apart, which share a name, by the flags that only one of them has."""
    names = command.names()
    theirs = {*gluoncv_script.FLAGS, *gluoncv_script.CIFAR_FLAGS} - {"network"}
    mxnets = set(mxnet_script.FLAGS)
    return len(names & (theirs - mxnets)) > len(names & (mxnets - theirs))


def _is_cifar(command: CommandLine) -> bool:
    """Tell GluonCV's two scripts apart: by their names, or else by the flags and networks of one of them."""
    name = PurePosixPath(command.script).name
    if name in ("train_cifar10.py", "train_imagenet.py"):
        return name == "train_cifar10.py"
    own = set(gluoncv_script.CIFAR_FLAGS) - set(gluoncv_script.FLAGS)
    return bool(command.names() & own) or any("cifar_" in word.lower() for word in command.flags)


def _about(command: CommandLine) -> Iterator[str]:
    if command.several_processes:
        yield "several processes: docs/scaling.md says how to launch them; batch_size is that of all together"
    if any(word.startswith(_VARIABLE_OF_DEVICES) for word in command.before):
        yield f"{_VARIABLE_OF_DEVICES[:-1]} still says which GPUs there are; devices counts within them"


def _is_written(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    same = tuple(value) == defaults[key] if isinstance(value, list) else value == defaults[key]
    return not same or key.rpartition(".")[0] in _ALWAYS_WRITTEN


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values


def _head(text: str, title: str, notes: Sequence[str]) -> Iterator[str]:
    """The comment above the recipe."""
    yield from _comment(f"From: {' '.join(text.split())}")
    yield from _comment(f"Flags that are not given have the defaults of {title}.")
    for note in notes:
        yield from [f"# - {printable(note)}"] if note.startswith(_FIRST) else _comment(note, "- ")


def _comment(text: str, mark: str = "") -> Iterator[str]:
    wrapped = textwrap.wrap(mark + printable(text), COLUMNS, subsequent_indent=" " * len(mark), break_on_hyphens=False)
    yield from (f"# {line}" for line in wrapped)


def _lines(keys: Mapping[str, Any]) -> Iterator[str]:
    """The keys in the order of a recipe, a section a table."""
    last = ""
    for key in sorted(keys, key=option_names().index):
        section, _, name = key.rpartition(".")
        if section != last:
            yield f"\n[{section}]"
            last = section
        value = keys[key]
        yield f"{name} = {json.dumps(value)}" if isinstance(value, list) else tomli_w.dumps({name: value}).strip()
