"""What is wrong with a recipe, in one line a person can act on."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError

from imagenet_pipeline.errors import BadRecipe

COMMAND_LINE = "command line"
"""Where a fault is that no file has."""
_PLAIN_WORDS = {
    "tuple_type": "needs a list, as [0.5, 1.0]",
    "too_long": "has too many values",
}
_USUAL_NAMES = {
    "accumulation": "accum grad_accum gradient_accumulation accumulation_steps",
    "average_decay": "ema ema_decay model_ema",
    "batch_size": "b bs batch batchsize",
    "devices": "device ctx gpu gpus",
    "epochs": "epoch num_epochs n_epochs max_epochs",
    "initial.weights": "pretrained init checkpoint",
    "input.size": "image_size img_size imgsz input_size resolution",
    "loader.threads": "num_workers workers j",
    "loss.label_smoothing": "smoothing",
    "network": "arch architecture model net backbone",
    "optimizer.clip_norm": "clip clip_grad clip_gradient grad_clip",
    "optimizer.decay": "rho",
    "optimizer.epsilon": "eps",
    "optimizer.learning_rate": "lr lr0 base_lr",
    "optimizer.momentum": "mom",
    "optimizer.name": "opt optim",
    "optimizer.weight_decay": "wd",
    "precision": "amp dtype fp16",
    "records": "data data_dir dataset",
    "schedule.kind": "scheduler lr_scheduler lr_schedule",
    "schedule.warmup_epochs": "warmup",
    "stopping.patience_epochs": "patience early_stopping",
}
"""Keys, and what other programs call them."""
_NO_KEYS = {
    "num_classes": "the records say how many classes there are",
    "classes": "the records say how many classes there are",
    "dropout": "each network has its own",
}


def recipe_fault(error: ValidationError, known: list[str], where: str) -> BadRecipe:
    """The first fault pydantic found in a recipe, in one line. `known` are all recipe keys, dotted."""
    first = _clearest(error)
    # Union types add their own words to the location; the recipe key is the longest known beginning.
    words = [str(word) for word in first["loc"]]
    key = ".".join(words)
    if first["type"] == "extra_forbidden":
        given = first["input"]
        value = f"={str(given).lower() if isinstance(given, bool) else given}" if where == COMMAND_LINE else ""
        advice = _nearest(key, known, value[:80])
        return BadRecipe(f"unknown recipe key {key[:80]!r}", where=where, advice=advice)
    while words and ".".join(words) not in known:
        words.pop()
    key = ".".join(words) or key
    if first["type"] == "missing":
        return BadRecipe(f"recipe key {key!r} is missing", where=where, advice="add it to the recipe")
    if first["type"] == "literal_error":
        return _unknown_word(key, first, where)
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
        # What a section, or the whole recipe, says of one of its keys.
        key, message = f"{key}.{named}".lstrip("."), rest
    return BadRecipe(f"recipe key {key!r}: {message[:1].lower()}{message[1:]}", where=where, found=found)


def meant_keys(word: str, known: list[str]) -> list[str]:
    """The keys (dotted, all of them `known`) that go by this name elsewhere, or here within a section."""
    section, _, last = word.strip("-").casefold().replace("-", "_").rpartition(".")
    meant = [key for key in known if last == key.rpartition(".")[2] or last in _USUAL_NAMES.get(key, "").split()]
    return [key for key in meant if key.startswith(section)] or meant


def reason_for_none(word: str) -> str | None:
    """Why there is no such key, where somebody may well look for one."""
    return _NO_KEYS.get(word.rpartition(".")[2])


def _nearest(key: str, known: list[str], value: str) -> str:
    meant = meant_keys(key, known)
    if meant:
        return f"did you mean {' or '.join(f'{one}{value}' for one in meant)}?"
    if reason_for_none(key):
        return f"there is none: {reason_for_none(key)}"
    sections = {name.rpartition(".")[0] for name in known if "." in name}
    near = difflib.get_close_matches(key, sections, n=1, cutoff=0.8)
    if near:
        return f"did you mean the section {near[0]}?"
    near = difflib.get_close_matches(key, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"


def _clearest(error: ValidationError) -> Any:
    # Where a number or a word will do, a wrong word is best told the right one.
    errors = error.errors()
    words = [one for one in errors if one["type"] == "literal_error" and one["loc"][:2] == errors[0]["loc"][:2]]
    return words[0] if words and isinstance(words[0]["input"], str) else errors[0]


def _unknown_word(key: str, error: Any, where: str) -> BadRecipe:
    words = re.findall("'([^']*)'", error["ctx"]["expected"])
    near = difflib.get_close_matches(str(error["input"]), words, n=2)
    or_number = " or a number" if len(error["loc"]) > len(key.split(".")) else ""
    return BadRecipe(
        f"recipe key {key!r}: no such word",
        where=where,
        expected=error["ctx"]["expected"] + or_number,
        found=repr(error["input"])[:80],
        advice=f"did you mean {' or '.join(near)}?" if near else None,
    )
