"""Command lines of other programs' training scripts: shell text to words, words to the values of a script's flags.

Nothing is run. Flags are read as argparse reads them: `--name value`, `--name=value`, a beginning that only one has.
At the end the keys of a recipe that flags of several scripts mean.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from imagenet_pipeline.errors import BadRecipe, did_you_mean, first_few

LONGEST_TEXT = 100_000
_VARIABLE = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_OF_VALUES = r"(?P<variable>\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}))|(?P<substitution>[$`])"
_QUOTED = re.compile(rf'(?P<continued>\\\r?\n)|(?P<letter>\\.)|(?P<quote>")|{_OF_VALUES}', re.S | re.A)
_BARE = re.compile(
    r"(?P<comment>(?<![^\s;&|()])#[^\n]*)|(?P<continued>\\\r?\n)|(?P<letter>\\.|'[^']*(?:'|\Z))|"
    rf'(?P<quote>")|(?P<end>&&|\|\||[;\n|()]|(?<![<>])&(?!>))|{_OF_VALUES}',
    re.S | re.A,
)
"""Signs that have a meaning to a shell within double quotes, and outside."""
_BLOCK_BEGINS = frozenset(("if", "for", "while", "until", "case", "select"))
_BLOCK_ENDS = frozenset(("fi", "done", "esac"))
_BEFORE_COMMANDS = ("then", "do", "else")
_TESTS = frozenset(("[", "[[", "test", "!", "grep", "false"))
_CHANGERS = ("for", "select", "read", "unset", "local", "declare", "readonly", "typeset")
"""Commands whose words may be variables that change."""
_SHELL = frozenset("();<>|&")
_LAUNCHERS = ("launch.py", "horovodrun", "mpirun", "mpiexec")


@dataclass(frozen=True)
class Kind:
    """The type of a flag's value: `read` raises ValueError for a text that is not `expected`."""

    read: Callable[[str], Any]
    expected: str


def _integer(text: str) -> int:
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError("no number of TOML")
    return number


def _list_of(read: Callable[[str], Any], text: str) -> list[Any]:
    return [read(word) for word in text.strip("()[] ").split(",")]


def _triple(text: str) -> list[float]:
    red, green, blue = _list_of(float, text)
    return [red, green, blue]


SWITCH = Kind(lambda _: True, "no value")
WORD = Kind(str, "a word")
INTEGER = Kind(_integer, "a whole number")
NUMBER = Kind(float, "a number")
INTEGERS = Kind(lambda text: _list_of(_integer, text), "whole numbers, as 30,60")
TRIPLE = Kind(_triple, "three numbers, R,G,B")


@dataclass(frozen=True)
class Flag:
    """A flag of a script; `reason`: why nothing in a recipe corresponds to it."""

    kind: Kind
    default: Any = None
    reason: str = ""


@dataclass(frozen=True)
class CommandLine:
    """The words of a training command: of its script's name, and of the flags behind it."""

    script: str
    flags: tuple[str, ...]
    before: tuple[str, ...]

    @property
    def several_processes(self) -> bool:
        """True where a launcher starts the script several times."""
        return any(PurePosixPath(word).name in _LAUNCHERS for word in self.before)

    def names(self) -> set[str]:
        """Names of the flags, as they are written but for dashes."""
        return {_name(word) for word in self.flags if word.startswith("--")}


@dataclass
class Arguments:
    """Values of a script's flags, by name: those `given`, as they were written, and for the others the defaults."""

    flags: Mapping[str, Flag]
    given: dict[str, str] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name, self.flags[name].default)

    def put(self, name: str, text: str) -> None:
        """Give a flag a value. Raises BadRecipe for a text of another kind."""
        kind = self.flags[name].kind
        try:
            self._values[name] = kind.read(text)
        except (ValueError, OverflowError) as error:
            found = text[:80] or "nothing"
            advice = "write the value of the variable" if text.startswith("$") else None
            raise BadRecipe(
                "the value cannot be read", where=f"--{name}", expected=kind.expected, found=found, advice=advice
            ) from error
        self.given[name] = text

    def without_counterpart(self) -> list[str]:
        """A line for every given flag that no recipe has, with the reason."""
        return [
            f"{f'--{name} {text}'.strip()}: {self.flags[name].reason}"
            for name, text in self.given.items()
            if self.flags[name].reason
        ]


