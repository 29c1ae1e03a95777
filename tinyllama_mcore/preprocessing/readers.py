"""Reads documents from raw files: .jsonl, .jsonl.gz, .jsonl.zst (many frames), .parquet, .arrow; in one fixed order.

A file is cut into `Piece`s, each read by itself; a piece gives unparsed rows, and `document` makes a text of one.
A row that is not a document is a `BadRow`; a file that cannot be read to its end is a ConfigError.
Neighbours: `inputs` finds the files, `preprocess` plans the pieces, `shard` reads them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from tinyllama_mcore.config.errors import ConfigError

PIECE_BYTES = 64 << 20
"""Files that can be entered anywhere are cut into pieces of about this size."""
READ_BYTES = 1 << 20
PARQUET_ROWS = 128
ZSTD_LARGEST_WINDOW = 1 << 31
ZSTD_LONGEST_HEADER = 18
"""Bytes of a frame before its first block, at most."""
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""After a byte of 0x50 to 0x5f: a frame that holds no data."""
ZSTD_REPEATED_BYTE = 1
"""Kind of a block that is one byte in the file, whatever its size."""
DEFAULT_KEY = "text"
STARCODER_KEY = "content"
META, SET_FIELD = "meta", "redpajama_set_name"
"""Where SlimPajama's rows say which set they are of."""
SET_COLUMNS = (META, f"{META}.{SET_FIELD}")
"""The same as columns: whole, or flattened as `datasets` does."""
ARROW_FILE = b"ARROW1"
"""How an Arrow file begins; a stream has no such mark."""

Row = bytes | Mapping[str, Any]
"""A JSON line, or the columns of a row."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one file."""

    path: str
    file_bytes: int
    """Size of the whole file."""
    modified_ns: int
    """When it was last written."""
    start: int
    """Where the piece begins: a byte of a .jsonl, a row group of a .parquet, else 0."""
    stop: int
    """Where the next one begins, likewise. A line belongs to the piece in which it begins."""
    bytes: int
    """Size of the piece; all pieces of a file add up to its size."""


class Document(NamedTuple):
    """One text, valid Unicode, and the set of RedPajama that it came from ("" where the row does not say)."""

    text: str
    set_name: str


class BadRow(ValueError):
    """A row that is no document: `kind` is what counts go by, the message says what is wrong with it."""

    def __init__(self, kind: str, message: str) -> None:
        """A kind of `BAD_ROWS`."""
        super().__init__(kind, message)
        self.kind, self.message = kind, message


BROKEN_JSON, BAD_UTF8, NO_KEY, WRONG_TYPE, SURROGATE = BAD_ROWS = (
    "broken JSON",
    "invalid UTF-8",
    "missing key",
    "wrong type",
    "lone surrogate",
)


def pieces(path: Path) -> list[Piece]:
    """The pieces of one file, in order. ConfigError where its own table of contents cannot be read."""
    stat = path.stat()
    cuts = _format(path).cut(path, stat.st_size)
    return [
        Piece(
            path=str(path),
            file_bytes=stat.st_size,
            modified_ns=stat.st_mtime_ns,
            start=start,
            stop=stop,
            bytes=stat.st_size * stop // cuts[-1] - stat.st_size * start // cuts[-1] if cuts[-1] else stat.st_size,
        )
        for start, stop in itertools.pairwise(cuts)
    ]


def checksum(path: str) -> str:
    """sha256 of a whole file. ConfigError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"--input {path}: cannot be read ({error.strerror})") from None


def rows(piece: Piece, key: str) -> Iterator[Row]:
    """The rows of a piece in order; `key` is the field that holds the text. ConfigError for a broken file."""
    place = 0
    try:
        with open(piece.path, "rb") as file:
            try:
                yield from _format(Path(piece.path)).rows(file, piece, key)
            finally:
                place = file.tell()
    except ConfigError:
        raise
    except (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError) as error:  # Arrow's are ValueErrors
        raise ConfigError(
            f"--input {piece.path}: cannot be read to its end, near byte {place} of {piece.file_bytes}: {error}"
        ) from None


def json_decoder() -> Callable[[bytes], Any]:
    """What parses a line: orjson where it is installed, with Python's json deciding on what it refuses."""
    try:
        import orjson
    except ImportError:
        return json.loads

    def decode(line: bytes) -> Any:  # noqa: ANN401
        try:
            return orjson.loads(line)
        except ValueError:
            return json.loads(line)

    return decode


