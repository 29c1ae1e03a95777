"""Reads a zstd file of many frames block by block, so that neither memory nor a file cut short goes unseen.

Neighbours: `readers` and `archives` read lines and members from it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

READ_BYTES = 1 << 20
ZSTD_LARGEST_WINDOW = 1 << 31
ZSTD_LONGEST_HEADER = 18
"""Bytes of a frame before its first block, at most."""
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""After a byte of 0x50 to 0x5f: a frame that holds no data."""
ZSTD_REPEATED_BYTE = 1
"""Kind of a block that is one byte in the file, whatever its size."""


def opened(file: BinaryIO) -> io.BufferedReader:
    """What the frames of a file hold, one after another."""
    return io.BufferedReader(_ZstdFrames(file), READ_BYTES)


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
