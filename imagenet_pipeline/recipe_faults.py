"""What is wrong with a recipe, in one line a person can act on."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError

from imagenet_pipeline.errors import BadRecipe

_PLAIN_WORDS = {
    "tuple_type": "needs a list, as [0.5, 1.0]",
    "too_long": "has too many values",
}
_USUAL_WORDS = {"lr": "learning_rate", "wd": "weight_decay", "mom": "momentum", "eps": "epsilon", "rho": "decay"}
"""What other programs call a key."""


def recipe_fault(error: ValidationError, known: list[str], where: str) -> BadRecipe:
    """The first fault pydantic found in a recipe, in one line. `known` are all recipe keys, dotted."""
    first = _clearest(error)
    # Union types add their own words to the location; the recipe key is the longest known beginning.
    words = [str(word) for word in first["loc"]]
    key = ".".join(words)
    if first["type"] == "extra_forbidden":
        return BadRecipe(f"unknown recipe key {key!r}", where=where, advice=_nearest(key, known))
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
        return BadRecipe(f"{key!r} is a section, not a value", where=where, found=repr(first["input"]), advice=advice)
    message = _PLAIN_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    found = None if first["type"] == "value_error" else repr(first["input"])
    named, _, rest = message.partition(": ")
    if f"{key}.{named}".lstrip(".") in known:
        # What a section, or the whole recipe, says of one of its keys.
        key, message = f"{key}.{named}".lstrip("."), rest
    return BadRecipe(f"recipe key {key!r}: {message[:1].lower()}{message[1:]}", where=where, found=found)


def _nearest(key: str, known: list[str]) -> str:
    section, _, last = key.rpartition(".")
    usual = f"{section}.{_USUAL_WORDS.get(last, last)}"
    if usual in known:
        return f"did you mean {usual}?"
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
        found=repr(error["input"]),
        advice=f"did you mean {' or '.join(near)}?" if near else None,
    )
