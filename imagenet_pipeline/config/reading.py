"""Reads recipes from TOML and the command line, reports their first fault in one line, and lists all keys."""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from imagenet_pipeline import files
from imagenet_pipeline.config.recipe import Recipe, network_name
from imagenet_pipeline.config.section import NameOf
from imagenet_pipeline.config.shipped import shipped_instead_of
from imagenet_pipeline.errors import BadRecipe, did_you_mean

INSTEAD = {"steps": "epochs", "epochs": "steps"}
"""Keys of which one takes the place of the other where it is laid over a recipe; of both the later one counts."""
_LARGEST_BITS = 63
"""Size of a whole number, its sign apart; Python does not even print a number of some thousand digits."""


def load_recipe(source: Recipe | str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file, or take a recipe as it is, and lay `overrides` (dotted key -> value) over it.

    Where there is no such file, the text is the name of a shipped recipe ("demo", "imagenet/resnet50"). A network that
    is a file is looked for beside the recipe first, so that a run's own copy is found wherever the run lies.

    Raises BadRecipe, one line, for a missing file, broken TOML, an unknown key (with the nearest key), a wrong type.
    """
    if isinstance(source, Recipe):
        values, where = source.model_dump(mode="json"), "recipe"
    else:
        path = find_recipe(source)
        values, where = _file_values(path), str(source)
        network = values.get("network")
        if isinstance(network, str) and network.endswith((".json", ".toml")) and (path.parent / network).is_file():
            values["network"] = str(path.parent / network)
    epochs = values.get("epochs", Recipe.model_fields["epochs"].default)
    _renew(values)
    _drop_old_defaults(values)
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        _renew(values)
    return _validated(values, where, overrides or {}, epochs)


def find_recipe(text: str | Path) -> Path:
    """Find a recipe: a file or a run folder, else the shipped recipe of that name (a plain folder hides none).

    Raises BadRecipe, with the nearest names, where there is neither.
    """
    path = Path(text)
    is_recipe = path.is_file() or (path / "recipe.toml").exists()
    return path if is_recipe else shipped_instead_of(path)


def _file_values(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_regular(path).decode())
    except IsADirectoryError as error:
        advice = "train RUN --resume latest goes on with a run"
        raise BadRecipe("a folder, not a recipe file", where=path, advice=advice) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecipe(f"not a readable TOML file ({error})", where=path) from error


def load_run_recipe(run: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read the recipe of a run folder, `overrides` laid over it. Raises BadRecipe, also where there is no run."""
    run = Path(run)
    path = run / "recipe.toml"
    if not path.exists():
        above = next((folder for folder in list(run.parents)[:2] if (folder / "recipe.toml").exists()), None)
        advice = None if above is None else f"the run is {above}"
        expected = "a folder that `train` or `import` made"
        raise BadRecipe("there is no run here", where=run, expected=expected, advice=advice)
    return load_recipe(path, overrides)


def read_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Read a recipe from plain values (`model_dump`'s). Raises BadRecipe as `load_recipe` does, naming `where`."""
    values = copy.deepcopy(values)
    _renew(values)
    _drop_old_defaults(values)
    return _validated(values, where, {})


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` words into dotted keys and values; a value is TOML, or else plain text."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise BadRecipe("not an override", where=word[:80], expected="key=value, as in epochs=20")
        overrides[key.strip()] = _literal(text.strip())
    return overrides


def override_words(overrides: Mapping[str, Any]) -> list[str]:
    """`key=value` words that `parse_overrides` reads back; a table's keys become words of their own."""
    words = []
    for key, value in overrides.items():
        if key == "network":
            value = network_name(value)
        if isinstance(value, Mapping):
            words += override_words({f"{key}.{inner}": content for inner, content in value.items()})
        else:
            words.append(tomli_w.dumps({"value": value}).strip().replace("value = ", f"{key}=", 1))
    return words


def recipe_text(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included; reads back equal."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def option_names() -> list[str]:
    """Every recipe key, dotted."""
    return [key.name for key in recipe_keys()]


def options(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every recipe key, dotted, with its value."""
    for name in option_names():
        value: Any = recipe
        for word in name.split("."):
            value = getattr(value, word)
        yield name, value


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        # A number of too many digits, or brackets in too many brackets.
        raise BadRecipe(
            f"the value cannot be read ({error})", where=f"{text[:40]}... ({len(text):,} characters)"
        ) from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            raise BadRecipe("not a section", where=key, advice=f"known keys: {', '.join(option_names())}")
    inner[last] = value
    if key in INSTEAD and value != 0:
        values.pop(INSTEAD[key], None)


def _renew(values: dict[str, Any]) -> None:
    """Rename a key of older recipes: `log.tensorboard` says whether that logger is among `log.loggers`."""
    section = values.get("log")
    if isinstance(section, dict) and isinstance(section.get("tensorboard"), bool):
        wanted, others = section.pop("tensorboard"), section.get("loggers", [])
        if isinstance(others, list | tuple):
            others = [name for name in others if name != "tensorboard"]
            section["loggers"] = [*(["tensorboard"] if wanted else []), *others]


def _drop_old_defaults(values: dict[str, Any]) -> None:
    """Older runs wrote down that network as it is by 0 of both these options, which is now "own"."""
    section, keys = values.get("network_options"), ("squeeze_excitation", "stochastic_depth")
    if isinstance(section, dict) and [section.get(key) for key in keys] == [0, 0]:
        for key in keys:
            del section[key]


def _validated(values: dict[str, Any], where: str, overrides: dict[str, Any], epochs: object = 0) -> Recipe:
    # What the file says of epochs tells how its drops are meant.
    context = {"epochs": epochs} if isinstance(epochs, int) else None
    try:
        return Recipe.model_validate(_with_tuples(values, where), context=context)
    except ValidationError as error:
        words = [str(word) for word in error.errors()[0]["loc"]]
        beginnings = [".".join(words[:length]) for length in range(1, len(words) + 1)]
        given = any(key in beginnings or key.startswith(f"{'.'.join(words)}.") for key in overrides)
        raise recipe_fault(error, option_names(), COMMAND_LINE if given else where) from error


def _with_tuples(value: Any, where: str) -> Any:
    # Strict models want tuples where TOML has arrays.
    if isinstance(value, dict):
        return {key: _with_tuples(inner, f"{where}, {key[:80]}") for key, inner in value.items()}
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise BadRecipe("the whole number is too large", where=where, expected="at most 64 bits, as TOML has them")
    return tuple(_with_tuples(inner, where) for inner in value) if isinstance(value, list) else value


COMMAND_LINE = "command line"
"""The `where` of a fault that is in no file."""
_PLAIN_WORDS = {
    "tuple_type": "needs a list, as [0.5, 1.0] or ['a', 'b']",
    "too_long": "has too many values",
}
_USUAL_NAMES = {
    "accumulation": "accum grad_accum gradient_accumulation accumulation_steps",
    "augmentation.fill": "fill_mode",
    "augmentation.flip_vertical": "vflip flipud vertical_flip",
    "augmentation.hue": "hsv_h",
    "augmentation.mix_epochs": "mixup_off_epoch",
    "augmentation.policy": "aa autoaugment randaugment augmix",
    "average_decay": "ema ema_decay model_ema",
    "batch_size": "b bs batch batchsize",
    "devices": "device ctx gpu gpus",
    "epochs": "epoch num_epochs n_epochs max_epochs",
    "initial.weights": "pretrained init checkpoint",
    "log.loggers": "logger report_to tensorboard wandb mlflow",
    "gradient_compression": "allreduce all_reduce fp16_allreduce comm_hook",
    "input.channels": "in_chans in_channels num_channels grey gray grayscale greyscale",
    "input.size": "image_size img_size imgsz input_size resolution",
    "loader.repeats": "aug_repeats repeated_aug ra_reps",
    "loader.threads": "num_workers workers j",
    "loss.class_weights": "class_weight",
    "loss.gamma": "focal_gamma",
    "loss.label_smoothing": "smoothing",
    "network": "arch architecture model net backbone",
    "optimizer.clip_norm": "clip clip_grad clip_gradient grad_clip",
    "optimizer.clip_share": "agc adaptive_clip",
    "optimizer.decay": "rho",
    "optimizer.epsilon": "eps",
    "optimizer.learning_rate": "lr lr0 base_lr",
    "optimizer.lookahead_steps": "lookahead",
    "optimizer.momentum": "mom",
    "optimizer.name": "opt optim",
    "optimizer.sam_radius": "sam",
    "optimizer.weight_decay": "wd",
    "precision": "amp dtype fp16",
    "records": "data data_dir dataset",
    "schedule.decay": "decay_rate",
    "schedule.kind": "scheduler lr_scheduler lr_schedule",
    "schedule.period_epochs": "t_0 t0 first_decay_steps",
    "schedule.period_factor": "t_mult",
    "schedule.warmup_epochs": "warmup",
    "steps": "max_steps num_steps total_steps iterations max_iter num_iterations",
    "stopping.figure": "monitor",
    "stopping.patience_epochs": "patience early_stopping",
    "stopping.restore_best": "restore_best_weights load_best_model_at_end",
    "transfer.layer_decay": "llrd layerwise_decay",
}
"""Keys, and what other programs call them."""
_NO_KEYS = {
    "num_classes": "the records say how many classes there are",
    "classes": "the records say how many classes there are",
}


def recipe_fault(error: ValidationError, known: list[str], where: str) -> BadRecipe:
    """Report pydantic's first fault in a recipe in one line. `known` are all recipe keys, dotted."""
    first = _clearest(error, known)
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        given = first["input"]
        value = f"={str(given).lower() if isinstance(given, bool) else given}" if where == COMMAND_LINE else ""
        advice = _nearest(key, known, value[:80])
        return BadRecipe(f"unknown recipe key {key[:80]!r}", where=where, advice=advice)
    key = _key_of(first, known) or key
    if first["type"] == "missing":
        return BadRecipe(f"recipe key {key!r} is missing", where=where, advice="add it to the recipe")
    if first["type"] == "literal_error":
        others = {"bool_type": "true or false", "tuple_type": "a list"}
        other = next((others[fault["type"]] for fault in error.errors() if fault["type"] in others), "a number")
        return _unknown_word(key, first, where, other)
    if first["type"] == "model_type":
        inner = next(name for name in known if name.startswith(f"{key}."))
        advice = f"write {inner}=..."
        return BadRecipe(
            f"{key!r} is a section, not a value", where=where, found=repr(first["input"])[:80], advice=advice
        )
    message = _PLAIN_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    found = None if first["type"] == "value_error" else repr(first["input"])[:80]
    named, _, rest = message.partition(": ")
    if f"{key}.{named}".lstrip(".") in known:
        # A message of a section, or of the whole recipe, begins with the key it is about.
        key, message = f"{key}.{named}".lstrip("."), rest
    return BadRecipe(f"recipe key {key!r}: {message[:1].lower()}{message[1:]}", where=where, found=found)


def meant_keys(word: str, known: list[str]) -> list[str]:
    """The keys (dotted, all of them `known`) that go by this name elsewhere, or here within a section."""
    section, _, last = word.strip("-").casefold().replace("-", "_").rpartition(".")
    meant = [key for key in known if last == key.rpartition(".")[2] or last in _USUAL_NAMES.get(key, "").split()]
    return [key for key in meant if key.startswith(section)] or meant


def reason_for_none(word: str) -> str | None:
    """Explain why there is no such key, where somebody may well look for one; else None."""
    return _NO_KEYS.get(word.rpartition(".")[2])


def _nearest(key: str, known: list[str], value: str) -> str:
    meant = meant_keys(key, known)
    if meant:
        return f"did you mean {' or '.join(f'{name}{value}' for name in meant)}?"
    if reason_for_none(key):
        return f"there is none: {reason_for_none(key)}"
    sections = {name.rpartition(".")[0] for name in known if "." in name}
    in_section = key.rpartition(".")[0] in sections
    near = [] if in_section else difflib.get_close_matches(key, sections, n=1, cutoff=0.8)
    if near:
        return f"did you mean the section {near[0]}?"
    return did_you_mean(key, known, f"known keys: {', '.join(known)}")


def _key_of(fault: Any, known: list[str]) -> str:
    # Union types add their own words to the location; the recipe key is the longest known beginning.
    words = [str(word) for word in fault["loc"]]
    while words and ".".join(words) not in known:
        words.pop()
    return ".".join(words)


def _clearest(error: ValidationError, known: list[str]) -> Any:
    # Where a number or a word will do, a wrong word is best answered with the right word.
    errors = error.errors()
    key = _key_of(errors[0], known)
    words = [fault for fault in errors if fault["type"] == "literal_error" and _key_of(fault, known) == key]
    return words[0] if words and isinstance(words[0]["input"], str) else errors[0]


def _unknown_word(key: str, error: Any, where: str, instead: str) -> BadRecipe:
    words = re.findall("'([^']*)'", error["ctx"]["expected"])
    or_else = f" or {instead}" if len(error["loc"]) > len(key.split(".")) else ""
    return BadRecipe(
        f"recipe key {key!r}: no such {'word' if words else 'value'}",
        where=where,
        expected=error["ctx"]["expected"] + or_else,
        found=repr(error["input"])[:80],
        advice=did_you_mean(str(error["input"]), words, "") or None,
    )


@dataclass(frozen=True)
class Key:
    """One key, dotted; `choices` are the words it may be, where there are few."""

    name: str
    required: bool
    default: Any
    choices: tuple[str, ...]
    meaning: str


def recipe_keys(word: str = "") -> list[Key]:
    """Every key whose name or meaning has `word` in it, or that others call so, in the order of a recipe.

    Capitals do not matter.
    """
    wanted, keys = word.casefold(), list(_keys(Recipe, ""))
    meant = meant_keys(word, [key.name for key in keys])
    return [key for key in keys if key.name in meant or wanted in f"{key.name} {key.meaning}".casefold()]


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            required = field.is_required()
            default = None if required else field.get_default(call_default_factory=True)
            yield Key(
                f"{prefix}{name}", required, default, _choices(field), " ".join((field.description or "").split())
            )


def _choices(field: FieldInfo) -> tuple[str, ...]:
    for mark in field.metadata:
        if isinstance(mark, NameOf):
            return mark.registry.names()
    words = tuple(word for word in get_args(field.annotation) if isinstance(word, str))
    return words if len(words) > 1 else ()
