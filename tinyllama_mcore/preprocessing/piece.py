"""A piece of a raw file, and a batch of pieces: what one worker reads at a time.

`readers` cuts files into pieces and reads them, `shard` makes a batch into a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tinyllama_mcore.preprocessing.sources import is_url

TXT_DOCUMENTS = ("file", "paragraph")
"""A .txt is one document, or each of its blocks between blank lines is one."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one file."""

    path: str
    """Or URL."""
    file_bytes: int
    """Size of the whole file."""
    version: str
    """What changes when the file is written anew: its time, or what a store says of it."""
    start: int
    """Where the piece begins: a byte of a .jsonl or .txt, a row group of a .parquet, else 0."""
    stop: int
    """Where the next one begins, likewise. A line belongs to the piece in which it begins."""
    bytes: int
    """Size of the piece; all pieces of a file add up to its size."""
    txt_documents: str = "file"
    """What a document of a .txt is: of `TXT_DOCUMENTS`."""


BATCH_BYTES, BATCH_PIECES = 1 << 20, 64
"""Most of a batch of several pieces."""
Batch = tuple[Piece, ...]
"""Consecutive pieces, of one file or of several."""


def batches(pieces: Iterable[Piece]) -> Iterator[Batch]:
    """The pieces in order; small ones together, as a shard costs two flushes of the disk.

    What a URL names is alone: it costs more to read than a shard to make, and is read by as many workers as there are.
    """
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        is_full = size + piece.bytes > BATCH_BYTES or len(batch) == BATCH_PIECES
        if batch and (is_full or is_url(piece.path)):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(piece)
        size = BATCH_BYTES + 1 if is_url(piece.path) else size + piece.bytes
    if batch:
        yield tuple(batch)
