"""Reads rows from raw files, in one fixed order, by a table of formats.

A file is cut into `Piece`s, each read by itself. What is packed is unpacked as it is read; the rows of each format have
a file of their own: `columns`, `json_rows`, `plain_text`, `archives`. A file that cannot be read to its end is a
ConfigError. Neighbours: `inputs` finds the files, `sources` opens them, `preprocess` plans the pieces, `shard` reads
them, and `documents` makes documents of rows.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import archives, columns, json_rows, plain_text, sources, zstd_frames
from tinyllama_mcore.preprocessing.documents import Row
from tinyllama_mcore.preprocessing.piece import TXT_DOCUMENTS, Piece
from tinyllama_mcore.preprocessing.sources import RawFile

PIECE_BYTES = 64 << 20
"""Files that can be entered anywhere are cut into pieces of about this size."""
WHAT_READING_RAISES = (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError)  # Arrow's are ValueErrors


def pieces(file: RawFile, txt_documents: str = TXT_DOCUMENTS[0]) -> list[Piece]:
    """The pieces of one file, in order. ConfigError where its own table of contents cannot be read."""
    size, version = sources.measured(file)
    cut = _format(file.name, txt_documents).cut
    try:
        cuts = cut(str(file), size)
    except ConfigError:
        raise
    except WHAT_READING_RAISES as error:
        raise ConfigError(f"--input {file}: {error}") from None
    return [
        Piece(
            path=str(file),
            file_bytes=size,
            version=version,
            start=start,
            stop=stop,
            bytes=size * stop // cuts[-1] - size * start // cuts[-1] if cuts[-1] else size,
            txt_documents=txt_documents,
        )
        for start, stop in itertools.pairwise(cuts)
    ]


def checksum(path: str) -> str:
    """sha256 of a whole file. ConfigError where it cannot be read."""
    try:
        with sources.opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (EOFError, OSError) as error:
        raise ConfigError(f"--input {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def rows(piece: Piece, key: str) -> Iterator[Row]:
    """The rows of a piece in order; `key` is the field that holds the text. ConfigError for a broken file."""
    place = 0
    form = _format(piece.path, piece.txt_documents)
    try:
        with sources.opened(piece.path) as file:
            try:
                yield from form.rows(form.unpack(file), piece, key)
            finally:
                place = file.tell()
    except ConfigError:
        raise
    except WHAT_READING_RAISES as error:
        raise ConfigError(
            f"--input {piece.path}: cannot be read to its end, near byte {place} of {piece.file_bytes}: {error}"
        ) from None


def _whole(path: str, size: int) -> list[int]:
    return [0, size]


def _anywhere(path: str, size: int) -> list[int]:
    return [*range(0, max(size, 1), PIECE_BYTES), size]


def _row_groups(path: str, size: int) -> list[int]:
    with sources.opened(path) as file:
        return columns.row_groups(file, size, PIECE_BYTES)


def _lines(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    position = max(piece.start - 1, 0)
    file.seek(position)
    if piece.start:
        position += len(file.readline())  # the end of a line of the piece before
    while position < piece.stop and (line := file.readline()):
        position += len(line)
        yield line


def _all_lines(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    yield from file


def _as_it_is(file: BinaryIO) -> BinaryIO:
    return file


def _gunzipped(file: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[return-value]


class Format(NamedTuple):
    """How files of one ending are read."""

    cut: Callable[[str, int], list[int]]
    """Path and size to the places where pieces begin, and the end of the last. Raises `WHAT_READING_RAISES`."""
    rows: Callable[[BinaryIO, Piece, str], Iterator[Row]]
    """The rows of a piece. Raises `WHAT_READING_RAISES`."""
    unpack: Callable[[BinaryIO], BinaryIO] = _as_it_is
    """What `rows` reads."""
    kind: str = "rows"
    """Of `KINDS`."""


ROWS, ARCHIVE, JSON, TXT = KINDS = ("rows", "archive", "json", "txt")
"""In a directory only files of the first of these kinds are read that it holds: a .json or a .txt beside rows is most
often about them."""
FORMATS: dict[str, Format] = {
    ".jsonl": Format(_anywhere, _lines),
    ".jsonl.gz": Format(_whole, _all_lines, _gunzipped),
    ".jsonl.zst": Format(_whole, _all_lines, zstd_frames.opened),
    ".parquet": Format(_row_groups, columns.parquet),
    ".arrow": Format(_whole, columns.arrow),
    ".tar": Format(_whole, archives.samples, kind=ARCHIVE),
    ".tar.gz": Format(_whole, archives.samples, _gunzipped, ARCHIVE),
    ".tar.zst": Format(_whole, archives.samples, zstd_frames.opened, ARCHIVE),
    ".json": Format(_whole, json_rows.rows, kind=JSON),
    ".json.gz": Format(_whole, json_rows.rows, _gunzipped, JSON),
    ".json.zst": Format(_whole, json_rows.rows, zstd_frames.opened, JSON),
    ".txt": Format(_whole, plain_text.whole, kind=TXT),
}
PARAGRAPHS = Format(_anywhere, plain_text.paragraphs, kind=TXT)
"""In place of the last, where each paragraph is a document."""
MAY_BE_EMPTY = (".jsonl", ".txt")
"""Endings of files that may have 0 bytes: all others have some even where they hold no rows."""


def kind(name: str) -> str:
    """Of `KINDS`; the name ends as a format does."""
    return _format(name, TXT_DOCUMENTS[0]).kind


def _format(name: str, txt_documents: str) -> Format:
    found = next(known for suffix, known in FORMATS.items() if name.endswith(suffix))  # `inputs` takes no other
    return PARAGRAPHS if found.kind == TXT and txt_documents != TXT_DOCUMENTS[0] else found
