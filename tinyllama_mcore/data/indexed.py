"""Megatron's indexed dataset on disk: writes a `.bin/.idx` pair byte for byte as it does, and checks one before use.

Written in numpy, because Megatron's own builder needs `megatron.core` (seconds to import; 0.19 also wants triton) and a
Python loop over documents. Layout after `megatron/core/datasets/indexed_dataset.py`, `_IndexWriter`:
magic, version, dtype code, sequences, documents + 1, int32 lengths, int64 byte offsets, int64 document bounds.
Neighbours: `shard` and `merge` write, `receipt` checks, `epochs` reads.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from tinyllama_mcore.config.errors import ConfigError

HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
INDEX_BLOCK = 1 << 20
"""Entries of an index that are in memory at a time."""
COPY_BYTES = 1 << 24
SMALLEST_INT32_VOCABULARY = 65_500  # DType.optimal_dtype: uint16 below it


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron stores ids of such a vocabulary in."""
    return np.dtype(np.uint16 if vocab_size < SMALLEST_INT32_VOCABULARY else np.int32)


def bin_path(prefix: str | Path) -> Path:
    """The tokens of a pair."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The index of a pair."""
    return Path(f"{prefix}.idx")


class PairWriter:
    """Writes one pair beside its place and moves it there when the `with` block ends; an exception leaves nothing.

    The old pair, if any, stays usable until then. A second writer of the same prefix is refused.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        """A pair at `prefix` whose tokens are stored as `dtype`."""
        self.prefix = prefix
        self.dtype = dtype

    def __enter__(self) -> PairWriter:
        """Open the partial `.bin`. ConfigError if its directory cannot be written or another job is writing it."""
        self._partial = Path(f"{bin_path(self.prefix)}.partial")
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._bin: BinaryIO = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise ConfigError(f"--output-prefix {self.prefix}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._bin, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(self._bin.fileno()), self._partial.stat())
        except OSError:
            held = False
        if not held:  # locked by another job, or just published by it under its own name
            self._bin.close()
            raise ConfigError(f"--output-prefix {self.prefix}: another job is writing {self._partial}")
        self._bin.truncate(0)  # what a killed job left
        self._lengths: BinaryIO = tempfile.TemporaryFile(dir=self._partial.parent)  # int32, in no memory and no list
        return self

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append tokens, and the lengths of the documents that end in them; the last may end in a later call."""
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._lengths.write(np.ascontiguousarray(lengths, dtype=np.int32).data)

    def append(self, pair: PairInfo) -> None:
        """Append all documents of a finished pair of the same dtype; the system copies the tokens."""
        assert pair.dtype == self.dtype
        self._bin.flush()
        with open(bin_path(pair.prefix), "rb") as tokens:
            _copy(tokens, self._bin, pair.tokens * pair.dtype.itemsize)
        with open(idx_path(pair.prefix), "rb") as index:
            index.seek(HEADER.size)
            for block in _blocks(pair.sequences):
                self._lengths.write(index.read(4 * block))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the pair, or remove what was written. The lock goes with the open file."""
        with self._bin, self._lengths:
            if kind is None:
                self._publish()
            else:
                self._partial.unlink()

    def _publish(self) -> None:
        partial_idx = Path(f"{idx_path(self.prefix)}.partial")
        try:
            _flush(self._bin)
            _write_index(partial_idx, self._lengths, self.dtype)
        except BaseException:
            partial_idx.unlink(missing_ok=True)
            self._partial.unlink()
            raise
        bin_path(self.prefix).unlink(missing_ok=True)  # so that no .bin is ever beside another's .idx
        partial_idx.replace(idx_path(self.prefix))
        self._partial.replace(bin_path(self.prefix))


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Append `size` bytes of `source`, inside the kernel where the file systems can."""
    try:
        while size > 0 and (done := os.copy_file_range(source.fileno(), target.fileno(), size)):
            size -= done
    except (AttributeError, OSError):  # another system, or two file systems that cannot
        source.seek(os.lseek(source.fileno(), 0, os.SEEK_CUR))
        target.seek(0, os.SEEK_END)
        shutil.copyfileobj(source, target, COPY_BYTES)
    target.seek(0, os.SEEK_END)


