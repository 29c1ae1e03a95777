"""Reads the rows of a `.json`: an array of objects, one element at a time, or JSON lines under that name.

Elements are found by their brackets and strings, and given as they are written: what is wrong inside one is a bad row,
as in JSON lines. Memory follows the longest element, not the array. Neighbours: `readers`, `documents` parses elements.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from tinyllama_mcore.preprocessing.piece import Piece

READ_BYTES = 1 << 20
MARK = re.compile(rb'["\[\]{},]')
"""What begins a string, opens, closes or separates."""
OPEN, CLOSE = (b"[", b"{"), (b"]", b"}")
END, SEPARATOR, QUOTE, ESCAPE = b"]", b",", b'"', b"\\"


def rows(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    """Every element of the array, or every line where the file does not begin with `[`.

    Raises:
        EOFError: it ends inside the array.
        ValueError: something follows the array.
    """
    first = _begins(file)
    if first.lstrip().startswith(b"["):
        yield from _elements(file, first.lstrip()[1:])
    else:
        yield from io.BytesIO(first + file.readline())  # the first bytes may hold ends of lines
        yield from file


def _begins(file: BinaryIO) -> bytes:
    """The first bytes of a file, without its byte order mark, as far as one is not white space."""
    found = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    while (not found or found.isspace()) and (more := file.read(1)):
        found = found + more if not more.isspace() else b""
    return found


def _elements(file: BinaryIO, buffer: bytes) -> Iterator[bytes]:
    """The elements of an array that was opened before `buffer`, then `file`."""
    start = position = depth = 0  # of the element, of what is not looked at yet; brackets open inside the element
    seen = False
    while True:
        mark = MARK.search(buffer, position)
        position = mark.end() if mark else len(buffer)
        string_end = _string_end(buffer, position) if mark and mark[0] == QUOTE else position
        if mark is None or not string_end:
            position = mark.start() if mark else position
            # as much again each time: a long string is searched from its beginning
            more = file.read(max(READ_BYTES, len(buffer) - start))
            if not more:
                raise EOFError("it ends inside its array of rows")
            buffer, position, start = buffer[start:] + more, position - start, 0
            continue
        position = string_end
        if mark[0] in OPEN:
            depth += 1
        elif depth:
            depth -= mark[0] in CLOSE
        elif mark[0] in (END, SEPARATOR):
            element = buffer[start : mark.start()].strip()
            is_last = mark[0] == END
            if element or seen or not is_last:  # `[]` has no element
                yield element
            seen, start = True, position
            if is_last:
                break
    _refuse_more(file, buffer[position:])


def _string_end(buffer: bytes, position: int) -> int:
    """Where a string ends whose first character is at `position`; 0 where the buffer ends before it."""
    while (quote := buffer.find(QUOTE, position)) >= 0:
        position = quote + 1
        before = quote
        while buffer.startswith(ESCAPE, before - 1):
            before -= 1
        if (quote - before) % 2 == 0:
            return position
    return 0


def _refuse_more(file: BinaryIO, rest: bytes) -> None:
    while rest or (rest := file.read(READ_BYTES)):
        if not rest.isspace():
            raise ValueError(f"{rest.strip()[:20]!r} follows its array of rows")
        rest = b""
