"""Reads the rows of tables: Parquet by row groups, Arrow by record batches; of their columns, only what is needed.

Neighbours: `readers` has the table of formats, `documents` makes texts of rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing.documents import DEFAULT_KEY, SET_COLUMNS, STARCODER_KEY
from tinyllama_mcore.preprocessing.piece import Piece

ARROW_FILE = b"ARROW1"
"""How an Arrow file begins; a stream has no such mark."""
CONTINUED, NO_MORE = b"\xff" * 4, bytes(4)
"""How a message of a stream begins, since Arrow 0.15, and the length after it that ends the stream."""
ROWS_TOGETHER = 128
"""Rows of a table that are made into Python's objects at once."""


def row_groups(file: BinaryIO, size: int, piece_bytes: int) -> list[int]:
    """Where the pieces of a Parquet file begin, as row groups, and the end of the last; each of about so many bytes."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"not a whole Parquet file: {error}") from None
    groups = metadata.num_row_groups
    together = max(1, groups * piece_bytes // max(size, 1))
    return [*range(0, max(groups, 1), together), groups]


def parquet(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, Any]]:
    """The rows of some row groups."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    names = table.schema_arrow.names
    column = _column(piece.path, names, key)
    groups, columns = list(range(piece.start, piece.stop)), [column, *(set(SET_COLUMNS) & set(names))]
    for batch in table.iter_batches(batch_size=ROWS_TOGETHER, row_groups=groups, columns=columns, use_threads=False):
        yield from _columns_to_rows(batch, column, key)


def arrow(file: BinaryIO, piece: Piece, key: str) -> Iterator[Mapping[str, Any]]:
    """The rows of an Arrow stream or file."""
    for batch in _batches(file):
        column = _column(piece.path, batch.schema.names, key)
        for first in range(0, batch.num_rows, ROWS_TOGETHER):
            yield from _columns_to_rows(batch.slice(first, ROWS_TOGETHER), column, key)


def _batches(file: BinaryIO) -> Iterator[Any]:
    """Record batches of a stream, as `datasets` writes, or of a file with a footer, as polars and Feather do."""
    import pyarrow

    head = file.read(len(ARROW_FILE))
    is_file = head == ARROW_FILE
    file.seek(0)
    try:
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"not a whole Arrow {'file' if is_file else 'stream, nor an Arrow file'}: {error}") from None
    if is_file:
        yield from map(reader.get_batch, range(reader.num_record_batches))
        return
    yield from reader
    end = (CONTINUED if head.startswith(CONTINUED) else b"") + NO_MORE
    file.seek(-len(end), os.SEEK_END)
    if file.read() != end:  # pyarrow (26) takes a stream that was cut between two batches for a whole one
        raise EOFError("the Arrow stream has no mark of its end")


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