def _blocks(count: int) -> Iterator[int]:
    """How many of `count` entries to take at a time."""
    return (min(INDEX_BLOCK, count - first) for first in range(0, count, INDEX_BLOCK))


def _write_index(path: Path, spooled: BinaryIO, dtype: np.dtype) -> None:
    """The index of documents whose lengths were spooled, a block at a time."""
    documents = spooled.seek(0, os.SEEK_END) // 4
    code = next(code for code, known in DTYPE_CODES.items() if np.dtype(known) == dtype)
    with open(path, "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, documents, documents + 1))
        spooled.seek(0)
        shutil.copyfileobj(spooled, file, COPY_BYTES)
        spooled.seek(0)
        offset = 0
        for block in _blocks(documents):
            sizes = np.frombuffer(spooled.read(4 * block), dtype=np.int32) * np.int64(dtype.itemsize)
            ends = offset + np.cumsum(sizes)
            file.write((ends - sizes).data)
            offset = int(ends[-1])
        first = 0
        for block in _blocks(documents + 1):
            file.write(np.arange(first, first + block, dtype=np.int64).data)
            first += block
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


_SAMPLE_BLOCKS, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, kw_only=True)
class PairInfo:
    """What the headers of a pair say; the files agree with each other."""

    prefix: str
    """Path without `.bin` or `.idx`."""
    sequences: int
    """Entries of the index; one a document in pairs that `preprocessing.preprocess` wrote."""
    documents: int
    """What the sequences are parts of; as many as these, unless another tool split documents into sentences."""
    dtype: np.dtype
    """Dtype of the tokens."""
    tokens: int
    """In the whole pair."""
    flag: str = "--data-path"
    """Which flag named the pair."""

    @property
    def named(self) -> str:
        """The flag and its value, as error messages begin."""
        return f"{self.flag} {self.prefix}"

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int32 [sequences], memory-mapped."""
        return self._column(np.int32, 0, self.sequences)

    def offsets(self) -> np.ndarray:
        """Where each sequence begins in the `.bin`, in bytes, int64 [sequences], memory-mapped."""
        return self._column(np.int64, 4 * self.sequences, self.sequences)

    def bounds(self) -> np.ndarray:
        """The first sequence of each document, and the end of the last, int64 [documents + 1], memory-mapped."""
        return self._column(np.int64, (4 + 8) * self.sequences, self.documents + 1)

    def _column(self, dtype: type[np.generic], start: int, count: int) -> np.ndarray:
        return np.memmap(idx_path(self.prefix), dtype=dtype, mode="r", offset=HEADER.size + start, shape=(count,))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the content that a sample index is made from: dtype, tokens, and the length of every sequence."""
        digest = hashlib.sha256(f"{self.dtype} {self.tokens} {self.sequences} ".encode())
        digest.update(self.lengths().data)
        return digest.hexdigest()

    @functools.cached_property
    def token_sample(self) -> str:
        """Names the tokens themselves, by 64 blocks of 4 KiB spread evenly over the `.bin`: read in milliseconds.

        Another tokenizer, another shuffle or a truncated copy shows; one token changed between the blocks does not.
        """
        digest = hashlib.sha256()
        with open(bin_path(self.prefix), "rb") as file:
            last = max(0, os.fstat(file.fileno()).st_size - _SAMPLE_BYTES)
            for block in range(_SAMPLE_BLOCKS):
                digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, last * block // (_SAMPLE_BLOCKS - 1)))
        return digest.hexdigest()