def document(row: Row, key: str, decode: Callable[[bytes], Any]) -> Document:
    """The document of a row; `decode` is of `json_decoder`. BadRow where it has none."""
    try:
        if isinstance(row, bytes):
            row = decode(row)
        if not isinstance(row, Mapping):
            raise BadRow(WRONG_TYPE, f"a row must be an object, not {type(row).__name__}")
        if key not in row:
            raise BadRow(NO_KEY, f'no key "{key}", it has {", ".join(row) or "none"}: name one with --json-keys')
        text = row[key].decode() if isinstance(row[key], bytes) else row[key]
        if not isinstance(text, str):
            raise BadRow(WRONG_TYPE, f'"{key}" must be a string, not {type(text).__name__}')
        if not text.isascii():
            text.encode()
    except UnicodeDecodeError as error:
        raise BadRow(BAD_UTF8, str(error)) from None
    except UnicodeEncodeError as error:
        raise BadRow(SURROGATE, f'"{key}" has a lone surrogate, which is not a character, at {error.start}') from None
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(BROKEN_JSON, str(error)) from None
    return Document(text, _set_name(row, decode))


def _set_name(row: Mapping[str, Any], decode: Callable[[bytes], Any]) -> str:
    """The set of a row in every shape that it is found in: an object or struct, a map, JSON in a string, a column."""
    meta = row.get(META)
    if isinstance(meta, (str, bytes)):
        try:
            meta = decode(meta if isinstance(meta, bytes) else meta.encode())
        except (ValueError, RecursionError):
            meta = None
    if isinstance(meta, list):  # pyarrow gives a map as pairs
        meta = {pair[0]: pair[1] for pair in meta if isinstance(pair, (tuple, list)) and len(pair) == 2}
    name = (meta if isinstance(meta, Mapping) else row).get(SET_FIELD if isinstance(meta, Mapping) else SET_COLUMNS[1])
    return "" if name is None else name.decode(errors="replace") if isinstance(name, bytes) else str(name)


class Format(NamedTuple):
    """How files of one suffix are read."""

    cut: Callable[[Path, int], list[int]]
    """Path and size to the places where pieces begin, and the end of the last."""
    rows: Callable[[BinaryIO, Piece, str], Iterator[Row]]
    """The rows of a piece."""


def _whole(path: Path, size: int) -> list[int]:
    return [0, size]


def _anywhere(path: Path, size: int) -> list[int]:
    return [*range(0, max(size, 1), PIECE_BYTES), size]