def read_commands(text: str) -> list[CommandLine]:
    """Find the commands that call a Python script, in a shell command or script, in order.

    Variables that stand there as NAME=value are put in; nothing is run. Raises BadRecipe, one line, if there is none.
    """
    if len(text) > LONGEST_TEXT:
        raise BadRecipe("the command is too long", where="--from", expected=f"up to {LONGEST_TEXT:,} letters")
    shell, found, said = _Shell(), list[CommandLine](), list[str]()
    for part in _parts(text):
        try:
            words = shell.words(part)
        except ValueError as error:
            if found:
                break
            what = f"the quotes of the command do not match ({str(error).lower()})"
            raise BadRecipe(what, where="--from", found=text[:80]) from error
        at = next((at for at, word in enumerate(words) if _is_script(word)), None)
        if at is not None:
            found.append(CommandLine(words[at], tuple(words[at + 1 :]), tuple(words[:at])))
        said += words
    if not found:
        expected = "a command with a Python script, as in 'python train_imagenet.py --model resnet50_v1b'"
        shown = " ".join(said)[:80] or "nothing"
        raise BadRecipe("no training script is named", where="--from", expected=expected, found=shown)
    return found


def _is_script(word: str) -> bool:
    return word.endswith(".py") and not _VARIABLE.match(word) and PurePosixPath(word).name not in _LAUNCHERS


@dataclass(frozen=True)
class _Token:
    """A stretch of shell text: "text", or what a group of the patterns found, maybe within double quotes."""

    kind: str
    text: str
    is_quoted: bool


@dataclass(frozen=True)
class _Part:
    """A simple command, and the signs of the shell before and behind it."""

    tokens: tuple[_Token, ...]
    before: str
    behind: str


def _parts(text: str) -> Iterator[_Part]:
    """Cut a script into its simple commands, without comments."""
    tokens: list[_Token] = []
    before, at, is_quoted = "", 0, False
    while match := (_QUOTED if is_quoted else _BARE).search(text, at):
        tokens.append(_Token("text", text[at : match.start()], is_quoted))
        at, kind = match.end(), str(match.lastgroup)
        if kind == "end":
            yield _Part(tuple(tokens), before, match[0])
            tokens, before = [], match[0]
        elif kind not in ("comment", "continued"):
            tokens.append(_Token(kind, match[0], is_quoted))
        is_quoted ^= kind == "quote"
    yield _Part((*tokens, _Token("text", text[at:], is_quoted)), before, "")


@dataclass
class _Shell:
    """The variables of a script as it goes on. One that is set under a condition has no value."""

    values: dict[str, str] = field(default_factory=dict)
    depth: int = 0
    room: int = 5 * LONGEST_TEXT
    """Letters that values may still put in."""
    is_tested: bool = False

    def words(self, part: _Part) -> list[str]:
        """Words of a command, and none of one that sets variables. Raises ValueError for quotes that do not match."""
        whole = _words("".join(self._filled(token, splits=False) for token in part.tokens))
        self.depth += bool(_BLOCK_BEGINS.intersection(whole[:1])) - bool(_BLOCK_ENDS.intersection(whole[:1]))
        is_certain = self.depth <= 0 and part.before not in ("||", "(") and part.behind not in ("(", "|", "&")
        is_certain &= not (part.before == "&&" and self.is_tested)
        self.is_tested = bool(_TESTS.intersection(whole[:1])) or (part.before == "&&" and self.is_tested)
        rest = whole[1:] if whole[:1] and whole[0] in _BEFORE_COMMANDS else whole
        if rest and all(map(_VARIABLE.match, rest if rest[0] != "export" else rest[1:])):
            self._set([word for word in rest if word != "export"], part, is_certain)
            return []
        if rest and rest[0] in _CHANGERS:
            for word in rest[1:]:
                self.values.pop(word.partition("=")[0], None)
        return _words("".join(self._filled(token, splits=True) for token in part.tokens))

    def _set(self, words: Sequence[str], part: _Part, is_certain: bool) -> None:
        names = [_VARIABLE.split(word)[1] for word in words]
        used = {token.text.strip("${}") for token in part.tokens if token.kind == "variable"}
        is_plain = not any(token.kind == "substitution" for token in part.tokens)
        is_plain &= all(name in self.values for name in used) and (len(names) == 1 or used.isdisjoint(names))
        for name, word in zip(names, words, strict=True):
            _, _, plus, value = _VARIABLE.split(word)
            value = self.values.get(name, "") + value if plus else value
            if is_certain and is_plain:
                self.values[name] = value
            else:
                self.values.pop(name, None)

    def _filled(self, token: _Token, splits: bool) -> str:
        """The text of a token; a variable's value is quoted so that it is read as it is, or as its words."""
        value = self.values.get(token.text.strip("${}")) if token.kind == "variable" else None
        if value is None:
            return token.text
        self.room -= len(value)
        if self.room < 0:
            raise BadRecipe("the values of variables make the command too long", where="--from", found=token.text[:80])
        if token.is_quoted:
            return re.sub(r'([\\"])', r"\\\1", value)
        return (
            " ".join(shlex.quote(word) if word else "" for word in re.split(r"\s+", value))
            if splits
            else shlex.quote(value)
        )


