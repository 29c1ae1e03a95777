"""Reads a `.txt`: one document, or one for each block of lines between blank lines.

The text is what the file holds, byte for byte, but for a byte order mark; of a block, without the end of its last line.
Neighbours: `readers` chooses between the two, `archives` has texts as members.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from tinyllama_mcore.preprocessing.documents import DEFAULT_KEY
from tinyllama_mcore.preprocessing.piece import Piece


def text(content: bytes) -> bytes:
    """The text of a whole file."""
    return content.removeprefix(codecs.BOM_UTF8)


def whole(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, bytes]]:
    """The file as one row."""
    yield {DEFAULT_KEY: text(file.read())}


def paragraphs(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, bytes]]:
    """Each block as a row. A block belongs to the piece in which the last blank line before it begins."""
    block = bytearray()
    place = max(piece.start - 1, 0)
    file.seek(place)
    separator = None if piece.start else 0  # where the last blank line began; a file begins as if after one
    if piece.start:
        place += len(file.readline())  # the end of a line of the piece before
    while line := file.readline():
        begin, place = place, place + len(line)
        line = line if begin else text(line)
        if line.isspace():
            if block:
                yield _row(block)
            block, separator = bytearray(), begin
        if begin >= piece.stop and (separator is None or separator >= piece.stop):
            return
        if separator is not None and not line.isspace():
            block += line
    if block:
        yield _row(block)


def _row(block: bytearray) -> Mapping[str, bytes]:
    return {DEFAULT_KEY: bytes(block).removesuffix(b"\n").removesuffix(b"\r")}
