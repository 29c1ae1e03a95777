"""Documents out of raw files: .jsonl, .jsonl.gz, .jsonl.zst (many frames), .parquet and .arrow, in one fixed order.

A file is cut into `Piece`s, each read by itself; a piece gives unparsed rows, and `document` makes a text of one.
A row that is not a document is a `BadRow`; a file that cannot be read to its end is a ConfigError.
Neighbours: `preprocess` plans the pieces, `shard` reads them.
"""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from tinyllama_mcore.config.schema import ConfigError

PIECE_BYTES = 64 << 20
"""Files that can be entered anywhere are cut into pieces of about this size."""
READ_BYTES = 1 << 20
PARQUET_ROWS = 128
ZSTD_READ = zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE
ZSTD_LARGEST_WINDOW = 1 << 31
DEFAULT_KEY = "text"
STARCODER_KEY = "content"

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
    """Of the file; all its pieces add up to its size."""


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


def input_files(patterns: Iterable[str]) -> tuple[Path, ...]:
    """Every file that the paths, folders (searched to the bottom) and globs name, once, sorted by path.

    ConfigError for a pattern without a match and for a file of an unknown kind.
    """
    files: set[Path] = set()
    for pattern in patterns:
        paths = [Path(pattern)] if os.path.exists(pattern) else [Path(p) for p in glob.glob(pattern, recursive=True)]
        found = [file for path in paths for file in _files_under(path)]
        if not found:
            raise ConfigError(f"--input {pattern}: no such file, and no match that ends in {', '.join(FORMATS)}")
        files.update(found)
    for file in files:
        _format(file)
    return tuple(sorted(files))


def _files_under(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [
        Path(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(tuple(FORMATS)) and not name.startswith(".")
    ]


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


def rows(piece: Piece, key: str) -> Iterator[Row]:
    """The rows of a piece in order; `key` is the field that holds the text. ConfigError for a broken file."""
    with open(piece.path, "rb") as file:
        try:
            yield from _format(Path(piece.path)).rows(file, piece, key)
        except ConfigError:
            raise
        except (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError) as error:  # Arrow's are ValueErrors
            raise ConfigError(
                f"--input {piece.path}: cannot be read to its end, near byte {file.tell()} of "
                f"{piece.file_bytes}: {error}"
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
            raise BadRow(NO_KEY, f'no key "{key}", only {", ".join(row) or "none"}: name one with --json-keys')
        text = row[key].decode() if isinstance(row[key], bytes) else row[key]
        if not isinstance(text, str):
            raise BadRow(WRONG_TYPE, f'"{key}" must be a string, not {type(text).__name__}')
        if not text.isascii():
            text.encode()
    except UnicodeDecodeError as error:
        raise BadRow(BAD_UTF8, str(error)) from None
    except UnicodeEncodeError as error:
        raise BadRow(SURROGATE, f'"{key}" has a lone surrogate, which is no character, at {error.start}') from None
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(BROKEN_JSON, str(error)) from None
    meta = row.get("meta")
    return Document(text, str(meta.get("redpajama_set_name", "")) if isinstance(meta, Mapping) else "")


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
    """The bytes of all frames of a zstd file, one after another.

    zstandard's own stream readers take a file cut short inside a frame for its end (0.25); this one raises EOFError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_LARGEST_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._file.read(ZSTD_READ)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends inside a zstd frame")
                return 0
            self._ready = memoryview(b"".join(self._decompress(data)))
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        while data:
            self._frame = self._frame or self._decompressor.decompressobj()
            yield self._frame.decompress(data)
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None


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
    groups, columns = list(range(piece.start, piece.stop)), [column, *({"meta"} & set(names))]
    for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=columns, use_threads=False):
        yield from _columns_to_rows(batch, column, key)


def _arrow(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow

    for batch in pyarrow.ipc.open_stream(file):
        column = _column(piece.path, batch.schema.names, key)
        for first in range(0, batch.num_rows, PARQUET_ROWS):
            yield from _columns_to_rows(batch.slice(first, PARQUET_ROWS), column, key)


def _columns_to_rows(batch: Any, column: str, key: str) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401
    texts = _values(batch.column(column))
    if "meta" not in batch.schema.names:
        yield from ({key: text} for text in texts)
        return
    yield from ({key: text, "meta": meta} for text, meta in zip(texts, batch.column("meta").to_pylist(), strict=True))


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
    raise ConfigError(f'--input {path}: no column "{key}", only {", ".join(names)}: name one with --json-keys')


FORMATS: dict[str, Format] = {
    ".jsonl": Format(_anywhere, _lines),
    ".jsonl.gz": Format(_whole, _gzip),
    ".jsonl.zst": Format(_whole, _zstd),
    ".parquet": Format(_row_groups, _parquet),
    ".arrow": Format(_whole, _arrow),
}


def _format(path: Path) -> Format:
    for suffix, known in FORMATS.items():
        if path.name.endswith(suffix):
            return known
    raise ConfigError(f"--input {path}: the name must end in {', '.join(FORMATS)}")
