"""Python's pickles taken apart without unpickling: plain values, and what an allow-list names. Nothing is imported.

The format is a program for a small stack machine (PEP 3154; every opcode is documented in Python's pickletools). This
one knows the opcodes that make numbers, texts, bytes, tuples, lists and dictionaries. A name in a module stays a
`Name`; where the program calls it, a function of ours that the allow-list has for this name makes the value.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from imagenet_pipeline.errors import BadInput

Maker = Callable[[tuple[Any, ...]], object]
"""Makes a value of what a pickle hands to a name that it calls."""

NEWEST_PROTOCOL = 5
MOST_STEPS = 2_000_000
"""Opcodes of a pickle. The largest published state dicts have some 50,000."""
LONGEST_LINE = 4096
LONGEST_NUMBER = 64  # bytes, or digits
LARGEST_KEY = 2**60
"""Whole numbers from 2**61 - 1 on could be chosen to have the same hash: a dictionary of them would take for ever."""
SHOWN = 80
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A module's name as a pickle has it, "collections.OrderedDict"; it is never looked up."""

    text: str


@dataclass
class Instance:
    """An object that stays in pieces: its class, what it was made of, and the state it was given."""

    name: str
    arguments: tuple[Any, ...]
    state: object = None


def instance_of(name: str) -> Maker:
    """A maker of `Instance`s, for an allow-list."""
    return lambda arguments: Instance(name, arguments)


def read_pickle(
    content: memoryview,
    where: object,
    known: Mapping[str, Maker | None],
    persistent: Callable[[object], object] | None = None,
    contents: str = "file of weights",
) -> tuple[Any, int]:
    """The value that a pickle at the beginning of `content` stands for, and the number of its bytes.

    `known` are the only names it may have, each with what makes a value where it is called (None: nothing may call it).
    `persistent` gives the value of a persistent id. Dictionaries have keys that are texts, numbers or bytes.
    Raises BadInput, naming it, for another name, and for any other opcode or damage; `contents` says in the message
    what has no such name. Memory and time are bounded by the length of `content`.
    """
    machine = _Machine(content, where, known, persistent, contents)
    return machine.run(), machine.position


class _Machine:
    """The stack machine of a single pickle."""

    def __init__(
        self,
        content: memoryview,
        where: object,
        known: Mapping[str, Maker | None],
        persistent: Callable[[object], object] | None,
        contents: str,
    ) -> None:
        self._content = content
        self._where = where
        self._known = known
        self._persistent = persistent
        self._contents = contents
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.position = 0

    def run(self) -> Any:
        """The value on the stack at the opcode STOP."""
        for _ in range(MOST_STEPS):
            opcode = self._bytes(1)
            if opcode == b".":
                return self._pop()
            step = _STEPS.get(opcode)
            if step is None:
                self._bad(f"the pickle has an opcode that no {self._contents} needs", opcode)
            try:
                step(self)
            except (ValueError, OverflowError):  # a number or a text that is none
                self._bad("the pickle is damaged", opcode)
        self._bad("the pickle has too many steps", expected=f"at most {MOST_STEPS:,}")

    def _bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self._content) - self.position:
            self._bad("the pickle ends before it is whole")
        self.position += count
        return bytes(self._content[self.position - count : self.position])

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        """The bytes up to a line's end, of the oldest protocol: a text may be as long as an array."""
        content = self._content
        start = end = self.position
        while end < len(content):
            found = bytes(content[end : end + LONGEST_LINE]).find(b"\n")
            if found >= 0:
                self.position = end + found + 1
                return bytes(content[start : end + found])
            end += LONGEST_LINE
        self._bad("the pickle ends before it is whole")

    def _short_line(self) -> bytes:
        line = self._line()
        if len(line) > LONGEST_NUMBER:
            raise ValueError
        return line

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self._bad("the pickle takes more from its stack than there is")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            self._bad(f"the pickle adds to something that is no {kind.__name__}")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        """Pop all that stands above the last mark, and the mark."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        self._bad("the pickle takes more from its stack than there is")

    def _push_tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def _set(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples could be nested so that hashing them took for ever.
            if not isinstance(key, str | int | float | bytes):
                self._bad("the pickle has a key that is neither text nor number", found=type(key).__name__)
            if isinstance(key, int) and abs(key) > LARGEST_KEY:
                self._bad("the pickle has an impossible number as a key", expected="at most 2**60", found=key)
            target[key] = value

    def _push_dict(self) -> None:
        items = self._pop_to_mark()
        made: dict[Any, Any] = {}
        self._set(made, items)
        self._push(made)

    def _set_items(self, items: list[Any]) -> None:
        self._set(self._top(dict), items)

    def _put(self, place: int) -> None:
        value = self._pop()
        self._memo[place] = value
        self._push(value)

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError
        self._push(self._memo[place])

    def _push_name(self, module: object, name: object) -> None:
        text = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
        if text not in self._known:
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            self._bad(f"holds {shown}, which no {self._contents} has: nothing was executed")
        self._push(Name(text))

    def _push_stack_name(self) -> None:
        name = self._pop()
        self._push_name(self._pop(), name)

    def _call(self) -> None:
        """REDUCE and NEWOBJ: what they call is a name of the allow-list, and the function is ours."""
        arguments, called = self._pop(), self._pop()
        maker = self._known.get(called.text) if isinstance(called, Name) else None
        if maker is None or not isinstance(arguments, tuple):
            what = called.text if isinstance(called, Name) else f"a {type(called).__name__}"
            self._bad(f"calls {what}, which no {self._contents} does: nothing was executed")
        self._push(maker(arguments))

    def _build(self) -> None:
        """BUILD: the state of an object. A dictionary's attributes, torch's versions of its modules, are left out."""
        state = self._pop()
        target = self._top(object)
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, dict):
            self._bad(f"sets attributes of a {type(target).__name__}, which no {self._contents} does")

    def _push_persistent(self) -> None:
        key = self._pop()
        if self._persistent is None:
            self._bad("the pickle refers to something outside itself")
        self._push(self._persistent(key))

    def _begin(self) -> None:
        version = self._number("<B")
        if version > NEWEST_PROTOCOL:
            self._bad("the pickle is of a newer protocol", expected=f"at most {NEWEST_PROTOCOL}", found=version)

    def _bad(self, what: str, opcode: bytes | None = None, expected: object = None, found: object = None) -> NoReturn:
        if opcode:
            found = f"opcode {opcode[0]:#04x}, up to byte {self.position:,}"
        raise BadInput(what, where=self._where, expected=expected, found=found)


def _decimal(line: bytes) -> int | bool:
    """A number of the oldest protocol, which writes False as 00 and True as 01."""
    return line == b"01" if line in (b"00", b"01") else int(line.rstrip(b"L"))


def _quoted(line: bytes) -> str:
    """A text of Python 2 between quotation marks; its bytes as the characters of those numbers."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _signed(content: bytes) -> int:
    if len(content) > LONGEST_NUMBER:
        raise ValueError
    return int.from_bytes(content, "little", signed=True)