def _words(text: str) -> list[str]:
    """Words of a simple command, up to its redirections where a script is among them."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    for word in reader:
        if not word or not _SHELL.issuperset(word):
            words.append(word)
        elif any(map(_is_script, words)):
            if words[-1] in ("1", "2") and re.search(rf"{words[-1]}>", text):
                words.pop()  # the number of a redirected stream
            break
        else:
            words.clear()
    return words


def read_flags(
    words: Sequence[str], flags: Mapping[str, Flag], script: str, short: Mapping[str, str] | None = None
) -> Arguments:
    """Read the flags behind a script's name; `short` has their one-letter forms.

    Raises BadRecipe for a flag the script has not, with the nearest, and for a value missing or of another kind.
    """
    arguments = Arguments(flags)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = _split(word, short or {})
        if name is None:
            raise BadRecipe("not a flag", where=script, expected="--name value", found=word[:80])
        name = _full_name(name, flags, script)
        if flags[name].kind is SWITCH:
            if equals:
                raise BadRecipe("the flag takes no value", where=f"--{name}", found=text[:80])
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise BadRecipe("the value is missing", where=f"--{name}", expected=flags[name].kind.expected)
            text = rest.pop(0)
        arguments.put(name, text)
    return arguments


def _split(word: str, short: Mapping[str, str]) -> tuple[str | None, bool, str]:
    """Name, whether the value is in the word, and that value; no name for a word that is no flag."""
    if word.startswith("--") and len(word) > 2:
        _, equals, text = word.partition("=")
        return _name(word), bool(equals), text
    if word[:2] in short:
        return short[word[:2]], len(word) > 2, word[2:].removeprefix("=")
    return None, False, ""


def _name(word: str) -> str:
    return word[2:].partition("=")[0].replace("_", "-")


def _full_name(name: str, flags: Mapping[str, Flag], script: str) -> str:
    """The flag with this name, or the only one that begins with it."""
    beginning = [known for known in flags if known.startswith(name)]
    if name in flags or len(beginning) == 1:
        return name if name in flags else beginning[0]
    if beginning:
        found = first_few([f"--{known}" for known in beginning])
        raise BadRecipe(f"--{name[:80]} begins several flags", where=script, expected="one", found=found)
    advice = did_you_mean(f"--{name}", [f"--{known}" for known in flags], "leave it out, and see docs/mxnet.md")
    raise BadRecipe(f"unknown flag --{name[:80]}", where=script, advice=advice)


def steps(drops: list[int], factor: float, epochs: int, notes: list[str]) -> dict[str, Any]:
    """Keys of a rate that drops after these epochs; those that never come are left out, with a note."""
    within = sorted({drop for drop in drops if 0 < drop < epochs})
    if len(within) < len(set(drops)):
        left_out = ", ".join(str(drop) for drop in sorted(set(drops)) if drop not in within)
        notes.append(f"drops of the rate at {left_out}: not within the {epochs} epochs")
    if not within:
        return {"schedule.kind": "constant"}
    return {"schedule.kind": "steps", "schedule.drops": within, "schedule.factor": factor}


def precision(dtype: str, network: str, notes: list[str]) -> dict[str, Any]:
    """Keys of a number format; float16 is one engine's, and of no network of GluonCV's here, with a note."""
    if dtype != "float16":
        return {"precision": dtype}
    if network.startswith("gluoncv:"):
        notes.append("--dtype float16: GluonCV's networks compute in float32 here")
        return {"precision": "float32"}
    notes.append("--dtype float16: on the pytorch engine alone, and on GPUs")
    return {"engine": "pytorch", "precision": "float16"}
