"""One safetensors file with its checksum, written in one pass: header, then the bytes of each tensor.

Why: a save has to end before a launcher's grace does. safetensors' own `save` makes the file in memory first; here each
block is hashed and handed to the page cache while it is in the processor's cache, and neither holds Python's lock, so
threads write files side by side. The header is the one that torch.distributed.checkpoint writes
(`HuggingFaceStorageWriter`, torch 2.13). Neighbour: `store` says which pieces go to which file.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint.manifest import FileRecord

BLOCK_BYTES = 8 << 20
"""Hashed and written at a time: large enough that waiting for Python's lock weighs nothing."""
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}
"""What checkpoints hold, as safetensors spells it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A rank's part of a tensor."""

    tensor: torch.Tensor
    """Its values, on the CPU."""
    offsets: tuple[int, ...]
    """Where it begins in the whole tensor, one number a dim."""


def write(path: Path, pieces: Mapping[str, Piece]) -> FileRecord:
    """Write `pieces` by key to a new file, and give its size and checksum. Not flushed to the disk.

    Raises:
        OSError: it cannot be written.
    """
    ordered = dict(sorted(pieces.items(), key=lambda entry: (-entry[1].tensor.element_size(), entry[0])))
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for block in _blocks(ordered):
            digest.update(block)
            size += len(block)
            while block:
                block = block[os.write(descriptor, block) :]
    finally:
        os.close(descriptor)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def _blocks(pieces: Mapping[str, Piece]) -> Iterator[memoryview]:
    """The bytes of the file, in order."""
    yield memoryview(_header(pieces))
    for piece in pieces.values():
        values = memoryview(piece.tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        for begin in range(0, len(values), BLOCK_BYTES):
            yield values[begin : begin + BLOCK_BYTES]


def _header(pieces: Mapping[str, Piece]) -> bytes:
    """The length of the JSON, and the JSON: what safetensors asks for, and where each piece belongs."""
    places = {key: {"saved_offsets": list(piece.offsets)} for key, piece in pieces.items()}
    header: dict[str, object] = {
        "__metadata__": {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
    }
    end = 0
    for key, piece in pieces.items():
        begin, end = end, end + piece.tensor.numel() * piece.tensor.element_size()
        dtype = _DTYPES[piece.tensor.dtype]
        header[key] = {"dtype": dtype, "shape": list(piece.tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text