class TokenReader:
    """Reads tokens of a pair by their position in the file, so that the disk gives what is asked for and no more.

    A memory-mapped `.bin` drags megabytes of neighbours along with each cold page (docs/evidence/data.md).
    """

    def __init__(self, pair: PairInfo) -> None:
        """Open the `.bin`; its index stays memory-mapped."""
        self._dtype = pair.dtype
        self._lengths, self._offsets = randomly_read(pair.lengths()), randomly_read(pair.offsets())
        self._file = open(bin_path(pair.prefix), "rb", buffering=0)  # noqa: SIM115 - as long as the reader lives
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, sequence: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """`count` tokens of a sequence from its token `first` on, [count]; to its end where `count` is None."""
        tokens = int(self._lengths[sequence]) - first if count is None else count
        size = self._dtype.itemsize
        found = os.pread(self._file.fileno(), tokens * size, int(self._offsets[sequence]) + first * size)
        return np.frombuffer(found, dtype=self._dtype)


def randomly_read(column: np.ndarray) -> np.ndarray:
    """The same memory-mapped array, with the system told to read no pages ahead."""
    mapped = getattr(column, "_mmap", None)  # None where it was just built, in memory
    if mapped is not None:
        mapped.madvise(mmap.MADV_RANDOM)
    return column


def check(prefix: str | Path, vocab_size: int, flag: str = "--data-path") -> PairInfo:
    """Read the headers of a pair that `flag` names.

    Raises:
        ConfigError: its files do not fit each other, or a vocabulary of this size.
    """
    info = read(prefix, flag)
    if info.sequences == 0 or info.tokens == 0:
        raise ConfigError(f"{info.named}: {idx_path(prefix)} lists no documents")
    if info.dtype.kind not in "iu" or np.iinfo(info.dtype).max < vocab_size - 1:
        raise ConfigError(
            f"{info.named}: tokens are stored as {info.dtype}, which cannot hold a vocabulary of {vocab_size}; "
            f"it was made with another tokenizer (this one's data is {token_dtype(vocab_size)})"
        )
    return info


def read(prefix: str | Path, flag: str = "--data-path") -> PairInfo:
    """What the headers of a pair say. ConfigError, about `flag`, where its files are not both there or do not fit."""
    paths = bin_path(prefix), idx_path(prefix)
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == 2:
        raise ConfigError(f"{flag} {prefix}: neither {paths[0]} nor {paths[1]} exists")
    if missing:
        other = paths[1 - paths.index(missing[0])]
        raise ConfigError(f"{flag} {prefix}: {missing[0]} is missing beside {other}; a dataset is both files")
    path, size = idx_path(prefix), idx_path(prefix).stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ConfigError(f"{flag} {prefix}: {path} ({size} bytes) is not a Megatron index: bad magic")
        _, version, code, sequences, bounds = HEADER.unpack(head)
        if version != VERSION or code not in DTYPE_CODES:
            raise ConfigError(
                f"{flag} {prefix}: {path} says version {version}, dtype code {code}; known are version "
                f"{VERSION} and codes {min(DTYPE_CODES)} to {max(DTYPE_CODES)}"
            )
        expected = HEADER.size + sequences * (4 + 8) + bounds * 8
        if size != expected:
            raise ConfigError(
                f"{flag} {prefix}: {path} has {size} bytes where its header promises {expected} "
                f"({sequences} sequences); it is truncated or still being written"
            )
        dtype = np.dtype(DTYPE_CODES[code])
        end = _end_of_tokens(file, sequences, dtype)
    actual = bin_path(prefix).stat().st_size
    if actual != end:
        raise ConfigError(
            f"{flag} {prefix}: {bin_path(prefix)} has {actual} bytes where {path} needs {end} "
            f"({end // dtype.itemsize} tokens of {dtype}); it is truncated or belongs to another index"
        )
    return PairInfo(
        prefix=str(prefix),
        sequences=sequences,
        documents=bounds - 1,
        dtype=dtype,
        tokens=end // dtype.itemsize,
        flag=flag,
    )


def _end_of_tokens(file: BinaryIO, sequences: int, dtype: np.dtype) -> int:
    """The size that the `.bin` must have: last byte offset + last length, as the index has them."""
    if sequences == 0:
        return 0
    file.seek(HEADER.size + 4 * (sequences - 1))
    (length,) = struct.unpack("<i", file.read(4))
    file.seek(HEADER.size + 4 * sequences + 8 * (sequences - 1))
    (offset,) = struct.unpack("<q", file.read(8))
    return offset + length * dtype.itemsize