def _lines(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    position = max(piece.start - 1, 0)
    file.seek(position)
    if piece.start:
        position += len(file.readline())  # the end of a line of the piece before
    while position < piece.stop and (line := file.readline()):
        position += len(line)
        yield line


def _gzip(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    yield from gzip.GzipFile(fileobj=file, mode="rb")


def _zstd(file: BinaryIO, piece: Piece, key: str) -> Iterator[bytes]:
    yield from io.BufferedReader(_ZstdFrames(file), READ_BYTES)


class _ZstdFrames(io.RawIOBase):
    """The bytes of all frames of a zstd file, one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._blocks = _zstd_blocks(file)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """What the blocks of all frames hold, at most 128 KiB each. RFC 8878 says where a block ends.

    zstandard (0.25) expands all of what it is given at once, so that 36 kB can become 400 MB, and its stream readers
    take a file cut short inside a frame for its end: it is given one block at a time, and the end is looked for here.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_LARGEST_WINDOW)
    while head := file.read(ZSTD_LONGEST_HEADER):
        if head[1:4] == ZSTD_SKIPPABLE and head[0] >> 4 == 5:
            file.seek(8 - len(head), os.SEEK_CUR)
            left = int.from_bytes(head[4:8], "little")
            while left > 0:
                left -= len(_exactly(file, min(left, READ_BYTES)))
            continue
        if not head.startswith(zstandard.FRAME_HEADER):
            raise ValueError(f"bytes {head[:8]!r} do not begin a zstd frame")
        frame, parameters = decompressor.decompressobj(), zstandard.get_frame_parameters(head)
        if parameters.dict_id:
            raise ValueError(
                f"it was compressed with a dictionary (number {parameters.dict_id}), which is not supported; "
                "decompress it first: zstd -d -D DICTIONARY"
            )
        size = zstandard.frame_header_size(head)
        file.seek(size - len(head), os.SEEK_CUR)
        yield frame.decompress(head[:size])
        is_last = False
        while not is_last:
            start = _exactly(file, 3)
            number = int.from_bytes(start, "little")
            is_last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
            yield frame.decompress(start + _exactly(file, 1 if kind == ZSTD_REPEATED_BYTE else size))
        if parameters.has_checksum:
            yield frame.decompress(_exactly(file, 4))


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise EOFError("it ends inside a zstd frame")
    return found


def _row_groups(path: Path, size: int) -> list[int]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"--input {path}: not a whole Parquet file: {error}") from None
    groups = metadata.num_row_groups
    together = max(1, groups * PIECE_BYTES // max(size, 1))
    return [*range(0, max(groups, 1), together), groups]


def _parquet(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    names = table.schema_arrow.names
    column = _column(piece.path, names, key)
    groups, columns = list(range(piece.start, piece.stop)), [column, *(set(SET_COLUMNS) & set(names))]
    for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False):
        yield from _columns_to_rows(batch, column, key)


def _arrow(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, Any]]:
    for batch in _batches(file):
        column = _column(piece.path, batch.schema.names, key)
        for first in range(0, batch.num_rows, PARQUET_ROWS):
            yield from _columns_to_rows(batch.slice(first, PARQUET_ROWS), column, key)


def _batches(file: BinaryIO) -> Iterator[Any]:
    """Record batches of a stream, as `datasets` writes, or of a file with a footer, as polars and Feather do."""
    import pyarrow

    is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
    file.seek(0)
    try:
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"not a whole Arrow {'file' if is_file else 'stream, nor an Arrow file'}: {error}") from None
    yield from map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader


def _columns_to_rows(batch: Any, column: str, key: str) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401
    names = [name for name in SET_COLUMNS if name in batch.schema.names and name != column]
    columns = [_values(batch.column(column)), *(batch.column(name).to_pylist() for name in names)]
    yield from (dict(zip((key, *names), values, strict=True)) for values in zip(*columns, strict=True))


def _values(column: Any) -> list[Any]:  # noqa: ANN401
    """The texts of a column; as bytes where one of them is no UTF-8."""
    import pyarrow

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pyarrow.binary()).to_pylist()


def _column(path: str, names: list[str], key: str) -> str:
    if key in names:
        return key
    if key == DEFAULT_KEY and STARCODER_KEY in names:
        return STARCODER_KEY
    raise ConfigError(f'--input {path}: no column "{key}", it has {", ".join(names)}: name one with --json-keys')


FORMATS: dict[str, Format] = {
    ".jsonl": Format(_anywhere, _lines),
    ".jsonl.gz": Format(_whole, _gzip),
    ".jsonl.zst": Format(_whole, _zstd),
    ".parquet": Format(_row_groups, _parquet),
    ".arrow": Format(_whole, _arrow),
}
MAY_BE_EMPTY = (".jsonl",)
"""Endings of files that may have 0 bytes: all others have some even where they hold no rows."""


def _format(path: Path) -> Format:
    return next(known for suffix, known in FORMATS.items() if path.name.endswith(suffix))  # `inputs` takes no other
