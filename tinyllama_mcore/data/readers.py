"""Documents out of raw files: .jsonl, .jsonl.gz, .jsonl.zst (many frames) and .parquet, in one fixed order.

A file is cut into `Chunk`s of unparsed rows, cheap to make and to send to a worker, which turns them into `Document`s.
A row that is not a document ends the job with a ConfigError that names file and row.
Neighbours: `preprocess` drives both halves.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from tinyllama_mcore.config.schema import ConfigError

CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 128
ZSTD_READ = zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE
ZSTD_LARGEST_WINDOW = 1 << 31
DEFAULT_KEY = "text"
STARCODER_KEY = "content"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of one file, about `CHUNK_BYTES` of them, not yet parsed."""

    path: str
    first_row: int
    """Number of the first row in its file, from 1: the line of a JSON file."""
    rows: tuple[bytes | Mapping[str, Any], ...]
    """JSON lines, or the columns of Parquet rows."""
    file_bytes: int
    """Bytes of the file read since the chunk before: all chunks of a file add up to its size."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, valid Unicode, and the set of RedPajama that it came from ("" where the row does not say)."""

    text: str
    set_name: str


def input_files(patterns: Iterable[str]) -> tuple[Path, ...]:
    """Every file that the paths, folders (searched to the bottom) and globs name, once, sorted by path.

    ConfigError for a pattern without a match and for a file of an unknown kind.
    """
    files: set[Path] = set()
    for pattern in patterns:
        paths = [Path(pattern)] if os.path.exists(pattern) else [Path(p) for p in glob.glob(pattern, recursive=True)]
        found = [file for path in paths for file in _files_under(path)]
        if not found:
            raise ConfigError(f"--input {pattern}: no such file, and no match that ends in {', '.join(READERS)}")
        files.update(found)
    for file in files:
        _reader(file)
    return tuple(sorted(files))


def _files_under(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [
        Path(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(tuple(READERS)) and not name.startswith(".")
    ]


def chunks(path: Path, key: str) -> Iterator[Chunk]:
    """The rows of one file in order; `key` is the field that holds the text. ConfigError for a broken file."""
    try:
        yield from _reader(path)(path, key)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise ConfigError(f"--input {path}: cannot be read to its end: {error}") from None


def documents(chunk: Chunk, key: str) -> Iterator[Document]:
    """The documents of a chunk; `key` as for `chunks`. ConfigError for the first row that is not one."""
    for number, row in enumerate(chunk.rows, start=chunk.first_row):
        if isinstance(row, bytes) and row.isspace():
            continue
        try:
            yield _document(json.loads(row) if isinstance(row, bytes) else row, key)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--input {chunk.path}, row {number}: {error}") from None


def _document(row: Mapping[str, Any], key: str) -> Document:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, not {type(row).__name__}")
    if key not in row:
        raise ValueError(f'no key "{key}", only {", ".join(row) or "none"}: name one with --json-keys')
    text = row[key]
    if not isinstance(text, str):
        raise ValueError(f'"{key}" must be a string, not {type(text).__name__}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'"{key}" has a lone surrogate, which is no character, at {error.start}') from None
    meta = row.get("meta")
    return Document(text=text, set_name=str(meta.get("redpajama_set_name", "")) if isinstance(meta, Mapping) else "")


def _json_lines(path: Path, open_stream: Callable[[BinaryIO], Iterable[bytes]]) -> Iterator[Chunk]:
    with open(path, "rb") as file:
        rows: list[bytes] = []
        first_row, size, done = 1, 0, 0
        for line in open_stream(file):
            rows.append(line)
            size += len(line)
            if size >= CHUNK_BYTES:
                position = file.tell()
                yield Chunk(path=str(path), first_row=first_row, rows=tuple(rows), file_bytes=position - done)
                first_row, size, done = first_row + len(rows), 0, position
                rows.clear()
        yield Chunk(path=str(path), first_row=first_row, rows=tuple(rows), file_bytes=file.tell() - done)


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


def _plain(path: Path, key: str) -> Iterator[Chunk]:
    return _json_lines(path, lambda file: file)


def _gzip(path: Path, key: str) -> Iterator[Chunk]:
    return _json_lines(path, lambda file: gzip.GzipFile(fileobj=file, mode="rb"))


def _zstd(path: Path, key: str) -> Iterator[Chunk]:
    return _json_lines(path, lambda file: io.BufferedReader(_ZstdFrames(file), CHUNK_BYTES))


def _parquet(path: Path, key: str) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = _parquet_column(path, file.schema_arrow.names, key)
            columns = [column, "meta"] if "meta" in file.schema_arrow.names else [column]
            size, total, row = path.stat().st_size, max(file.metadata.num_rows, 1), 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns, use_threads=False):
                rows = tuple({**values, key: values[column]} for values in batch.to_pylist())
                read = size * (row + len(rows)) // total - size * row // total
                yield Chunk(path=str(path), first_row=row + 1, rows=rows, file_bytes=read)
                row += len(rows)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"--input {path}: not a whole Parquet file: {error}") from None


def _parquet_column(path: Path, names: list[str], key: str) -> str:
    if key in names:
        return key
    if key == DEFAULT_KEY and STARCODER_KEY in names:
        return STARCODER_KEY
    raise ConfigError(f'--input {path}: no column "{key}", only {", ".join(names)}: name one with --json-keys')


READERS: dict[str, Callable[[Path, str], Iterator[Chunk]]] = {
    ".jsonl": _plain,
    ".jsonl.gz": _gzip,
    ".jsonl.zst": _zstd,
    ".parquet": _parquet,
}


def _reader(path: Path) -> Callable[[Path, str], Iterator[Chunk]]:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader
    raise ConfigError(f"--input {path}: the name must end in {', '.join(READERS)}")
