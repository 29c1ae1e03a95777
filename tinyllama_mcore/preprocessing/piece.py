"""A piece of a raw file: what one worker reads at a time. `readers` cuts files into pieces and reads them."""

from __future__ import annotations

from dataclasses import dataclass

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
