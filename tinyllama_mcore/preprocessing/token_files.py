"""Token files of other programs, opened and checked: datatrove's `.ds`, which nanotron reads, and TinyLlama's chunks.

`.ds` is what `datatrove.pipeline.tokens.tokenizer.TokenizedFile` (0.10.1) writes: uint16 or uint32 tokens and nothing
else; beside it `.ds.index`, the end of each document in tokens, uint64, and `.ds.metadata`, three lines:
tokenizer|bytes of a token, tokens, a number for people. A chunk is what `lit_gpt.packed_dataset.PackedDatasetBuilder`
of jzhang38/TinyLlama writes, `{name}_{process}_{number:010d}.bin`: a header of 24 bytes and a fixed number of tokens.
It knows no documents, and one may go on in the process's next chunk. Neighbours: `import_tokens` makes pairs of both.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.indexed import DTYPE_CODES
from tinyllama_mcore.preprocessing.readers import FORMATS
from tinyllama_mcore.preprocessing.sources import is_url

DATATROVE, CHUNK = ".ds", ".bin"
"""Endings of the files that are read."""
PROGRAMS = {DATATROVE: "datatrove", CHUNK: "TinyLlama's packed_dataset"}
"""Ending -> who writes such files."""
EXPECTED = "read are datatrove's .ds files and TinyLlama's chunks, NAME_PROCESS_0000000000.bin"
NAMES_SHOWN = 3
RAW = tuple(FORMATS)
"""Endings of raw files, which preprocessing reads."""
BLOCK_TOKENS = 1 << 21
"""Tokens that are in memory at a time."""
CHUNK_HEADER = struct.Struct("<7sQBQ")
"""Magic, version, dtype code (Megatron's codes, but for floats), tokens."""
CHUNK_MAGIC, CHUNK_VERSION = b"LITPKDS", 1
CHUNK_NAME = re.compile(r"(?P<series>(?P<name>.+?)(?:_\d+)?)_(?P<number>\d{10})\.bin")
INTEGERS = (np.dtype(np.uint16), np.dtype(np.int32))
"""Dtypes in which chunks hold tokens: `dtype="auto"` of their writer."""


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One file of tokens whose size, header and index agree."""

    path: Path
    dtype: np.dtype
    """Of its tokens."""
    tokens: int
    """In the file."""
    skipped_bytes: int = 0
    """Length of its header."""
    ends: np.ndarray | None = None
    """End of each document, in tokens of this file, uint64 [documents], memory-mapped; None: the file does not say."""
    tokenizer: str = ""
    """Name of the tokenizer that made it, where its metadata have one."""

    def blocks(self, digest: hashlib._Hash) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Its tokens in order, [n], and the ends of documents among them, int64, each 1 to n. Updates `digest`."""
        with open(self.path, "rb") as file:
            digest.update(file.read(self.skipped_bytes))
            for first in range(0, self.tokens, BLOCK_TOKENS):
                content = file.read(min(BLOCK_TOKENS, self.tokens - first) * self.dtype.itemsize)
                digest.update(content)
                tokens = np.frombuffer(content, dtype=self.dtype)
                yield tokens, self._ends_within(first, first + len(tokens))

    def _ends_within(self, first: int, stop: int) -> np.ndarray:
        """Where documents end, from `first` on; each place once, so that documents without a token are none."""
        if self.ends is None:
            return np.zeros(0, dtype=np.int64)
        low, high = np.searchsorted(self.ends, np.array([first, stop], dtype=np.uint64), side="right")
        return np.unique(self.ends[low:high].astype(np.int64)) - first


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files of which each goes on where the one before stops, in order."""

    files: tuple[TokenFile, ...]


def find(patterns: Sequence[str]) -> tuple[str, tuple[Series, ...]]:
    """Everything that paths, directories and globs name, sorted; with the ending that all of it has.

    Raises:
        ConfigError: nothing is there, a file is not whole, a chunk is missing, or the files are of different kinds.
    """
    found = {os.path.realpath(path): path for pattern in patterns for path in _named(pattern)}
    paths = sorted(found.values())
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1:
        raise ConfigError(
            f"--input {' '.join(patterns)}: holds files of {' and of '.join(PROGRAMS[k] for k in sorted(kinds))}; "
            f"give one kind at a time, such as '{paths[0].parent}/*{paths[0].suffix}'"
        )
    (kind,) = kinds
    if kind == DATATROVE:
        return kind, tuple(Series(files=(_open_datatrove(path),)) for path in paths)
    return kind, _series_of_chunks(paths)


def _named(pattern: str) -> list[Path]:
    """The token files that a path, a directory (not those below it) or a glob names."""
    path = Path(pattern)
    found = sorted(path.iterdir()) if path.is_dir() else [Path(name) for name in sorted(glob.glob(pattern))]
    paths = [each for each in found if each.suffix in PROGRAMS]
    if missing := next((each for each in paths if not each.is_file()), None):
        raise ConfigError(f"--input {missing}: is no file, but a directory or a link to nothing; {EXPECTED}")
    if not paths:
        raise ConfigError(f"--input {pattern}: {_what_is_there(pattern, found)}; {EXPECTED}")
    return paths


def _what_is_there(pattern: str, found: Sequence[Path]) -> str:
    """In place of token files, with the nearest that is read."""
    path = Path(pattern)
    if is_url(pattern):
        return "is a URL, and token files are read from this machine: fetch them"
    if not found and not path.is_dir():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = difflib.get_close_matches(path.name, [each.name for each in beside if each.suffix in PROGRAMS], n=1)
        return "no such file" + (f"; did you mean {path.with_name(near[0])}?" if near else "")
    for each in found:
        if each.suffix == ".idx" and each.with_suffix(CHUNK).is_file():
            return f"{each.name} is of a .bin/.idx dataset, which --data-path {each.with_suffix('')} takes as it is"
        if each.stem.endswith(DATATROVE) and each.with_suffix("").is_file():
            return f"{each.name} belongs to {each.stem}: give --input {each.with_suffix('')}"
        if each.name.endswith(RAW):
            return f"{each.name} is raw text, which tinyllama-preprocess (tools/preprocess_data.py) takes"
        if each.is_dir() and (below := next((file for file in each.iterdir() if file.suffix in PROGRAMS), None)):
            return f"{each.name} is a directory, and those below are not searched: give --input {below.parent}"
    names = ", ".join(each.name for each in found[:NAMES_SHOWN])
    return f"{'holds' if path.is_dir() else 'is'} {names or 'no file'}" + (", ..." if len(found) > NAMES_SHOWN else "")


def _open_datatrove(path: Path) -> TokenFile:
    """A `.ds` with its index. ConfigError where they, or the metadata, do not agree."""
    index, size = Path(f"{path}.index"), path.stat().st_size
    if Path(f"{path}.loss").exists():
        raise ConfigError(f"--input {path}: {path.name}.loss leaves tokens out of the loss, which is not read here")
    if size == 0 and index.is_file() and index.stat().st_size == 0:  # of a task of datatrove's that had no documents
        return TokenFile(path=path, dtype=np.dtype(np.uint16), tokens=0, ends=np.zeros(0, dtype=np.uint64))
    if not index.is_file() or index.stat().st_size == 0 or index.stat().st_size % 8:
        raise ConfigError(
            f"--input {path}: {index} is missing, empty or cut short; it says where documents end (datatrove writes it "
            "with save_index=True, its default)"
        )
    ends = np.memmap(index, dtype=np.uint64, mode="r")
    tokens, wrong = int(ends[-1]), first_fall(ends)
    if wrong is not None:
        raise ConfigError(f"--input {path}: {index} says that document {wrong} ends before the one in front of it")
    width = size // tokens if tokens else 0
    if width not in (2, 4) or width * tokens != size:
        raise ConfigError(
            f"--input {path}: has {size} bytes where {index.name} promises {tokens} tokens of 2 or 4 bytes each; it is "
            "truncated or belongs to another index"
        )
    dtype = np.dtype(np.uint16 if width == 2 else np.uint32)
    return TokenFile(path=path, dtype=dtype, tokens=tokens, ends=ends, tokenizer=_tokenizer_of(path, width, tokens))


def first_fall(ends: np.ndarray) -> int | None:
    """The first document that ends before the one in front of it; None: there is none."""
    before = np.uint64(0)
    for first in range(0, len(ends), BLOCK_TOKENS):
        block = ends[first : first + BLOCK_TOKENS]
        falls = np.flatnonzero(block < np.concatenate([[before], block[:-1]]))
        if len(falls):
            return first + int(falls[0])
        before = block[-1]
    return None


def _tokenizer_of(path: Path, width: int, tokens: int) -> str:
    """The tokenizer that `.ds.metadata` names. ConfigError where it says something else than the two other files."""
    metadata = Path(f"{path}.metadata")
    if not metadata.is_file():
        return ""
    lines = metadata.read_text(encoding="utf-8").splitlines()
    name, _, bytes_said = lines[0].rpartition("|") if lines else ("", "", "nothing")
    said = (bytes_said, lines[1] if len(lines) > 1 else "no number of")
    if said != (str(width), str(tokens)):
        raise ConfigError(
            f"--input {path}: {metadata.name} says {said[0]} bytes a token and {said[1]} tokens, the files have "
            f"{width} and {tokens}; it belongs to other data"
        )
    return name


def _series_of_chunks(paths: Sequence[Path]) -> tuple[Series, ...]:
    """Chunks by the process that wrote them. ConfigError where one is missing, or they are of several datasets."""
    names: dict[str, dict[int, Path]] = {}
    datasets: dict[str, Path] = {}
    for path in paths:
        if (found := CHUNK_NAME.fullmatch(path.name)) is None:
            raise ConfigError(
                f"--input {path}: a chunk of {PROGRAMS[CHUNK]} is called NAME_PROCESS_0000000000.bin; a .bin with an "
                ".idx beside it is taken by --data-path as it is"
            )
        names.setdefault(str(path.with_name(found["series"])), {})[int(found["number"])] = path
        datasets.setdefault(found["name"], path)
    if len(datasets) > 1:
        first = next(iter(datasets))
        raise ConfigError(
            f"--input: holds chunks of {', '.join(sorted(datasets))}; give one dataset at a time, such as "
            f"'{datasets[first].parent}/{first}_*.bin', so that validation texts are never trained on"
        )
    for name, numbered in names.items():
        if sorted(numbered) != list(range(len(numbered))):
            lost = next(number for number in range(len(numbered)) if number not in numbered)
            raise ConfigError(f"--input {name}_{lost:010d}.bin: is missing; documents go on from chunk to chunk")
    return tuple(
        Series(files=tuple(_open_chunk(numbered[number]) for number in sorted(numbered))) for numbered in names.values()
    )


def _open_chunk(path: Path) -> TokenFile:
    """A chunk. ConfigError where its header is not one, or promises another size."""
    with open(path, "rb") as file:
        header = file.read(CHUNK_HEADER.size)
    if len(header) < CHUNK_HEADER.size or not header.startswith(CHUNK_MAGIC):
        raise ConfigError(f"--input {path}: is no chunk of {PROGRAMS[CHUNK]}: bad magic")
    _, version, code, tokens = CHUNK_HEADER.unpack(header)
    dtype = np.dtype(DTYPE_CODES.get(code, np.void))
    if version != CHUNK_VERSION or dtype not in INTEGERS:
        raise ConfigError(
            f"--input {path}: its header says version {version}, dtype code {code}; known are version {CHUNK_VERSION} "
            "and codes 8 (uint16) and 4 (int32)"
        )
    promised = CHUNK_HEADER.size + tokens * dtype.itemsize
    if path.stat().st_size != promised:
        raise ConfigError(
            f"--input {path}: has {path.stat().st_size} bytes where its header promises {promised}; it is truncated"
        )
    return TokenFile(path=path, dtype=dtype, tokens=tokens, skipped_bytes=CHUNK_HEADER.size)
