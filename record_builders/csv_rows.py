"""Tables of separated values as people have them: packed or not, from any program, their columns in any order."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, did_you_mean

SEPARATORS = ",;\t|"
_HEADER_LIMIT = 2**22
_UNPACKERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}

Row = dict[str, str]


def rows_of(path: Path, columns: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """Yield the line that each row ends on, and its values in `columns`, and in those of `others` that are there.

    Blanks around names and values, and the case of names, do not count; fields end at commas, semicolons, tabs or bars,
    whichever the header has most of. Raises BadInput for a file that is no such table, naming the line.
    """
    unpacker = _UNPACKERS.get(Path(path).suffix)
    line = 1
    try:
        with files.regular_file(path) as (stream, _):
            # Excel and Notepad begin a file with a byte order mark.
            text = io.TextIOWrapper(unpacker(stream) if unpacker else stream, encoding="utf-8-sig", newline="")
            header = text.readline(_HEADER_LIMIT)
            if len(header) == _HEADER_LIMIT:
                raise BadInput("the header is too long", where=path, expected=f"fewer than {_HEADER_LIMIT:,} letters")
            separator = max(SEPARATORS, key=header.count)
            names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
            places = _places([name.strip() for name in names], columns, others, path)
            reader = csv.reader(text, delimiter=separator, skipinitialspace=True)
            for fields in reader:
                line = 1 + reader.line_num
                if len(fields) == len(names):
                    yield line, {name: fields[place].strip() for name, place in places.items()}
                elif fields:
                    expected = f"{len(names)} fields"
                    raise BadInput("the row is malformed", where=line_of(path, line), expected=expected)
    except (csv.Error, UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error) as error:
        advice = "save it as CSV in UTF-8" if isinstance(error, UnicodeDecodeError) else None
        what, where = f"the file is damaged, or no CSV ({error})", f"{path}, after line {line}"
        raise BadInput(what, where=where, advice=advice) from error


def line_of(path: Path, line: int) -> str:
    """A line of a file as messages name it."""
    return f"{path}, line {line}"


def _places(found: Sequence[str], columns: Sequence[str], others: Sequence[str], path: Path) -> dict[str, int]:
    """The place of each column that is wanted."""
    places = {}
    for name in (*columns, *others):
        there = [place for place, called in enumerate(found) if called.casefold() == name.casefold()]
        if len(there) > 1:
            raise BadInput(f"two columns are called {name}", where=path)
        if there:
            places[name] = there[0]
        elif name in columns:
            shown = ", ".join(found)[:80] or "nothing"
            near = did_you_mean(name, found, "") or None
            raise BadInput(f"no column {name}", where=path, expected=", ".join(columns), found=shown, advice=near)
    return places