Step = Callable[[_Machine], object]


def _sized(form: str, made: Callable[[bytes], object]) -> Step:
    """A step that pushes what `made` makes of as many bytes as the number in front of them says."""
    return lambda machine: machine._push(made(machine._bytes(machine._number(form))))


def _constant(make: Callable[[], object]) -> Step:
    return lambda machine: machine._push(make())


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _latin(content: bytes) -> str:
    return content.decode("latin-1")


_STEPS: dict[bytes, Step] = {
    b"\x80": _Machine._begin,
    b"\x95": lambda machine: machine._bytes(8),
    b"(": _constant(lambda: _MARK),
    b"0": _Machine._pop,
    b"1": _Machine._pop_to_mark,
    b"I": lambda machine: machine._push(_decimal(machine._short_line())),
    b"L": lambda machine: machine._push(_decimal(machine._short_line())),
    b"J": lambda machine: machine._push(machine._number("<i")),
    b"K": lambda machine: machine._push(machine._number("<B")),
    b"M": lambda machine: machine._push(machine._number("<H")),
    b"\x8a": _sized("<B", _signed),
    b"\x8b": _sized("<i", _signed),
    b"F": lambda machine: machine._push(float(machine._short_line())),
    b"G": lambda machine: machine._push(machine._number(">d")),
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b"S": lambda machine: machine._push(_quoted(machine._line())),
    b"T": _sized("<i", _latin),
    b"U": _sized("<B", _latin),
    b"V": lambda machine: machine._push(machine._line().decode("raw-unicode-escape")),
    b"X": _sized("<I", _text),
    b"\x8c": _sized("<B", _text),
    b"\x8d": _sized("<Q", _text),
    b"B": _sized("<I", bytes),
    b"C": _sized("<B", bytes),
    b"\x8e": _sized("<Q", bytes),
    b"\x96": _sized("<Q", bytes),
    b")": _constant(tuple),
    b"\x85": lambda machine: machine._push_tuple(1),
    b"\x86": lambda machine: machine._push_tuple(2),
    b"\x87": lambda machine: machine._push_tuple(3),
    b"t": lambda machine: machine._push(tuple(machine._pop_to_mark())),
    b"]": _constant(list),
    b"l": lambda machine: machine._push(machine._pop_to_mark()),
    b"a": lambda machine: _append(machine, [machine._pop()]),
    b"e": lambda machine: _append(machine, machine._pop_to_mark()),
    b"}": _constant(dict),
    b"d": _Machine._push_dict,
    b"s": lambda machine: machine._set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine: machine._set_items(machine._pop_to_mark()),
    b"p": lambda machine: machine._put(int(machine._short_line())),
    b"q": lambda machine: machine._put(machine._number("<B")),
    b"r": lambda machine: machine._put(machine._number("<I")),
    b"\x94": lambda machine: machine._put(len(machine._memo)),
    b"g": lambda machine: machine._get(int(machine._short_line())),
    b"h": lambda machine: machine._get(machine._number("<B")),
    b"j": lambda machine: machine._get(machine._number("<I")),
    b"c": lambda machine: machine._push_name(_text(machine._line()), _text(machine._line())),
    b"\x93": _Machine._push_stack_name,
    b"R": _Machine._call,
    b"\x81": _Machine._call,
    b"b": _Machine._build,
    b"Q": _Machine._push_persistent,
}
"""Opcodes by their byte. Those of old-style classes, extensions and buffers outside are not among them."""


def _append(machine: _Machine, items: list[Any]) -> None:
    machine._top(list).extend(items)
